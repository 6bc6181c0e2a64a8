"""``sagax COMMAND``: one entry point for every command."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2]


def test_the_help_lists_every_command_in_a_line(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, description in COMMANDS.items():
        assert any(line.split() == [name, *description.split()] for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_module_with_a_main_and_a_help(name, capsys):
    assert callable(importlib.import_module(f"experiments.commands.{name}").main)
    assert main([name, "--help"]) == 0
    assert f"usage: sagax {name}" in capsys.readouterr().out


def test_an_unknown_command_is_refused_with_the_nearest(capsys):
    assert main(["summry", "x"]) == 2
    assert "unknown command 'summry', did you mean 'summary'" in capsys.readouterr().err


def test_show_prints_the_run_card_and_the_configuration(capsys):
    assert main(["show", "oprl_sokoban:grpo", "--config.agent.learning_rate=0.5"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("oprl_sokoban:grpo\n\n") and "arXiv 2509.19199" in printed
    assert (
        "--config.agent.learning_rate=0.5\n" in printed and "--config.credit.env.estimator=group_outcome\n" in printed
    )


def test_every_help_and_run_card_is_there_without_docstrings():
    # No assertions in the script: Python drops them, too.
    code = (
        "from experiments.__main__ import main\n"
        f"for name in {list(COMMANDS)}: main([name, '--help'])\n"
        "main(['show', 'ppo_cartpole:native'])"
    )
    done = subprocess.run([sys.executable, "-OO", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: sagax ") == len(COMMANDS)
    assert "beside the same algorithm written by hand" in done.stdout and "Expected, 10 seeds" in done.stdout


def test_a_terminal_that_cannot_show_a_character_gets_its_number():
    command, environment = [sys.executable, "-m", "experiments", "list"], os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 0 and done.stderr == b""
    assert b"D\\u03b7N" in done.stdout


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    (home / "rows" / "oprl_sokoban" / "default").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    row = {"experiment": "oprl_sokoban", "variant": "", "seed": 0, "env_steps": 1, "success": 0.5, "iteration": 1}
    rows = home / "rows" / "oprl_sokoban" / "default" / "metrics.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    rows.with_name("config.json").write_text(json.dumps({"config": {}, "members": []}))
    for words in (
        ["summary", "oprl_sokoban", "--runs=~/rows"],
        ["figures", "oprl_sokoban", "--runs=~/rows", "--out=~/curve.svg"],
        ["summary", "oprl_sokoban", "--results=~/rows/oprl_sokoban/default/metrics.jsonl"],
    ):
        assert main(words) == 0, capsys.readouterr().err
    assert (home / "curve.svg").is_file()
    # The folder is found, but it does not describe a run.
    for words in (
        ["evaluate", "~/rows/oprl_sokoban/default"],
        ["evaluate", "oprl_sokoban", "--runs=~/rows"],
        ["visits", "oprl_sokoban", "--runs=~/rows", "--out=~/visits.jsonl"],
        ["collect", "~/rows/oprl_sokoban/default", "--out=~/rows.jsonl"],
    ):
        assert main(words) == 2
        assert f"{home}/rows/oprl_sokoban/default" in capsys.readouterr().err
    assert main(["run", "oprl_sokoban", "--runs=~nobody-here/x"]) == 2
    assert "~nobody-here/x: there is no such home folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]
