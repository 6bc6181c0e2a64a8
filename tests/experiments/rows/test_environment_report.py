"""What a run records about the machine and the software that it ran on."""

import json

from experiments import ROOT
from experiments.disk import read_json
from experiments.rows import environment_report as module
from experiments.rows.environment_report import changed_sessions, environment_report, note_session


def test_environment_report_names_versions_device_and_command():
    report = environment_report(["sagax", "run", "a b"])
    assert report["command"] == "sagax run 'a b'"
    assert {"python", "jax", "jaxlib", "flax", "optax", "numpy", "gymnasium"} <= report["versions"].keys()
    assert report["evaluation_episodes"] == "per_seed"
    assert report["platform"] in ("cpu", "gpu", "tpu") and report["device"]
    json.dumps(report, allow_nan=False)


def test_the_flags_of_xla_are_recorded(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    assert environment_report([])["xla_flags"] == "--xla_dump_to=x"
    monkeypatch.delenv("XLA_FLAGS")
    assert environment_report([])["xla_flags"] == ""


def test_a_commit_is_recorded_only_where_the_repository_is_ours(monkeypatch):
    """A copy of sagax inside another repository would record that repository's commit, as clean."""
    answers = {"--show-toplevel": str(ROOT), "HEAD": "a1b2", "--untracked-files=no": ""}
    monkeypatch.setattr(module, "_git", lambda root, *arguments: answers[arguments[-1]])
    assert [environment_report([])[key] for key in ("commit", "dirty")] == ["a1b2", False]
    answers["--show-toplevel"] = str(ROOT.parent)
    assert [environment_report([])[key] for key in ("commit", "dirty")] == [None, None]


def test_every_session_that_made_rows_is_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "environment.json"

    def session(first_row, commit, **facts):
        monkeypatch.setattr(module, "environment_report", lambda: {"commit": commit, "command": "c"})
        note_session(path, first_row, facts)
        return read_json(path)

    first = {"commit": "a", "command": "c"}
    assert session(0, "lost") and session(0, "a") == first
    assert session(4, "lost")["continued"][0]["commit"] == "lost"
    # Nothing made from row 4 on is left.
    assert session(4, "a", resumed_exactly=False) == first | {
        "continued": [{"first_row": 4, "resumed_exactly": False} | first]
    }
    continued = session(8, "b")["continued"]
    assert [(one["first_row"], one["commit"]) for one in continued] == [(4, "a"), (8, "b")]
    assert changed_sessions(read_json(path), ("commit", "dirty")) == [{"first_row": 8, "commit": "b"}]
    assert session(0, "c") == {"commit": "c", "command": "c"}
    assert changed_sessions(read_json(path), ("commit",)) == []
