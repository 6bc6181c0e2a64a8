"""Every advantage estimator against numbers computed by hand, loops and enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.credit import Credit, Entry, assign
from agents.estimators import (
    ESTIMATORS,
    Context,
    anchor_group,
    gae,
    group_outcome,
    group_steps,
    leave_one_out_return_to_go,
    other_steps,
    plain_return,
    whitened_return,
)
from agents.returns import generalised_advantage
from agents.statistics import masked_mean
from tests.agents.columns import assert_columns, columns_of

# A group of three rollouts of 2, 1 and 3 steps, and a group of equals whose mean is not exact in float32.
COLUMNS = [[1, 3], [5], [0, 4, 2], [0.1], [0.1], [0.1]]
N = 3


def estimate(estimator, trajectory, group_size=N, values=None, next_values=None, channel="env"):
    run = jax.jit(lambda t, v, w: estimator.estimate(t.rewards[channel], Context(t, group_size, v, w)))
    return run(trajectory, values, next_values)


@pytest.fixture(scope="module")
def trajectory(make_trajectory):
    return make_trajectory(COLUMNS)


# --- generalised advantage -----------------------------------------------------------------------------


def test_gae_by_hand(make_trajectory):
    # discount = gae_lambda = 1/2; the second column is truncated, its final value 8 counts.
    trajectory = make_trajectory([[1, 2], [1, 2], [4]], truncated=[1])
    values = jnp.array([[0.5, 0.5, 1.0], [1.0, 1.0, 7.0]])
    next_values = jnp.array([[1.0, 1.0, 9.0], [8.0, 8.0, 9.0]])
    result = estimate(gae(0.5, 0.5), trajectory, 1, values, next_values)
    expected = [[1.25, 1.0], [2.25, 5.0], [3.0]]
    assert_columns(result.advantage, expected)
    np.testing.assert_allclose(np.asarray(result.value_target)[:, 1], [2.75, 6.0])
    assert gae().critic and not gae().grouped


def test_non_episodic_gae_flows_through_every_end(make_trajectory):
    # One column whose episode terminates at its first step and goes on: values 1, 2, 3, value behind the last row 4.
    trajectory = make_trajectory([[1, 1, 1]])
    trajectory = trajectory._replace(terminated=trajectory.terminated.at[0].set(True))
    values, next_values = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[100.0], [100.0], [4.0]])
    # delta = 1 + .5 * (2, 3, 4) - (1, 2, 3) = (1, .5, 0); gae_lambda 1/2: A = (1.125, .5, 0).
    result = estimate(gae(0.5, 0.5, episodic=False), trajectory, 1, values, next_values)
    assert_columns(result.advantage, [[1.125, 0.5, 0.0]])
    episodic = estimate(gae(0.5, 0.5), trajectory, 1, values, next_values)
    assert episodic.advantage[0, 0] == 0.0  # 1 - 1


@pytest.mark.parametrize("padding", [1, 4])
def test_padding_adds_nothing_to_non_episodic_gae(make_trajectory, padding):
    # Two steps, and rows that repeat the final observation, of value 4; beside it a column that fills all rows.
    trajectory = make_trajectory([[1, 1], [1] * (2 + padding)])
    values = jnp.full((2 + padding, 2), 4.0).at[:2, 0].set(jnp.array([2.0, 3.0]))
    result = estimate(gae(0.5, 0.5, episodic=False), trajectory, 1, values, values)
    # delta = 1 + .5 * (3, 4) - (2, 3) = (.5, 0); gae_lambda 1/2: A = (.5, 0).
    assert_columns(result.advantage[:, :1], [[0.5, 0.0]])


def test_non_episodic_gae_on_unrolls_is_the_recursion_without_ends_bit_for_bit(make_trajectory):
    rewards, values = np.random.default_rng(5).normal(size=(2, 32, 8)).astype(np.float32)
    trajectory = make_trajectory(list(rewards.T))

    def found(values):
        return estimate(gae(0.99, 0.95, episodic=False), trajectory, 1, values, values).advantage

    def recursion(rewards, values):
        never = jnp.zeros(rewards.shape, bool)
        following = jnp.concatenate([values[1:], values[-1:]])
        return generalised_advantage(rewards, values, following, never, never, 0.99, 0.95)

    # Committed results were computed with this order of operations; another rounding would change those runs.
    np.testing.assert_array_equal(jax.jit(found)(values), jax.jit(recursion)(trajectory.rewards["env"], values))


# --- outcomes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("baseline", "scale", "first_group"),
    [
        # Outcomes 4, 5, 6: mean 5, standard deviation 1 with ddof=1.
        ("mean", "std", [-1 / (1 + 1e-6), 0, 1 / (1 + 1e-6)]),
        ("mean", "none", [-1, 0, 1]),
        ("leave_one_out", "none", [4 - 5.5, 5 - 5, 6 - 4.5]),
        ("leave_one_out", "std", [-1.5 / (1 + 1e-6), 0, 1.5 / (1 + 1e-6)]),
        ("none", "none", [4, 5, 6]),
    ],
)
def test_group_outcome_by_hand(trajectory, baseline, scale, first_group):
    result = estimate(group_outcome(baseline, scale), trajectory).advantage
    second = [0.1] * 3 if baseline == "none" else [0.0] * 3
    expected = [[a] * len(column) for a, column in zip(first_group + second, COLUMNS, strict=True)]
    assert_columns(result, expected)
    if baseline != "none":
        assert not result[:, N:].any()


def test_without_baseline_and_scale_a_group_of_one_keeps_its_outcome(trajectory):
    result = estimate(group_outcome("none", "none"), trajectory, 1).advantage
    assert_columns(result, [[sum(column)] * len(column) for column in COLUMNS])


@pytest.mark.parametrize("value", [0.1, -200.1, 1e-8, 12345.678])
@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_equal_rewards_give_exactly_zero(make_trajectory, baseline, scale, value):
    trajectory = make_trajectory([[value] * 3] * 7)
    assert not estimate(group_outcome(baseline, scale), trajectory, 7).advantage.any()
    unequal = make_trajectory([[value], [value] * 3, [value] * 2])
    assert not estimate(group_steps(baseline, scale), unequal).advantage.any()


def test_rounding_noise_is_not_scaled_up(make_trajectory):
    noise = [100.1 * (1 + 1e-7 * k) for k in range(6)]
    trajectory = make_trajectory([noise[:2], noise[2:3], noise[3:]])
    assert not estimate(group_steps(), trajectory).advantage.any()
    outcomes = make_trajectory([[x] for x in noise[:3]])
    assert not estimate(group_outcome(), outcomes).advantage.any()


# --- steps ---------------------------------------------------------------------------------------------

# Steps 1, 3, 5, 0, 4, 2: mean 5/2, squared deviations sum to 35/2, standard deviation sqrt(7/2).
STEPS_STD = np.sqrt(3.5) + 1e-6


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({}, lambda r: (r - 2.5) / STEPS_STD),
        ({"scale": "none"}, lambda r: r - 2.5),
        # The mean of the five others is (15 - r) / 5.
        ({"baseline": "leave_one_out", "scale": "none"}, lambda r: r - (15 - r) / 5),
        ({"baseline": "leave_one_out"}, lambda r: (r - (15 - r) / 5) / STEPS_STD),
        ({"baseline": "none", "scale": "none"}, lambda r: r),
        # First steps 1, 5, 0: mean 2, squared deviations sum to 14.
        ({"first_row_baseline": True}, lambda r: (r - 2) / (np.sqrt(7) + 1e-6)),
        ({"first_row_baseline": True, "baseline": "leave_one_out", "scale": "none"}, lambda r: 1.5 * (r - 2)),
    ],
)
def test_group_steps_by_hand(trajectory, arguments, rule):
    result = estimate(group_steps(**arguments), trajectory).advantage
    first = [[rule(r) for r in column] for column in COLUMNS[:N]]
    assert_columns(result[:, :N], first)
    if arguments.get("baseline") != "none":
        assert not result[:, N:].any()


def test_the_mean_over_steps_vanishes_only_under_the_baseline_over_all_steps(trajectory):
    def mean(**arguments):
        result = estimate(group_steps(**arguments), trajectory).advantage
        return float(masked_mean(result[:, :N], trajectory.mask[:, :N]))

    np.testing.assert_allclose(mean(), 0.0, atol=1e-6)
    np.testing.assert_allclose(mean(baseline="leave_one_out"), 0.0, atol=1e-6)
    np.testing.assert_allclose(mean(first_row_baseline=True), 0.5 / (np.sqrt(7) + 1e-6), rtol=1e-5)


def test_leave_one_out_return_to_go_by_hand(trajectory):
    # Mean step rewards 2, 5, 2: the others' means are 3.5, 2, 3.5. Discount 1/2.
    result = estimate(leave_one_out_return_to_go(0.5), trajectory).advantage
    assert_columns(result, [[-2.75, -0.5], [3.0], [-3.625, -0.25, -1.5], [0.0], [0.0], [0.0]])
    undiscounted = estimate(leave_one_out_return_to_go(), trajectory).advantage
    assert_columns(undiscounted[:, :N], [[-3.0, -0.5], [3.0], [-4.5, -1.0, -1.5]])


RETURNS = [[2.5, 3.0], [5.0], [2.5, 5.0, 2.0]]


def test_plain_and_whitened_return_by_hand(make_trajectory):
    trajectory = make_trajectory(COLUMNS[:N])
    assert_columns(estimate(plain_return(0.5), trajectory).advantage, RETURNS)
    flat = np.concatenate(RETURNS)
    white = [(np.array(column) - flat.mean()) / np.sqrt(flat.var() + 1e-8) for column in RETURNS]
    assert_columns(estimate(whitened_return(0.5), trajectory).advantage, white)


def test_other_steps_by_hand(trajectory):
    result = estimate(other_steps(), trajectory).advantage
    assert_columns(result, [[-3, -1], [0], [-6, -2, -4], [0], [0], [0]])


# --- identities ----------------------------------------------------------------------------------------

GROUPED = {
    "grpo": group_outcome(),
    "rloo": group_outcome("leave_one_out", "none"),
    "oprl": group_steps(),
    "oprl leave one out": group_steps("leave_one_out", "none"),
    "first row": group_steps(first_row_baseline=True),
    "prime": leave_one_out_return_to_go(0.9),
    "whitened": whitened_return(0.9),
    "plain": plain_return(0.9),
    "other": other_steps(),
    "anchor": anchor_group(0.9, "std"),
}


@pytest.mark.parametrize("estimator", GROUPED.values(), ids=GROUPED)
def test_padding_does_not_matter(make_trajectory, estimator):
    clean, dirty = (estimate(estimator, make_trajectory(COLUMNS, padding=padding)) for padding in (0.0, 99.0))
    np.testing.assert_array_equal(clean.advantage, dirty.advantage)
    columns_of(dirty.advantage, COLUMNS)


SHIFTED = {name: GROUPED[name] for name in ("oprl", "oprl leave one out", "first row", "prime")}


@pytest.mark.parametrize("estimator", SHIFTED.values(), ids=SHIFTED)
def test_a_shift_of_all_steps_of_a_group_changes_nothing(make_trajectory, estimator):
    # Integers and a power of two: every sum is exact in float32, so the advantages must be too.
    groups = [[1, 3], [5], [0, 4, 2]], [[2], [7, 1], [3]]
    shifted = [[r + c for r in column] for group, c in zip(groups, (64, -16), strict=True) for column in group]
    before = estimate(estimator, make_trajectory([*groups[0], *groups[1]])).advantage
    after = estimate(estimator, make_trajectory(shifted)).advantage
    if estimator is SHIFTED["prime"]:
        # Means of three steps are not exact.
        np.testing.assert_allclose(after, before, atol=1e-4)
    else:
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("estimator", [GROUPED["grpo"], GROUPED["rloo"]], ids=["grpo", "rloo"])
def test_a_shift_of_all_outcomes_of_a_group_changes_nothing(make_trajectory, estimator):
    groups = [[1, 3], [5], [0, 4, 2]], [[2], [7, 1], [3]]
    shifted = [[r + c, *rest] for group, c in zip(groups, (64, -16), strict=True) for r, *rest in group]
    before = estimate(estimator, make_trajectory([*groups[0], *groups[1]])).advantage
    np.testing.assert_array_equal(estimate(estimator, make_trajectory(shifted)).advantage, before)


def test_two_outcomes_in_a_group_always_standardise_to_the_same_pair(make_trajectory):
    # The collapse that GDPO points out: totals (0, 1), (0, 2) and (1, 2) cannot be told apart.
    for pair in ((0, 1), (0, 2), (1, 2)):
        result = estimate(group_outcome(), make_trajectory([[x] for x in pair]), 2).advantage
        np.testing.assert_allclose(result, [[-np.sqrt(0.5), np.sqrt(0.5)]], rtol=1e-5)


# --- anchors -------------------------------------------------------------------------------------------


def brute_anchor(observation, rewards, mask, group_size, discount, scale):
    length, batch = rewards.shape
    returns = np.zeros((length + 1, batch))
    for t in reversed(range(length)):
        returns[t] = rewards[t] + discount * returns[t + 1]
    advantage = np.zeros((length, batch))
    for t, b in itertools.product(range(length), range(batch)):
        first = b // group_size * group_size
        anchor = [
            returns[s, j]
            for s, j in itertools.product(range(length), range(first, first + group_size))
            if mask[s, j] and np.array_equal(observation[s, j], observation[t, b])
        ]
        if mask[t, b] and len(anchor) > 1:
            advantage[t, b] = returns[t, b] - np.mean(anchor)
            if scale == "std":
                advantage[t, b] /= np.std(anchor, ddof=1) + 1e-6
    return advantage


@pytest.mark.parametrize("scale", ["none", "std"])
def test_anchor_group_equals_the_loop(make_trajectory, scale):
    rng = np.random.default_rng(3)
    lengths = [4, 2, 3, 4, 1, 4]
    observation = rng.integers(0, 3, (4, 6, 2)).astype(np.float32)
    # One anchor that is visited once, and one that only the other group visits too.
    observation[0, 0] = 7
    observation[0, 3] = 7
    trajectory = make_trajectory(
        [rng.normal(size=n) for n in lengths], padding=50.0, observation=jnp.asarray(observation)
    )
    mask, rewards = np.asarray(trajectory.mask), np.asarray(trajectory.rewards["env"] * trajectory.mask)
    expected = brute_anchor(observation, rewards, mask, 3, 0.9, scale)
    result = np.asarray(estimate(anchor_group(0.9, scale), trajectory).advantage)
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5)
    assert result[0, 0] == 0 and result[0, 3] == 0
    assert np.count_nonzero(result) > 8


def test_the_standard_deviation_of_an_anchor_survives_a_large_mean(make_trajectory):
    # Sums of squares would cancel: 1000 +- 0.01 in float32.
    trajectory = make_trajectory([[1000.0], [1000.25], [1000.5]])
    result = estimate(anchor_group(1.0, "std"), trajectory).advantage
    np.testing.assert_allclose(result, [[-1, 0, 1]], rtol=1e-3, atol=1e-6)


def test_anchors_are_summed_in_full_float32(make_trajectory, products):
    # On the CPU all products are; on a GPU only those that ask for it.
    trajectory = make_trajectory(COLUMNS)
    asked = products(lambda t: estimate(anchor_group(1.0, "std"), t), trajectory)
    assert asked == (2, 2)


# --- a control variate ---------------------------------------------------------------------------------


def tree_of_two_steps():
    """Every trajectory of an environment of two steps: probability, actions and states, and the advantages.

    The first action leads to state 0 or 1 or ends the episode, by chance; a second action follows in states 0 and 1.
    """
    rng = np.random.default_rng(6)
    policy = rng.dirichlet(np.ones(2), 3)  # of the start and of states 0 and 1
    transition = rng.dirichlet(np.ones(3), 2)
    outcome = rng.normal(size=(2, 3, 2))
    paths = []
    for a, s in itertools.product(range(2), range(3)):
        for b in range(2) if s < 2 else [None]:
            second = 1.0 if b is None else policy[1 + s, b]
            paths.append((policy[0, a] * transition[a, s] * second, a, s, b, outcome[a, s, b or 0]))
    # The true advantages of both steps.
    value = {(a, s): policy[1 + s] @ outcome[a, s] if s < 2 else outcome[a, 2, 0] for a in (0, 1) for s in (0, 1, 2)}
    q = np.array([transition[a] @ [value[a, s] for s in range(3)] for a in (0, 1)])
    advantage = [
        [q[a] - policy[0] @ q] + ([] if b is None else [outcome[a, s, b] - value[a, s]]) for _, a, s, b, _ in paths
    ]
    return policy, paths, advantage


def scores_of(policy, paths):
    """``d log pi / d logits`` of every step ``[paths, 2, 3 * 2]``; zero for a step that did not happen."""
    scores = np.zeros((len(paths), 2, 3, 2))
    for i, (_, a, s, b, _) in enumerate(paths):
        scores[i, 0, 0] = np.eye(2)[a] - policy[0]
        if b is not None:
            scores[i, 1, 1 + s] = np.eye(2)[b] - policy[1 + s]
    return scores.reshape(len(paths), 2, -1)


def gradient_moments(policy, paths, make_trajectory, step_rewards):
    """Mean and total variance of ``sum_t score_t A_t`` under the policy, by enumeration."""
    columns = [[0.0] * (len(r) - 1) + [path[-1]] for path, r in zip(paths, step_rewards, strict=True)]
    trajectory = make_trajectory(columns, model=step_rewards)
    credit = Credit({"env": Entry("env", group_outcome("none", "none")), "control": Entry("model", other_steps(), 1.0)})
    advantage = np.asarray(jax.jit(lambda t: assign(credit, t, 1, {}, {}).advantage)(trajectory), np.float64)
    gradient = np.einsum("tb,btp->bp", advantage, scores_of(policy, paths))
    probability = np.array([path[0] for path in paths])
    np.testing.assert_allclose(probability.sum(), 1)
    mean = probability @ gradient
    return mean, (probability @ np.square(gradient)).sum() - np.square(mean).sum()


def test_the_other_steps_leave_the_gradient_unbiased_and_lower_its_variance(make_trajectory):
    policy, paths, advantage = tree_of_two_steps()
    nothing = [[0.0] * len(r) for r in advantage]
    plain, plain_variance = gradient_moments(policy, paths, make_trajectory, nothing)
    reduced, reduced_variance = gradient_moments(policy, paths, make_trajectory, advantage)
    np.testing.assert_allclose(reduced, plain, atol=1e-6)
    assert reduced_variance < 0.7 * plain_variance
    # Any rewards that are centred under the policy leave the gradient unbiased.
    rng = np.random.default_rng(7)
    table = rng.normal(size=(3, 2))
    table -= np.sum(policy * table, axis=1, keepdims=True)
    arbitrary = [[table[0, a]] + ([] if b is None else [table[1 + s, b]]) for _, a, s, b, _ in paths]
    np.testing.assert_allclose(gradient_moments(policy, paths, make_trajectory, arbitrary)[0], plain, atol=1e-6)
    # Rewards that are not centred bias it, which shows that the check above can fail.
    biased = [
        [r + 1.0 + (k == 1) * a for k, r in enumerate(row)] for row, (_, a, *_) in zip(arbitrary, paths, strict=True)
    ]
    assert np.abs(gradient_moments(policy, paths, make_trajectory, biased)[0] - plain).max() > 0.05


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: group_outcome("leave_one_uot"),
            "unknown baseline 'leave_one_uot' of group_outcome, did you mean 'leave_one_out'",
        ),
        (lambda: group_outcome(scale="sdt"), "unknown scale 'sdt' of group_outcome, did you mean 'std'"),
        (lambda: group_steps("maen"), "unknown baseline 'maen' of group_steps, did you mean 'mean'"),
        (lambda: group_steps(scale="batch"), "unknown scale 'batch' of group_steps, did you mean '"),
        (lambda: anchor_group(scale="none "), "unknown scale 'none ' of anchor_group, did you mean 'none'"),
    ],
)
def test_unknown_choices_are_refused_with_the_nearest(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_estimators_that_need_whole_episodes_declare_it():
    grouped = {name for name, kind in ESTIMATORS.items() if kind.factory().grouped}
    groups = {"group_outcome", "group_steps", "leave_one_out_return_to_go", "other_steps", "anchor_group"}
    # Without a critic nothing is known of what follows the last row, so that these need whole episodes as well.
    assert grouped == groups | {"plain_return", "whitened_return"}
    assert {name for name, kind in ESTIMATORS.items() if kind.factory().critic} == {"gae"}


def test_estimators_that_compare_rollouts_need_two_of_them():
    compare = {name for name, kind in ESTIMATORS.items() if kind.factory().smallest_group > 1}
    assert compare == {"group_outcome", "leave_one_out_return_to_go"}
    assert group_outcome("none", "std").smallest_group == group_outcome("leave_one_out", "none").smallest_group == 2
    assert group_outcome("none", "none").smallest_group == 1
