"""The policy-gradient learner's mechanics: gradients in closed form, bootstraps, padding, compilation, refusals."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents.base import DataSpec
from agents.credit import Credit, Entry
from agents.estimators import gae, group_outcome, group_steps, other_steps, plain_return
from agents.networks.sequence import NetworkConfig
from agents.policy_gradient import policy_gradient
from envs.base import EnvironmentSpec, Transition
from envs.native.probes import ObservationActionReward, TruncationProbe
from envs.rollout import start_unroll, unroll
from experiments.evaluators.base import acting_policy
from experiments.training.learn import collect, initial_state, learn, run_chunk, start_rollout
from rewards.base import chain

KEY = jax.random.key(0)
# These programs run for milliseconds; nearly all time goes into compiling them.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LINEAR = NetworkConfig(hidden=())
PLAIN = Credit({"env": Entry("env", plain_return(0.0))})
# Adam divides by |g| + epsilon: with a large epsilon and an equal learning rate, the first step is the gradient.
AS_GRADIENT = {"learning_rate": 1e4, "adam_epsilon": 1e4, "max_gradient_norm": None, "epochs": 1}

BANDIT = EnvironmentSpec(spaces.Box(0, 1, (1,), np.float32), spaces.Discrete(3), max_episode_steps=1)
LOGITS = np.array([0.3, -0.2, 0.1], np.float32)
P = np.exp(LOGITS) / np.exp(LOGITS).sum()
ENTROPY = -(P * np.log(P)).sum()
ENTROPY_GRADIENT = -P * (np.log(P) + ENTROPY)


def bandit_agent(**arguments):
    defaults = {
        "credit": PLAIN,
        "data": DataSpec("episodes", 3, 4, 2),
        "network_config": LINEAR,
        "entropy_weight": 0.0,
        **AS_GRADIENT,
    }
    return policy_gradient(BANDIT, **(defaults | arguments))


def with_logits(agent):
    """The agent's initial state with ``LOGITS`` as the bias of the policy's head."""
    state = agent.init(KEY)
    params = jax.tree.map(jnp.zeros_like, state.params)
    params["policy"]["head_policy"]["bias"] = jnp.asarray(LOGITS)
    return state._replace(params=params)


def bandit_trajectory(columns, actions, ratio=1.0, **changes):
    """Columns of rewards and actions, one observation, recorded by a policy to which ``LOGITS`` has the probability
    ``ratio``."""
    length, batch = max(map(len, columns)), len(columns)
    rewards, mask, action = (np.zeros((length, batch), kind) for kind in (np.float32, np.float32, np.int32))
    ends = np.zeros((length, batch), bool)
    for b, (column, chosen) in enumerate(zip(columns, actions, strict=True)):
        rewards[: len(column), b], action[: len(column), b], mask[: len(column), b] = column, chosen, 1
        ends[len(column) - 1, b] = True
    observation = np.ones((length, batch, 1), np.float32)
    extras = {
        "log_prob": np.log(P)[action] - np.log(ratio),
        "distribution": np.broadcast_to(LOGITS, (length, batch, 3)),
        "value": {},
        "carry": {"policy": (), "critic": ()},
        "episode_start": np.zeros((length, batch), bool),
    }
    trajectory = Transition(observation, action, {"env": rewards}, ends, np.zeros_like(ends), observation, mask, extras)
    return jax.tree.map(jnp.asarray, trajectory._replace(**changes))


COLUMNS, ACTIONS = [[1.0, -2.0, 0.5], [3.0], [2.0, 1.0], [-1.0]], [[0, 1, 2], [2], [1, 1], [0]]


def closed_form(weight_of_column, columns=COLUMNS, actions=ACTIONS):
    """``-sum_t w_t A_t (onehot(a_t) - p)``: the gradient of the loss by the logits."""
    return -sum(
        weight_of_column(len(column)) * advantage * (np.eye(3)[action] - P)
        for column, chosen in zip(columns, actions, strict=True)
        for advantage, action in zip(column, chosen, strict=True)
    )


def update_of(agent, trajectory, state=None):
    """The change of the parameters by one update, and its metrics."""
    state = with_logits(agent) if state is None else state
    after, metrics = jit(agent.update)(state, trajectory, KEY)
    return jax.tree.map(lambda new, old: np.asarray(new - old), after.params, state.params), metrics


def bias_change(agent, trajectory):
    return update_of(agent, trajectory)[0]["policy"]["head_policy"]["bias"]


# --- gradients in closed form --------------------------------------------------------------------------

REDUCTIONS = {"steps": lambda n: 1 / 7, "episodes": lambda n: 1 / n / 4, "constant": lambda n: 1 / 12}


@pytest.mark.parametrize(
    ("surrogate", "reduction"), [("clip", "steps"), ("plain", "steps"), ("plain", "episodes"), ("clip", "constant")]
)
def test_on_policy_the_gradient_is_reinforce(surrogate, reduction):
    agent = bandit_agent(surrogate=surrogate, reduction=reduction)
    change, metrics = update_of(agent, bandit_trajectory(COLUMNS, ACTIONS))
    expected = closed_form(REDUCTIONS[reduction])
    np.testing.assert_allclose(change["policy"]["head_policy"]["bias"], -expected, rtol=1e-3, atol=1e-5)
    # The observation is 1 everywhere, so that weights and bias have one gradient.
    np.testing.assert_allclose(change["policy"]["head_policy"]["kernel"][0], -expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(2) * np.linalg.norm(expected), rtol=1e-4)
    np.testing.assert_allclose(metrics["entropy"], ENTROPY, rtol=1e-5)
    np.testing.assert_allclose(metrics["approximate_kl"], 0, atol=1e-6)


def test_reinforce_is_the_derivative_of_the_expected_reward():
    # Every action once, weighted by its probability: the expectation by enumeration, against finite differences.
    reward = np.array([1.0, -2.0, 0.5])
    trajectory = bandit_trajectory([[r] for r in P * reward * 3], [[0], [1], [2]])
    change = bias_change(bandit_agent(data=DataSpec("episodes", 1, 3)), trajectory)

    def expected_reward(logits):
        return np.exp(logits) @ reward / np.exp(logits).sum()

    h = 1e-5 * np.eye(3)
    logits = LOGITS.astype(np.float64)
    difference = [(expected_reward(logits + d) - expected_reward(logits - d)) / 2e-5 for d in h]
    np.testing.assert_allclose(change, difference, rtol=1e-3, atol=1e-5)


def test_the_entropy_bonus_in_closed_form():
    agent = bandit_agent(entropy_weight=0.5)
    zero = [[0.0] * len(column) for column in COLUMNS]
    np.testing.assert_allclose(bias_change(agent, bandit_trajectory(zero, ACTIONS)), 0.5 * ENTROPY_GRADIENT, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "cases"),
    [
        # Advantage, ratio, and the factor of the gradient of log pi.
        ({}, [(1, 1.1, 1.1), (1, 1.3, 0), (-1, 0.7, 0), (-1, 4, -4)]),
        ({"clip_high": 0.4, "dual_clip": 3.0}, [(1, 1.3, 1.3), (1, 1.5, 0), (-1, 0.7, 0), (-1, 2.9, -2.9), (-1, 4, 0)]),
    ],
)
def test_off_policy_the_ratio_weighs_and_clips(arguments, cases):
    agent = bandit_agent(data=DataSpec("episodes", 1, 4), **arguments)
    update, state = jit(agent.update), with_logits(agent)
    for advantage, ratio, factor in cases:
        after, _ = update(state, bandit_trajectory([[advantage]] * 4, [[1]] * 4, ratio), KEY)
        change = after.params["policy"]["head_policy"]["bias"] - LOGITS
        np.testing.assert_allclose(change, factor * (np.eye(3)[1] - P), rtol=2e-3, atol=1e-5)


def test_ratios_inside_an_asymmetric_range_do_not_count_as_clipped():
    # Beside 1: 0.2 below and 0.28 above.
    ratios = {1.25: 0.0, 1.3: 1.0, 0.85: 0.0, 0.75: 1.0}
    agent = bandit_agent(data=DataSpec("episodes", 1, 4), clip=0.2, clip_high=0.28)
    update, state = jit(agent.update), with_logits(agent)
    for ratio, fraction in ratios.items():
        _, metrics = update(state, bandit_trajectory([[1.0]] * 4, [[1]] * 4, ratio), KEY)
        assert metrics["clip_fraction"] == fraction, ratio


def test_minibatch_whitening_is_over_the_minibatch():
    agent = bandit_agent(credit=PLAIN._replace(whiten="minibatch"))
    flat = np.concatenate(COLUMNS)
    white = [list((np.array(column) - flat.mean()) / flat.std()) for column in COLUMNS]
    change = bias_change(agent, bandit_trajectory(COLUMNS, ACTIONS))
    np.testing.assert_allclose(change, -closed_form(REDUCTIONS["steps"], white), rtol=1e-3, atol=1e-5)


def test_an_epoch_uses_every_step_in_exactly_one_minibatch():
    # Two minibatches of two steps. Adam's second step is 0.4737 of the first gradient and 0.5263 of the second
    # (0.09 and 0.1 over 0.19), so that the change reveals which split of the four steps was drawn.
    columns, actions = [[1.0], [-2.0], [0.5], [3.0]], [[0], [1], [2], [2]]
    agent = bandit_agent(data=DataSpec("episodes", 1, 4), minibatches=2, learning_rate=1.0)
    change = 1e4 * bias_change(agent, bandit_trajectory(columns, actions))
    gradients = [closed_form(lambda n: 1 / 2, [c], [a]) for c, a in zip(columns, actions, strict=True)]
    splits = [
        sum((1 + 0.09 / 0.19 if i in first else 0.1 / 0.19) * g for i, g in enumerate(gradients))
        for first in itertools.combinations(range(4), 2)
    ]
    assert min(np.abs(change + split).max() for split in splits) < 2e-2
    assert np.sort([np.abs(a - b).max() for a, b in itertools.combinations(splits, 2)])[0] > 5e-2


def test_clipping_the_gradient_keeps_its_direction():
    trajectory = bandit_trajectory(COLUMNS, ACTIONS)
    free = bias_change(bandit_agent(), trajectory)
    clipped = bias_change(bandit_agent(max_gradient_norm=1e-2), trajectory)
    np.testing.assert_allclose(clipped, free / np.linalg.norm(free) * 1e-2 / np.sqrt(2), rtol=1e-3)


# --- bootstrapping -------------------------------------------------------------------------------------

T, B = 6, 2
STEPS = T * B
VALUES = np.linspace(-1, 2, 2 * STEPS).astype(np.float32)


def one_hot_environment(limit):
    """Every observation and every next observation is a different one-hot vector, whose value is a single weight."""
    observation = np.eye(2 * STEPS, dtype=np.float32)[:STEPS].reshape(T, B, -1)
    following = np.eye(2 * STEPS, dtype=np.float32)[STEPS:].reshape(T, B, -1)
    return (
        EnvironmentSpec(spaces.Box(0, 1, (2 * STEPS,), np.float32), spaces.Discrete(3), limit),
        observation,
        following,
    )


@pytest.mark.parametrize(
    ("kind", "limit", "shared"),
    [("unroll", None, False), ("unroll", 6, False), ("unroll", 2, True), ("episodes", 6, False)],
)
def test_the_bootstrap_is_the_value_before_the_reset(kind, limit, shared):
    spec, observation, following = one_hot_environment(limit)
    terminated, truncated, mask = np.zeros((T, B), bool), np.zeros((T, B), bool), np.ones((T, B), np.float32)
    if kind == "unroll":
        # Truncated sooner and more often than at the limit, which is only an upper bound of the length.
        truncated[[0, 1, 3], 0] = True
        terminated[2, 0] = True
        terminated[[4, 5], 1] = True
        truncated[5, 1] = True
    else:
        truncated[3, 0], terminated[4, 1] = True, True
        mask[4:, 0], mask[5:, 1] = 0, 0
    rewards = np.arange(STEPS, dtype=np.float32).reshape(T, B) * mask
    value, after = VALUES[:STEPS].reshape(T, B), VALUES[STEPS:].reshape(T, B)
    trajectory = bandit_trajectory([[0.0] * T] * B, [[0] * T] * B)
    trajectory = trajectory._replace(
        observation=jnp.asarray(observation),
        next_observation=jnp.asarray(following),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        mask=jnp.asarray(mask),
        rewards={"env": jnp.asarray(rewards)},
        extras=trajectory.extras | {"value": {"env": jnp.asarray(value)}},
    )
    agent = policy_gradient(
        spec,
        credit=Credit({"env": Entry("env", gae(0.5, 0.0))}),
        data=DataSpec(kind, T, B),
        network_config=LINEAR,
        shared_critic=shared,
        value_weight=1.0,
        entropy_weight=0.0,
        **AS_GRADIENT,
    )
    state = agent.init(KEY)
    params = jax.tree.map(jnp.zeros_like, state.params)
    owner = "policy" if shared else "critic"
    params[owner]["head_env"]["kernel"] = jnp.asarray(VALUES)[:, None]
    change, _ = update_of(agent, trajectory, state._replace(params=params))
    # The loss is mean (v - target)^2 / 2, and v's derivative by weight i is 1 at step i alone.
    recovered = change[owner]["head_env"]["kernel"][:STEPS, 0].reshape(T, B) * mask.sum() + value
    for t, b in itertools.product(range(T), range(B)):
        if not mask[t, b]:
            continue
        asked = truncated[t, b] or t == T - 1
        behind = 0.0 if terminated[t, b] else after[t, b] if asked else value[t + 1, b]
        np.testing.assert_allclose(recovered[t, b], rewards[t, b] + 0.5 * behind, rtol=2e-3, atol=2e-3)


def test_a_recurrent_critic_is_evaluated_with_the_carry_of_its_step():
    probe = TruncationProbe(length=3)
    agent = policy_gradient(
        probe.spec,
        credit=Credit({"env": Entry("env", gae(1.0, 0.0))}),
        data=DataSpec("unroll", 8, 2),
        network_config=NetworkConfig(hidden=(), recurrent_size=4),
        epochs=1,
    )
    state = jit(agent.init)(KEY)
    initial = agent.initial_carry(2)
    params = jax.tree.map(lambda x: x + 0.3, state.params)
    policy = acting_policy(agent, params)
    more = jit(lambda rollout, key: unroll(probe, policy, rollout, key, length=8, initial_carry=initial))
    # The second unroll: its first carry is not the initial one.
    rollout, _ = more(start_unroll(probe, KEY, 2, initial), jax.random.key(0))
    _, trajectory = more(rollout, jax.random.key(1))
    trajectory = trajectory._replace(rewards={"env": jnp.zeros((8, 2))})
    _, metrics = update_of(agent, trajectory, state._replace(params=params))
    # The value after every step, by one more call of the agent with the carry after that step.
    act = jit(agent.act)
    trajectory = jax.tree.map(np.asarray, trajectory)
    values = np.zeros((8, 2))
    for t in range(8):
        carry = jax.tree.map(lambda x, t=t: x[t], trajectory.extras["carry"])
        _, carry, _ = act(params, carry, trajectory.observation[t], KEY)
        values[t] = act(params, carry, trajectory.next_observation[t], KEY)[2]["value"]["env"]
    advantage = values - np.asarray(trajectory.extras["value"]["env"])
    assert advantage.std() > 1e-3
    np.testing.assert_allclose(metrics["credit_std/env"], advantage.std(ddof=1), rtol=1e-3)


# --- padding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recurrent_size", [0, 3])
def test_the_content_of_the_padding_does_not_matter(recurrent_size):
    credit = Credit(
        {
            "env": Entry("env", group_outcome()),
            "steps": Entry("model", group_steps()),
            "critic": Entry("env", gae(0.9, 0.8)),
        },
        whiten="minibatch",
    )
    agent = bandit_agent(credit=credit, network_config=NetworkConfig(hidden=(), recurrent_size=recurrent_size))
    state = jit(agent.init)(KEY)
    trajectory = bandit_trajectory(COLUMNS, ACTIONS)
    carry = jax.tree.map(lambda x: jnp.zeros((3, *x.shape)), agent.initial_carry(4))
    trajectory = trajectory._replace(
        rewards={"env": trajectory.rewards["env"], "model": trajectory.rewards["env"] ** 2},
        extras=trajectory.extras | {"value": {"critic": jnp.full((3, 4), 0.3)}, "carry": carry},
    )
    padded = trajectory.mask == 0

    def fill(x, value):
        return jnp.where(padded.reshape(3, 4, *(1,) * (x.ndim - 2)), value, x)

    dirty = trajectory._replace(
        observation=fill(trajectory.observation, 5.0),
        next_observation=fill(trajectory.next_observation, -7.0),
        action=fill(trajectory.action, 2),
        rewards={name: fill(x, 1e3) for name, x in trajectory.rewards.items()},
        extras=trajectory.extras
        | {
            "log_prob": fill(trajectory.extras["log_prob"], -1e4),
            "value": {"critic": fill(trajectory.extras["value"]["critic"], 1e3)},
        },
    )
    update = jit(agent.update)
    (clean, metrics), (other, _) = (update(state, data, KEY) for data in (trajectory, dirty))
    assert metrics["gradient_norm"] > 0
    jax.tree.map(np.testing.assert_array_equal, clean.params, other.params)


# --- acting --------------------------------------------------------------------------------------------


def test_acting_reports_the_distribution_that_it_drew_from():
    agent = bandit_agent(credit=Credit({"a": Entry("env", gae()), "b": Entry("env", gae(0.5))}))
    params = with_logits(agent).params
    observation = jnp.ones((5000, 1))
    action, carry, extras = agent.act(params, agent.initial_carry(5000), observation, KEY)
    assert carry == {"policy": (), "critic": ()}
    np.testing.assert_allclose(extras["log_prob"], np.log(P)[action], rtol=1e-5)
    np.testing.assert_allclose(extras["distribution"], np.broadcast_to(LOGITS, (5000, 3)))
    np.testing.assert_allclose(np.bincount(action) / 5000, P, atol=4 * 0.5 / np.sqrt(5000))
    assert {name: value.shape for name, value in extras["value"].items()} == {"a": (5000,), "b": (5000,)}
    greedy, _, _ = agent.act(params, agent.initial_carry(5000), observation, KEY, greedy=True)
    assert (greedy == 0).all()


def test_with_a_given_action_none_is_drawn_and_its_extras_are_returned():
    agent = bandit_agent()
    params, given = with_logits(agent).params, jnp.array([2, 0, 1])
    action, _, extras = agent.act(params, agent.initial_carry(3), jnp.ones((3, 1)), KEY, action=given)
    np.testing.assert_array_equal(action, given)
    np.testing.assert_allclose(extras["log_prob"], np.log(P)[given], rtol=1e-5)


def test_acting_and_updating_compile_once():
    probe = TruncationProbe()
    agent = policy_gradient(
        probe.spec,
        credit=Credit({"env": Entry("env", gae())}),
        data=DataSpec("unroll", 4, 2),
        network_config=NetworkConfig(hidden=(4,), recurrent_size=3),
        minibatches=2,
    )
    traced = []

    def counted(name, function):
        def run(*arguments):
            traced.append(name)
            return function(*arguments)

        return jit(run)

    act, update = counted("act", agent.act), counted("update", agent.update)
    collected = jit(
        lambda state, key: unroll(probe, acting_policy(agent, params), state, key, length=4, initial_carry=initial)
    )
    state, initial = agent.init(KEY), agent.initial_carry(2)
    rollout, params = start_unroll(probe, KEY, 2, initial), state.params
    carry, observation = initial, jnp.zeros((2, 2))
    for seed in range(3):
        _, carry, _ = act(state.params, carry, observation, jax.random.key(seed))
        rollout, trajectory = collected(rollout, jax.random.key(seed))
        state, _ = update(state, trajectory, jax.random.key(seed))
    assert sorted(traced) == ["act", "update"]
    assert act._cache_size() == 1 and update._cache_size() == 1


# --- the learn step ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_run():
    """A learner on ``ObservationActionReward``: the environment, the agent, its start and jitted collect and learn."""
    probe = ObservationActionReward()
    agent = policy_gradient(
        probe.spec,
        credit=Credit({"env": Entry("env", gae())}, whiten="minibatch"),
        data=DataSpec("unroll", 4, 8),
        network_config=NetworkConfig(hidden=(8,)),
        minibatches=2,
    )
    reward = chain()
    state = start_rollout(probe, agent, initial_state(agent, reward, jax.random.key(3)))
    return probe, agent, reward, state


def test_a_non_finite_update_is_undone_and_counted(small_run):
    probe, agent, reward, state = small_run
    state, trajectory = jit(lambda s: collect(probe, agent, s, 0))(state)
    step = jit(lambda s, t, i: learn(agent, reward, s, t, i))
    broken = trajectory._replace(rewards={"env": trajectory.rewards["env"].at[1, 2].set(jnp.nan)})
    first, metrics = step(state, broken, 0)
    second, _ = step(first, broken, 1)
    jax.tree.map(np.testing.assert_array_equal, second.agent, state.agent)
    assert (int(first.rejected), int(second.rejected)) == (1, 2)
    assert metrics["sum/rejected"] == 1 and metrics["sum/non_finite_environments"] == 1
    assert all(np.isfinite(value) for name, value in metrics.items() if name.startswith("agent/"))
    # The square of a value error of 1e30 overflows, and so does the gradient's norm; clipping by it makes zeros.
    huge = trajectory._replace(rewards={"env": jnp.full_like(trajectory.rewards["env"], 1e30)})
    new, lost = jit(agent.update)(state.agent, huge, jax.random.key(0))
    assert not np.isfinite(lost["loss"]) and all(np.isfinite(x).all() for x in jax.tree.leaves(new))
    overflown, metrics = step(state, huge, 0)
    jax.tree.map(np.testing.assert_array_equal, overflown.agent, state.agent)
    assert int(overflown.rejected) == 1 and metrics["sum/rejected"] == 1 and metrics["sum/non_finite_environments"] == 0
    third, metrics = step(second, trajectory, 2)
    assert int(third.rejected) == 0 and metrics["sum/rejected"] == 0 and metrics["sum/non_finite_environments"] == 0
    changed = jax.tree.map(lambda a, b: np.any(a != b), third.agent.params, state.agent.params)
    assert all(jax.tree.leaves(changed))


def test_without_a_valid_step_momentum_does_not_move_the_agent(small_run):
    probe, agent, reward, state = small_run
    collected = jit(lambda s: collect(probe, agent, s, 0))
    step = jit(lambda s, t, i: learn(agent, reward, s, t, i))
    state, trajectory = collected(state)
    moved, _ = step(state, trajectory, 0)
    after, metrics = step(moved, trajectory._replace(mask=jnp.zeros_like(trajectory.mask)), 1)
    jax.tree.map(np.testing.assert_array_equal, after.agent, moved.agent)
    assert int(after.rejected) == 0 and metrics["sum/rejected"] == 0


def test_seeds_under_vmap_equal_the_single_runs(small_run):
    probe, agent, reward, _ = small_run

    def run(key):
        state = start_rollout(probe, agent, initial_state(agent, reward, key))
        return run_chunk(probe, agent, reward, state, 0, iterations=3)

    keys = jax.random.split(jax.random.key(8), 2)
    together, _ = jit(jax.vmap(run))(keys)
    single = jit(run)
    for index, key in enumerate(keys):
        alone, _ = single(key)
        ours = jax.tree.map(lambda x, index=index: x[index], together.agent.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, alone.agent.params)
    # The seeds are different runs.
    kernels = together.agent.params["policy"]["dense_0"]["kernel"]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


# --- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"surrogate": "ppo"}, r"unknown surrogate 'ppo', did you mean '\w+'\? \(known: clip, plain\)"),
        ({"reduction": "mean"}, "unknown reduction 'mean', did you mean .*known: steps, "),
        (
            {"credit": PLAIN._replace(whiten="yes")},
            "unknown whiten 'yes', did you mean .*known: none, batch, minibatch",
        ),
        ({"epochs": 0}, "epochs=0, minibatches=1: expected at least 1"),
        ({"minibatches": 0}, "epochs=1, minibatches=0: expected at least 1"),
        ({"minibatches": 5}, "minibatches=5 does not divide 12: the nearest that does is (4|6)"),
        (
            {"minibatches": 3, "network_config": NetworkConfig(hidden=(), recurrent_size=2)},
            "minibatches=3 does not divide 4: the nearest that does is (2|4)",
        ),
        (
            {
                "minibatches": 3,
                "credit": Credit({"env": Entry("env", gae())}),
                "critic_config": NetworkConfig(hidden=(), recurrent_size=2),
            },
            "minibatches=3 does not divide 4",
        ),
        (
            {"credit": Credit({"env": Entry("env", group_outcome())}), "data": DataSpec("unroll", 3, 4)},
            r"credit \['env'\] needs whole episodes: data.kind='unroll', expected 'episodes'",
        ),
        (
            {
                "credit": Credit({"a": Entry("env", gae()), "b": Entry("env", group_outcome())}),
                "data": DataSpec("episodes", 3, 4),
            },
            "credit 'b' compares the rollouts of a group: group_size=1, expected at least 2",
        ),
        (
            {
                "credit": Credit({"a": Entry("env", gae()), "b": Entry("x", other_steps())}),
                "data": DataSpec("unroll", 3, 4),
            },
            r"credit \['b'\] needs whole episodes",
        ),
        ({"data": DataSpec("unroll", 3, 4)}, r"credit \['env'\] needs whole episodes: data.kind='unroll'"),
        ({"data": DataSpec("replay", 3, 4)}, "data.kind='replay', expected 'unroll' or 'episodes'"),
        ({"credit": Credit({"policy": Entry("env", gae())})}, "credit 'policy': .* the head 'policy' is taken"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, message):
    with pytest.raises(ValueError, match=message):
        bandit_agent(**arguments)
