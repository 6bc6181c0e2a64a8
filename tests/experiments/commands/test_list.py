"""The list of experiments, as text and as JSON."""

import contextlib
import io
import json
import re

import pytest

from experiments.assembly import registry
from experiments.commands import list as list_command

MODULE = """
VARIANTS = {"grpo": "group z-score [red]", "warm": "from demonstrations"}
REPRODUCES = "A paper, figure 1"

def get_config(variant=""):
    raise AssertionError("listing must not build configurations")

def get_sweep():
    return {"credit.weight": (0.1, 0.3)}
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    name = f"configs_to_list_{abs(hash(str(tmp_path)))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "oprl_sokoban.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_json_is_one_object_with_everything(package, capsys):
    assert list_command.main(["--json"], package) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {
        "experiments": [
            {
                "name": "oprl_sokoban",
                "reproduces": "A paper, figure 1",
                "variants": {"grpo": "group z-score [red]", "warm": "from demonstrations"},
                "sweep": {"credit.weight": [0.1, 0.3]},
            }
        ]
    }


def test_the_table_names_each_variant(package, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert list_command.main(["oprl_sokoban"], package) == 0
    text = capsys.readouterr().out
    for words in ("oprl_sokoban", "A paper, figure 1", ":grpo", "group z-score [red]", ":warm", "from demonstrations"):
        assert words in text


def test_without_a_name_each_experiment_is_one_line(package, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert list_command.main([], package) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["oprl_sokoban", "A", "paper,", "figure", "1"] and not any(
        "grpo" in line for line in lines
    )


HALF_WRITTEN = {
    "half_raises": "raise RuntimeError('not yet')\n",
    "half_syntax": "def get_sweep(:\n",
    "half_lacks": "VARIANTS = {}\n",
    "half_sweep": MODULE.replace('return {"credit.weight": (0.1, 0.3)}', "return NoSuchName"),
}


def test_a_half_written_experiment_breaks_no_other(package, tmp_path, capsys):
    for name, source in HALF_WRITTEN.items():
        (tmp_path / package / f"{name}.py").write_text(source)
    assert list_command.main(["--json"], package) == 0
    captured = capsys.readouterr()
    assert [one["name"] for one in json.loads(captured.out)["experiments"]] == ["oprl_sokoban"]
    lines = captured.err.splitlines()
    assert sorted(line.split("'")[1] for line in lines) == sorted(HALF_WRITTEN)
    assert all(line.startswith("left out: experiment ") for line in lines)
    assert list_command.main(["half_sweep"], package) == 2
    assert "error: experiment 'half_sweep' is broken: NameError" in capsys.readouterr().err
    assert list_command.main(["oprl_sokoban"], package) == 0
    assert capsys.readouterr().err == ""


def test_an_unknown_experiment_is_refused_with_the_nearest(package, capsys):
    assert list_command.main(["oprl_sokobn"], package) == 2
    assert "unknown experiment 'oprl_sokobn', did you mean 'oprl_sokoban'" in capsys.readouterr().err


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize(("encoding", "ellipsis"), [("utf-8", "\N{HORIZONTAL ELLIPSIS}"), ("latin-1", "...")])
def test_a_terminal_gets_a_line_per_experiment_and_a_pipe_the_whole_of_it(encoding, ellipsis, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    assert list_command.main([]) == 0
    whole = capsys.readouterr().out.splitlines()
    terminal = Terminal()
    terminal.encoding = encoding
    with contextlib.redirect_stdout(terminal):
        assert list_command.main([]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()
    assert len(lines) == len(whole) == len(registry.names()) + 1
    assert max(map(len, lines[:-1])) <= 80 < max(map(len, whole))
    for line, full in zip(lines[:-1], whole, strict=False):
        assert line == full or (line.endswith(ellipsis) and full.startswith(line.removesuffix(ellipsis)))


def test_an_unknown_option_is_an_error(package, capsys):
    assert list_command.main(["--jsn"], package) == 2
    assert "--jsn" in capsys.readouterr().err
