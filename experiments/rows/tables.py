"""Tables of committed rows in Markdown: learning results and speed.

A table is described by data (``Curves``, ``Grid``); everything that it shows is computed from ``results/*.jsonl``.
``experiments.rows.pages`` lists the tables of each page.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.errors import UserError, cannot_read
from experiments.rows import reading, run_folders, statistics
from experiments.rows.summary import summarise


class Curves(NamedTuple):
    """One row per variant of an experiment: its last value, steps to a threshold, and their ratio to a baseline.

    Attributes:
      title: the heading.
      experiment: whose committed rows are read.
      metric: the rows' key.
      variants: which, in order, to what they are called; a variant ``""`` is the default.
      threshold: the height of the metric to reach; ``None`` leaves the steps out.
      baseline: the variant whose steps the others' are divided by; ``None`` leaves the ratio out.
      text: what to know when reading the table.
      digits: after the decimal point of the metric.
      untuned: variants with the settings of a library's documentation, whatever tuned others of the same method.
    """

    title: str
    experiment: str
    metric: str
    variants: Mapping[str, str]
    threshold: float | None = None
    baseline: str | None = None
    text: str = ""
    digits: int = 2
    untuned: Collection[str] = ()


class Grid(NamedTuple):
    """Methods by settings: the metric's mean over the run, or its last value, of the variant that both name.

    Attributes:
      title, experiment, text, digits: as in ``Curves``.
      metric: the rows' key; with ``metrics`` the columns are metrics and each row is one variant.
      rows, columns: name to label; the variant is ``row,column``, or ``ROW`` with ``metrics``.
      metrics: column to the rows' key, where the columns are metrics and not settings.
      statistic: ``final`` (the last value), or ``mean``: the mean over a seed's rows, which for a metric of training
        episodes (``train/...``) is the mean over the whole run, since each row covers as many iterations.
    """

    title: str
    experiment: str
    rows: Mapping[str, str]
    columns: Mapping[str, str]
    statistic: str
    metric: str = ""
    metrics: Mapping[str, str] | None = None
    text: str = ""
    digits: int = 2


def curves_table(table: Curves, root: Path) -> str:
    """``table`` in Markdown, from the rows below ``root``.

    Raises:
      UserError: if the rows cannot be read or lack the metric or a variant.
    """
    rows = _rows_of(table.experiment, table.variants, root)
    summary = summarise(rows, table.metric, table.threshold or 0.0, list(table.variants), table.baseline)
    entries = dict(zip(table.variants, summary, strict=True))
    heading = ["variant", "seeds", "environment steps", f"final {table.metric}"]
    heading += ["area under the curve"]
    heading += [f"environment steps to {table.threshold:g}"] if table.threshold is not None else []
    heading += [f"ratio to {table.variants[table.baseline]}"] if table.baseline is not None else []
    budget = tuning_budgets(table.experiment, root)
    heading += ["tuned on"] if budget else []
    lines = []
    for variant, entry in entries.items():
        line = [table.variants[variant], str(entry["seeds"]), f"{entry['env_steps']:,}"]
        line += [_span(entry["final"], "iqm", table.digits), _span(entry["area_under_curve"], "iqm", table.digits)]
        if table.threshold is not None:
            line.append(_steps(entry["steps_to_threshold"], entry["seeds"]))
        if table.baseline is not None:
            ratio = entry["ratio_to_baseline"]
            own = variant == table.baseline
            line.append("1" if own else _span(ratio, "ratio", 2) if ratio["ratio"] is not None else "none")
        if budget:
            tuned = budget.get(without_changes(variant)) or budget.get(method_of(variant), "nothing")
            line.append("nothing" if variant in table.untuned else tuned)
        lines.append(line)
    return "\n\n".join(filter(None, [f"### {table.title}", table.text, _markdown(heading, lines)]))


def grid_table(table: Grid, root: Path) -> str:
    """``table`` in Markdown, from the rows below ``root``.

    Raises:
      UserError: if the rows cannot be read or lack the metric or a variant.
    """
    if table.metrics is not None:
        cells = {(row, column): (row, table.metrics[column]) for row in table.rows for column in table.columns}
    else:
        cells = {(row, column): (f"{row},{column}", table.metric) for row in table.rows for column in table.columns}
    rows = _rows_of(table.experiment, [variant for variant, _ in cells.values()], root, complete=False)
    by_variant: dict[str, list[reading.Row]] = {}
    for row in rows:
        by_variant.setdefault(row.get("variant", ""), []).append(row)

    def cell(variant: str, metric: str) -> str:
        curves = statistics.seed_curves(by_variant.get(variant, []), metric)
        if not curves:
            return "no rows"
        values = [np.mean(heights) if table.statistic == "mean" else heights[-1] for _, heights in curves.values()]
        interval = statistics.stratified_bootstrap(np.asarray(values))
        return _span({"iqm": interval.estimate, "low": interval.low, "high": interval.high}, "iqm", table.digits)

    lines = [[label, *(cell(*cells[row, column]) for column in table.columns)] for row, label in table.rows.items()]
    return "\n\n".join(
        filter(None, [f"### {table.title}", table.text, _markdown(["", *table.columns.values()], lines)])
    )


def without_changes(variant: str) -> str:
    """A variant without what overrides and sweeps add: ``ppo,warm`` of ``ppo,warm+agent.clip=0.1``."""
    return variant.partition("+")[0]


def method_of(variant: str) -> str:
    """The first token of a variant, without what overrides and sweeps add: ``ppo`` of ``ppo,warm+agent.clip=0.1``."""
    return without_changes(variant).partition(",")[0]


def tuning_budgets(experiment: str, root: Path) -> dict[str, str]:
    """Variant to the budget that its settings were chosen with, from ``results/NAME_tuning.jsonl``; empty without one.

    The budget is the number of points and seeds, and the environment steps of all of them together. A variant that was
    not tuned itself has the settings of its method, and the budget that chose those.
    """
    path = root / run_folders.committed_file(f"{experiment}_tuning")
    if not path.is_file():
        return {}
    points: dict[str, dict[tuple[str, int], int]] = {}
    for row in reading.read_rows(path):
        runs = points.setdefault(without_changes(row["variant"]), {})
        key = row["variant"], row["seed"]
        runs[key] = max(runs.get(key, 0), int(row["env_steps"]))
    budgets = {}
    for tuned, runs in points.items():
        variants, seeds = {variant for variant, _ in runs}, {seed for _, seed in runs}
        budgets[tuned] = f"{len(variants)} points, {len(seeds)} seeds, {sum(runs.values()) / 1e6:.2g}M steps"
    return budgets


def benchmark_table(path: Path) -> str:
    """Every comparison of the speed benchmark in Markdown, the newest of each machine and version of jax.

    Raises:
      UserError: if the file cannot be read or is not one of ``sagax benchmark``.
    """
    newest: dict[tuple[str, str, str, str], tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {}
    for record in _json_lines(path):
        machine = record["machine"]
        for comparison in record["comparisons"]:
            # Rows from before version 0.2 call an environment a world: newer ones replace them, too.
            name = comparison["name"].replace("world", "environment")
            key = record["case"], name, machine["device"], machine["versions"]["jax"]
            if key not in newest or newest[key][0] <= machine["started"]:
                newest[key] = machine["started"], comparison, machine
    heading = ["case", "ours", "beside", "unit", "ours, median", "theirs, median", "ratio by the clock"]
    heading += ["by processor time", "machine"]
    lines = []
    for (case, name, device, version), (_, comparison, machine) in sorted(newest.items()):
        cpu = comparison.get("ratio_cpu")
        lines.append(
            [
                f"`{case}` {name}",
                comparison["ours"],
                comparison["reference"],
                comparison["unit"],
                f"{comparison['ours_median']:,.4g}",
                f"{comparison['reference_median']:,.4g}",
                f"{comparison['ratio']:.2f} ({comparison['ratio_min']:.2f} to {comparison['ratio_max']:.2f}, "
                f"{comparison['pairs']} pairs)",
                "" if cpu is None else f"{cpu:.2f}",
                f"{machine['device_count']} × {device}, {machine['cores']} cores, jax {version}",
            ]
        )
    return _markdown(heading, lines)


def devices_table(path: Path) -> str:
    """Every measurement of the benchmark case ``devices`` in Markdown, the newest of each device and version of jax.

    Raises:
      UserError: if the file cannot be read or is not one of ``sagax benchmark devices``.
    """
    newest: dict[tuple[str, str, str, int], tuple[str, Mapping[str, Any]]] = {}
    for record in _json_lines(path):
        machine, found = record["machine"], record["measurement"]
        if not machine:
            # It was ended before it knew where it was.
            continue
        where = f"{machine['device_count']} × {machine['device']}, {machine['cores']} cores"
        key = found["name"], where, machine["versions"]["jax"], found["seeds"]
        if key not in newest or newest[key][0] <= machine["started"]:
            newest[key] = machine["started"], found
    heading = ["configuration", "machine", "jax", "seeds", "environment steps/s", "compile, s", "peak memory, MiB"]
    lines = []
    for (name, where, version, seeds), (_, found) in sorted(newest.items()):
        measured = [found["ended"], "", ""]
        if "steps_per_second" in found:
            memory = f"{found['peak_bytes'] / 2**20:,.0f} of the {found['memory_of']}"
            # Earlier rows hold the difference of two chunks, in which a long chunk hides the time to compile.
            compiled = f"{found['compile_seconds']:.1f}" if "first_chunk_seconds" in found else ""
            measured = [f"{found['steps_per_second']:,.4g}", compiled, memory]
        lines.append([f"`{name}`", where, version, str(seeds), *measured])
    return _markdown(heading, lines)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise cannot_read(path, error) from error
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{path} is not a file of JSON lines: {error}") from error


def _rows_of(experiment: str, variants: Any, root: Path, complete: bool = True) -> list[reading.Row]:
    path = root / run_folders.committed_file(experiment)
    rows = reading.read_rows(path)
    known = reading.variants_of(rows)
    lacking = [variant for variant in variants if variant not in known]
    if lacking and complete:
        raise UserError(f"{path} has no rows of the variant {lacking[0]!r}; it has {', '.join(known)}")
    wanted = set(variants)
    return [row for row in rows if row.get("variant", "") in wanted]


def _steps(entry: Mapping[str, Any], seeds: int) -> str:
    if entry["reached"] < seeds:
        return f"not reached by {seeds - entry['reached']} of {seeds} seeds"
    return f"{entry['iqm']:,.0f} [{entry['low']:,.0f}, {entry['high']:,.0f}]"


def _span(entry: Mapping[str, Any], name: str, digits: int) -> str:
    if entry[name] is None:
        return "none"
    ends = "" if entry["low"] is None else f" [{entry['low']:.{digits}f}, {_end(entry['high'], digits)}]"
    return f"{entry[name]:.{digits}f}{ends}"


def _end(value: float | None, digits: int) -> str:
    return "∞" if value is None else f"{value:.{digits}f}"


def _markdown(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heading, ["---"] * len(heading), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
