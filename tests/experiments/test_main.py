"""``sagax COMMAND``: one entry point for every command."""

import importlib

import pytest

from experiments.__main__ import COMMANDS, main


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
