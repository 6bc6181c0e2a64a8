"""The tables of the documentation agree with the committed rows."""

import json
import shutil
from pathlib import Path

import pytest

from experiments.commands import tables as command
from experiments.errors import UserError
from experiments.rows.pages import PAGES, stale_pages, write_pages
from experiments.rows.reading import encode_line
from experiments.rows.tables import (
    Curves,
    Grid,
    benchmark_table,
    curves_table,
    devices_table,
    grid_table,
    method_of,
    tuning_budgets,
)

ROOT = Path(__file__).resolve().parents[3]


def test_the_pages_agree_with_the_rows():
    assert stale_pages(ROOT) == []


@pytest.fixture
def root(tmp_path):
    """Rows of two variants, three seeds each: ``fast`` reaches .5 after 50 steps, ``slow`` after 150."""
    (tmp_path / "results").mkdir()
    heights = {"fast": (0.0, 1.0, 1.0), "slow": (0.0, 0.25, 0.75)}
    rows = [
        {"experiment": "x", "variant": name, "seed": seed, "env_steps": 100 * index, "success": value}
        for name, values in heights.items()
        for seed in range(3)
        for index, value in enumerate(values)
    ]
    (tmp_path / "results" / "x.jsonl").write_bytes(b"".join(map(encode_line, rows)))
    tuning = [
        {"experiment": "x", "variant": f"slow+sweep+a={value}", "seed": seed, "env_steps": 500_000, "success": 0.1}
        for value in (1, 2)
        for seed in (7, 8)
    ]
    (tmp_path / "results" / "x_tuning.jsonl").write_bytes(b"".join(map(encode_line, tuning)))
    return tmp_path


def test_a_table_of_curves_by_hand(root):
    table = Curves("Title", "x", "success", {"fast": "Fast", "slow": "Slow"}, 0.5, "slow", "Text.")
    lines = curves_table(table, root).splitlines()
    assert lines[:3] == ["### Title", "", "Text."]
    assert lines[4].split(" | ")[4:] == [
        "area under the curve",
        "environment steps to 0.5",
        "ratio to Slow",
        "tuned on |",
    ]
    fast, slow = (line.strip("| ").split(" | ") for line in lines[6:])
    assert fast[:4] == ["Fast", "3", "200", "1.00 [1.00, 1.00]"]
    assert fast[5:] == ["50 [50, 50]", "0.33 [0.33, 0.33]", "nothing"]
    assert slow[4:] == ["0.31 [0.31, 0.31]", "150 [150, 150]", "1", "2 points, 2 seeds, 2M steps"]


def test_a_variant_without_rows_is_refused(root):
    with pytest.raises(UserError, match="no rows of the variant 'gone'; it has fast, slow"):
        curves_table(Curves("Title", "x", "success", {"gone": "Gone"}), root)


def test_a_grid_by_hand(root):
    table = Grid("Title", "x", {"fast": "Fast"}, {"a": "A", "b": "B"}, "mean", metrics={"a": "success", "b": "length"})
    assert grid_table(table, root).splitlines()[-1] == "| Fast | 0.67 [0.67, 0.67] | no rows |"


@pytest.mark.parametrize(
    ("variant", "untuned", "budget"),
    [
        ("slow", (), "1 points, 1 seeds, 2e-06M steps"),
        ("slow,far", (), "1 points, 1 seeds, 3e-06M steps"),
        ("slow,warm", (), "1 points, 1 seeds, 2e-06M steps"),
        ("slow", ("slow",), "nothing"),
        ("fast", (), "nothing"),
    ],
    ids=["tuned", "tuned in its setting", "tuned in another setting", "as documented", "never tuned"],
)
def test_a_variant_shows_what_tuned_it(tmp_path, variant, untuned, budget):
    (tmp_path / "results").mkdir()
    plain = {"experiment": "x", "seed": 0, "success": 1.0}
    rows = [plain | {"variant": variant, "env_steps": steps} for steps in (0, 1)]
    tuning = [
        plain | {"variant": "slow+sweep+a=1", "env_steps": 2},
        plain | {"variant": "slow,far+a=2", "env_steps": 3},
    ]
    for name, found in (("x", rows), ("x_tuning", tuning)):
        (tmp_path / "results" / f"{name}.jsonl").write_bytes(b"".join(map(encode_line, found)))
    table = Curves("Title", "x", "success", {variant: "Name"}, untuned=untuned)
    assert curves_table(table, tmp_path).splitlines()[-1].strip("| ").split(" | ")[-1] == budget


def test_the_method_of_a_variant():
    assert [method_of(name) for name in ("ppo,warm+agent.clip=0.1", "ppo", "+sweep+a=1", "")] == ["ppo", "ppo", "", ""]


def test_budgets_come_from_the_tuning_rows(root):
    assert tuning_budgets("x", root) == {"slow": "2 points, 2 seeds, 2M steps"}
    assert tuning_budgets("y", root) == {}


def test_of_two_records_of_a_comparison_the_newer_is_shown(tmp_path):
    machine = {"device": "cpu", "device_count": 1, "cores": 2, "versions": {"jax": "1"}}
    comparison = {"name": "n", "ours": "o", "reference": "r", "unit": "u", "ours_median": 2.0, "reference_median": 1.0}
    comparison |= {"ratio_min": 1.5, "ratio_max": 2.5, "pairs": 3}
    path = tmp_path / "benchmark.jsonl"
    records = [
        {"case": "c", "machine": machine | {"started": started}, "comparisons": [comparison | {"ratio": ratio}]}
        for started, ratio in (("2026-02", 2.0), ("2026-01", 9.0))
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    lines = benchmark_table(path).splitlines()
    assert len(lines) == 3 and "| 2.00 (1.50 to 2.50, 3 pairs) |" in lines[2]
    path.write_text("{")
    with pytest.raises(UserError, match="not a file of JSON lines"):
        benchmark_table(path)


def test_of_two_measurements_of_a_device_the_newer_is_shown_and_an_early_end_is_told(tmp_path):
    machine = {"device": "cpu", "device_count": 1, "cores": 2, "versions": {"jax": "1"}}
    figures = {"compile_seconds": 3.25, "first_chunk_seconds": 5.0, "peak_bytes": 2**30, "memory_of": "process"}
    measured = [
        ("2026-02", {"seeds": 10, "ended": "finished", "steps_per_second": 20000.0} | figures),
        ("2026-01", {"seeds": 10, "ended": "finished", "steps_per_second": 1.0} | figures),
        ("2026-01", {"seeds": 100, "ended": "stopped after 60 s"}),
        ("2026-01", {"seeds": 200, "ended": "finished", "steps_per_second": 5.0} | figures),
    ]
    # Like rows from before the compiler's own time was recorded.
    del measured[-1][1]["first_chunk_seconds"]
    path = tmp_path / "devices.jsonl"
    records = [
        {"case": "devices", "machine": machine | {"started": started}, "measurement": {"name": "n"} | found}
        for started, found in measured
    ]
    records.append({"case": "devices", "machine": {}, "measurement": {"name": "n", "seeds": 1, "ended": "failed: no"}})
    path.write_text("\n".join(map(json.dumps, records)))
    assert devices_table(path).splitlines()[2:] == [
        "| `n` | 1 × cpu, 2 cores | 1 | 10 | 2e+04 | 3.2 | 1,024 of the process |",
        "| `n` | 1 × cpu, 2 cores | 1 | 100 | stopped after 60 s |  |  |",
        "| `n` | 1 × cpu, 2 cores | 1 | 200 | 5 |  | 1,024 of the process |",
    ]


def test_the_command_writes_and_checks(tmp_path, capsys):
    shutil.copytree(ROOT / "results", tmp_path / "results")
    assert command.main([f"--root={tmp_path}", "--check"]) == 2
    assert "docs/results.md, docs/benchmarks.md: not what the rows" in capsys.readouterr().err
    assert command.main([f"--root={tmp_path}"]) == 0
    assert capsys.readouterr().out.split() == list(PAGES)
    assert command.main([f"--root={tmp_path}", "--check"]) == 0


def test_without_rows_nothing_is_written(tmp_path):
    with pytest.raises(UserError, match="no folder results: run this command in the root"):
        write_pages(tmp_path)
    assert not list(tmp_path.iterdir())
