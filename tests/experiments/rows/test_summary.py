"""The summary: its numbers for made-up rows, where it reads them from, and what it refuses."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from experiments.commands import summary as summary_command
from experiments.errors import UserError
from experiments.rows import collecting, reading, statistics, summary

STEPS = np.arange(1, 6) * 100


def straight(variant, slopes, experiment="oprl_sokoban", points=5):
    """Seed i rises by ``slopes[i]`` per evaluation, from that height at 100 steps."""
    return [
        {
            "experiment": experiment,
            "variant": variant,
            "seed": seed,
            "env_steps": int(steps),
            "iteration": int(steps),
            "success": slope * steps / 100,
        }
        for seed, slope in enumerate(slopes)
        for steps in STEPS[:points]
    ]


def write(path, rows, header=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ([{"header": True, **header}] if header else []) + rows
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Committed rows of three variants; the run folders hold one of them, with other values."""
    monkeypatch.chdir(tmp_path)
    rows = straight("grpo,warm", [0.1] * 4) + straight("ppo,warm", [0.2] * 4) + straight("", [0.05, 0.1, 0.1, 0.05])
    write(tmp_path / "results" / "oprl_sokoban.jsonl", rows, {"experiment": "oprl_sokoban", "commit": "abc"})
    return tmp_path


def run_json(capsys, *arguments):
    assert summary_command.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_numbers_follow_from_the_rows(home, capsys):
    answer = run_json(capsys, "oprl_sokoban", "--threshold=0.4", "--baseline=grpo,warm")
    assert {
        key: answer[key] for key in ("experiment", "metric", "threshold", "smoothing", "confidence", "baseline")
    } == {
        "experiment": "oprl_sokoban",
        "metric": "success",
        "threshold": 0.4,
        "smoothing": 1,
        "confidence": 0.95,
        "baseline": "grpo,warm",
    }
    assert answer["source"] == "results/oprl_sokoban.jsonl"
    grpo, ppo, default = answer["variants"]
    assert [entry["variant"] for entry in answer["variants"]] == ["grpo,warm", "ppo,warm", "default"]
    # Equal seeds: 0.5 and 1.0 at the end, 0.4 after 400 and 200 steps, so that the ratio is exactly one half.
    assert grpo["final"] == pytest.approx({"iqm": 0.5, "low": 0.5, "high": 0.5})
    assert ppo["final"] == pytest.approx({"iqm": 1.0, "low": 1.0, "high": 1.0})
    assert grpo["steps_to_threshold"] == pytest.approx({"iqm": 400, "low": 400, "high": 400, "reached": 4})
    assert ppo["steps_to_threshold"]["iqm"] == pytest.approx(200)
    assert ppo["ratio_to_baseline"] == pytest.approx({"ratio": 0.5, "low": 0.5, "high": 0.5, "excludes_1": True})
    assert grpo["ratio_to_baseline"]["excludes_1"] is False
    # The average height of a line from 0.1 to 0.5.
    assert grpo["area_under_curve"]["iqm"] == pytest.approx(0.3)
    assert (grpo["seeds"], grpo["env_steps"]) == (4, 500)
    # Two of four seeds get there: the middle half holds one that did not.
    assert default["steps_to_threshold"]["reached"] == 2
    assert default["steps_to_threshold"]["iqm"] is None and default["steps_to_threshold"]["high"] is None
    assert default["steps_to_threshold"]["low"] == pytest.approx(400)
    assert default["ratio_to_baseline"]["excludes_1"] is False


def test_intervals_are_those_of_statistics(home, capsys):
    slopes = [0.1, 0.12, 0.15, 0.2, 0.22]
    write(home / "runs" / "oprl_sokoban" / "grpo" / "metrics.jsonl", straight("grpo", slopes))
    write(home / "runs" / "oprl_sokoban" / "ppo" / "metrics.jsonl", straight("ppo", [0.3, 0.2, 0.25]))
    answer = run_json(capsys, "oprl_sokoban", "--threshold=0.45", "--baseline=ppo", "--variants=grpo", "--smoothing=2")
    assert answer["source"] == "runs/oprl_sokoban"
    (grpo,) = answer["variants"]
    final = statistics.stratified_bootstrap([slope * 4.5 for slope in slopes])
    assert grpo["final"] == pytest.approx({"iqm": final.estimate, "low": final.low, "high": final.high})
    # The trailing mean of a line from 2 evaluations lags by half an evaluation, and has its first value at 200.
    own = [max(200, (0.45 / slope + 0.5) * 100) for slope in slopes]
    reference = [max(200, (0.45 / slope + 0.5) * 100) for slope in (0.3, 0.2, 0.25)]
    ratio = statistics.interval_of_ratio(own, reference)
    assert grpo["ratio_to_baseline"] == pytest.approx(
        {"ratio": ratio.estimate, "low": ratio.low, "high": ratio.high, "excludes_1": ratio.low > 1}
    )
    assert ratio.low > 1


def test_the_source_can_be_chosen_and_is_named(home, capsys):
    write(home / "runs" / "oprl_sokoban" / "default" / "metrics.jsonl", straight("", [0.2, 0.2]))
    write(home / "elsewhere" / "oprl_sokoban" / "default" / "metrics.jsonl", straight("", [0.3, 0.3]))
    write(home / "other.jsonl", straight("", [0.4, 0.4]))
    for arguments, source, final in (
        ([], "runs/oprl_sokoban", 1.0),
        (["--results", "--variants=grpo,warm"], "results/oprl_sokoban.jsonl", 0.5),
        (["--runs=elsewhere"], "elsewhere/oprl_sokoban", 1.5),
        (["--results=other.jsonl"], "other.jsonl", 2.0),
    ):
        answer = run_json(capsys, "oprl_sokoban", *arguments)
        assert answer["source"] == source
        assert answer["variants"][0]["final"]["iqm"] == pytest.approx(final)
        assert answer["variants"][0]["ratio_to_baseline"] is None


def test_one_seed_has_no_interval(home, capsys):
    write(home / "one.jsonl", straight("", [0.2]))
    (only,) = run_json(capsys, "oprl_sokoban", "--results=one.jsonl", "--baseline=default")["variants"]
    assert only["final"] == pytest.approx({"iqm": 1.0, "low": None, "high": None})
    assert only["ratio_to_baseline"] == {"ratio": 1.0, "low": None, "high": None, "excludes_1": False}


def test_a_baseline_that_never_gets_there_has_no_ratio(home, capsys):
    write(home / "never.jsonl", straight("ppo", [0.2] * 4) + straight("grpo", [0.01] * 4) + straight("a", [0.01, 0.2]))
    ppo, grpo, a = run_json(capsys, "oprl_sokoban", "--results=never.jsonl", "--baseline=grpo")["variants"]
    nothing = {"ratio": None, "low": None, "high": None, "excludes_1": False}
    assert ppo["ratio_to_baseline"] == nothing
    assert grpo["ratio_to_baseline"] == a["ratio_to_baseline"] == nothing | {"low": 0.0}
    # Where half of the baseline's seeds get there, the upper end is known.
    ppo, _, _ = run_json(capsys, "oprl_sokoban", "--results=never.jsonl", "--baseline=a")["variants"]
    assert ppo["ratio_to_baseline"] == pytest.approx({"ratio": None, "low": 0.0, "high": 1.0, "excludes_1": False})


# Their first dozen letters are equal, as those of oni_minigrid's at 80 columns are.
ALIKE = [f"classification,delay_{delay}" for delay in (0, 100, 1000)]


def summary_of_alike(baseline):
    """Arguments of ``_print`` for variants with long names and numbers."""
    rows = [row | {"env_steps": 1000 * row["env_steps"]} for name in ALIKE for row in straight(name, [0.2, 0.01, 0.2])]
    heading = {"experiment": "x", "metric": "success", "source": "y", "threshold": 0.4, "confidence": 0.95}
    return heading | {"baseline": baseline, "sharing_episodes": []}, summary.summarise(
        rows, "success", 0.4, baseline=baseline, repetitions=50
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
@pytest.mark.parametrize("baseline", [None, ALIKE[0]])
def test_names_and_numbers_are_whole_in_a_terminal_of_any_width(width, baseline):
    printed = io.StringIO()
    heading, entries = summary_of_alike(baseline)
    summary_command._print(heading, entries, Console(file=printed, force_terminal=True, width=width, color_system=None))
    text = printed.getvalue()
    assert "…" not in text
    names = "".join(line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│"))
    for name in ALIKE:
        assert names.count(name) >= 1
    assert text.count("not reached [200,000, not reached]") == text.count("2/3") == len(ALIKE)
    if width >= 80:
        assert max(map(len, text.splitlines())) <= width


def test_a_row_in_a_pipe_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    summary_command._print(*summary_of_alike(ALIKE[0]))
    lines = capsys.readouterr().out.splitlines()
    for name in ALIKE:
        [line] = [line for line in lines if f" {name} " in line and "│" in line]
        assert "0.683 [" in line and "not reached [200,000, not reached]" in line and "2/3" in line and "? [" in line


def test_the_text_holds_the_same_numbers(home, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert summary_command.main(["oprl_sokoban", "--threshold=0.4", "--baseline=grpo,warm"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("oprl_sokoban: success, rows of results/oprl_sokoban.jsonl")
    (line,) = [line for line in text.splitlines() if "ppo,warm" in line]
    assert (
        "1.000 [1.000, 1.000]" in line and "200 [200, 200]" in line and "4/4" in line and "0.50 [0.50, 0.50] *" in line
    )
    (line,) = [line for line in text.splitlines() if "default" in line]
    assert "not reached [400, not reached]" in line and "2/4" in line


def test_rows_whose_seeds_shared_their_evaluation_episodes_are_named(home, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    sections = [
        reading.Section({"experiment": "oprl_sokoban", "variant": "old"}, straight("old", [0.1] * 4)),
        reading.Section(
            {"experiment": "oprl_sokoban", "variant": "new", "evaluation_episodes": "per_seed"},
            straight("new", [0.2] * 4),
        ),
    ]
    collecting.write_sections(sections, "two.jsonl")
    arguments = ["oprl_sokoban", "--results=two.jsonl", "--threshold=0.4"]
    assert run_json(capsys, *arguments)["sharing_episodes"] == ["old"]
    assert run_json(capsys, *arguments, "--variants=new")["sharing_episodes"] == []
    assert summary_command.main(arguments) == 0
    assert "leave out the draw of the evaluation episodes, which the seeds share (old)" in capsys.readouterr().out
    # Run folders say it for themselves.
    folder = home / "runs" / "oprl_sokoban" / "new"
    write(folder / "metrics.jsonl", straight("new", [0.2] * 4))
    for described, expected in (({"evaluation_episodes": "per_seed"}, []), ({}, ["new"])):
        (folder / "environment.json").write_text(json.dumps(described))
        assert reading.sharing_episodes(folder.parent) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["oprl_sokoban", "--metric=sucess"], "unknown metric 'sucess', did you mean 'success'? (known: success)"),
        (["oprl_sokoban", "--baseline=gppo,warm"], "unknown variant 'gppo' in the rows, did you mean"),
        (["oprl_sokoban", "--baseline=grpo,warm;ppo,warm"], "names 2 variants, expected one"),
        (["oprl_sokoban", "--variants=ppo,warm;trpo,warm"], "unknown variant 'trpo' in the rows"),
        (["oprl_sokoban", "--smoothing=0"], "smoothing=0: expected at least 1"),
        (["oprl_sokoban", "--smoothing=6"], "smoothing=6: a seed of variant 'grpo,warm' has only 5 evaluations"),
        (["oprl_sokoban", "--confidence=95"], "confidence=95.0: expected a share between 0 and 1"),
        (["oprl_sokoban", "--results=absent.jsonl"], "cannot read absent.jsonl: No such file"),
        (["oprl_sokobn", "--results"], "unknown experiment 'oprl_sokobn', did you mean 'oprl_sokoban'"),
        (["benchmark", "--results"], "unknown experiment 'benchmark', did you mean"),
        (["iqn_breakout", "--results"], "no rows of 'iqn_breakout' in results/iqn_breakout.jsonl: run `sagax run"),
        (["oprl_sokoban", "--results=page.md"], "page.md holds no rows: expected a file of `sagax collect"),
        (["oprl_sokoban:gppo"], "unknown variant 'gppo' in the rows, did you mean"),
        (["oprl_sokoban:ppo,warm", "--variants=default"], "--variants=default beside oprl_sokoban:ppo,warm: expected"),
        (["zzz", "--results=results/oprl_sokoban.jsonl"], "unknown experiment 'zzz' in results/oprl_sokoban.jsonl"),
    ],
)
def test_bad_arguments_are_refused(home, capsys, arguments, message):
    (home / "page.md").write_bytes(b"# A page\n\xff\n")
    (home / "results" / "benchmark.jsonl").write_text('{"case": "x"}\n{"case": "y"}\n')
    assert summary_command.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and message in captured.err and captured.err.count("\n") == 1


def test_the_variants_can_be_named_with_the_experiment(home, capsys):
    for name in ("oprl_sokoban:warm,ppo", "oprl_sokoban:ppo,warm"):
        answer = run_json(capsys, name, "--results")
        assert answer["experiment"] == "oprl_sokoban"
        assert [entry["variant"] for entry in answer["variants"]] == ["ppo,warm"]
    assert len(run_json(capsys, "oprl_sokoban:")["variants"]) == 3


def test_an_experiment_without_rows_says_how_to_run_it(tmp_path, monkeypatch):
    package = tmp_path / "configs_without_rows"
    package.mkdir()
    (package / "ppo_cartpole.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no rows of 'ppo_cartpole' .* run `sagax run ppo_cartpole`"):
        reading.find_rows("ppo_cartpole", package="configs_without_rows")
    with pytest.raises(UserError, match=r"unknown experiment 'ppo_cartpol', did you mean 'ppo_cartpole'"):
        reading.find_rows("ppo_cartpol", package="configs_without_rows")


def test_select_variants():
    known = ["", "grpo,warm", "grpo", "warm", "ppo"]
    assert reading.select_variants("grpo,ppo", known) == ["grpo", "ppo"]
    assert reading.select_variants("warm,grpo", known) == ["grpo,warm"]
    assert reading.select_variants("warm,grpo; ppo;default;ppo", known) == ["grpo,warm", "ppo", ""]
    with pytest.raises(UserError, match=r"unknown variant 'pp' in the rows, did you mean 'ppo'"):
        reading.select_variants("grpo,pp", known)
