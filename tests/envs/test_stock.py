"""The stock: its identity along an episode, other start stocks, ends and resets, for pure environments and hosts."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from envs.base import Environment, EnvironmentSpec, TimeStep
from envs.hosts.jax import JaxHost
from envs.rollout import start_unroll, unroll
from envs.stock import (
    LARGEST_STOCK,
    StartingAt,
    StockAugmented,
    StockHost,
    is_augmented,
    next_stock,
    visible,
    with_start,
)
from envs.wrappers import TimeLimit

KEY = jax.random.key(0)
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
DISCOUNT = 0.9


@dataclass(frozen=True)
class Payments:
    """Pays random amounts in ``env`` and two objectives, and observes how many steps have paid."""

    @property
    def spec(self):
        return EnvironmentSpec(spaces.Box(0, 99, (1,), np.float32), spaces.Discrete(2), objectives=("left", "right"))

    def reset(self, key):
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, key, state, action):
        reward, left, right = jax.random.normal(key, (3,)) + action
        flag = jnp.zeros((), bool)
        objectives = {"left": left, "right": right}
        return state + 1, TimeStep(state + 1, reward, {}, objectives, flag, flag, state + 1, {})


LIMITED = TimeLimit(Payments(), 5)


def unrolled(environment, length=12, batch=3):
    def policy(carry, observation, key):
        return jax.random.randint(key, (batch,), 0, 2), (), {}

    state = start_unroll(environment, KEY, batch, ())
    return unroll(environment, policy, state, KEY, length=length, initial_carry=())[1]


def path(environment, length=12):
    return jax.device_get(jit(lambda: unrolled(environment, length))())


@pytest.mark.parametrize("channels", ["env", ("objective/left", "objective/right"), ("env",)])
@pytest.mark.parametrize("discount", [0.9, 1.0])
def test_stock_and_return_add_up_to_the_same_at_every_step(channels, discount):
    trajectory = path(StockAugmented(LIMITED, discount, -2.0, 3.0, channels=channels))
    names = (channels,) if isinstance(channels, str) else channels
    rewards = np.stack([trajectory.rewards[name] for name in names], axis=-1)
    stock = trajectory.observation["stock"].reshape(*rewards.shape)
    following = trajectory.next_observation["stock"].reshape(*rewards.shape)
    # An episode of five steps: G_t is the rest of its discounted rewards.
    for t in range(6):
        rest = sum(discount ** (k - t) * rewards[k] for k in range(t, 5))
        now = stock[t] if t < 5 else following[4]
        whole = stock[0] + sum(discount**k * rewards[k] for k in range(5))
        np.testing.assert_allclose(discount**t * (now + rest), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(following, (stock + rewards) / discount, rtol=1e-6)


def test_the_final_observation_has_the_stock_after_the_step_and_the_next_a_new_start():
    trajectory = path(StockAugmented(LIMITED, DISCOUNT, -2.0, 3.0))
    observation, following = trajectory.observation, trajectory.next_observation
    np.testing.assert_array_equal(trajectory.truncated[4], True)
    np.testing.assert_array_equal(following["steps"][4], 5)
    np.testing.assert_array_equal(observation["steps"][5], 0)
    np.testing.assert_array_equal(observation["stock"][5], observation["start_stock"][5])
    assert not np.any(np.isclose(observation["start_stock"][5], observation["start_stock"][4]))
    assert not np.any(np.isclose(observation["stock"][5], following["stock"][4]))
    np.testing.assert_array_equal(following["stock"][:4], observation["stock"][1:5])
    np.testing.assert_allclose(observation["time"][:6, 0], [0, 0.2, 0.4, 0.6, 0.8, 0])


def test_another_start_stock_changes_the_stocks_alone_and_exactly():
    mine, theirs = (path(StockAugmented(LIMITED, DISCOUNT, -2, 3, start=start)) for start in (-2.0, 3.0))
    for seen, expected in ((mine.observation, theirs.observation), (mine.next_observation, theirs.next_observation)):
        edited = with_start(seen, np.full_like(seen["stock"], 3.0), DISCOUNT)
        assert jax.tree.structure(edited) == jax.tree.structure(expected)
        for name in expected:
            np.testing.assert_allclose(edited[name], expected[name], rtol=1e-5, atol=1e-5)


def test_vector_stocks_get_another_start_per_component():
    arguments = {"channels": ("objective/left", "env")}
    mine = path(StockAugmented(LIMITED, DISCOUNT, -2, 3, start=(0.0, 1.0), **arguments)).next_observation
    theirs = path(StockAugmented(LIMITED, DISCOUNT, -2, 3, start=(2.0, -1.0), **arguments)).next_observation
    start = np.broadcast_to(np.array([2.0, -1.0], np.float32), mine["stock"].shape)
    np.testing.assert_allclose(with_start(mine, start, DISCOUNT)["stock"], theirs["stock"], rtol=1e-5, atol=1e-5)


def test_start_stocks_are_uniform_and_the_key_names_the_same_start_state():
    environment = StockAugmented(LIMITED, DISCOUNT, (-2.0, 0.0), (3.0, 1.0), channels=("env", "objective/left"))
    _, observation = jit(jax.vmap(environment.reset))(jax.random.split(KEY, 4000))
    start = np.asarray(observation["start_stock"])
    assert (start.min(axis=0) >= [-2, 0]).all() and (start.max(axis=0) <= [3, 1]).all()
    # Mean of a uniform: four standard errors.
    np.testing.assert_allclose(start.mean(axis=0), [0.5, 0.5], atol=4 * 5 / np.sqrt(12 * 4000))
    inside, _ = LIMITED.reset(KEY)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, environment.reset(KEY)[0].environment, inside))


def test_a_horizon_terminates_and_a_time_limit_truncates():
    trajectory = path(StockAugmented(LIMITED, DISCOUNT, 0, 1, horizon=3), length=6)
    np.testing.assert_array_equal(trajectory.terminated[:, 0], [0, 0, 1, 0, 0, 1])
    assert not trajectory.truncated.any()
    np.testing.assert_allclose(trajectory.next_observation["time"][:3, 0], [1 / 3, 2 / 3, 1])
    # If both are reached in the same step, it is terminated.
    trajectory = path(StockAugmented(LIMITED, 1.0, 0, 1, horizon=5), length=5)
    assert trajectory.terminated[4].all() and not trajectory.truncated.any()


def test_spec():
    environment = StockAugmented(LIMITED, DISCOUNT, -2, 3, horizon=4)
    space = environment.spec.observation_space
    assert (
        isinstance(environment, Environment)
        and is_augmented(space)
        and not is_augmented(LIMITED.spec.observation_space)
    )
    assert set(visible(space).spaces) == {"observation", "stock", "time"} == set(visible(environment.reset(KEY)[1]))
    assert space["start_stock"] == spaces.Box(-2, 3, (), np.float32)
    assert environment.spec.max_episode_steps == 4 and StockAugmented(LIMITED, 1, 0, 0).spec.max_episode_steps == 5
    template = jax.tree.map(lambda x: (x.shape, x.dtype), environment.spec.observation_template())
    assert template == jax.tree.map(lambda x: (x.shape, x.dtype), environment.reset(KEY)[1])
    endless = StockAugmented(Payments(), DISCOUNT, -2, 3)
    assert "time" not in endless.spec.observation_space.spaces and "time" not in endless.reset(KEY)[1]


def test_an_episode_starts_at_a_given_stock_even_a_traced_one():
    environment = StockAugmented(LIMITED, DISCOUNT, -2, 3)
    fixed = path(StockAugmented(LIMITED, DISCOUNT, -2, 3, start=0.5))
    traced = jit(lambda stock: unrolled(StartingAt(environment, stock)))(0.5)
    assert isinstance(StartingAt(environment, 0.5), Environment)
    for one, other in zip(jax.tree.leaves(traced), jax.tree.leaves(fixed), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


# --- hosts ---------------------------------------------------------------------------------------------


def host(**arguments):
    return StockHost(JaxHost(LIMITED, 3), DISCOUNT, -2.0, 3.0, **arguments)


@pytest.mark.parametrize("channels", ["env", ("objective/left", "env")])
def test_a_host_keeps_the_same_stock(channels):
    environments = host(channels=channels)
    before = environments.reset(7)
    template = jax.tree.map(lambda x: ((3, *x.shape), x.dtype), environments.spec.observation_template())
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == template
    for t in range(7):
        step = environments.step(np.array([0, 1, 1]))
        rewards = {"env": step.reward, "objective/left": step.objectives["left"]}
        paid = rewards["env"] if channels == "env" else np.stack([rewards[name] for name in channels], axis=-1)
        final = step.final_observation
        np.testing.assert_allclose(final["stock"], (before["stock"] + paid) / np.float32(DISCOUNT), rtol=1e-6)
        np.testing.assert_array_equal(final["steps"], before["steps"] + 1)
        if t == 4:
            assert step.truncated.all()
            np.testing.assert_array_equal(step.observation["stock"], step.observation["start_stock"])
            np.testing.assert_array_equal(step.observation["steps"], 0)
            assert not np.any(np.isclose(step.observation["start_stock"], final["start_stock"]))
        else:
            assert all(map(np.array_equal, jax.tree.leaves(step.observation), jax.tree.leaves(final)))
        assert (step.observation["start_stock"] >= -2).all() and (step.observation["start_stock"] <= 3).all()
        before = step.observation


def test_a_host_continues_from_its_snapshot_and_repeats_from_its_seed():
    environments, other = host(), host()
    first = environments.reset(3)
    action = np.zeros(3, np.int32)
    environments.step(action)
    snapshot = environments.snapshot()
    expected = [environments.step(action).observation for _ in range(6)]
    other.reset(99)
    other.restore(snapshot)
    found = [other.step(action).observation for _ in range(6)]
    assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(expected)))
    assert all(map(np.array_equal, jax.tree.leaves(other.reset(3)), jax.tree.leaves(first)))
    np.testing.assert_array_equal(host(start=1.5).reset(3)["stock"], [1.5] * 3)
    # An environment's stock depends on its own seed.
    np.testing.assert_array_equal(other.reset([5, 3, 3])["stock"][1:], [first["stock"][0]] * 2)


def test_a_hosts_time_limit_can_be_the_horizon():
    environments = host(horizon=5)
    environments.reset(3)
    steps = [environments.step(np.zeros(3, np.int32)) for _ in range(6)]
    np.testing.assert_array_equal([step.terminated[0] for step in steps], [0, 0, 0, 0, 1, 0])
    assert not any(step.truncated.any() for step in steps)
    with pytest.raises(ValueError, match="horizon=4: expected the host's time limit 5"):
        host(horizon=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"discount": 0.0}, "discount=0.0: expected above 0"),
        ({"discount": 1.5}, "discount=1.5: expected above 0"),
        ({"low": 4.0}, "low=4.0, high=3.0: expected finite numbers with low <= high"),
        ({"horizon": 0}, "horizon=0: expected at least 1"),
        ({"horizon": 6}, "horizon=6: the environment inside is cut after 5 steps: expected that at most, or None"),
        (
            {"channels": "objective/lft"},
            "unknown channel 'objective/lft' of the environment, did you mean 'objective/left'",
        ),
        ({"channels": ()}, "expected a name"),
        ({"low": (1.0, 2.0)}, r"low=\(1.0, 2.0\): expected a number or one for each of the channels"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        StockAugmented(**({"environment": LIMITED, "discount": 0.9, "low": -2.0, "high": 3.0} | arguments))


def test_not_started_or_not_an_environment():
    with pytest.raises(RuntimeError, match="call reset first"):
        host().step(np.zeros(3, np.int32))
    with pytest.raises(TypeError, match="expected an Environment"):
        StockAugmented("sokoban", 1.0, 0.0, 1.0)


def test_a_stock_stays_finite():
    stock = np.float32(3.0)
    for _ in range(400):
        stock = next_stock(stock, np.float32(0.0), np.float32(0.5))
    assert stock == np.float32(LARGEST_STOCK)
    assert next_stock(jnp.float32(-LARGEST_STOCK), 1.0, 0.5) == np.float32(-LARGEST_STOCK)
    observation = {"stock": jnp.float32(3.0), "start_stock": jnp.float32(3.0), "steps": jnp.int32(400)}
    # Without the bound the growth would be infinite, and 0 times infinity is NaN.
    assert with_start(observation, jnp.float32(3.0), 0.5)["stock"] == 3.0
    assert with_start(observation, jnp.float32(5.0), 0.5)["stock"] == np.float32(LARGEST_STOCK)
