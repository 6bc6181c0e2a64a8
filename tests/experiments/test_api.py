"""sagax from Python: an experiment is loaded, trained and restored; its policy acts."""

import jax
import numpy as np
import pytest

from experiments.api import load, restore, train
from experiments.errors import UserError


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
