"""Q(lambda), and the value-based family on fresh unrolls (PQN): targets by brute force, exact values, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium import spaces

from agents.base import DataSpec
from agents.networks.sequence import NetworkConfig
from agents.planning.dynamic_programming import value_iteration
from agents.value_based import value_based
from envs.base import EnvironmentSpec, Transition
from envs.native.tabular import TabularEnvironment, gridworld
from envs.stock import StockAugmented
from envs.wrappers import TimeLimit
from experiments.training.learn import initial_state, run_chunk, start_rollout
from rewards.base import chain

KEY = jax.random.key(0)
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LINEAR = NetworkConfig(hidden=())
STATES, ACTIONS, LENGTH, WIDTH = 5, 3, 7, 4
SPEC = EnvironmentSpec(spaces.Discrete(STATES), spaces.Discrete(ACTIONS), 9, costs=("heat",))
STOCKED = StockAugmented(TimeLimit(TabularEnvironment(gridworld(["S+"])), 4), 0.8, -1.0, 1.0).spec
# Adam divides by |g| + epsilon: with a large epsilon and an equal learning rate, the first step is the gradient.
AS_GRADIENT = {"learning_rate": 1e4, "adam_epsilon": 1e4, "max_gradient_norm": None}
SETTINGS = {"network_config": LINEAR, "discount": 0.8, "huber": 1e3, **AS_GRADIENT}


def agent_of(spec=SPEC, **arguments):
    return value_based(spec, data=DataSpec("unroll", LENGTH, WIDTH), **(SETTINGS | arguments))


def random_unroll(seed):
    """An unroll with both kinds of ends in the middle; what follows an end is not what the next row shows."""
    rng = np.random.default_rng(seed)
    shape = (LENGTH, WIDTH)
    state, final = rng.integers(0, STATES, (LENGTH + 1, WIDTH)), rng.integers(0, STATES, shape)
    terminated, truncated = (rng.random(shape) < 0.25 for _ in range(2))
    truncated &= ~terminated
    rewards = {"env": rng.normal(size=shape), "cost/heat": rng.normal(size=shape)}
    following = np.where(terminated | truncated, final, state[1:])
    following[-1] = final[-1]
    rows = Transition(
        observation=state[:-1],
        action=rng.integers(0, ACTIONS, shape),
        rewards={name: each.astype(np.float32) for name, each in rewards.items()},
        terminated=terminated,
        truncated=truncated,
        next_observation=following,
        mask=np.ones(shape, np.float32),
        extras={"episode_start": np.zeros(shape, bool)},
    )
    return jax.tree.map(jnp.asarray, rows), rng.normal(size=(STATES, ACTIONS)).astype(np.float32)


def with_table(agent, table):
    """The agent's first state with ``table [S, A]`` as the linear network's weights."""
    state = jit(agent.init)(KEY)
    head = {"bias": jnp.zeros(ACTIONS), "kernel": jnp.asarray(table)}
    return state._replace(params=state.params | {"online": {"head_advantage": head}})


def brute_force(rows, table, rewards, discount, decay, *, cut=False, choose=None):
    """The targets as the mixture of the returns of all lengths, weighted by ``(1 - decay) decay ** (n - 1)``.

    ``choose`` is the table by which actions are greedy, if it is another than the one that gives their values.
    """
    rows, choose = jax.tree.map(np.asarray, rows), table if choose is None else choose
    targets = np.zeros(rewards.shape)
    for start, column in np.ndindex(*rewards.shape):
        total, weight, t = 0.0, 1.0, start
        summed = 0.0
        while True:
            summed += discount ** (t - start) * rewards[t, column]
            end = bool(rows.terminated[t, column])
            next_state = rows.next_observation[t, column]
            value = 0.0 if end else table[next_state, choose[next_state].argmax()]
            bootstrapped = summed + discount ** (t - start + 1) * value
            last = t == LENGTH - 1 or end or bool(rows.truncated[t, column])
            if not last and cut:
                values = choose[rows.observation[t + 1, column]]
                last = values[rows.action[t + 1, column]] < values.max()
            if last:
                targets[start, column] = total + weight * bootstrapped
                break
            total += weight * (1 - decay) * bootstrapped
            weight *= decay
            t += 1
    return targets


@pytest.mark.parametrize(
    ("decay", "cut"), [(0.0, False), (0.7, False), (1.0, False), (0.7, True)], ids=["one step", "Peng", "1", "Watkins"]
)
def test_the_targets_of_an_unroll_by_brute_force(decay, cut):
    agent = agent_of(trace_decay=decay, trace_cut=cut, channels={"env": 2.0, "cost/heat": -1.0})
    update = jit(agent.update)
    for seed in range(4):
        rows, table = random_unroll(seed)
        rewards = 2 * np.asarray(rows.rewards["env"]) - np.asarray(rows.rewards["cost/heat"])
        targets = brute_force(rows, table, rewards, 0.8, decay, cut=cut)
        state = with_table(agent, table)
        after, metrics = update(state, rows, KEY)
        # The gradient of half the squared error, the mean over all steps.
        error = targets - table[rows.observation, rows.action]
        change = np.zeros((STATES, ACTIONS))
        np.add.at(change, (np.asarray(rows.observation), np.asarray(rows.action)), error / (LENGTH * WIDTH))
        found = after.params["online"]["head_advantage"]["kernel"] - table
        np.testing.assert_allclose(found, change, rtol=2e-3, atol=2e-5)
        np.testing.assert_allclose(metrics["target"], targets.mean(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(metrics["loss"], np.mean(error**2) / 2, rtol=1e-4)
        assert int(after.params["steps"]) == LENGTH * WIDTH


def test_lambda_0_is_one_step_and_the_brute_force_is_what_the_names_say():
    rows, table = random_unroll(9)
    plain = jax.tree.map(np.asarray, rows)
    rewards = plain.rewards["env"]
    one_step = rewards + 0.8 * ~plain.terminated * table[plain.next_observation].max(-1)
    np.testing.assert_allclose(brute_force(rows, table, rewards, 0.8, 0.0), one_step, rtol=1e-6)
    monte_carlo = np.zeros(rewards.shape)
    for t in reversed(range(LENGTH)):
        ends = plain.terminated[t] | plain.truncated[t] | (t == LENGTH - 1)
        later = one_step[t] if t == LENGTH - 1 else rewards[t] + 0.8 * monte_carlo[t + 1]
        monte_carlo[t] = np.where(ends, one_step[t], later)
    np.testing.assert_allclose(brute_force(rows, table, rewards, 0.8, 1.0), monte_carlo, rtol=1e-6)
    # Without a trace, the same targets are those of the segments of one row.
    for decay in (None, 0.0):
        _, metrics = jit(agent_of(trace_decay=decay).update)(with_table(agent_of(), table), rows, KEY)
        np.testing.assert_allclose(metrics["target"], one_step.mean(), rtol=1e-5)


@pytest.mark.parametrize("head", ["expected", "categorical", "quantile"])
def test_a_step_on_a_fresh_row_equals_one_on_a_replayed_row(head):
    arguments = {"head": head, "atoms": 5, "value_low": -2.0, "value_high": 2.0, "quantiles": 3, "dueling": True}
    arguments["huber"] = 1.0
    rows = jax.tree.map(lambda x: x[:1, :1], random_unroll(3)[0])
    fresh = value_based(SPEC, data=DataSpec("unroll", 1, 1), **(SETTINGS | arguments))
    buffer = {"capacity": 1, "batch_size": 1, "learning_starts": 1}
    replayed = value_based(SPEC, data=DataSpec("replay", 1, 1), **(SETTINGS | buffer | arguments))
    state = jit(fresh.init)(KEY)
    assert (state.target, state.gradient_steps, state.replay) == ((), (), ())
    assert fresh.stored.split(state)[1] == ()
    assert len(jax.tree.leaves(state.params)) == len(jax.tree.leaves(replayed.init(KEY).params))
    results = [jit(agent.update)(jit(agent.init)(KEY), rows, KEY) for agent in (fresh, replayed)]
    for one, other in zip(*(jax.tree.leaves(state.params) for state, _ in results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    for name, value in results[0][1].items():
        np.testing.assert_allclose(value, results[1][1][name], rtol=1e-5)
    moved = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), results[0][0].params["online"], state.params["online"])
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_masked_steps_are_not_learned_from_and_credit_weights_count():
    rows, table = random_unroll(1)
    weight = jnp.arange(LENGTH * WIDTH, dtype=jnp.float32).reshape(LENGTH, WIDTH)
    weighed = rows._replace(extras={"credit_weight": {"env": weight}}, mask=rows.mask.at[2:].set(0.0))
    expected = brute_force(rows, table, np.asarray(weight * rows.rewards["env"]), 0.8, 0.5)
    for decay, targets in ((0.5, expected), (None, None)):
        agent = agent_of(trace_decay=decay)
        _, metrics = jit(agent.update)(with_table(agent, table), weighed, KEY)
        if targets is None:
            plain = jax.tree.map(np.asarray, rows)
            follows = 0.8 * ~plain.terminated * table[plain.next_observation].max(-1)
            targets = np.asarray(weight) * plain.rewards["env"] + follows
        np.testing.assert_allclose(metrics["target"], targets[:2].mean(), rtol=1e-4)


def test_every_step_is_learned_from_once_an_epoch_towards_fixed_targets():
    agent = agent_of(trace_decay=0.7, epochs=3, minibatches=4)
    rows, table = random_unroll(2)
    after, metrics = jit(agent.update)(with_table(agent, table), rows, KEY)
    [count] = {int(leaf) for leaf in jax.tree.leaves(after.optimiser) if leaf.dtype == jnp.int32}
    assert count == 12
    # Twelve parts, three of each step: the mean of their targets is that of all, though the network has changed.
    targets = brute_force(rows, table, np.asarray(rows.rewards["env"]), 0.8, 0.7)
    np.testing.assert_allclose(metrics["target"], targets.mean(), rtol=1e-4)
    assert np.abs(after.params["online"]["head_advantage"]["kernel"] - table).max() > 0.01


def test_radam_takes_steps_of_momentum_first():
    """Liu et al. (2020), algorithm 2: without rectification while the length of the average is at most 4."""
    rows, table = random_unroll(2)
    common = {"trace_decay": 0.7, "adam_epsilon": 1e-8, "learning_rate": 0.1, "max_gradient_norm": None}
    changes = []
    for optimiser in ("adam", "radam"):
        agent = agent_of(optimiser=optimiser, **common)
        after, _ = jit(agent.update)(with_table(agent, table), rows, KEY)
        changes.append(np.asarray(after.params["online"]["head_advantage"]["kernel"] - table))
    agent = agent_of(trace_decay=0.7)
    after, _ = jit(agent.update)(with_table(agent, table), rows, KEY)
    gradient = np.asarray(after.params["online"]["head_advantage"]["kernel"] - table)
    seen = np.abs(gradient) > 1e-4
    np.testing.assert_allclose(changes[0][seen], 0.1 * np.sign(gradient[seen]), rtol=1e-2)
    np.testing.assert_allclose(changes[1][seen], 0.1 * gradient[seen], rtol=1e-2)


# --- replayed segments -----------------------------------------------------------------------------------


def replaying(**arguments):
    """An agent whose buffer holds one segment, so that the sample is known."""
    settings = SETTINGS | {"capacity": LENGTH, "batch_size": 1, "learning_starts": 1, "n_step": LENGTH}
    return value_based(SPEC, data=DataSpec("replay", LENGTH, 1), **(settings | {"target_rate": 0.0} | arguments))


@pytest.mark.parametrize(("double", "cut"), [(False, False), (True, False), (True, True)])
def test_the_target_of_a_segment_by_brute_force(double, cut):
    agent = replaying(trace_decay=0.7, double=double, trace_cut=cut)
    update, lengths = jit(agent.update), set()
    for seed in range(6):
        rows, online = random_unroll(seed)
        target = random_unroll(seed + 100)[1]
        rows = jax.tree.map(lambda x, column=seed % WIDTH: x[:, column : column + 1], rows)
        state = with_table(agent, online)
        state = state._replace(target=with_table(agent, target).params["online"])
        choose = online if double else target
        expected = brute_force(rows, target, np.asarray(rows.rewards["env"]), 0.8, 0.7, cut=cut, choose=choose)[0, 0]
        after, metrics = update(state, rows, KEY)
        np.testing.assert_allclose(metrics["target"], expected, rtol=1e-4)
        change = np.zeros((STATES, ACTIONS))
        first = int(rows.observation[0, 0]), int(rows.action[0, 0])
        change[first] = expected - online[first]
        found = after.params["online"]["head_advantage"]["kernel"] - online
        np.testing.assert_allclose(found, change, rtol=2e-3, atol=2e-5)
        lengths.add(int(np.argmax(np.append(np.asarray(rows.terminated | rows.truncated)[:-1, 0], True))))
    assert len(lengths) > 2


def test_a_trace_that_does_not_decay_is_the_n_step_return():
    plain, traced = replaying(), replaying(trace_decay=1.0)
    for seed in range(3):
        rows, table = random_unroll(seed)
        rows = jax.tree.map(lambda x: x[:, :1], rows)
        masked = rows._replace(mask=rows.mask.at[1].set(0.0))
        for each in (rows, masked):
            results = [jit(agent.update)(with_table(agent, table), each, KEY)[1] for agent in (plain, traced)]
            for name, value in results[0].items():
                np.testing.assert_allclose(results[1][name], value, rtol=1e-4, atol=1e-6)


# --- exact values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [{"trace_decay": 0.0}, {"trace_decay": 0.9, "trace_cut": True}], ids=["0", "cut"])
def test_a_table_converges_to_the_exact_action_values(trace):
    # Under random actions, and with a time limit that is no end: the values are those without a limit.
    model = gridworld(["S+", "G-"])
    exact = np.asarray(value_iteration(model, discount=0.9, iterations=200).action_values)
    environment = TimeLimit(TabularEnvironment(model, "one_hot"), 6)
    iterations, reward = 300, chain()
    agent = value_based(
        environment.spec,
        data=DataSpec("unroll", 8, 64),
        network_config=LINEAR,
        discount=0.9,
        huber=1e3,
        epochs=2,
        optimiser="radam",
        learning_rate=optax.linear_schedule(0.1, 0.0, 2 * iterations),
        epsilon_end=1.0,
        **trace,
    )

    @jit
    def run(key):
        state = start_rollout(environment, agent, initial_state(agent, reward, key))
        return run_chunk(environment, agent, reward, state, 0, iterations=iterations)

    state, metrics = run(KEY)
    assert metrics["sum/rejected"] == 0
    head = state.agent.params["online"]["head_advantage"]
    # Every action of the goal, where an episode has ended, is worth 0, and none is ever taken there.
    live = exact.any(axis=1)
    found = np.asarray(head["kernel"] + head["bias"])[live]
    np.testing.assert_allclose(found, exact[live], atol=0.03)
    assert np.ptp(exact[live]) > 2


# --- compilation, members, types -------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"trace_decay": 0.5}, {"head": "implicit_quantile", "quantiles": 4}])
def test_a_member_of_a_vmap_equals_the_single_run_and_nothing_is_compiled_again(arguments):
    agent = agent_of(epochs=2, minibatches=2, huber=1.0, network_config=NetworkConfig((4,)), **arguments)
    unrolls = [random_unroll(seed)[0] for seed in (0, 1)]

    def run(key, rows):
        state, metrics = agent.update(agent.init(key), rows, key)
        return agent.update(state, rows, jax.random.fold_in(key, 1)), metrics

    keys, run_one = jax.random.split(KEY, 2), jit(run)
    together = jit(jax.vmap(run))(keys, jax.tree.map(lambda *x: jnp.stack(x), *unrolls))
    for member in range(2):
        alone = run_one(keys[member], unrolls[member])
        for many, one in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(many[member], one, rtol=2e-3, atol=2e-5)
    assert run_one._cache_size() == 1


@pytest.mark.parametrize("decay", [None, 0.5])
def test_the_state_keeps_its_types_where_64_bits_are_enabled(decay):
    with jax.enable_x64(True):
        agent = agent_of(trace_decay=decay)
        before = jax.eval_shape(agent.init, KEY)
        after, _ = jax.eval_shape(agent.update, before, random_unroll(0)[0], KEY)
    types = [[leaf.dtype for leaf in jax.tree.leaves(state)] for state in (before, after)]
    assert types[0] == types[1]


def test_the_trace_may_be_traced():
    rows, table = random_unroll(5)
    rewards, state = np.asarray(rows.rewards["env"]), with_table(agent_of(), table)
    expected = [brute_force(rows, table, rewards, 0.8, decay).mean() for decay in (0.3, 0.6)]

    def target(decay):
        return agent_of(trace_decay=decay).update(state, rows, KEY)[1]["target"]

    np.testing.assert_allclose(jit(jax.vmap(target))(jnp.array([0.3, 0.6])), expected, rtol=1e-4)


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"double": True}, "double=True: data.kind='unroll' has no target network, expected False"),
        ({"prioritised": True}, "prioritised=True: data.kind='unroll' has no replay buffer, expected False"),
        ({"updates": 2}, "updates=2 is for data.kind='replay': expected 1, and epochs and minibatches"),
        ({"n_step": 3}, "n_step=3 is for data.kind='replay': expected 1, and trace_decay for longer returns"),
        ({"epochs": 0}, "epochs=0: expected at least 1"),
        ({"minibatches": 5}, "minibatches=5 does not divide 28: the nearest that does is 4"),
        ({"head": "quantile", "trace_decay": 0.5}, "trace_decay=0.5: expected head='expected', got 'quantile', or"),
        ({"trace_decay": 0.5, "stock_edits": 2, "spec": STOCKED}, "stock_edits=2: the rows of a trace keep their"),
        ({"trace_cut": True}, "trace_cut=True: without trace_decay there is no trace to cut"),
        ({"optimiser": "adm"}, "unknown optimiser 'adm', did you mean 'adam'"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        agent_of(**arguments)


@pytest.mark.parametrize("name", ["epochs", "minibatches"])
def test_passes_over_an_unroll_are_refused_with_a_buffer(name):
    with pytest.raises(ValueError, match=f"{name}=2 is for data.kind='unroll': expected 1, and updates"):
        value_based(SPEC, data=DataSpec("replay", LENGTH, WIDTH), **{name: 2})
