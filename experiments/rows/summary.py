"""Summaries of an experiment's rows: final values, steps to a threshold and ratios to a baseline, with intervals.

Estimates are interquartile means over the seeds; intervals are percentile intervals of a bootstrap over the seeds
(``experiments.rows.statistics``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from experiments.errors import UserError, unknown
from experiments.rows import reading, run_folders, statistics
from experiments.rows.statistics import Interval

NOT_REACHED = "not reached"


def summarise(
    rows: Sequence[reading.Row],
    metric: str,
    threshold: float,
    variants: Sequence[str] | None = None,
    baseline: str | None = None,
    smoothing: int = 1,
    confidence: float = statistics.CONFIDENCE,
    repetitions: int = statistics.REPETITIONS,
) -> list[dict[str, Any]]:
    """Per variant, in JSON values (None for what is infinite or unknown):

    * ``seeds``, and ``env_steps`` of the seed with the fewest;
    * ``final``: ``iqm``, ``low``, ``high`` of the mean over each seed's last ``smoothing`` evaluations;
    * ``area_under_curve``: the same for the average value over the steps;
    * ``steps_to_threshold``: ``iqm``, ``low``, ``high`` (None: not reached), and ``reached``, the number of seeds that
      reach it;
    * ``ratio_to_baseline``: ``ratio``, ``low``, ``high``, ``excludes_1`` of the steps over those of the baseline; None
      without a baseline. A baseline that does not reach the threshold has no steps to divide by.

    Raises:
      UserError: if no row has the metric, a variant has no value of it, or fewer evaluations than ``smoothing``.
    """
    known = reading.metrics_of(rows)
    if metric not in known:
        raise unknown("metric", metric, known)
    if smoothing < 1:
        raise UserError(f"smoothing={smoothing}: expected at least 1 evaluation")
    chosen = list(variants) if variants is not None else reading.variants_of(rows)
    by_variant = {
        variant: [row for row in rows if row.get("variant", "") == variant]
        for variant in dict.fromkeys([*chosen, *([] if baseline is None else [baseline])])
    }
    bootstrap: dict[str, Any] = {"confidence": confidence, "repetitions": repetitions}
    steps = {
        variant: statistics.steps_per_seed(own, metric, threshold, smoothing) for variant, own in by_variant.items()
    }
    answer = []
    for variant in chosen:
        own = by_variant[variant]
        curves = statistics.seed_curves(own, metric)
        shown = variant or run_folders.DEFAULT_VARIANT
        if not curves:
            raise UserError(f"variant {shown!r} has no value of {metric!r}")
        fewest = min(len(values) for _, values in curves.values())
        if fewest < smoothing:
            raise UserError(f"smoothing={smoothing}: a seed of variant {shown!r} has only {fewest} evaluations")
        final = statistics.stratified_bootstrap(statistics.final_values(own, metric, smoothing), **bootstrap)
        areas = [statistics.area_under_curve(*points) for points in curves.values()]
        reached = statistics.stratified_bootstrap(steps[variant], **bootstrap)
        answer.append(
            {
                "variant": shown,
                "seeds": len({row["seed"] for row in own}),
                "env_steps": int(min(at[-1] for at, _ in curves.values())),
                "final": _interval(final, "iqm"),
                "area_under_curve": _interval(statistics.stratified_bootstrap(areas, **bootstrap), "iqm"),
                "steps_to_threshold": _interval(reached, "iqm")
                | {"reached": int(sum(map(math.isfinite, steps[variant])))},
                "ratio_to_baseline": None if baseline is None else _ratio(steps[variant], steps[baseline], bootstrap),
            }
        )
    return answer


def _ratio(own, reference, bootstrap) -> dict[str, Any]:
    unknown_ratio = {"ratio": None, "low": None, "high": None, "excludes_1": False}
    # A curve that is above the threshold at 0 steps has no ratio.
    if min(*own, *reference) <= 0:
        return unknown_ratio
    interval = statistics.interval_of_ratio(own, reference, **bootstrap)
    # A ratio of 0 is a division by infinity: the baseline never reaches the threshold, so that the ratio is unknown.
    if interval.high == 0:
        return unknown_ratio
    shown = interval._replace(estimate=interval.estimate or math.nan)
    return _interval(shown, "ratio") | {"excludes_1": statistics.excludes(interval, 1.0)}


def _interval(interval: Interval, name: str) -> dict[str, float | None]:
    values = zip((name, "low", "high"), interval, strict=True)
    return {key: value if math.isfinite(value) else None for key, value in values}


def summarise_members(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Variant to metric to ``iqm``, ``low`` and ``high`` over the seeds, of rows with one evaluation per seed.

    Args:
      rows: with ``variant``, ``seed``, ``iteration`` and the metrics, such as those of ``restored.evaluate_run``.
    """
    metrics = [name for name in rows[0] if name not in ("seed", "variant", "iteration")]
    answer: dict[str, dict[str, Any]] = {}
    for variant in dict.fromkeys(row["variant"] for row in rows):
        answer[variant] = {}
        for name in metrics:
            values = [row[name] for row in rows if row["variant"] == variant]
            answer[variant][name] = _interval(statistics.stratified_bootstrap(values), "iqm")
    return answer
