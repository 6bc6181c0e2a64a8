"""Reading rows from run folders and committed files, and refusals."""

import re

import pytest

from experiments.commands import figures, summary
from experiments.rows import reading

ROW = {"experiment": "oprl_sokoban", "variant": "grpo", "seed": 0, "env_steps": 5, "success": 0.5}
MALFORMED = {
    "no seed": ({"seed": None}, "line 2: a row with no seed, expected an integer"),
    "no steps": ({"env_steps": None}, "line 2: a row with no env_steps, expected an integer"),
    "steps as text": ({"env_steps": "five"}, "line 2: a row with env_steps='five', expected an integer"),
    "a truth value": ({"seed": True}, "line 2: a row with seed=True, expected an integer"),
    "a variant that is a list": ({"variant": ["grpo"]}, r"line 2: variant=\['grpo'\], expected text"),
    "an experiment that is a number": ({"experiment": 3}, "line 2: experiment=3, expected text"),
    "a metric that is text": ({"seed": 1, "success": "x"}, "success='x', .*seed=1.*: expected a number as elsewhere"),
    "a metric that is a list": ({"seed": 1, "success": [1]}, r"success=\[1\], .*: expected a number as elsewhere"),
}


@pytest.mark.parametrize("command", [summary, figures])
@pytest.mark.parametrize("mistake", MALFORMED)
def test_a_malformed_row_is_one_line(mistake, command, tmp_path, capsys):
    change, words = MALFORMED[mistake]
    row = {key: value for key, value in (ROW | change).items() if value is not None}
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(map(reading.encode_line, (ROW, row))))
    assert command.main(["oprl_sokoban", f"--results={path}"]) == 2
    error = capsys.readouterr().err
    assert re.search(f"^error: {re.escape(str(path))}.*{words}", error) and error.count("\n") == 1
