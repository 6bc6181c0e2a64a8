"""Counting where trained policies go: the counts add up to the steps of an episode; refusals."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from envs.native.maze import START, WALLS
from experiments.assembly import registry
from experiments.commands import run, sweep, visits
from experiments.rows import collecting, reading, run_folders
from tests.experiments import corridor

EPISODES, LENGTH = 3, 20


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = tmp_path_factory.mktemp("runs")
    assert run.main(["curiosity_maze:count,smoke", "--seeds=2", f"--runs={made}"]) == 0
    return made


def test_every_step_is_counted_once_on_a_cell_that_is_no_wall(runs, tmp_path, capsys):
    out = tmp_path / "visits.jsonl"
    assert visits.main(["curiosity_maze:count,smoke", f"--runs={runs}", f"--episodes={EPISODES}", f"--out={out}"]) == 0
    [section] = reading.read_sections(out)
    assert section.header["experiment"] == "curiosity_maze"
    assert [row["seed"] for row in section.rows] == [0, 1]
    rows = reading.read_runs(runs, "curiosity_maze")
    last = max(row["env_steps"] for row in rows)
    for row in section.rows:
        counts = np.asarray(row["visits"])
        assert counts.shape == WALLS.shape
        assert counts.sum() == EPISODES * LENGTH
        assert counts[WALLS].sum() == 0
        # Twenty steps lead no further than twenty cells.
        far = np.abs(np.argwhere(counts) - START).sum(-1)
        assert far.max() <= LENGTH
        assert row["env_steps"] == last
        # The policy has learned next to nothing: a share of whole steps, near one of five actions.
        still = row["no_op"] * EPISODES * LENGTH
        assert still == pytest.approx(round(still), abs=0.01)
        assert 0.05 < row["no_op"] < 0.5
    assert section.rows[0]["visits"] != section.rows[1]["visits"]


def test_what_cannot_be_counted_is_refused_in_one_line(runs, tmp_path, capsys, monkeypatch):
    out = f"--out={tmp_path / 'visits.jsonl'}"
    corridor.register(monkeypatch)
    loaded = corridor.loaded(corridor.without_critic())._replace(module=SimpleNamespace(get_sweep=dict))
    with monkeypatch.context() as patched:
        patched.setattr(registry, "load", lambda _: loaded)
        assert run.main(["corridor", f"--runs={tmp_path / 'single'}"]) == 0
        arguments = ["--sweep.agent.learning_rate=0.001,0.002", "--seeds=1", f"--runs={tmp_path / 'swept'}"]
        assert sweep.main(["corridor", *arguments]) == 0
    [single] = (tmp_path / "single" / "corridor").iterdir()
    [swept] = (tmp_path / "swept" / "corridor").iterdir()
    cases = {
        (str(single),): "expected a run of a maze",
        (str(swept),): "holds a sweep",
        ("curiosity_maze:count,smok", f"--runs={runs}"): "did you mean 'curiosity_maze:count,smoke",
        ("curiosity_maze:count,smoke", f"--runs={runs}", "--episodes=0"): "expected at least 1",
        ("curiosity_maze:count,smoke", f"--runs={runs}", "--checkpoint=newest"): "expected best, latest or an iter",
    }
    for arguments, message in cases.items():
        capsys.readouterr()
        assert visits.main([*arguments, out]) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1


def test_a_checkpoint_without_its_row_is_one_line(runs, tmp_path, capsys):
    [folder] = (runs / "curiosity_maze").iterdir()
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    rows = [row | {"iteration": 0} for row in reading.read_rows(folder / run_folders.METRICS_FILE)]
    (copy / run_folders.METRICS_FILE).write_bytes(b"".join(map(reading.encode_line, rows)))
    assert visits.main([str(copy), f"--episodes={EPISODES}", f"--out={tmp_path / 'visits.jsonl'}"]) == 2
    message = f"{copy / run_folders.METRICS_FILE} has no row of seed 0, iteration "
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_file_that_would_lose_rows_is_refused_before_any_step(runs, tmp_path, capsys, monkeypatch):
    out = tmp_path / "visits.jsonl"
    kept = {"experiment": "curiosity_maze", "variant": "rnd", "seed": 0, "env_steps": 1, "no_op": 0.5}
    collecting.write_sections([reading.Section({"experiment": "curiosity_maze", "variant": "rnd"}, [kept])], out)
    before = out.read_bytes()
    arguments = ["curiosity_maze:count,smoke", f"--runs={runs}", f"--episodes={EPISODES}", f"--out={out}"]
    with monkeypatch.context() as patched:
        patched.setattr(visits, "count_visits", None)
        assert visits.main(arguments) == 2
    assert "would lose 1 rows" in capsys.readouterr().err and out.read_bytes() == before
    assert visits.main([*arguments, "--append"]) == 0
    assert reading.variants_of(reading.read_rows(out)) == ["rnd", "count,smoke"]
