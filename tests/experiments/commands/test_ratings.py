"""What reward models pay for messages, compared with known labels, and refusals."""

import pytest

from experiments.assembly import registry
from experiments.commands import ratings, run
from experiments.rows import reading
from tests.experiments import corridor, talking

SCRIPT = {"kind": "scripted", "phrases": ("reached", "cell 1"), "withheld": ("reached", "-2")}
SEEDS = (0, 1)


@pytest.fixture(autouse=True)
def environments(monkeypatch):
    corridor.register(monkeypatch)
    talking.register(monkeypatch)


def trained(config, monkeypatch, runs):
    monkeypatch.setattr(registry, "load", lambda _: corridor.loaded(config, "talking"))
    assert run.main(["talking", f"--runs={runs}", "--seeds=2"]) == 0


@pytest.mark.parametrize("model", ["retrieval", "classification", "ranking"])
def test_every_message_of_a_run_is_rated(model, monkeypatch, tmp_path, capsys):
    config = talking.config_of(model, **SCRIPT)
    config.iterations = 12
    config.rewards.language.update({"updates": 64, "learning_rate": 0.02})
    trained(config, monkeypatch, tmp_path)
    out = tmp_path / "ratings.jsonl"
    assert ratings.main([str(tmp_path / "talking" / "default"), f"--out={out}"]) == 0
    [section] = reading.read_sections(out)
    assert [row["seed"] for row in section.rows] == list(SEEDS)
    last = max(row["env_steps"] for row in reading.read_runs(tmp_path, "talking"))
    for row in section.rows:
        assert row["env_steps"] == last
        rated = dict(zip(row["messages"], zip(row["paid"], row["good"], row["withheld"], strict=True), strict=True))
        assert rated.keys() <= {talking.name_of(cell) for cell in (-3, -2, -1, 1, 2)}
        # A withheld message is good or not all the same.
        flags = [rated[talking.name_of(cell)][1:] for cell in (-2, -1, 1, 2)]
        assert flags == [(False, True), (False, False), (True, False), (True, True)]
        labelled = {message: (paid, good) for message, (paid, good, withheld) in rated.items() if not withheld}
        if model == "ranking":
            assert labelled[talking.name_of(1)][0] > labelled[talking.name_of(-1)][0]
        else:
            assert all(paid == float(good) for paid, good in labelled.values())
        if model == "retrieval":
            assert all(paid == 0 for paid, _, withheld in rated.values() if withheld)


def test_runs_that_cannot_be_rated_are_refused_in_one_line(monkeypatch, tmp_path, capsys):
    trained(corridor.with_critic(), monkeypatch, tmp_path)
    folder = str(tmp_path / "talking" / "default")
    capsys.readouterr()
    assert ratings.main([folder, f"--out={tmp_path / 'ratings.jsonl'}"]) == 2
    error = capsys.readouterr().err
    assert "annotator.kind=None: expected a run with a scripted annotator" in error and error.count("\n") == 1
