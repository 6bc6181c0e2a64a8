"""Figures draw the values of the statistics, and a file is written completely or not at all."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.commands import figures as figures_command
from experiments.errors import UserError
from experiments.rows import figures, run_folders, statistics
from experiments.training.row_writer import RowWriter


def rows_of(variant, table, experiment="oprl_sokoban"):
    return [
        {"experiment": experiment, "variant": variant, "seed": seed, "env_steps": 1000 * (point + 1), "success": value}
        for seed, values in enumerate(table)
        for point, value in enumerate(values)
    ]


TABLE = np.random.default_rng(0).uniform(size=(5, 4)).cumsum(1) / 4
ROWS = rows_of("grpo", TABLE) + rows_of("", TABLE[:, ::-1])


@pytest.fixture
def home(tmp_path, monkeypatch):
    package = tmp_path / "configs_to_draw"
    package.mkdir()
    for name, paper in (
        ("oprl_sokoban", "OPRL, figure 3"),
        ("ppo_cartpole", "Schulman et al."),
        ("rnd", "RND and OPRL"),
    ):
        (package / f"{name}.py").write_text(
            f"REPRODUCES = {paper!r}\nVARIANTS = {{}}\ndef get_config(variant=''): ...\ndef get_sweep(): return {{}}\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "runs" / "oprl_sokoban" / "grpo" / "metrics.jsonl"
    with RowWriter(path) as writer:
        for row in ROWS:
            writer.append({**row, "iteration": 0})
    return "configs_to_draw"


def test_the_line_and_the_band_are_the_curve():
    axes = Figure().subplots()
    drawn = figures.plot_curves(axes, ROWS, "success", ["", "grpo"], labels={"": "ours"}, threshold=0.5, title="title")
    assert list(drawn) == ["", "grpo"]
    for variant, line, band in zip(drawn, axes.lines, axes.collections, strict=False):
        curve = statistics.curve([row for row in ROWS if row["variant"] == variant], "success")
        np.testing.assert_array_equal(line.get_xdata(), [1000, 2000, 3000, 4000])
        np.testing.assert_allclose(line.get_ydata(), curve.estimate)
        corners = band.get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose([corners.min(), corners.max()], [curve.low.min(), curve.high.max()])
    assert axes.lines[2].get_ydata() == [0.5, 0.5]
    # Sorted by the lines' ends: the rising one first.
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["grpo (5 seeds)", "ours (5 seeds)"]
    assert axes.get_xlabel() == "environment steps" and axes.get_title(loc="left") == "title"


def test_curves_are_told_apart_by_colour_and_then_by_line():
    rows = [row for index in range(9) for row in rows_of(f"v{index}", TABLE[:2])]
    axes = Figure().subplots()
    figures.plot_curves(axes, rows, "success", repetitions=10)
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 9


def test_panels_split_many_variants_by_setting():
    methods = ("oprl", "grpo", "ppo", "rloo", "prime")
    many = [f"{method},{setting}" for method in methods for setting in ("warm", "scratch")]
    assert figures.panels(many[:8]) == {"": many[:8]}
    assert figures.panels(many) == {"warm": many[::2], "scratch": many[1::2]}
    rows = [row for variant in many for row in rows_of(variant, TABLE[:2, :2])]
    lacking = [row for row in rows if row["variant"] != "oprl,warm"]
    drawn = figures.draw({"x": lacking + rows_of("extra,warm", TABLE[:2, :2])}, "success").axes
    assert [axes.get_title(loc="left") for axes in drawn] == ["x: scratch", "x: warm"]
    # A method has one colour in both panels, though one panel lacks the first method.
    colours = [
        {
            text.get_text().partition(",")[0]: line.get_color()
            for line, text in zip(axes.get_legend().get_lines(), axes.get_legend().get_texts(), strict=True)
        }
        for axes in drawn
    ]
    assert colours[0].keys() - colours[1].keys() == {"oprl"} and colours[1].keys() - colours[0].keys() == {"extra"}
    assert all(colours[0][method] == colours[1][method] for method in methods[1:])
    assert len(set(colours[0].values())) == 5


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1000, "1k"), (250_000, "250k"), (1.5e6, "1.5M"), (2e9, "2G")]
)
def test_thousands(value, text):
    assert figures._thousands(value) == text


def test_the_settings_of_a_user_do_not_reach_the_figure(home, tmp_path):
    """A matplotlibrc that asks for LaTeX would end the command where no LaTeX is installed."""
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red"}):
        assert figures_command.main(["oprl_sokoban", "--out=plain.png"], home) == 0
    picture = matplotlib.image.imread(tmp_path / "plain.png")
    assert (picture[..., 1] > 0.9).mean() > 0.5


def test_the_command_writes_a_picture(home, tmp_path, capsys):
    assert figures_command.main(["oprl_sokoban", "--out=out/curve.png", "--threshold=0.5"], home) == 0
    assert capsys.readouterr().out == "out/curve.png: success of oprl_sokoban, rows of runs/oprl_sokoban\n"
    picture = matplotlib.image.imread(tmp_path / "out" / "curve.png")
    assert picture.shape[1] > 900
    # Both colours of the palette are in the picture.
    for colour in figures.PALETTE[:2]:
        wanted = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
        assert (np.abs(picture[..., :3] - wanted).max(-1) < 0.01).sum() > 100
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["curve.png"]


def test_a_paper_stands_for_its_experiments(home, capsys):
    assert figures.experiments_of("oprl", home) == ["oprl_sokoban", "rnd"]
    assert figures.experiments_of("schulman", home) == ["ppo_cartpole"]
    # An experiment of the paper that has no rows yet is left out.
    assert figures_command.main(["oprl"], home) == 0
    assert capsys.readouterr().out == "oprl.png: success of oprl_sokoban, rows of runs/oprl_sokoban\n"


def test_a_half_written_experiment_breaks_no_figure(home, tmp_path, capsys):
    (tmp_path / home / "half.py").write_text("raise RuntimeError('not yet')\n")
    assert figures_command.main(["oprl"], home) == 0
    captured = capsys.readouterr()
    assert captured.out == "oprl.png: success of oprl_sokoban, rows of runs/oprl_sokoban\n"
    assert captured.err.startswith("left out: experiment 'half' is broken: RuntimeError: not yet (")
    assert captured.err.count("\n") == 1


def test_an_experiment_of_a_paper_without_the_metric_is_left_out_and_named(home, tmp_path, capsys):
    rows = [{**row, "experiment": "rnd", "trackers": row["success"]} for row in rows_of("", TABLE)]
    for row in rows:
        del row["success"]
    with RowWriter(tmp_path / "runs" / "rnd" / "default" / "metrics.jsonl") as writer:
        for row in rows:
            writer.append({**row, "iteration": 0})
    for metric, drawn, left in (("success", "oprl_sokoban", "rnd"), ("trackers", "rnd", "oprl_sokoban")):
        assert figures_command.main(["oprl", f"--metric={metric}"], home) == 0
        expected = f"oprl.png: {metric} of {drawn}, rows of runs/{drawn}\nleft out, without {metric}: {left}\n"
        assert capsys.readouterr().out == expected
    assert figures_command.main(["oprl", "--metric=sucess"], home) == 2
    message = "unknown metric 'sucess' in the rows of oprl_sokoban, rnd, did you mean 'success'? (known: success, track"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["oprl_sokobn"], "unknown paper or experiment 'oprl_sokobn', did you mean 'oprl_sokoban'?"),
        (["ppo_cartpole"], "no rows of 'ppo_cartpole'"),
        (
            ["oprl_sokoban", "--metric=sucess"],
            "unknown metric 'sucess' in the rows of oprl_sokoban, did you mean 'success'?",
        ),
        (["oprl_sokoban", "--variants=gppo"], "unknown variant 'gppo' in the rows, did you mean 'grpo'"),
        (["oprl_sokoban", "--smoothing=9"], "a trailing mean over 9 of 4 evaluations"),
        (["oprl_sokoban", "--out=curve.gif"], "figure file 'curve.gif': expected a name that ends in .pdf, .png, .svg"),
        (["oprl_sokoban", "--size=8"], "--size=8: expected WIDTHxHEIGHT in inches"),
        (["oprl_sokoban", "--size=8x-1"], "--size=8x-1: expected WIDTHxHEIGHT in inches"),
        (["oprl_sokoban", "--size=1e9x4"], "above 0 and at most 100"),
        (["oprl_sokoban", "--size=1x0.5"], "figure of 1 x 0.5 inches: no room for its labels and legends"),
        (["oprl_sokoban", "--labels=grpo"], "--labels=grpo: 'grpo' has no label"),
        (["oprl_sokoban", "--labels=gpro=x"], "unknown variant 'gpro' in the rows, did you mean 'grpo'"),
        (["oprl_sokoban", "--out=configs_to_draw/rnd.py/a.png"], "cannot write configs_to_draw/rnd.py/a.png"),
    ],
)
def test_bad_arguments_are_refused(home, tmp_path, capsys, arguments, message):
    before = sorted(path.name for path in tmp_path.iterdir())
    assert figures_command.main(arguments, home) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_variant_without_the_metric_is_refused():
    rows = [*ROWS, {"experiment": "x", "variant": "ppo", "seed": 0, "env_steps": 1, "success": None}]
    with pytest.raises(UserError, match="variant 'ppo': no row has a value of 'success'"):
        figures.plot_curves(Figure().subplots(), rows, "success")


@pytest.mark.filterwarnings("error:.*layout not applied")
def test_long_names_and_many_curves_leave_room_for_the_panel(tmp_path):
    long = [*rows_of("agent.learning_rate=0.001" * 6, TABLE[:2]), *rows_of("short", TABLE[:2])]
    many = [row for index in range(40) for row in rows_of(f"v{index},warm", TABLE[:2, :2])]
    for rows, grown in ((long, 0), (many, 1)):
        figure = figures.draw({"x": rows}, "success")
        figures.save(figure, tmp_path / "curve.png")
        assert figure.get_size_inches()[grown] > 1.5 * figures.PANEL[grown]
        for axes in figure.axes:
            box = axes.get_window_extent().size / figure.dpi
            assert box[0] > 4 and box[1] > 2.5


def test_a_figure_that_is_too_small_is_refused_and_not_written(tmp_path):
    figure = Figure(figsize=(1, 0.5), layout="constrained")
    figures.plot_curves(figure.subplots(), ROWS, "success", repetitions=10)
    expected = r"figure of 1 x 0.5 inches: no room .* expected at least 8.5 x 3.9 inches a panel"
    with pytest.raises(UserError, match=expected):
        figures.save(figure, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


def test_a_destination_is_checked_without_a_figure(tmp_path):
    figures.require_destination(tmp_path / "new" / "curve.png")
    with pytest.raises(UserError, match=r"cannot write .*curve.png/curve.png: Not a directory"):
        (tmp_path / "curve.png").write_text("")
        figures.require_destination(tmp_path / "curve.png" / "curve.png")
    with pytest.raises(UserError, match=r"expected a name that ends in .pdf, .png, .svg"):
        figures.require_destination(tmp_path / "curve.gif")


@pytest.mark.parametrize(("suffix", "start"), [("pdf", b"%PDF-"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")])
def test_a_figure_is_of_the_kind_that_its_suffix_says(home, suffix, start):
    path = Path(f"curve.{suffix}")
    arguments = ["oprl_sokoban", f"--out={path}", "--title=All of it", "--labels=grpo=GRPO, n = 3", "--size=9x4"]
    assert figures_command.main(arguments, home) == 0
    assert path.read_bytes().startswith(start)
    if suffix == "svg":
        # Text is drawn as paths of glyphs, with the words in comments.
        text = path.read_text()
        assert "All of it" in text and "GRPO, n = 3 (" in text


def test_size_and_title_and_labels_are_those_of_the_figure():
    figure = figures.draw({"x": ROWS}, "success", labels={"grpo": "GRPO"}, title="All of it", size=(9, 4.5))
    assert tuple(figure.get_size_inches()) == (9, 4.5) and figure.get_suptitle() == "All of it"
    names = {text.get_text().split(" (")[0] for text in figure.axes[0].get_legend().get_texts()}
    assert names == {"GRPO", "default"}


def test_sweep_points_are_drawn_only_when_they_are_asked_for():
    points = [variant + "+sweep+agent.clip=0.1" for variant in ("grpo", "")]
    rows = [*ROWS, *(row for point in points for row in rows_of(point, TABLE))]

    def drawn(**options):
        figure = figures.draw({"x": rows}, "success", **options)
        return {text.get_text().split(" (")[0] for text in figure.axes[0].get_legend().get_texts()}

    runs = {"default", "grpo"}
    assert drawn() == runs
    assert drawn(sweep_points=True) == runs | set(points)
    assert drawn(variants={"x": points[:1]}) == set(points[:1])
    only = [row for row in rows if run_folders.is_sweep_point(row["variant"])]
    with pytest.raises(UserError, match="the rows of x are those of a sweep's points alone: give --sweep-points"):
        figures.draw({"x": only}, "success")


def test_a_label_may_have_the_signs_of_a_variant():
    known = ["", "ppo", "ppo+agent.clip=0.1"]
    assert figures.labels_of("default=a=b;ppo+agent.clip=0.1=PPO, clip = 0.1;ppo=PPO", known) == {
        "": "a=b",
        "ppo+agent.clip=0.1": "PPO, clip = 0.1",
        "ppo": "PPO",
    }
