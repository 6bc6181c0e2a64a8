"""Bad arguments of a command: one line with the nearest known choice, and the same exit status for all."""

import argparse

import pytest

from experiments.commands import collect, evaluate, figures, run, summary, sweep
from experiments.commands import list as list_command
from experiments.commands.command_parser import CommandParser
from experiments.errors import UserError

NAME = "oprl_sokoban"


@pytest.fixture
def parser():
    made = CommandParser(prog="python -m x")
    made.add_argument("kind", choices=["grpo", "ppo"])
    made.add_argument("--seeds", type=int, default=1)
    group = made.add_mutually_exclusive_group()
    group.add_argument("--threshold", type=float)
    group.add_argument("--greedy", action="store_true")
    made.add_argument("--secret", help=argparse.SUPPRESS)
    return made


def test_what_is_right_is_read(parser):
    options = parser.parse_args(["ppo", "--seeds=3", "--threshold=-2.5e-1"])
    assert (options.kind, options.seeds, options.threshold, options.greedy) == ("ppo", 3, -0.25, False)
    assert parser.parse_known_args(["ppo", "--config.a=1"])[1] == ["--config.a=1"]


HINT = "; python -m x --help lists the arguments"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pp"], "unknown value 'pp' of kind, did you mean 'ppo'? (known: grpo, ppo)"),
        (["ppo", "--seeds=x"], "argument --seeds: expected an integer, got 'x'" + HINT),
        (["ppo", "--threshold=x"], "argument --threshold: expected a finite number, got 'x'" + HINT),
        (["ppo", "--threshold=nan"], "argument --threshold: expected a finite number, got 'nan'" + HINT),
        (["ppo", "--seeds"], "argument --seeds: expected one argument" + HINT),
        (
            ["ppo", "--sead=3"],
            "unknown argument '--sead', did you mean '--seeds'? (known: --help, --seeds, --threshold, --greedy)",
        ),
        # No option is abbreviated.
        (
            ["ppo", "--seed=3"],
            "unknown argument '--seed', did you mean '--seeds' or '--greedy'? "
            "(known: --help, --seeds, --threshold, --greedy)",
        ),
        ([], "the following arguments are required: kind" + HINT),
    ],
)
def test_a_mistake_names_the_value_and_what_was_expected(parser, arguments, message, capsys):
    with pytest.raises(UserError) as refused:
        parser.parse_args(arguments)
    assert str(refused.value) == message
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (run, [NAME, "--seeds=x"], "argument --seeds: expected an integer, got 'x'"),
        (run, [], "the following arguments are required: NAME"),
        (run, [NAME, "--seed=3"], "unknown argument '--seed', did you mean '--seeds'"),
        (evaluate, [NAME, "--episode=3"], "unknown argument '--episode', did you mean '--episodes'"),
        (sweep, [NAME, "--launcher=locl"], "unknown value 'locl' of --launcher, did you mean 'local'?"),
        (sweep, [NAME, "--rank=fnal"], "unknown value 'fnal' of --rank, did you mean 'final'?"),
        (summary, [NAME, "--metrc=success"], "unknown argument '--metrc', did you mean '--metric'"),
        (summary, [NAME, "--threshold=high"], "argument --threshold: expected a finite number, got 'high'"),
        (figures, [NAME, "--smoothing=1.5"], "argument --smoothing: expected an integer, got '1.5'"),
        (figures, [NAME, "--runs=a", "--results=b"], "not allowed with argument --runs"),
        (evaluate, [NAME, "--episodes=all"], "argument --episodes: expected an integer, got 'all'"),
        (collect, ["runs/x"], "the following arguments are required: --out"),
        (list_command, ["--jsn"], "unknown argument '--jsn', did you mean '--json'"),
    ],
)
def test_every_command_refuses_in_one_line(command, arguments, message, capsys):
    assert command.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert message in printed.err


def test_help_is_no_mistake(capsys):
    assert run.main(["--help"]) == 0
    assert "usage: sagax run" in capsys.readouterr().out
