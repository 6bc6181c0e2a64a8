"""Statistics, compared with closed forms, enumeration and the library rliable."""

import itertools

import numpy as np
import pytest
from scipy import stats

from experiments.rows import statistics

RUNS, TASKS = np.arange(10)[:, None], np.arange(3)[None]
SCORES = np.sin(1.0 + 3 * RUNS + 7 * TASKS) ** 2 * (1 + TASKS)
OTHER = np.cos(2.0 * np.arange(8)) ** 2


def rows_of(table, metric="success", spacing=100):
    """Rows of a table [seeds, P]."""
    return [
        {"seed": seed, "env_steps": spacing * (point + 1), metric: value}
        for seed, values in enumerate(table)
        for point, value in enumerate(values)
    ]


@pytest.mark.parametrize("axis", [0, 1, -1, None])
@pytest.mark.parametrize("count", [1, 3, 4, 7, 8, 30])
def test_interquartile_mean_is_the_trimmed_mean_of_scipy(count, axis):
    values = np.random.default_rng(count).normal(size=(count, 2, 3))
    found = statistics.interquartile_mean(values, axis=axis)
    np.testing.assert_allclose(found, stats.trim_mean(values, 0.25, axis=axis), rtol=1e-12)


def test_interquartile_mean_by_hand():
    # Eight values: two are cut at each end.
    assert statistics.interquartile_mean([100, 1, 2, 3, 4, 5, 6, -50]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    # Ten values: floor(2.5) = 2 are cut at each end, so two of ten may be infinite.
    assert statistics.interquartile_mean([*range(8), np.inf, np.inf]) == pytest.approx(np.mean(range(2, 8)))
    assert statistics.interquartile_mean([*range(7), np.inf, np.inf, np.inf]) == np.inf
    assert statistics.interquartile_mean([1, 2, 6]) == pytest.approx(3)
    np.testing.assert_allclose(statistics.interquartile_mean([[1, 2], [3, 4], [5, 6], [90, 0]], axis=0), [4, 3])


@pytest.mark.parametrize(
    ("scores", "confidence", "estimate", "low", "high"),
    [
        (SCORES, 0.95, 1.29122174, 1.0365894, 1.55452669),
        (SCORES, 0.8, 1.29122174, 1.13049804, 1.47014756),
        (SCORES[:, :1], 0.95, 0.18047869, 0.0471022, 0.41348552),
        (SCORES[:, 0], 0.8, 0.18047869, 0.07813913, 0.33122471),
    ],
)
def test_stratified_bootstrap_agrees_with_rliable(scores, confidence, estimate, low, high):
    """The ends are those of rliable 1.2.0 with 50000 repetitions; both have Monte Carlo error."""
    interval = statistics.stratified_bootstrap(scores, repetitions=20_000, confidence=confidence)
    assert interval.estimate == pytest.approx(estimate, rel=1e-7)
    np.testing.assert_allclose([interval.low, interval.high], [low, high], atol=0.006)


def test_probability_of_improvement_agrees_with_rliable_and_with_pairs():
    interval = statistics.probability_of_improvement(SCORES[:, 0], OTHER)
    pairs = [float(x > y) + 0.5 * (x == y) for x, y in itertools.product(SCORES[:, 0], OTHER)]
    assert interval.estimate == pytest.approx(np.mean(pairs)) == pytest.approx(0.3125)
    # rliable 1.2.0, 5000 repetitions.
    np.testing.assert_allclose([interval.low, interval.high], [0.075, 0.6], atol=0.02)
    assert statistics.probability_of_improvement([1, 1], [1, 1]) == (0.5, 0.5, 0.5)


def test_bootstrap_against_every_resample():
    """With three runs there are 27 resamples; the ends are quantiles of that exact distribution."""
    scores = np.array([0.0, 1.0, 5.0])
    means = sorted(np.mean(pick) for pick in itertools.product(scores, repeat=3))
    interval = statistics.stratified_bootstrap(scores, repetitions=40_000, confidence=0.8)
    # 10 % and 90 % of 27 lie strictly inside runs of equal values, so that Monte Carlo error cannot move them.
    assert interval.low == pytest.approx(means[2]) and interval.high == pytest.approx(means[24])
    assert interval.estimate == 2.0


def test_stratified_means_within_the_task():
    """Tasks with constant scores: whatever is resampled, the statistic is the same; pooled resampling would vary."""
    scores = np.tile([0.0, 10.0, 20.0], (6, 1))
    interval = statistics.stratified_bootstrap(scores, lambda values, axis: values.mean(axis), repetitions=200)
    assert interval == (10.0, 10.0, 10.0)


def test_bootstrap_is_reproducible_and_one_run_has_no_interval():
    first, second = (statistics.stratified_bootstrap(SCORES, repetitions=500, seed=3) for _ in range(2))
    assert first == second != statistics.stratified_bootstrap(SCORES, repetitions=500, seed=4)
    alone = statistics.stratified_bootstrap([0.7])
    assert alone.estimate == 0.7 and np.isnan(alone.low) and np.isnan(alone.high)
    assert not statistics.excludes(alone, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), r"scores have shape \(0, 1\)"),
        (([1, np.nan],), "scores hold nan"),
        (([1, 2], statistics.interquartile_mean, 0), "repetitions=0"),
        (([1, 2], statistics.interquartile_mean, 10, 95), "confidence=95: expected a share"),
    ],
)
def test_bootstrap_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        statistics.stratified_bootstrap(*arguments)


def test_ratio_of_constant_groups_is_exact_and_of_noisy_ones_covers():
    assert statistics.interval_of_ratio([2, 2, 2], [4, 4]) == (0.5, 0.5, 0.5)
    generator = np.random.default_rng(0)
    covered = 0
    for repetition in range(60):
        numerator, denominator = generator.normal(30, 3, 20), generator.normal(60, 6, 20)
        interval = statistics.interval_of_ratio(numerator, denominator, repetitions=400, seed=repetition)
        covered += interval.low <= 0.5 <= interval.high
    # A 95 % interval that covers in fewer than 50 of 60 cases has probability below 1 in 1000.
    assert covered >= 50


def test_ratio_to_a_threshold_that_was_never_reached():
    censored = [10, 20, np.inf, np.inf]
    # The middle half of the four is (20, inf); resamples without inf exist, so that the low end is finite.
    ratio = statistics.interval_of_ratio(censored, [10, 10, 10, 10])
    assert (ratio.estimate, ratio.high) == (np.inf, np.inf) and 1 <= ratio.low < 2
    # The baseline never gets there: the ratio is 0, and the interval says that we are below 1.
    assert statistics.interval_of_ratio([5, 6, 7], [np.inf] * 3) == (0, 0, 0)
    neither = statistics.interval_of_ratio([np.inf] * 3, [np.inf] * 3)
    assert np.isnan(neither.estimate) and (neither.low, neither.high) == (0, np.inf)
    assert not statistics.excludes(neither, 1.0)
    with pytest.raises(ValueError, match="expected positive"):
        statistics.interval_of_ratio([0, 1], [1, 1])


def test_steps_to_threshold_by_hand():
    steps = [0, 100, 200, 300]
    assert statistics.steps_to_threshold(steps, [0, 0.2, 0.6, 1], 0.5) == pytest.approx(175)
    assert statistics.steps_to_threshold(steps, [0, 0.2, 0.6, 1], 1.0) == 300
    assert statistics.steps_to_threshold(steps, [0, 0.2, 0.6, 1], 1.01) == np.inf
    assert statistics.steps_to_threshold(steps, [0.5, 0, 0, 0], 0.5) == 0
    assert statistics.steps_to_threshold(steps, [0, 0.8, 0.1, 1], 0.4) == pytest.approx(50)
    # The means of two evaluations are 0.1, 0.4, 0.8 at 100, 200, 300.
    assert statistics.steps_to_threshold(steps, [0, 0.2, 0.6, 1], 0.5, smoothing=2) == pytest.approx(225)
    assert statistics.steps_to_threshold(steps, [0, np.nan, 0.6, 1], 0.5) == 200
    for bad in ((steps, [0, 1], 0.5), ([0, 0], [0, 1], 0.5), ([0, 1], [0, 1], 0.5, 3), ([0, 1], [0, 1], 0.5, 0)):
        with pytest.raises(ValueError, match="expected"):
            statistics.steps_to_threshold(*bad)


def test_steps_per_seed_counts_a_seed_without_values_as_never():
    table = [[0.0, 1.0], [0.0, 0.25], [None, None]]
    assert statistics.steps_per_seed(rows_of(table), "success", 0.5).tolist() == [150, np.inf, np.inf]
    assert statistics.final_values(rows_of(table), "success").tolist() == [1.0, 0.25]
    assert statistics.final_values(rows_of(table[:2]), "success", smoothing=2).tolist() == [0.5, 0.125]


def test_trailing_mean_and_area():
    np.testing.assert_allclose(statistics.trailing_mean([[1, 2, 6], [0, 0, 3]], 2), [[1.5, 4], [0, 1.5]])
    # Triangles and rectangles over 0..4: areas 1 + 6 and 1/8 + 15/8 over a width of 4.
    np.testing.assert_allclose(statistics.area_under_curve([0, 1, 4], [[0, 2, 2], [0, 0.25, 1]]), [7 / 4, 0.5])
    assert statistics.area_under_curve([5], [0.3]) == 0.3


def test_curve_is_the_bootstrap_at_every_point():
    table = np.random.default_rng(1).uniform(size=(7, 5))
    rows = rows_of(table)
    np.random.default_rng(2).shuffle(rows)
    curve = statistics.curve(rows, "success", repetitions=4000)
    assert curve.env_steps.tolist() == [100, 200, 300, 400, 500] and curve.runs.tolist() == [7] * 5
    for point in range(5):
        alone = statistics.stratified_bootstrap(table[:, point], repetitions=4000)
        assert curve.estimate[point] == pytest.approx(alone.estimate)
        np.testing.assert_allclose([curve.low[point], curve.high[point]], [alone.low, alone.high], atol=0.02)


def test_curve_leaves_out_missing_values_and_says_how_many_runs():
    table = [[0.0, 1.0, 2.0], [2.0, None, 4.0], [4.0, 3.0, None]]
    curve = statistics.curve(rows_of(table), "success", repetitions=100)
    assert curve.runs.tolist() == [3, 2, 2]
    np.testing.assert_allclose(curve.estimate, [2, 2, 3])
    single = statistics.curve(rows_of(table[:1]), "success", smoothing=2)
    assert single.env_steps.tolist() == [200, 300] and single.estimate.tolist() == [0.5, 1.5]
    assert np.isnan(single.low).all()
    with pytest.raises(ValueError, match="no row has a value of 'other'"):
        statistics.curve(rows_of(table), "other")
