"""Statistics over few seeds: the interquartile mean, bootstrap intervals, steps to a threshold, learning curves.

Source: Agarwal, Schwarzer, Castro, Courville and Bellemare, "Deep Reinforcement Learning at the Edge of the
Statistical Precipice", NeurIPS 2021: the interquartile mean and percentile intervals from a bootstrap that is
stratified by task (section 4). Defaults and rounding are those of the authors' library, rliable.

``runs`` are independent seeds. A threshold that is never reached is ``inf``, and every statistic keeps it so. Each seed
is evaluated on episodes of its own, so that the intervals cover their chance too, unless the rows were made when all
seeds shared one draw (``experiments.rows.environment_report.EVALUATION_EPISODES``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

REPETITIONS = 10_000
CONFIDENCE = 0.95
TRIM = 0.25


class Statistic(Protocol):
    """Reduces one axis, such as ``interquartile_mean`` or ``numpy.median``."""

    def __call__(self, values: np.ndarray, axis: int) -> np.ndarray: ...


class Interval(NamedTuple):
    """An estimate and the ends of its percentile interval; the ends are nan where one run gives none."""

    estimate: float
    low: float
    high: float


class Curve(NamedTuple):
    """A learning curve over seeds.

    Attributes:
      env_steps: ``[P]``, increasing.
      estimate, low, high: ``[P]``, the interquartile mean over the seeds and its interval.
      runs: ``[P]``, the number of seeds that have a value there.
    """

    env_steps: np.ndarray
    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: np.ndarray


def interquartile_mean(values: Any, axis: int | None = None) -> np.ndarray:
    """The mean of the middle half: ``floor(n / 4)`` values are cut at each end.

    With fewer than 4 values nothing is cut, so that it is the mean.

    >>> float(interquartile_mean([0, 1, 3, 100]))
    2.0
    """
    # As scipy.stats.trim_mean does; importing scipy.stats would take longer than most commands.
    ordered = np.sort(np.asarray(values, dtype=float), axis=axis)
    kept = 0 if axis is None else axis
    count = ordered.shape[kept]
    cut = int(TRIM * count)
    return np.mean(np.take(ordered, np.arange(cut, count - cut), axis=kept), axis=kept)


def stratified_bootstrap(
    scores: Any,
    statistic: Statistic = interquartile_mean,
    repetitions: int = REPETITIONS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """A statistic over all scores with its percentile interval; runs are resampled within each task.

    The interval covers what differs between runs: the seed of the training, and the evaluation episodes where every
    seed draws its own (``reading.sharing_episodes`` names the variants whose rows are older than that). What all runs
    share, it leaves out.

    Args:
      scores: ``[runs, tasks]``, or ``[runs]`` of one task.
      statistic: ``(values, axis) -> values`` without that axis.
      repetitions: the number of resamples.
      confidence: the share of the resampled statistics between the ends.
      seed: of the resampling; equal seeds give equal intervals.

    Raises:
      ValueError: if there is no score, or ``confidence`` or ``repetitions`` is out of range.
    """
    scores = _scores(scores)
    _check(repetitions, confidence)
    runs, tasks = scores.shape
    estimate = float(statistic(scores.reshape(-1), axis=0))
    if runs < 2:
        return Interval(estimate, np.nan, np.nan)
    chosen = np.random.default_rng(seed).integers(runs, size=(repetitions, runs, tasks))
    resampled = scores[chosen, np.arange(tasks)].reshape(repetitions, -1)
    return Interval(estimate, *_ends(statistic(resampled, axis=1), confidence))


def two_group_bootstrap(
    first: Any,
    second: Any,
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray],
    repetitions: int = REPETITIONS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """A comparison of two independent groups of runs with its percentile interval; each group is resampled by itself.

    Args:
      first: ``[n]``.
      second: ``[m]``.
      compare: ``([R, n], [R, m]) -> [R]``; NaN means undecided and widens the interval at both ends.
      repetitions, confidence, seed: as in ``stratified_bootstrap``.
    """
    groups = [_scores(group)[:, 0] for group in (first, second)]
    _check(repetitions, confidence)
    estimate = float(compare(groups[0][None], groups[1][None])[0])
    if min(map(len, groups)) < 2:
        return Interval(estimate, np.nan, np.nan)
    generator = np.random.default_rng(seed)
    resampled = [group[generator.integers(len(group), size=(repetitions, len(group)))] for group in groups]
    return Interval(estimate, *_ends(compare(*resampled), confidence))


def interval_of_ratio(
    numerator: Any,
    denominator: Any,
    statistic: Statistic = interquartile_mean,
    repetitions: int = REPETITIONS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """``statistic(numerator) / statistic(denominator)`` of two independent groups of positive values.

    A threshold that was never reached is ``inf``: ``inf / x`` is ``inf`` and ``x / inf`` is 0, while ``inf / inf`` is
    unknown, so that it counts as 0 for the low end and as ``inf`` for the high end, and makes the estimate NaN.

    Raises:
      ValueError: if a value is not positive.
    """
    for name, group in (("numerator", numerator), ("denominator", denominator)):
        if not np.all(np.asarray(group, dtype=float) > 0):
            raise ValueError(f"{name}={group}: expected positive values")

    def compare(first, second):
        with np.errstate(invalid="ignore"):
            return statistic(first, axis=1) / statistic(second, axis=1)

    ratio = two_group_bootstrap(numerator, denominator, compare, repetitions, confidence, seed)
    return Interval(ratio.estimate, max(ratio.low, 0.0), ratio.high) if ratio.low == -np.inf else ratio


def excludes(interval: Interval, value: float) -> bool:
    """Whether an interval lies on one side of ``value``; False where it has no ends."""
    return bool(interval.low > value or interval.high < value)


def probability_of_improvement(
    first: Any, second: Any, repetitions: int = 2000, confidence: float = CONFIDENCE, seed: int = 0
) -> Interval:
    """``P(X > Y) + P(X = Y) / 2`` for a run ``X`` of the first group and ``Y`` of the second, with its interval."""

    def compare(left, right):
        left, right = left[:, :, None], right[:, None, :]
        return np.mean((left > right) + 0.5 * (left == right), axis=(1, 2))

    return two_group_bootstrap(first, second, compare, repetitions, confidence, seed)


def trailing_mean(values: Any, window: int) -> np.ndarray:
    """The mean of each value and the ``window - 1`` before it: ``[..., P] -> [..., P - window + 1]``.

    Raises:
      ValueError: if ``window`` is not within ``1..P``.
    """
    values = np.asarray(values, dtype=float)
    if not 1 <= window <= values.shape[-1]:
        raise ValueError(f"a trailing mean over {window} of {values.shape[-1]} evaluations: expected 1 to that number")
    return np.lib.stride_tricks.sliding_window_view(values, window, axis=-1).mean(-1)


def steps_to_threshold(env_steps: Any, values: Any, threshold: float, smoothing: int = 1) -> float:
    """The environment steps at which a curve first reaches ``threshold``; ``inf`` if it never does.

    The curve is the trailing mean over ``smoothing`` evaluations, linear between them; it has no value before the
    window is full. A curve that starts at or above the threshold reaches it with its first value.

    Args:
      env_steps: ``[P]``, increasing.
      values: ``[P]``; NaN is a missing value and reaches nothing.
      threshold: the value to reach.
      smoothing: evaluations per mean, at most ``P``.

    Raises:
      ValueError: if the shapes differ, the steps do not increase, or ``smoothing`` is out of range.

    >>> steps_to_threshold([0, 100, 200], [0.0, 0.5, 1.0], threshold=0.75)
    150.0
    >>> steps_to_threshold([0, 100, 200], [0.0, 0.5, 1.0], threshold=2.0)
    inf
    """
    steps, heights = np.asarray(env_steps, dtype=float), np.asarray(values, dtype=float)
    if steps.ndim != 1 or steps.shape != heights.shape:
        raise ValueError(f"env_steps {steps.shape} and values {heights.shape}: expected two equal shapes [P]")
    if np.any(np.diff(steps) <= 0):
        raise ValueError(f"env_steps {steps.tolist()}: expected them to increase")
    heights = trailing_mean(heights, smoothing)
    steps = steps[smoothing - 1 :]
    reached = np.flatnonzero(heights >= threshold)
    if not len(reached):
        return float("inf")
    at = int(reached[0])
    if at == 0 or np.isnan(heights[at - 1]):
        return float(steps[at])
    share = (threshold - heights[at - 1]) / (heights[at] - heights[at - 1])
    return float(steps[at - 1] + share * (steps[at] - steps[at - 1]))


def area_under_curve(env_steps: Any, values: Any) -> np.ndarray:
    """The average value over the steps by the trapezoidal rule, ``[P], [..., P] -> [...]``; that of one point is its
    value."""
    steps, heights = np.asarray(env_steps, dtype=float), np.asarray(values, dtype=float)
    if steps.shape[-1] == 1:
        return heights[..., 0]
    return np.trapezoid(heights, steps, axis=-1) / (steps[-1] - steps[0])


def seed_curves(rows: Iterable[Mapping[str, Any]], metric: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Seed to ``(env_steps [P], values [P])``, in the order of the steps; missing values are left out."""
    points: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if row.get(metric) is not None:
            points.setdefault(row["seed"], []).append((row["env_steps"], row[metric]))
    curves = {}
    for seed in sorted(points):
        steps, values = np.asarray(sorted(points[seed]), dtype=float).T
        curves[seed] = steps, values
    return curves


def curve(
    rows: Iterable[Mapping[str, Any]],
    metric: str,
    smoothing: int = 1,
    repetitions: int = 2000,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Curve:
    """The interquartile mean over the seeds, with a pointwise interval, at every ``env_steps`` of one variant's rows.

    A point is estimated from the seeds that have a value there; ``runs`` is their number. Where seeds were evaluated at
    different steps, because whole episodes differ in length, each is interpolated linearly at evenly spaced steps, as
    many as the longest seed has evaluations, up to the last step that every seed has. With ``smoothing``, each seed's
    values are first replaced by their trailing mean.

    Raises:
      ValueError: if no row has the metric, or ``smoothing`` exceeds a seed's number of evaluations.
    """
    _check(repetitions, confidence)
    curves = {
        name: (steps[smoothing - 1 :], trailing_mean(values, smoothing))
        for name, (steps, values) in seed_curves(rows, metric).items()
    }
    if not curves:
        raise ValueError(f"no row has a value of {metric!r}")
    grid, table = _common_grid(list(curves.values()))
    present = ~np.isnan(table)
    estimate, low, high = np.empty((3, len(grid)))
    # Points with the same seeds are resampled together: nearly always all of them.
    patterns, member = np.unique(present.T, axis=0, return_inverse=True)
    member = member.reshape(-1)
    for index, pattern in enumerate(patterns):
        points = member == index
        values = table[pattern][:, points]
        estimate[points] = interquartile_mean(values, axis=0)
        low[points], high[points] = _pointwise_ends(values, repetitions, confidence, seed)
    return Curve(grid.astype(np.int64), estimate, low, high, present.sum(axis=0))


def _common_grid(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """``grid [P]`` and ``values [seeds, P]``, NaN where a seed has no value."""
    union = np.unique(np.concatenate([steps for steps, _ in curves]))
    longest = max(len(steps) for steps, _ in curves)
    if len(union) == longest:
        table = np.full((len(curves), len(union)), np.nan)
        for index, (steps, values) in enumerate(curves):
            table[index, np.searchsorted(union, steps)] = values
        return union, table
    # From the latest first step to the earliest last one: a point with fewer seeds than its neighbours would be a jump.
    start, end = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    grid = np.linspace(start, end, longest).round() if start < end else np.asarray([end])
    return grid, np.asarray([np.interp(grid, steps, values) for steps, values in curves])


def final_values(rows: Iterable[Mapping[str, Any]], metric: str, smoothing: int = 1) -> np.ndarray:
    """``[seeds]``: each seed's mean over its last ``smoothing`` evaluations."""
    return np.asarray([trailing_mean(values, smoothing)[-1] for _, values in seed_curves(rows, metric).values()])


def steps_per_seed(rows: Iterable[Mapping[str, Any]], metric: str, threshold: float, smoothing: int = 1) -> np.ndarray:
    """``[seeds]``: ``steps_to_threshold`` of each seed; ``inf`` also where it has fewer values than ``smoothing``."""
    rows = list(rows)
    curves = seed_curves(rows, metric)
    reached = []
    for seed in sorted({row["seed"] for row in rows}):
        steps, values = curves.get(seed, (np.empty(0), np.empty(0)))
        enough = len(steps) >= max(smoothing, 1)
        reached.append(steps_to_threshold(steps, values, threshold, smoothing) if enough else np.inf)
    return np.asarray(reached)


def _pointwise_ends(
    values: np.ndarray, repetitions: int, confidence: float, seed: int
) -> tuple[np.ndarray | float, np.ndarray | float]:
    runs = len(values)
    if runs < 2:
        return np.nan, np.nan
    chosen = np.random.default_rng(seed).integers(runs, size=(repetitions, runs))
    ends = [_ends(interquartile_mean(point[chosen], axis=1), confidence) for point in values.T]
    return np.asarray(ends)[:, 0], np.asarray(ends)[:, 1]


def _scores(scores: Any) -> np.ndarray:
    array = np.asarray(scores, dtype=float)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or not array.size:
        raise ValueError(f"scores have shape {array.shape}: expected [runs] or [runs, tasks], and at least one")
    if np.isnan(array).any():
        raise ValueError("scores hold nan: expected numbers, inf for what was never reached")
    return array


def _check(repetitions: int, confidence: float) -> None:
    if repetitions < 1:
        raise ValueError(f"repetitions={repetitions}: expected at least 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a share between 0 and 1, such as {CONFIDENCE}")


def _ends(estimates: np.ndarray, confidence: float) -> tuple[float, float]:
    """The percentile interval; NaN stands for any value, and infinities are not interpolated."""
    shares = (1 - confidence) / 2, (1 + confidence) / 2
    if np.isfinite(estimates).all():
        low, high = np.quantile(estimates, shares)
        return float(low), float(high)
    last = len(estimates) - 1
    lowest = np.sort(np.where(np.isnan(estimates), -np.inf, estimates))
    highest = np.sort(np.where(np.isnan(estimates), np.inf, estimates))
    return float(lowest[int(np.floor(shares[0] * last))]), float(highest[int(np.ceil(shares[1] * last))])
