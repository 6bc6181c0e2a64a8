"""sagax from Python: an experiment is loaded, trained and restored; its policy acts."""

import json

import jax
import numpy as np
import pytest

from experiments.api import columns, load, publish, restore, train
from experiments.commands import figures, summary
from experiments.errors import UserError
from experiments.rows import reading


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tour"
    rows = train(load("ppo_cartpole:native,smoke", {"iterations": 2}), folder, seeds=2)
    return folder, rows


def test_training_returns_the_rows_and_goes_on_where_it_stopped(trained):
    folder, rows = trained
    assert {row["seed"] for row in rows} == {0, 1} and {row["iteration"] for row in rows} == {2}
    assert all(row["variant"] == "native,smoke+iterations=2" for row in rows)
    assert train(load("ppo_cartpole:native,smoke", {"iterations": 2}), folder, seeds=2) == rows


def test_a_restored_policy_acts_on_one_observation_and_on_a_batch(trained):
    policy = restore(trained[0], checkpoint="latest", seed=1)
    assert (policy.seed, policy.iteration) == (1, 2)
    observations = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)
    batch, _ = policy.act(observations)
    single = [policy.act(observation)[0] for observation in observations]
    assert np.shape(single[0]) == () and batch.tolist() == [int(action) for action in single]
    sampled = [policy.act(observations, key=jax.random.key(seed), greedy=False)[0].tolist() for seed in range(4)]
    assert len(set(map(tuple, sampled))) > 1
    params = jax.tree.leaves(restore(trained[0], checkpoint="latest").params)
    assert any(not np.array_equal(x, y) for x, y in zip(params, jax.tree.leaves(policy.params), strict=True))


def test_rows_are_a_table(trained):
    _, rows = trained
    table = columns(rows)
    assert table["seed"].tolist() == [0, 1] and table["seed"].dtype.kind == "i"
    assert table["return"].tolist() == [row["return"] for row in rows] and table["variant"].dtype == object
    assert all(len(values) == len(rows) for values in table.values())
    # Each value is a number, a text or nothing, which every library of tables takes.
    assert all(isinstance(value, int | float | str | None) for row in rows for value in row.values())
    assert columns([]) == {}


def test_rows_of_a_run_folder_are_summarised_and_drawn(trained, tmp_path, capsys):
    folder, rows = trained
    assert reading.read_rows(folder) == rows
    assert summary.main([str(folder), "--metric=return", "--threshold=10", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["experiment"], answer["source"], answer["sharing_episodes"]) == ("ppo_cartpole", str(folder), [])
    assert summary.main(["ppo_cartpole", f"--results={folder}", "--metric=return", "--threshold=10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answer
    assert figures.main([str(folder), "--metric=return", f"--out={tmp_path / 'curve.png'}"]) == 0
    assert (tmp_path / "curve.png").stat().st_size > 1000
    for command in (summary, figures):
        assert command.main([str(folder), f"--runs={tmp_path}"]) == 2
        assert "is a run folder: expected no --runs or --results" in capsys.readouterr().err
        assert command.main(["ppo_cartpole", f"--results={tmp_path}"]) == 2
        assert f"cannot read {tmp_path}/metrics.jsonl" in capsys.readouterr().err


def test_what_is_published_is_restored(trained, tmp_path):
    assert len(publish(trained[0], tmp_path / "model")) == 5
    before, after = restore(trained[0]), restore(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)


def test_what_cannot_be_restored_or_acted_on_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match="has no seed 7; it has 0, 1"):
        restore(trained[0], seed=7)
    with pytest.raises(UserError):
        restore(tmp_path / "nothing")
    policy = restore(trained[0], checkpoint="latest")
    with pytest.raises(UserError, match="needs a key"):
        policy.act(np.zeros(4, np.float32), greedy=False)
    with pytest.raises(UserError, match=r"shapes \[\(3,\)\]"):
        policy.act(np.zeros(3, np.float32))
    with pytest.raises(UserError, match="unknown experiment"):
        load("ppo_cartpol")
