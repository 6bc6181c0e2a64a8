"""Learning curves with intervals, from rows alone.

    sagax figures PAPER|NAME [--metric=success] [--threshold=0.8] [--out=FILE.png]

``NAME`` is an experiment; ``PAPER`` stands for every experiment whose name starts with it or that says it reproduces
it, one row of panels each, without those that have no rows or no rows with the metric. The rows are found as by
``sagax summary``.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.assembly import registry
from experiments.disk import require_writable, write_atomic
from experiments.errors import UserError, unknown
from experiments.rows import reading, run_folders, statistics

# Okabe and Ito's palette, which readers with any common colour blindness can tell apart, with grey for its yellow,
# which is too pale for a line.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C8C8C")
LINE_STYLES = ("-", "--", ":", "-.")
MOST_CURVES = 8
# Inches: of a panel with its legend, and of what a panel needs beside a legend that is larger than usual.
PANEL = (8.5, 3.9)
WIDTH, HEIGHT = 6.0, 1.0


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
      variants: which, in the order of the colours; all of the rows if none.
      labels: variant to its name in the legend.
      looks: variant to colour and line style; by their order if none. ``looks_of`` gives them across figures.
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
    # The order of the legend is that of the lines' ends, so that the eye finds the line beside its name.
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
    """Variants by panel: one panel for up to 8, otherwise one per setting, the tokens after the first."""
    if len(variants) <= MOST_CURVES:
        return {"": list(variants)}
    grouped: dict[str, list[str]] = {}
    for variant in variants:
        grouped.setdefault(variant.partition(",")[2], []).append(variant)
    return grouped


def looks_of(variants: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Variant to colour and line style, one for each first token, so that a method looks the same in every panel."""
    methods = list(dict.fromkeys(variant.partition(",")[0] for variant in variants))
    by_method = dict(zip(methods, _looks(len(methods)), strict=True))
    return {variant: by_method[variant.partition(",")[0]] for variant in variants}


def draw(
    experiments: Mapping[str, Sequence[reading.Row]],
    metric: str,
    variants: Mapping[str, Sequence[str]] | None = None,
    smoothing: int = 1,
    threshold: float | None = None,
) -> Figure:
    """One figure: a panel per experiment, or per setting of one with many variants; see ``panels``.

    Args:
      experiments: name to rows.
      metric, smoothing, threshold: as in ``plot_curves``.
      variants: name to the variants to draw; all if none.
    """
    drawn = []
    for name, rows in experiments.items():
        chosen = (variants or {}).get(name) or reading.variants_of(rows)
        split = panels(chosen)
        looks = looks_of(chosen) if len(split) > 1 else None
        for setting, members in split.items():
            drawn.append((f"{name}: {setting}" if setting else name, rows, members, looks))
    figure = Figure(figsize=(PANEL[0], PANEL[1] * len(drawn)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(drawn), squeeze=False)[:, 0], drawn, strict=True):
        title, rows, members, looks = panel
        plot_curves(axes, rows, metric, members, looks=looks, smoothing=smoothing, threshold=threshold, title=title)
    interval = f"{100 * statistics.CONFIDENCE:g} %"
    figure.text(
        0.01, -0.01, f"line: interquartile mean over seeds; band: {interval} bootstrap interval", fontsize=8, va="top"
    )
    _make_room(figure, len(drawn))
    return figure


def require_destination(path: str | Path) -> None:
    """Checks, before the work that it is to show, that a figure could be written there.

    Raises:
      UserError: if the path ends in anything but ``.png``, or cannot be written.
    """
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"figure file {str(path)!r}: expected a name that ends in .png")
    require_writable(path)


def save(figure: Figure, path: str | Path) -> None:
    """Writes a PNG whole or not at all.

    Raises:
      UserError: if the path ends in anything but ``.png`` or cannot be written, or the figure is too small for its
        labels and legends.
    """
    require_destination(path)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*layout not applied", UserWarning)
        try:
            figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
        except UserWarning as warning:
            width, height = figure.get_size_inches()
            raise UserError(
                f"figure of {width:g} x {height:g} inches: no room for its labels and legends, expected at least "
                f"{PANEL[0]:g} x {PANEL[1]:g} inches a panel"
            ) from warning
    write_atomic(path, buffer.getvalue())


def experiments_of(paper: str, package: str = registry.PACKAGE) -> list[str]:
    """The experiment of that name, or every one whose name starts with ``paper_`` or that reproduces the paper.

    Raises:
      UserError: if there is none.
    """
    known = registry.names(package)
    if paper in known:
        return [paper]
    word = re.compile(rf"(?<!\w){re.escape(paper)}(?!\w)", re.IGNORECASE)
    found = [
        name
        for name in known
        if name.startswith(f"{paper}_") or word.search(registry.module_of(name, package).REPRODUCES)
    ]
    if not found:
        raise unknown("paper or experiment", paper, known)
    return found


def _make_room(figure: Figure, panels: int) -> None:
    """Enlarges a figure of ``panels`` rows where its legends would leave no room for the curves."""
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
