"""Learning curves with intervals, drawn from rows alone: PDF, PNG or SVG by the file's suffix."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context, style, ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.assembly import registry
from experiments.disk import require_writable, write_atomic
from experiments.errors import UserError, unknown
from experiments.rows import reading, run_folders, statistics

# The palette of Okabe and Ito, whose colours readers with any common colour blindness can tell apart. Grey replaces its
# yellow, which is too pale for a line.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C8C8C")
LINE_STYLES = ("-", "--", ":", "-.")
MOST_CURVES = 8
SUFFIXES = (".pdf", ".png", ".svg")
# In inches; a picture of 150 dots per inch would not fit into memory much beyond.
LARGEST_SIZE = 100.0
# In inches: a panel with its legend, and what a panel needs beside a legend that is larger than usual.
PANEL = (8.5, 3.9)
WIDTH, HEIGHT = 6.0, 1.0


@contextlib.contextmanager
def _own_style() -> Iterator[None]:
    """Matplotlib's defaults in place of a user's ``matplotlibrc``, whose LaTeX may be missing; names of variants and
    metrics are shown as they are, dollar signs included."""
    with style.context("default"), rc_context({"text.parse_math": False}):
        yield


def plot_curves(
    axes: Axes,
    rows: Sequence[reading.Row],
    metric: str,
    variants: Sequence[str] | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    looks: Mapping[str, tuple[str, str]] | None = None,
    smoothing: int = 1,
    threshold: float | None = None,
    title: str = "",
    repetitions: int = 2000,
    confidence: float = statistics.CONFIDENCE,
) -> dict[str, statistics.Curve]:
    """Draws a line (interquartile mean over seeds) and a band (its interval) per variant over environment steps.

    Args:
      axes: where to draw.
      rows: of one experiment.
      metric: the rows' key on the y-axis.
      variants: the variants to draw, in the order of the colours; all of the rows if ``None``.
      labels: variant to its name in the legend.
      looks: variant to colour and line style, chosen by order if ``None``; see ``looks_of``.
      smoothing: evaluations per trailing mean of each seed.
      threshold: a height to mark with a thin line.
      title: of the axes.
      repetitions, confidence: of the bootstrap.

    Returns:
      Variant to the curve that was drawn.

    Raises:
      UserError: if no row has the metric, or a variant has no value of it.
    """
    known = reading.metrics_of(rows)
    if metric not in known:
        raise unknown("metric", metric, known)
    chosen = list(variants) if variants is not None else reading.variants_of(rows)
    curves: dict[str, statistics.Curve] = {}
    by_order = dict(zip(chosen, _looks(len(chosen)), strict=True))
    for variant in chosen:
        colour, style = (looks or by_order)[variant]
        own = [row for row in rows if row.get("variant", "") == variant]
        shown = variant or run_folders.DEFAULT_VARIANT
        try:
            curve = statistics.curve(own, metric, smoothing, repetitions, confidence)
        except ValueError as error:
            raise UserError(f"variant {shown!r}: {error}") from error
        seeds = int(curve.runs.max())
        label = f"{(labels or {}).get(variant, shown)} ({seeds} seed{'s' if seeds != 1 else ''})"
        axes.plot(curve.env_steps, curve.estimate, color=colour, linestyle=style, linewidth=1.8, label=label)
        axes.fill_between(curve.env_steps, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        curves[variant] = curve
    if threshold is not None:
        axes.axhline(threshold, color="0.5", linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set_xlabel("environment steps")
    axes.set_ylabel(metric.replace("_", " "))
    axes.set_title(title, fontsize=11, loc="left")
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(_thousands))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=6))
    axes.grid(True, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    # The legend is sorted by the lines' last values, so that each name stands beside its line.
    handles, names = axes.get_legend_handles_labels()
    ends = [-float(curve.estimate[-1]) for curve in curves.values()]
    order = sorted(range(len(handles)), key=lambda index: ends[index])
    axes.legend(
        [handles[index] for index in order],
        [names[index] for index in order],
        frameon=False,
        fontsize=8.5,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
    )
    return curves


def panels(variants: Sequence[str]) -> dict[str, list[str]]:
    """Variants by panel: one panel for up to 8 variants, otherwise one per setting, which is what follows the first
    token of a variant."""
    if len(variants) <= MOST_CURVES:
        return {"": list(variants)}
    grouped: dict[str, list[str]] = {}
    for variant in variants:
        grouped.setdefault(variant.partition(",")[2], []).append(variant)
    return grouped


def looks_of(variants: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Variant to colour and line style, chosen by its first token, so that a method looks the same in every panel."""
    methods = list(dict.fromkeys(variant.partition(",")[0] for variant in variants))
    by_method = dict(zip(methods, _looks(len(methods)), strict=True))
    return {variant: by_method[variant.partition(",")[0]] for variant in variants}


@_own_style()
def draw(
    experiments: Mapping[str, Sequence[reading.Row]],
    metric: str,
    variants: Mapping[str, Sequence[str]] | None = None,
    smoothing: int = 1,
    threshold: float | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    title: str = "",
    size: tuple[float, float] | None = None,
    sweep_points: bool = False,
) -> Figure:
    """One figure: a panel per experiment, or per setting of an experiment with many variants; see ``panels``.

    Args:
      experiments: name to rows.
      metric, smoothing, threshold, labels: as in ``plot_curves``.
      variants: name to the variants to draw; for other names all but the points of sweeps.
      title: above all panels.
      size: width and height in inches; with ``None`` as large as panels and legends need.
      sweep_points: also draw the points of sweeps.

    Raises:
      UserError: if an experiment has no rows but those of a sweep's points, and these are not to be drawn; as
        ``plot_curves``.
    """
    drawn = []
    for name, rows in experiments.items():
        chosen = list((variants or {}).get(name, ()))
        if not chosen:
            every = reading.variants_of(rows)
            chosen = [variant for variant in every if sweep_points or not run_folders.is_sweep_point(variant)]
        if not chosen:
            raise UserError(f"the rows of {name} are those of a sweep's points alone: give --sweep-points to draw them")
        split = panels(chosen)
        looks = looks_of(chosen) if len(split) > 1 else None
        for setting, members in split.items():
            drawn.append((f"{name}: {setting}" if setting else name, rows, members, looks))
    figure = Figure(figsize=size or (PANEL[0], PANEL[1] * len(drawn)), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=12)
    settings: dict[str, Any] = {"labels": labels, "smoothing": smoothing, "threshold": threshold}
    for axes, panel in zip(figure.subplots(len(drawn), squeeze=False)[:, 0], drawn, strict=True):
        name, rows, members, looks = panel
        plot_curves(axes, rows, metric, members, looks=looks, title=name, **settings)
    interval = f"{100 * statistics.CONFIDENCE:g} %"
    figure.text(
        0.01, -0.01, f"line: interquartile mean over seeds; band: {interval} bootstrap interval", fontsize=8, va="top"
    )
    if size is None:
        _make_room(figure, len(drawn))
    return figure


def require_destination(path: str | Path) -> None:
    """Checks, before the work that the figure is to show, that it can be written there.

    Raises:
      UserError: if the path ends in anything but ``SUFFIXES``, or cannot be written.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"figure file {str(path)!r}: expected a name that ends in {', '.join(SUFFIXES)}")
    require_writable(path)


@_own_style()
def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure whole or not at all, as PDF, PNG or SVG by the path's suffix.

    Raises:
      UserError: if the path ends in anything but ``SUFFIXES`` or cannot be written, or the figure is too small for its
        labels and legends.
    """
    require_destination(path)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*layout not applied", UserWarning)
        try:
            figure.savefig(buffer, format=Path(path).suffix.lower()[1:], dpi=150, bbox_inches="tight")
        except UserWarning as warning:
            width, height = figure.get_size_inches()
            raise UserError(
                f"figure of {width:g} x {height:g} inches: no room for its labels and legends, expected at least "
                f"{PANEL[0]:g} x {PANEL[1]:g} inches a panel"
            ) from warning
    write_atomic(path, buffer.getvalue())


def labels_of(text: str, known: Sequence[str]) -> dict[str, str]:
    """The labels of ``VARIANT=LABEL;VARIANT=LABEL``; both may have commas and equals signs of their own.

    Raises:
      UserError: if a part has no label, or its variant is none of ``known``.
    """
    by_name = {variant or run_folders.DEFAULT_VARIANT: variant for variant in known}
    labels = {}
    for part in text.split(";"):
        found = [name for name in by_name if part.startswith(f"{name}=")]
        if not found:
            name, equals, _ = part.partition("=")
            if not equals:
                raise UserError(f"--labels={text}: {part!r} has no label, expected VARIANT=LABEL;VARIANT=LABEL")
            raise unknown("variant", name, by_name, "in the rows")
        # The longest, because one variant may begin with another.
        name = max(found, key=len)
        labels[by_name[name]] = part.removeprefix(f"{name}=")
    return labels


def size_of(text: str) -> tuple[float, float]:
    """The width and height of ``WIDTHxHEIGHT``, in inches.

    Raises:
      UserError: if it is no pair of positive numbers.
    """
    parts = text.lower().split("x")
    try:
        width, height = (float(part) for part in parts)
    except ValueError:
        width = height = math.nan
    if not (0 < width <= LARGEST_SIZE and 0 < height <= LARGEST_SIZE):
        raise UserError(
            f"--size={text}: expected WIDTHxHEIGHT in inches, above 0 and at most {LARGEST_SIZE:g}, such as 8.5x4"
        )
    return width, height


def experiments_of(paper: str, package: str = registry.PACKAGE) -> list[str]:
    """The experiment of that name, or every one whose name starts with ``paper_`` or that reproduces the paper.

    Raises:
      UserError: if there is none.
    """
    known = registry.names(package)
    if paper in known:
        return [paper]
    word = re.compile(rf"(?<!\w){re.escape(paper)}(?!\w)", re.IGNORECASE)
    modules, broken = registry.whole_modules(package)
    for line in broken:
        print(line, file=sys.stderr)
    found = [
        name
        for name in known
        if name.startswith(f"{paper}_") or (name in modules and word.search(str(modules[name].REPRODUCES)))
    ]
    if not found:
        raise unknown("paper or experiment", paper, known)
    return found


def _make_room(figure: Figure, panels: int) -> None:
    """Enlarges a figure of ``panels`` rows whose legends would leave no room for the curves."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    legends = [axes.get_legend() for axes in figure.axes]
    boxes = [legend.get_window_extent(renderer) for legend in legends if legend is not None]
    widest = max(box.width for box in boxes) / figure.dpi
    highest = max(box.height for box in boxes) / figure.dpi
    figure.set_size_inches(max(PANEL[0], WIDTH + widest), max(PANEL[1], HEIGHT + highest) * panels)


def _looks(count: int) -> list[tuple[str, str]]:
    """``count`` pairs of colour and line style, the colours first."""
    pairs = [(colour, style) for style in LINE_STYLES for colour in PALETTE]
    return list(itertools.islice(itertools.cycle(pairs), count))


def _thousands(value: float, position: int | None = None) -> str:
    """``1.5M``, ``250k``, ``30``."""
    del position
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
