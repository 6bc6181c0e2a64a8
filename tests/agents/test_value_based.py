"""The value-based learner's mechanics: targets and gradients by hand, exploration, ties, compilation, refusals."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents.base import DataSpec
from agents.functionals import cvar, expectation, expected_utility, exponential_utility, homeostasis, target_return
from agents.networks.base import Head
from agents.networks.implicit_quantile import implicit_quantile_network
from agents.networks.sequence import NetworkConfig
from agents.priority_tree import tree_init, tree_set, tree_weights
from agents.replay import replay_sample
from agents.return_networks import best_actions, return_network, stock_hats, utilities
from agents.value_based import outside_start, value_based
from agents.value_learning import saturating_sum, weighted_reward
from agents.value_losses import midpoints
from envs.base import EnvironmentSpec, Transition, UnsupportedSpaceError
from envs.native.probes import ContinuousTarget, ObservationActionReward
from envs.rollout import start_unroll, unroll
from envs.stock import StockAugmented

KEY = jax.random.key(0)
# These programs run for milliseconds; nearly all time goes into compiling them.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LINEAR = NetworkConfig(hidden=())
SIZE, ACTIONS = 6, 2
SPEC = EnvironmentSpec(spaces.Box(0, 1, (SIZE,), np.float32), spaces.Discrete(ACTIONS), 9, costs=("heat",))
# Adam divides by |g| + epsilon: with a large epsilon and an equal learning rate, the first step is the gradient.
AS_GRADIENT = {"learning_rate": 1e4, "adam_epsilon": 1e4, "max_gradient_norm": None}
# One environment and a buffer of one segment, so that the sample is known.


def agent_of(spec=SPEC, *, n_step=1, **arguments):
    defaults = {
        "data": DataSpec("replay", n_step, 1),
        "network_config": LINEAR,
        "capacity": n_step,
        "n_step": n_step,
        "batch_size": 1,
        "learning_starts": 1,
        "discount": 0.5,
        "target_rate": 0.0,
        **AS_GRADIENT,
    }
    return value_based(spec, **(defaults | arguments))


def trajectory_of(*, actions=(1,), rewards=(2.0,), terminated=(0,), truncated=(0,), mask=None, heat=None):
    """One environment whose observations are the unit vectors in turn: row t goes from t to t + 1."""
    length = len(rewards)
    numbers = [rewards, np.ones(length) if mask is None else mask, np.zeros(length) if heat is None else heat]
    rewards, mask, heat = (np.asarray(x, np.float32)[:, None] for x in numbers)
    states = np.eye(SIZE, dtype=np.float32)
    trajectory = Transition(
        observation=states[:length, None],
        action=np.asarray(actions, np.int32)[:, None],
        rewards={"env": rewards, "cost/heat": heat},
        terminated=np.asarray(terminated, bool)[:, None],
        truncated=np.asarray(truncated, bool)[:, None],
        next_observation=states[1 : length + 1, None],
        mask=mask,
        extras={},
    )
    return jax.tree.map(jnp.asarray, trajectory)


def with_weights(agent, online, target):
    """The agent's initial state with a table ``[state, ...outputs]`` as the linear network's weights."""
    state = jit(agent.init)(KEY)

    def put(params, table):
        kernel = jnp.asarray(table, jnp.float32).reshape(SIZE, -1)
        return {"head_advantage": {"bias": jnp.zeros_like(params["head_advantage"]["bias"]), "kernel": kernel}}

    online, target = put(state.target, online), put(state.target, target)
    return state._replace(params=state.params | {"online": online}, target=target)


def table_change(agent, trajectory, online, target, update=None):
    """The change of the table by one update, and its metrics."""
    state = with_weights(agent, online, target)
    after, metrics = (update or jit(agent.update))(state, trajectory, KEY)
    kernels = [each.params["online"]["head_advantage"]["kernel"] for each in (after, state)]
    return np.asarray(kernels[0] - kernels[1]).reshape(SIZE, ACTIONS, -1), metrics


ONLINE = np.array([[0.0, 1.0], [3.0, 2.0], [0.5, 0.25], [1.0, 0.0], [0, 0], [0, 0]])
TARGET = np.array([[9.0, 9.0], [1.0, 4.0], [-1.0, -2.0], [6.0, 8.0], [0, 0], [0, 0]])


# --- targets and gradients -----------------------------------------------------------------------------

TARGETS = {
    # Reward 2, discount 1/2; state 1 is worth (1, 4) to the target network, and the online one prefers action 0.
    "plain": ({}, [({}, 2 + 0.5 * 4), ({"terminated": (1,)}, 2.0), ({"truncated": (1,)}, 2 + 0.5 * 4)]),
    "double": ({"double": True}, [({}, 2 + 0.5 * 1)]),
    "channels": ({"channels": {"env": 3.0, "cost/heat": -1.0}}, [({"heat": (5.0,)}, 3 * 2 - 5 + 0.5 * 4)]),
}


@pytest.mark.parametrize(("arguments", "cases"), TARGETS.values(), ids=TARGETS)
def test_the_target_and_the_gradient_by_hand(arguments, cases):
    # A wide Huber: the gradient is the error itself.
    agent = agent_of(huber=100.0, **arguments)
    update = jit(agent.update)
    for changes, goal in cases:
        change, metrics = table_change(agent, trajectory_of(**changes), ONLINE, TARGET, update)
        np.testing.assert_allclose(metrics["target"], goal)
        np.testing.assert_allclose(metrics["value"], 1.0)
        np.testing.assert_allclose(metrics["loss"], 0.5 * (goal - 1) ** 2)
        expected = np.zeros((SIZE, ACTIONS))
        expected[0, 1] = goal - 1
        np.testing.assert_allclose(change[..., 0], expected, rtol=1e-3, atol=1e-6)
        # Weights and bias have one gradient.
        np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(2) * abs(goal - 1), rtol=1e-5)


def test_huber_bounds_the_gradient():
    change, _ = table_change(agent_of(huber=0.25), trajectory_of(), ONLINE, TARGET)
    np.testing.assert_allclose(change[0, 1], 0.25, rtol=1e-3)


N_STEPS = [
    # Rewards 2, 1 and 4; state 3 is worth 8.
    ({}, 2 + 0.5 + 1 + 8 / 8),
    ({"terminated": (0, 1, 0)}, 2 + 0.5),
    ({"truncated": (0, 1, 0)}, 2 + 0.5 - 1 / 4),
    ({"truncated": (1, 0, 0), "terminated": (0, 1, 0)}, 2 + 4 / 2),
    ({"terminated": (0, 0, 1)}, 2 + 0.5 + 1),
]


def test_n_steps_stop_at_the_first_end():
    defaults = {"actions": (1, 0, 0), "rewards": (2.0, 1.0, 4.0), "terminated": (0, 0, 0), "truncated": (0, 0, 0)}
    agent = agent_of(n_step=3, huber=100.0)
    update = jit(agent.update)
    for changes, goal in N_STEPS:
        change, metrics = table_change(agent, trajectory_of(**(defaults | changes)), ONLINE, TARGET, update)
        np.testing.assert_allclose(metrics["target"], goal)
        np.testing.assert_allclose(change[0, 1], goal - 1, rtol=1e-3)
        assert not np.any(change[1:])


def test_a_masked_row_is_not_learned_from():
    change, metrics = table_change(agent_of(), trajectory_of(mask=(0,)), ONLINE, TARGET)
    assert not change.any() and metrics["loss"] == 0


def test_the_reward_is_the_sum_of_channels_by_their_weights_and_learned_weights():
    rows = trajectory_of(actions=(1, 0), rewards=(2.0, 3.0), terminated=(0, 0), truncated=(0, 0), heat=(5.0, 7.0))
    weights = {"env": 2.0, "cost/heat": -1.0}
    np.testing.assert_array_equal(weighted_reward(rows, weights), [[2 * 2 - 5], [2 * 3 - 7]])
    learned = rows._replace(extras={"credit_weight": {"cost/heat": jnp.array([[0.0], [10.0]])}})
    np.testing.assert_array_equal(weighted_reward(learned, weights), [[2 * 2], [2 * 3 - 70]])
    with pytest.raises(ValueError, match=r"unknown credit entry 'cost/heat' .*known: env\)"):
        weighted_reward(learned, {"env": 1.0})
    with pytest.raises(ValueError, match=r"channel 'env', read by agent.channels, has shape \(2,\): expected"):
        weighted_reward(rows._replace(rewards={"env": jnp.ones(2)}), {"env": 1.0})


def test_samples_are_relabelled_and_stored_data_is_raw():
    agent = agent_of(huber=100.0, channels={"process": 1.0})

    def relabel(rows):
        weight = {"process": jnp.full(rows.mask.shape, 0.25)}
        rewards = rows.rewards | {"process": 40 * rows.rewards["env"]}
        return rows._replace(rewards=rewards, extras={"credit_weight": weight})

    _, metrics = table_change(agent, trajectory_of(), ONLINE, TARGET, jit(partial(agent.update, relabel=relabel)))
    np.testing.assert_allclose(metrics["target"], 0.25 * 40 * 2 + 0.5 * 4)
    with pytest.raises(
        ValueError, match=r"unknown reward channel 'process' in agent.channels, did you.*known: cost/heat, env\)"
    ):
        table_change(agent, trajectory_of(), ONLINE, TARGET)


def soft_value(values, temperature):
    """``sum_a pi(a) (q(a) - temperature log pi(a))`` is the scaled logarithm of the sum of exponentials."""
    return temperature * np.log(np.sum(np.exp(np.asarray(values) / temperature)))


def test_munchausen_by_hand():
    # The target network is indifferent at state 0, where the bonus is 0.9 * 0.5 * log(1 / 2); state 1 is worth 1 and 4.
    soft = soft_value([1, 4], 0.5)
    bonus = 0.9 * 0.5 * np.log(0.5)
    cases = [
        ({}, 2 + bonus + 0.5 * soft),
        ({"log_policy_floor": -0.1}, 2 + 0.9 * -0.1 + 0.5 * soft),
        ({"munchausen": 0.0}, 2 + 0.5 * soft),
        ({"munchausen": 0.0, "temperature": 1e-4}, 2 + 0.5 * 4),
    ]
    for arguments, goal in cases:
        agent = agent_of(**({"huber": 100.0, "munchausen": 0.9, "temperature": 0.5} | arguments))
        update = jit(agent.update)
        change, metrics = table_change(agent, trajectory_of(), ONLINE, TARGET, update)
        np.testing.assert_allclose(metrics["target"], goal, rtol=1e-5)
        np.testing.assert_allclose(change[0, 1, 0], goal - 1, rtol=1e-3)
        # Where the episode ended, what was taken is rewarded all the same.
        _, metrics = table_change(agent, trajectory_of(terminated=(1,)), ONLINE, TARGET, update)
        np.testing.assert_allclose(
            metrics["target"], goal - 0.5 * (4 if "temperature" in arguments else soft), rtol=1e-5
        )


def test_munchausen_of_quantiles_by_hand():
    # The means of state 1 are 1 and 2; quantiles of equal fractions are averaged, and each is shifted by the entropy.
    online, target = np.zeros((SIZE, ACTIONS, 2)), np.zeros((SIZE, ACTIONS, 2))
    target[0], target[1] = [[2, 4], [0, 4]], [[4, -2], [3, 1]]
    agent = agent_of(head="quantile", quantiles=2, huber=0.0, munchausen=0.5, temperature=0.25)
    change, metrics = table_change(agent, trajectory_of(), online, target)
    scaled = 2 - soft_value([3, 2], 0.25)
    assert scaled < -1
    goal = 2 + 0.5 * -1.0 + 0.5 * soft_value([1, 2], 0.25)
    np.testing.assert_allclose(metrics["target"], goal, rtol=1e-5)
    second = 1 / (1 + np.exp(-4))
    particles = np.array([4 + second * (3 - 4), -2 + second * (1 + 2)])
    particles += soft_value([1, 2], 0.25) - (1 + second)
    samples = 2 - 0.5 + 0.5 * particles
    # The quantile loss of predictions 0 at fractions 1/4 and 3/4.
    weights = np.where(samples < 0, np.array([[0.75], [0.25]]), np.array([[0.25], [0.75]]))
    np.testing.assert_allclose(metrics["loss"], np.sum(np.mean(weights * np.abs(samples), axis=1)), rtol=1e-5)
    assert change[0, 1].all() and not np.any(change[1:])


@pytest.mark.parametrize("head", ["expected", "quantile"])
def test_a_cold_soft_target_is_the_greedy_one(head):
    shape = (SIZE, ACTIONS) if head == "expected" else (SIZE, ACTIONS, 3)
    online, target = np.random.default_rng(0).normal(size=(2, *shape))
    arguments = {"head": head, "quantiles": 3}
    results = []
    for soft in ({}, {"temperature": 1e-5}, {"temperature": 1e-5, "munchausen": 1.0, "log_policy_floor": 0.0}):
        results.append(table_change(agent_of(**arguments, **soft), trajectory_of(), online, target))
    for change, metrics in results[1:]:
        np.testing.assert_allclose(change, results[0][0], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(metrics["target"], results[0][1]["target"], rtol=1e-4)


def test_categorical_by_hand():
    # Atoms -1, 0 and 1. The online distribution of (0, 1) is uniform; at state 1 action 1 has the better target
    # distribution.
    online, target = np.zeros((SIZE, ACTIONS, 3)), np.zeros((SIZE, ACTIONS, 3))
    best = np.array([0.2, 0.3, 0.5])
    target[1, 1] = np.log(best)
    agent = agent_of(head="categorical", atoms=3, value_low=-1.0, value_high=1.0)
    change, metrics = table_change(agent, trajectory_of(rewards=(0.25,)), online, target)
    # 0.25 + z / 2 is -0.25, 0.25 and 0.75.
    projected = np.array([0.25 * 0.2, 0.75 * 0.2 + 0.75 * 0.3 + 0.25 * 0.5, 0.25 * 0.3 + 0.75 * 0.5])
    np.testing.assert_allclose(change[0, 1], projected - 1 / 3, rtol=1e-3, atol=1e-6)
    assert not np.any(change[0, 0]) and not np.any(change[1:])
    np.testing.assert_allclose(metrics["loss"], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(metrics["target"], 0.25 + 0.3 / 2, rtol=1e-5)


def test_quantiles_by_hand():
    # Quantiles 0 and 2 at (0, 1); at state 1 action 1 has the better mean: 2 + (3, 1) / 2 is 3.5 and 2.5.
    online, target = np.zeros((SIZE, ACTIONS, 2)), np.zeros((SIZE, ACTIONS, 2))
    online[0, 1], target[1] = [0, 2], [[4, -2], [3, 1]]
    change, metrics = table_change(agent_of(head="quantile", quantiles=2), trajectory_of(), online, target)
    # Errors 3.5 and 2.5 of the first, 1.5 and 0.5 of the second; the derivative of Huber / kappa is clipped to 1.
    np.testing.assert_allclose(change[0, 1], [0.25, 0.75 * (1 + 0.5) / 2], rtol=1e-3)
    assert not np.any(change[0, 0]) and not np.any(change[1:])
    np.testing.assert_allclose(metrics["target"], 3.0)


def test_tied_actions_are_mixed_in_the_target_of_a_functional():
    # Stock 0 everywhere and returns above 0: min(c + G, 0) is flat, and every action ties.
    environment = StockAugmented(ObservationActionReward(), 0.5, 0.0, 0.0)
    spec = environment.spec
    network = return_network(spec, LINEAR, head="quantile", quantiles=2)
    params = jax.tree.map(jnp.zeros_like, network.init(KEY))
    params["head_advantage"]["bias"] = jnp.array([1.0, 3.0, 10.0, 20.0])
    _, observation = environment.reset(KEY)
    rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (1, 1, *jnp.shape(x))), observation)
    number, flag = jnp.ones((1, 1)), jnp.zeros((1, 1), bool)
    trajectory = Transition(rows, jnp.zeros((1, 1), jnp.int32), {"env": number}, flag, flag, rows, number, {})
    # Quantiles: one of the tied actions is drawn, here 1600 times; half the difference of their means is 13 / 4.
    size = 1600
    deviation = 13 / 4 / np.sqrt(size)
    means = {
        "mean": (None, 1 + 15 / 2, 0.0),
        "cvar": (cvar(0.5), 1 + (2 + 15) / 4, 4 * deviation),
        "target": (target_return(0.0), 1 + 2 / 2, 0.0),
    }
    for functional, expected, error in means.values():
        agent = agent_of(spec, head="quantile", quantiles=2, functional=functional, batch_size=size)
        state = agent.init(KEY)._replace(target=params)
        _, metrics = jit(agent.update)(state, trajectory, KEY)
        np.testing.assert_allclose(metrics["target"], expected, rtol=1e-5, atol=error)


def test_dueling_adds_the_centred_advantage_to_the_value():
    network = return_network(SPEC, LINEAR, head="quantile", quantiles=2, dueling=True)
    params = jax.tree.map(jnp.zeros_like, network.init(KEY))
    params["head_advantage"]["bias"] = jnp.array([1.0, 2.0, 5.0, 0.0])
    params["head_value"]["bias"] = jnp.array([10.0, 20.0])
    outputs = network.apply(params, jnp.ones((3, SIZE)))
    np.testing.assert_allclose(outputs[1], [[10 - 2, 20 + 1], [10 + 2, 20 - 1]])


def test_an_implicit_quantile_network_equals_its_formula():
    box = spaces.Box(-1, 1, (3,), np.float32)
    network = implicit_quantile_network(box, Head(4, scale=0.5), NetworkConfig(hidden=(5,)), cosines=7)
    params = jax.tree.map(lambda x: x + 0.1, jit(network.init)(KEY))
    x = np.array(jax.random.normal(KEY, (2, 3, 3)))
    fractions = np.array(jax.random.uniform(KEY, (2, 3, 6)))
    dense, fraction, head = (params[name] for name in ("dense_0", "fraction", "head_quantile"))
    psi = np.tanh(x @ dense["kernel"] + dense["bias"])
    phi = np.maximum(np.cos(np.pi * np.arange(7) * fractions[..., None]) @ fraction["kernel"] + fraction["bias"], 0)
    expected = (psi[:, :, None] * phi) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(network.apply(params, x, fractions), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape == (2, 3, 6, 4)
    # The default fractions are the midpoints.
    network = return_network(SPEC, LINEAR, head="implicit_quantile", quantiles=3)
    params = network.init(KEY)
    given = jnp.broadcast_to(midpoints(3), (2, 3))
    np.testing.assert_array_equal(
        network.apply(params, jnp.ones((2, SIZE))), network.apply(params, jnp.ones((2, SIZE)), given)
    )


# --- the target network, the start of learning, replay -------------------------------------------------


def test_the_target_follows_the_online_network():
    both = {"target_rate": 0.25, "target_period": 2}
    cases = ({"target_rate": 0.25}, 0.25), ({"target_period": 1}, 1.0), ({"target_period": 2}, 0.0), (both, 0.25)
    for arguments, share in cases:
        agent = agent_of(**arguments)
        state, update = with_weights(agent, ONLINE, TARGET), jit(agent.update)
        after, _ = update(state, trajectory_of(), KEY)
        old, new = state.target["head_advantage"]["kernel"], after.params["online"]["head_advantage"]["kernel"]
        np.testing.assert_allclose(after.target["head_advantage"]["kernel"], old + share * (new - old), rtol=1e-6)
        if "target_period" in arguments:
            again, _ = update(after, trajectory_of(), KEY)
            kernels = (x["head_advantage"]["kernel"] for x in (again.target, again.params["online"]))
            np.testing.assert_array_equal(*kernels)
            # Counted within the period.
            assert again.gradient_steps == 0


def test_nothing_is_learned_before_enough_is_stored():
    agent = agent_of(n_step=1, capacity=4, learning_starts=2, updates=3)
    update = jit(agent.update)
    state = with_weights(agent, ONLINE, TARGET)
    waiting, metrics = update(state, trajectory_of(), KEY)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, waiting.params["online"], state.params["online"]))
    assert (metrics["stored"], metrics["loss"], waiting.gradient_steps) == (1, 0, 0)
    learning, metrics = update(waiting, trajectory_of(), KEY)
    assert (metrics["stored"], learning.gradient_steps, learning.params["steps"]) == (2, 3, 2)
    assert metrics["loss"] > 0


def priorities(*weights):
    return tree_set(tree_init(len(weights)), jnp.arange(len(weights)), jnp.array(weights))


def test_priorities_are_the_errors_and_weigh_the_loss():
    agent = agent_of(
        capacity=2, data=DataSpec("replay", 2, 1), batch_size=64, prioritised=True, huber=100.0, importance_exponent=1.0
    )
    trajectory = trajectory_of(actions=(1, 0), rewards=(2.0, 0.0), terminated=(0, 1), truncated=(0, 0))
    state = with_weights(agent, ONLINE, TARGET)
    after, _ = jit(agent.update)(state, trajectory, KEY)
    # Errors 4 - 1 and 0 - 3.
    np.testing.assert_allclose(tree_weights(after.replay.priority, jnp.arange(2)), [3**0.6, 3**0.6], rtol=1e-5)
    skewed = after.replay._replace(priority=priorities(1.0, 3.0))
    _, index, probability = replay_sample(skewed, KEY, batch=8, length=1)
    np.testing.assert_allclose(probability, np.where(index == 0, 0.25, 0.75))


@pytest.mark.parametrize("edits", [0, 3])
def test_importance_weights_of_the_loss_by_hand(edits):
    """Priorities 3 and 1, actions 0 and 1; both networks are 0: the errors are 2 and -1, the losses 2 and 1/2."""
    batch = 64
    arguments = {"capacity": 2, "batch_size": batch, "learning_starts": 2, "stock_edits": edits, "huber": 100.0}
    agent = agent_of(ONE_STEP.spec, prioritised=True, importance_exponent=1.0, **arguments)
    policy = lambda carry, observation, key: (jnp.zeros(1, jnp.int32), (), {})  # noqa: E731
    _, trajectory = unroll(ONE_STEP, policy, start_unroll(ONE_STEP, KEY, 1, ()), KEY, length=2, initial_carry=())
    rewards = {"env": jnp.array([[2.0], [-1.0]])}
    trajectory = trajectory._replace(action=jnp.array([[0], [1]]), rewards=rewards, extras={})
    first, second = jax.tree.map(lambda x: x[:1], trajectory), jax.tree.map(lambda x: x[1:], trajectory)
    update, state = jit(agent.update), jit(agent.init)(KEY)
    nothing = jax.tree.map(jnp.zeros_like, state.target)
    state = state._replace(params=state.params | {"online": nothing}, target=nothing)
    # The first is only stored. New rows get the largest priority so far.
    state, _ = update(state, first, KEY)
    state = state._replace(replay=state.replay._replace(priority=priorities(3.0, 0.0), largest=jnp.float32(1.0)))
    state, metrics = update(state, second, KEY)
    # An action's bias moves by its frequency in the batch times weight times error; the weights are 1 / 3 and 1.
    change = np.asarray(state.params["online"]["head_advantage"]["bias"])
    often, seldom = change[0] * batch / (1 / 3 * 2), change[1] * batch / (1 * -1)
    np.testing.assert_allclose([often, seldom], np.rint([often, seldom]), atol=0.02)
    np.testing.assert_allclose(often + seldom, batch, rtol=1e-3)
    assert abs(often - 0.75 * batch) < 4 * np.sqrt(batch * 0.75 * 0.25)
    np.testing.assert_allclose(metrics["loss"], (1 / 3 * 2 * often + 1 / 2 * seldom) / batch, rtol=1e-3)


# --- acting --------------------------------------------------------------------------------------------


def frequencies(agent, params, greedy=False, first=0):
    observation = jnp.broadcast_to(jnp.eye(SIZE)[first], (4000, SIZE))
    action, carry, extras = jit(partial(agent.act, greedy=greedy))(params, (), observation, KEY)
    assert carry == () and extras == {} and action.dtype == jnp.int32
    return np.bincount(action, minlength=ACTIONS) / 4000


def test_epsilon_falls_linearly_with_the_steps_of_the_environment():
    agent = agent_of(epsilon_start=0.8, epsilon_end=0.2, epsilon_steps=3.0)
    state = with_weights(agent, ONLINE, TARGET)
    standard_error = 0.5 / np.sqrt(4000)
    for steps, epsilon in ((0, 0.8), (1, 0.6), (3, 0.2), (9, 0.2)):
        params = state.params | {"steps": jnp.int32(steps)}
        np.testing.assert_allclose(frequencies(agent, params)[0], epsilon / 2, atol=4 * standard_error)
    assert frequencies(agent, state.params, greedy=True)[0] == 0
    _, metrics = jit(agent.update)(state, trajectory_of(), KEY)
    np.testing.assert_allclose(metrics["epsilon"], 0.6, rtol=1e-6)


def test_ties_are_broken_at_random():
    agent = agent_of()
    state = with_weights(agent, ONLINE, TARGET)
    np.testing.assert_allclose(frequencies(agent, state.params, greedy=True, first=5), 0.5, atol=4 * 0.5 / 4000**0.5)
    utility = jnp.array([[1.0, 1.0 + 1e-7, 0.5], [0.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [1e6, 1e6 + 0.5, 2.0], [1, 1.1, 0]])
    expected = [[0.5, 0.5, 0], [1 / 3] * 3, [0, 0.5, 0.5], [0.5, 0.5, 0], [0, 1, 0]]
    np.testing.assert_allclose(best_actions(utility), expected)


def test_with_a_given_action_none_is_drawn():
    agent = agent_of()
    given = jnp.array([1, 0])
    action, _, extras = agent.act(agent.init(KEY).params, (), jnp.ones((2, SIZE)), KEY, action=given)
    assert action is given and extras == {}


# --- functionals and stocks ----------------------------------------------------------------------------

ONE_STEP = StockAugmented(ObservationActionReward(), 1.0, -3.0, 1.0)


def test_utilities_are_of_stock_plus_scaled_return():
    network = return_network(ONE_STEP.spec, LINEAR, head="quantile", quantiles=2)
    outputs = jnp.array([[[-1.0, 3.0], [0.0, 1.0]]] * 2)
    observation = {"stock": jnp.array([0.0, -2.0])}
    distribution = network.distribution(outputs)
    np.testing.assert_allclose(utilities(distribution, observation, None), [[1, 0.5]] * 2)
    np.testing.assert_allclose(utilities(distribution, observation, cvar(0.5)), [[-0.5, 0], [-1.5, -1.5]])
    np.testing.assert_allclose(utilities(distribution, observation, cvar(0.5), return_scale=2.0), [[-1, 0], [-2, -1]])
    categorical = return_network(ONE_STEP.spec, LINEAR, head="categorical", atoms=3, value_low=-1.0, value_high=1.0)
    distribution = categorical.distribution(jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]])))
    np.testing.assert_allclose(
        utilities(distribution, {"stock": jnp.array([0.5])}, cvar(0.5)), [[-0.25, -0.125]], rtol=1e-6
    )


def test_without_the_stock_the_functional_is_of_the_future_return_alone():
    network = return_network(ONE_STEP.spec, LINEAR, head="quantile", quantiles=2, use_stock=False)
    params = network.init(KEY)
    observation = {"observation": jnp.zeros((2, 1)), "stock": jnp.array([0.0, -2.0]), "time": jnp.zeros(2)}
    outputs = network.apply(params, observation)
    np.testing.assert_array_equal(outputs[0], outputs[1])
    distribution = network.distribution(jnp.array([[[-1.0, 3.0], [0.0, 1.0]]] * 2))
    for functional, expected in [(cvar(0.5), [-1, 0]), (cvar(1.0), [1, 0.5]), (target_return(1.0), [-2, -0.5])]:
        found = utilities(distribution, observation, functional, use_stock=False)
        np.testing.assert_allclose(found, [expected] * 2, atol=1e-6)
    # A functional that needs the stock may be used without it, for comparison.
    agent_of(ONE_STEP.spec, head="quantile", functional=cvar(0.5), use_stock=False)


def test_hat_functions_of_the_stock_by_hand():
    found = stock_hats(jnp.array([-3.0, -2.5, 1.0, 2.0, 1e30]), np.float32(-3.0), np.float32(1.0), 3)
    expected = [[1, 0, 0, -1], [0.75, 0.25, 0, -0.75], [0, 0, 1, 1], [0, 0, 1, 1.5], [0, 0, 1, 3]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    network = return_network(ONE_STEP.spec, LINEAR, head="quantile", quantiles=2, stock_features=3)
    params = network.init(KEY)
    # Observation, four numbers of the stock, time.
    assert params["head_advantage"]["kernel"].shape == (1 + 4 + 1, 4)
    vector = StockAugmented(ObservationActionReward(), 1.0, (-1.0,), (1.0,), channels=("env",))
    params = return_network(vector.spec, LINEAR, stock_features=2).init(KEY)
    assert params["head_advantage"]["kernel"].shape == (1 + 3 + 1, 2)


def test_steps_are_counted_at_which_the_stock_is_outside_its_range():
    # Start stocks are drawn from -3 to 1: of six steps the ends are inside, two are outside and one of these is masked.
    stock = jnp.array([[-3.0, 1.0], [-3.001, 0.0], [1.5, -1.0]])
    mask = jnp.ones((3, 2)).at[2, 0].set(0.0)
    rollout = start_unroll(ONE_STEP, KEY, 2, ())
    policy = lambda carry, observation, key: (jnp.ones(2, jnp.int32), (), {})  # noqa: E731
    _, trajectory = unroll(ONE_STEP, policy, rollout, KEY, length=3, initial_carry=())
    trajectory = trajectory._replace(observation=trajectory.observation | {"stock": stock}, mask=mask)
    data = {"data": DataSpec("replay", 3, 2), "capacity": 6}
    for arguments, expected in [({}, 1 / 5), ({"use_stock": False}, None)]:
        agent = agent_of(ONE_STEP.spec, **data, **arguments)
        _, metrics = jit(agent.update)(jit(agent.init)(KEY), trajectory, KEY)
        assert metrics.get("stock_outside") == (None if expected is None else pytest.approx(expected))
    vector = StockAugmented(ObservationActionReward(), 1.0, (-1.0, 0.0), (1.0, 2.0), channels=("env", "env"))
    stock = jnp.array([[0.0, 0.0], [0.0, -0.1], [1.1, 1.0]])
    np.testing.assert_array_equal(outside_start(vector.spec, stock), [False, True, True])


def test_edited_segments_equal_those_of_the_environment_from_another_start_stock():
    # Both networks return their stock, the only input that differs: the target is r + c'.
    environment = StockAugmented(ObservationActionReward(), 0.5, -3.0, 1.0, start=0.0)
    agent = agent_of(environment.spec, stock_edits=400, batch_size=1, huber=100.0)
    state = jit(agent.init)(KEY)
    params = jax.tree.map(jnp.zeros_like, state.target)
    # The encoder joins observation, stock and time.
    kernel = params["head_advantage"]["kernel"].at[1].set(1.0)
    params = {"head_advantage": {"bias": params["head_advantage"]["bias"], "kernel": kernel}}
    state = state._replace(params=state.params | {"online": params}, target=params)
    rollout = start_unroll(environment, KEY, 1, ())
    policy = lambda carry, observation, key: (jnp.ones(1, jnp.int32), (), {})  # noqa: E731
    _, trajectory = unroll(environment, policy, rollout, KEY, length=1, initial_carry=())
    # As if the environment went on, because the stock after a terminated step does not count.
    trajectory = trajectory._replace(terminated=jnp.zeros((1, 1), bool))
    _, metrics = jit(agent.update)(state, trajectory, KEY)
    reward = float(trajectory.rewards["env"][0, 0])
    # c' = (c + r) / discount: r + discount c' = 2 r + c, so that the error is 2 r whatever the stock.
    np.testing.assert_allclose(metrics["loss"], 0.5 * (2 * reward) ** 2, rtol=1e-5)
    # 400 edits uniform between -3 and 1, and the original 0: four standard errors.
    np.testing.assert_allclose(metrics["value"], -1.0, atol=4 * 4 / np.sqrt(12 * 400))


# --- compilation, resuming, members --------------------------------------------------------------------

FULL = {"double": True, "prioritised": True, "n_step": 2, "updates": 2, "batch_size": 4, "learning_starts": 4}


def run_of(environment, head, updates=3, **arguments):
    functional = None if head == "expected" else cvar(0.5)
    data = DataSpec("replay", 4, 2)
    agent = value_based(
        environment.spec,
        data=data,
        network_config=NetworkConfig(hidden=(8,)),
        head=head,
        functional=functional,
        quantiles=4,
        atoms=5,
        capacity=16,
        stock_edits=1,
        **(FULL | arguments),
    )

    def step(carry, key):
        state, rollout = carry
        act = lambda carry, observation, key: agent.act(state.params, carry, observation, key)  # noqa: E731
        rollout, trajectory = unroll(environment, act, rollout, key, length=4, initial_carry=())
        state, metrics = agent.update(state, trajectory, key)
        return (state, rollout), metrics

    def run(key):
        carry = (agent.init(key), start_unroll(environment, key, 2, ()))
        return jax.lax.scan(step, carry, jax.random.split(key, updates))

    return agent, run, step


@pytest.mark.parametrize("prioritised", [False, True])
def test_the_state_keeps_its_types_where_64_bits_are_enabled(prioritised):
    with jax.enable_x64(True):
        agent = agent_of(prioritised=prioritised)
        before = jax.eval_shape(agent.init, KEY)
        after, _ = jax.eval_shape(agent.update, before, trajectory_of(), KEY)
    types = [[leaf.dtype for leaf in jax.tree.leaves(state)] for state in (before, after)]
    assert types[0] == types[1]


@pytest.mark.parametrize("head", ["expected", "implicit_quantile"])
def test_a_member_of_a_vmap_equals_the_single_run(head):
    _, run, _ = run_of(ONE_STEP, head)
    keys = jax.random.split(KEY, 2)
    together, alone = jit(jax.vmap(run))(keys), jit(run)(keys[1])
    for many, one in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(many[1], one, rtol=2e-3, atol=2e-5)
    assert alone[0][0].gradient_steps == 6


def test_a_copied_state_gives_the_same_updates_and_nothing_is_compiled_again():
    agent, run, step = run_of(ONE_STEP, "implicit_quantile")
    step = jit(step)
    carry, copied = (jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), jit(run)(KEY)[0]) for _ in range(2))
    keys = jax.random.split(jax.random.key(5), 2)
    ends = []
    for state in (carry, copied):
        for key in keys:
            state, _ = step(state, key)
        ends.append(jax.tree.leaves(state))
    assert all(map(np.array_equal, *ends))
    assert step._cache_size() == 1
    act = jit(agent.act)
    observation = jax.tree.map(lambda x: x[None], ONE_STEP.reset(KEY)[1])
    for key in keys:
        act(carry[0].params, (), observation, key)
    assert act._cache_size() == 1


def test_numbers_may_be_traced():
    def run(values):
        return run_of(ONE_STEP, "quantile", 2, **values)[1](KEY)[1]["loss"]

    values = {"learning_rate": 1e-3, "target_rate": 0.1, "discount": 1.0, "huber": 0.0, "epsilon_end": 0.1}
    values |= {"epsilon_steps": 5.0, "priority_exponent": 0.5, "importance_exponent": 0.5, "return_scale": 1.0}
    losses = jit(jax.vmap(run))({name: jnp.array([value, value]) for name, value in values.items()})
    assert np.isfinite(losses).all()


# --- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "quantiles"}, "unknown head 'quantiles', did you mean 'quantile'"),
        ({"data": DataSpec("episodes", 1, 1)}, "data.kind='episodes', expected replay or unroll"),
        ({"network_config": NetworkConfig(recurrent_size=4)}, "recurrent_size=4: value_based is feed-forward"),
        ({"head": "implicit_quantile", "dueling": True}, "dueling=True: expected one of the heads"),
        ({"head": "categorical", "atoms": 1}, "atoms=1"),
        ({"updates": 0}, "updates=0: expected at least 1"),
        ({"target_period": 0}, "target_period=0: expected at least 1"),
        ({"huber": 0.0}, "huber=0: the loss of head='expected' would be 0"),
        ({"munchausen": 0.9}, "munchausen=0.9: without temperature there is no policy, expected 0"),
        (
            {"temperature": 0.5, "head": "categorical"},
            "temperature=0.5: every action would shift the atoms differently",
        ),
        (
            {"temperature": 0.5, "n_step": 2, "capacity": 2},
            "temperature=0.5: its targets are of one step, got n_step=2",
        ),
        ({"temperature": 0.5, "trace_decay": 0.1}, "got trace_decay=0.1, expected n_step=1 and trace_decay=None"),
        ({"temperature": 0.5, "double": True}, "temperature=0.5: double=True: a soft target chooses no action"),
        (
            {"temperature": 0.5, "head": "quantile", "functional": cvar(0.5)},
            "maximises the mean return and its entropy",
        ),
        ({"capacity": 2, "n_step": 3}, "capacity=2 holds 2 rows of batch=1: expected at least 3 rows"),
        ({"learning_starts": 5}, "learning_starts=5: the buffer never holds more than 1 transitions"),
        ({"stock_edits": 1}, "stock_edits=1: expected 0, because the environment has no stock"),
        ({"stock_features": 4}, "stock_features=4: expected 0, because the environment has no stock"),
        ({"functional": expectation()}, "head='expected' predicts no distribution"),
        ({"functional": cvar(0.5), "head": "quantile"}, "depends on the stock"),
        ({"functional": exponential_utility(1.0), "head": "quantile"}, "not indifferent to discount=0.5"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        agent_of(**({"capacity": 1} | arguments))


def test_actions_must_be_discrete_and_a_vector_stock_has_no_functional():
    with pytest.raises(
        UnsupportedSpaceError, match="value_based finds greedy actions in Discrete spaces only, got Box"
    ):
        agent_of(ContinuousTarget().spec)
    for arguments in ({"stock_features": 1}, {"stock_features": 3, "use_stock": False}):
        with pytest.raises(ValueError, match="expected 0, or at least 2 and use_stock=True"):
            agent_of(ONE_STEP.spec, **arguments)
    with pytest.raises(ValueError, match="is for vectors of 2, the return is a number"):
        agent_of(ONE_STEP.spec, head="quantile", functional=homeostasis((0.0, 0.0)), use_stock=False)
    square = expected_utility(lambda x: -(x**2), name="square", homogeneous=True)
    agent_of(ONE_STEP.spec, head="quantile", functional=square)
    with pytest.raises(ValueError, match="square has no Lipschitz constant"):
        agent_of(replace(ONE_STEP.spec, max_episode_steps=None), head="quantile", functional=square)
    with pytest.raises(ValueError, match="stock_edits=2: expected 0, because"):
        agent_of(ONE_STEP.spec, stock_edits=2, use_stock=False)
    environment = StockAugmented(ObservationActionReward(), 0.5, 0.0, 1.0, channels=("env",))
    with pytest.raises(ValueError, match="the stock is a vector"):
        agent_of(environment.spec, head="quantile", functional=cvar(0.5))


def test_counts_of_32_bits_stay_at_their_largest_number():
    largest = 2**31 - 1
    for count, more, total in ((0, 3, 3), (largest - 3, 3, largest), (largest - 2, 3, largest), (largest, 0, largest)):
        assert int(saturating_sum(jnp.int32(count), jnp.int32(more))) == total
    agent = agent_of(epsilon_start=1.0, epsilon_end=0.25, epsilon_steps=100.0, target_period=3)
    state = agent.init(KEY)
    state = state._replace(params=state.params | {"steps": jnp.int32(largest)}, gradient_steps=jnp.int32(2))
    state, metrics = jit(agent.update)(state, trajectory_of(), KEY)
    assert int(state.params["steps"]) == largest and float(metrics["epsilon"]) == 0.25
    # The third gradient step copies the online network, and counting begins anew.
    assert int(state.gradient_steps) == 0
    for target, online in zip(*map(jax.tree.leaves, (state.target, state.params["online"])), strict=True):
        np.testing.assert_array_equal(target, online)
