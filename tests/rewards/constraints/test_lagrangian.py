"""Episode totals, the weights that are written, and what stays the same, by hand and against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.base import DataSpec
from agents.credit import Credit, Entry, assign
from agents.estimators import plain_return
from rewards.base import chain
from rewards.constraints.lagrangian import Constraint, LagrangianState, episode_totals, lagrangian, worst_mean
from rewards.constraints.multipliers import dual_ascent, fixed
from tests.rewards.contract import assert_same, undone

KEY = jax.random.key(0)
DATA = DataSpec(kind="unroll", length=3, batch=2)
SGD = dual_ascent(optimiser="sgd", learning_rate=1.0)
SPEED = {"speed": Constraint("cost/speed", 2.0)}


def make(**arguments):
    return lagrangian(**({"data": DATA, "constraints": SPEED, "multiplier": SGD} | arguments))


def updated(transform, *trajectories):
    state, metrics = transform.init(KEY), {}
    for trajectory in trajectories:
        state, metrics = transform.update(state, trajectory, KEY)
    return state, {name: float(value) for name, value in metrics.items()}


def multiplier_of(state):
    return SGD.value(state.multiplier)[0]


def unrolled(make_trajectory, costs, ends, starts=None):
    """A trajectory of ``cost/speed`` whose episodes end where ``ends`` is 1."""
    ends = np.asarray(ends, bool)
    starts = np.concatenate([np.zeros_like(ends[:1]), ends[:-1]]) if starts is None else np.asarray(starts, bool)
    extras = {"episode_start": jnp.asarray(starts), "episode_length": jnp.full(ends.shape, 4)}
    trajectory = make_trajectory(env=np.ones(ends.shape), **{"cost/speed": costs}, extras=extras)
    return trajectory._replace(terminated=jnp.asarray(ends))


@pytest.fixture
def first(make_trajectory):
    """Two environments: an episode of cost 1 + 4 = 5 ends, one of cost 7 goes on."""
    return unrolled(make_trajectory, [[1, 2], [4, 2], [9, 3]], [[0, 0], [1, 0], [0, 0]], [[1, 1], [0, 0], [1, 0]])


@pytest.fixture
def second(make_trajectory):
    """Their continuation: episodes of cost 9 + 1 = 10 and 7 + 1 = 8 end."""
    return unrolled(make_trajectory, [[1, 1], [0, 0], [0, 0]], [[1, 1], [0, 0], [0, 0]])


def test_totals_are_of_whole_episodes_across_unrolls(first, second):
    state, metrics = updated(make(), first)
    assert metrics == {"total/speed": 5.0, "violation/speed": 3.0, "multiplier/speed": 3.0, "best/speed": 5.0}
    np.testing.assert_array_equal(state.running, [[9, 7]])
    _, metrics = updated(make(), first, second)
    assert metrics == {"total/speed": 9.0, "violation/speed": 7.0, "multiplier/speed": 10.0, "best/speed": 5.0}


def test_a_discounted_total(first, second):
    _, metrics = updated(make(discount=0.5), first)
    assert metrics["total/speed"] == 1 + 0.5 * 4
    _, metrics = updated(make(discount=0.5), first, second)
    assert metrics["total/speed"] == pytest.approx(((9 + 0.5 * 1) + (2 + 0.5 * 2 + 0.25 * 3 + 0.125 * 1)) / 2)


def test_smoothing_starts_with_the_first_batch(first, second):
    _, metrics = updated(make(smoothing=0.75), first, second)
    assert metrics["total/speed"] == 0.75 * 5 + 0.25 * 9


def test_the_worst_episodes_alone(first, second):
    _, metrics = updated(make(tail=0.5), second)
    assert metrics["total/speed"] == 1.0
    _, metrics = updated(make(tail=0.5), first, second)
    assert metrics["total/speed"] == 10.0
    least = {"speed": Constraint("cost/speed", 2.0, "at_least")}
    _, metrics = updated(make(tail=0.5, constraints=least), first, second)
    assert metrics["total/speed"] == 8.0


def test_without_an_ended_episode_nothing_is_learned(first, second):
    transform = make()
    state, _ = updated(transform, first)
    none = jnp.zeros_like(second.terminated)
    quiet = second._replace(terminated=none, extras=second.extras | {"episode_start": none})
    after, metrics = transform.update(state, quiet, KEY)
    assert_same(after.multiplier, state.multiplier)
    assert float(metrics["multiplier/speed"]) == 3.0
    np.testing.assert_array_equal(after.running, [[10, 8]])


@pytest.mark.parametrize(("sense", "expected"), [("at_most", 3.0), ("at_least", 0.0), ("equal", 3.0)])
def test_senses(first, sense, expected):
    _, metrics = updated(make(constraints={"speed": Constraint("cost/speed", 2.0, sense)}), first)
    assert metrics["multiplier/speed"] == expected
    _, metrics = updated(make(constraints={"speed": Constraint("cost/speed", 9.0, sense)}), first)
    assert metrics["multiplier/speed"] == {"at_most": 0.0, "at_least": 4.0, "equal": -4.0}[sense]


@pytest.mark.parametrize(
    ("mixing", "objective", "others"),
    [("sum", 1.0, [-0.5, 0.5]), ("normalised", 0.5, [-0.25, 0.25]), ("share", 1.0, [-0.5, 0.5])],
)
def test_weights_by_hand(make_trajectory, mixing, objective, others):
    """Two constraints, a cost and a goal, of multipliers 0.5."""
    constraints = {"cost": Constraint("cost/speed", 1.0), "goal": Constraint("objective/0", 1.0, "at_least")}
    transform = make(constraints=constraints, multiplier=fixed(value=0.5), mixing=mixing)
    ones = np.ones((3, 2))
    trajectory = make_trajectory(env=ones, **{"cost/speed": 2 * ones, "objective/0": 3 * ones})
    relabelled, _ = transform.apply(transform.init(KEY), trajectory)
    weights = relabelled.extras["credit_weight"]
    found = [float(weights[name][0, 0]) for name in ("env", "cost", "goal")]
    np.testing.assert_allclose(found, [objective, *others])
    assert_same(relabelled.rewards, trajectory.rewards)
    # The same sum of channels in the reward.
    transform = make(constraints=constraints, multiplier=fixed(value=0.5), mixing=mixing, channel="env")
    relabelled, _ = transform.apply(transform.init(KEY), trajectory)
    np.testing.assert_allclose(relabelled.rewards["env"], objective + 2 * others[0] + 3 * others[1])
    assert "credit_weight" not in relabelled.extras


def test_credit_mixes_by_the_weights(make_trajectory):
    """Without a critic, the two ways to weigh give one advantage."""
    ones = np.ones((3, 2))
    trajectory = make_trajectory(env=ones, **{"cost/speed": 2 * ones})
    found = {}
    for channel in (None, "env"):
        transform = chain(lagrangian=make(multiplier=fixed(value=0.25), channel=channel))
        relabelled, _ = transform.apply(transform.init(KEY), trajectory)
        entries = {"env": Entry("env", plain_return())}
        if channel is None:
            entries["speed"] = Entry("cost/speed", plain_return())
        found[channel] = assign(Credit(entries), relabelled, 1, {}, {}).advantage
    np.testing.assert_allclose(found[None], found["env"], rtol=1e-6)
    np.testing.assert_allclose(found[None][0], 3 * (1 - 0.25 * 2) / 1.25, rtol=1e-6)


def test_the_violation_per_step_is_there_for_agents_with_multipliers_of_their_own(first):
    """A total of 5 in four steps, where 2 or 9 is the most that is allowed."""
    constraints = {
        "speed": Constraint("cost/speed", 2.0),
        "again": Constraint("cost/speed", 9.0),
        "other": Constraint("cost/speed", 9.0, "at_least"),
    }
    transform = make(constraints=constraints)
    state, _ = transform.update(transform.init(KEY), first, KEY)
    relabelled, _ = transform.apply(state, first)
    found = relabelled.extras["violation"]
    assert {name: float(each[0, 0]) for name, each in found.items()} == {"speed": 0.75, "again": -1.0}
    assert all(each.shape == first.mask.shape for each in found.values())


def test_the_running_totals_survive_an_undone_step(first):
    transform = make()
    old = transform.init(KEY)
    new, _ = transform.update(old, first, KEY)
    kept = undone(transform, old, new)
    assert_same((kept.running, kept.factor), (new.running, new.factor))
    assert_same(kept.multiplier, old.multiplier)


def test_a_nan_cost_reaches_the_state_so_that_the_step_is_undone(first):
    bad = first._replace(rewards=first.rewards | {"cost/speed": first.rewards["cost/speed"].at[0, 0].set(jnp.nan)})
    transform = chain(lagrangian=make())
    state, _ = transform.update(transform.init(KEY), bad, KEY)
    assert np.isnan(float(state["lagrangian"].total[0]))
    assert np.isnan(float(multiplier_of(state["lagrangian"])))


def test_the_state_is_finite_at_the_start_and_keeps_its_types(first):
    transform = make()
    state = transform.init(KEY)
    assert isinstance(state, LagrangianState)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state))
    new, _ = jax.eval_shape(transform.update, state, first, KEY)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), new)


def test_episode_totals_against_a_loop(make_trajectory):
    rng = np.random.default_rng(0)
    costs, ends = rng.random((2, 12, 3)).astype(np.float32), rng.random((12, 3)) < 0.3
    starts = np.concatenate([np.ones((1, 3), bool), ends[:-1]])
    trajectory = unrolled(make_trajectory, costs[0], ends, starts)
    found, running, _ = episode_totals(jnp.asarray(costs), jnp.zeros((2, 3)), jnp.ones(3), trajectory, 0.9)
    expected = np.zeros_like(costs)
    for constraint in range(2):
        for column in range(3):
            total, factor = 0.0, 1.0
            for row in range(12):
                if starts[row, column]:
                    total, factor = 0.0, 1.0
                total += factor * costs[constraint, row, column]
                factor *= 0.9
                expected[constraint, row, column] = total
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(running, expected[:, -1], rtol=1e-5)


def test_the_worst_mean_against_numpy():
    rng = np.random.default_rng(1)
    values, valid = rng.normal(size=(2, 40)), rng.random(40) < 0.5
    for share in (0.05, 0.1, 0.25, 1.0):
        ordered = np.sort(values[:, valid], axis=-1)[:, ::-1]
        number = max(share * valid.sum(), 1.0)
        weight = np.clip(number - np.arange(valid.sum()), 0, 1)
        expected = (ordered * weight).sum(-1) / number
        found = worst_mean(jnp.asarray(values, jnp.float32), jnp.asarray(valid), share)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert worst_mean(jnp.ones((1, 3)), jnp.zeros(3, bool), 0.5).tolist() == [0.0]


def test_bad_arguments_name_what_was_expected(first):
    for arguments, message in (
        ({"constraints": {}}, "constraints is empty"),
        ({"constraints": {"env": SPEED["speed"]}}, "'env' is the objective and a constraint"),
        ({"constraints": {"speed": Constraint("cost/speed", 1.0, "at_mots")}}, "at_mots.*at_most"),
        ({"mixing": "normalized"}, "normalized.*normalised"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**arguments)
    transform = make(constraints={"speed": Constraint("cost/sped", 1.0)})
    with pytest.raises(ValueError, match=r"cost/sped.*cost/speed"):
        transform.update(transform.init(KEY), first, KEY)
