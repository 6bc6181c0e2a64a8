"""PopArt: its statistics against weighted moments, values that rescaling leaves alone, and what learns with it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents.actor_critic import STATISTICS, actor_critic
from agents.base import DataSpec
from agents.credit import Credit, Entry
from agents.estimators import gae, plain_return
from agents.networks.base import Head, checked_network
from agents.networks.sequence import NetworkConfig, network
from agents.planning.dynamic_programming import policy_evaluation
from agents.policy_gradient import policy_gradient
from agents.popart import TargetStatistics, add_targets, change_of_units, no_targets
from envs.base import EnvironmentSpec, Transition
from envs.native.tabular import TabularEnvironment, gridworld
from experiments.training.learn import initial_state, run_chunk, start_rollout
from rewards.base import chain
from rewards.shaping.transforms import scale

KEY = jax.random.key(0)
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
SPEC = EnvironmentSpec(BOX, spaces.Discrete(2), max_episode_steps=4)
T, B = 5, 4
# Two heads whose targets are of very different sizes. Without a discount a step's target is its reward.
CREDIT = Credit({"a": Entry("env", gae(0.0, 0.0)), "b": Entry("large", gae(0.0, 0.0))})
OFFSETS, SIZES = {"env": 2.0, "large": -3e3}, {"env": 0.5, "large": 1e3}
CLIP = 0.3
add = jit(add_targets)


# --- statistics ----------------------------------------------------------------------------------------


def test_the_statistics_are_moments_whose_weights_decay_by_target():
    rng, step_size = np.random.default_rng(0), 0.02
    statistics, seen, weights = no_targets(), np.zeros(0), np.zeros(0)
    for size in (1.0, 30.0, 5.0):
        targets, mask = rng.normal(4 * size, size, (T, B)), rng.random((T, B)) < 0.7
        statistics = add(statistics, jnp.where(mask, targets, 1e3), jnp.asarray(mask, jnp.float32), step_size)
        kept = (1 - step_size) ** mask.sum()
        seen = np.concatenate([seen, targets[mask]])
        weights = np.concatenate([weights * kept, np.full(mask.sum(), (1 - kept) / mask.sum())])
        mean = np.average(seen, weights=weights)
        np.testing.assert_allclose(statistics.weight, weights.sum(), rtol=1e-5)
        np.testing.assert_allclose(statistics.mean, mean, rtol=1e-5)
        np.testing.assert_allclose(statistics.std, np.sqrt(np.average((seen - mean) ** 2, weights=weights)), rtol=1e-4)


@pytest.mark.optional
def test_one_target_at_a_time_it_agrees_with_rlax():
    rlax = pytest.importorskip("rlax")
    index = jnp.zeros(1, jnp.int32)
    # rlax corrects no bias: its first statistics count like a whole past.
    ours = TargetStatistics(jnp.ones(()), jnp.zeros(()), jnp.ones(()))
    theirs = rlax.PopArtState(jnp.zeros(1), jnp.ones(1), jnp.ones(1))
    layer = {"w": jnp.array([[0.5], [-2.0]]), "b": jnp.array([0.3])}
    for target in np.random.default_rng(1).normal(3.0, 2.0, 10):
        given = jnp.full(1, target, jnp.float32)
        new = add(ours, given[None], jnp.ones((1, 1)), 0.1)
        their_new = rlax.art(theirs, given, index, 0.1, 1e-4, 1e6)
        np.testing.assert_allclose([new.mean, new.std], [their_new.shift[0], their_new.scale[0]], rtol=1e-4)
        scale, shift = change_of_units(ours, new)
        expected = rlax.pop(layer, theirs, their_new)
        np.testing.assert_allclose(scale * layer["w"], expected["w"], rtol=1e-4)
        np.testing.assert_allclose(scale * layer["b"] + shift, expected["b"], rtol=1e-4, atol=1e-5)
        ours, theirs, layer = new, their_new, expected


def test_the_standard_deviation_is_bounded_and_keeps_its_digits():
    ones = jnp.ones((T, B))
    assert (no_targets().mean, no_targets().std) == (0, 1)
    np.testing.assert_allclose(add(no_targets(), 7 * ones, ones, 3e-4).std, 1e-4, rtol=1e-5)
    huge = jnp.where(jnp.arange(B) % 2 == 0, 1e9, -1e9) * ones
    np.testing.assert_allclose(add(no_targets(), huge, ones, 3e-4).std, 1e6, rtol=1e-5)
    # The second moment less the squared mean would be a difference of numbers around 1e10, whose last digit is 1024.
    targets = 1e5 + np.random.default_rng(2).normal(0, 1, (T, B))
    found = add(add(no_targets(), targets, ones, 3e-4), targets, ones, 3e-4)
    np.testing.assert_allclose(found.std, targets.std(), rtol=2e-2)


def test_without_a_valid_target_nothing_changes():
    nothing = jnp.zeros((T, B))
    seen = add(no_targets(), jnp.arange(T * B, dtype=jnp.float32).reshape(T, B), jnp.ones((T, B)), 0.1)
    for statistics in (no_targets(), seen):
        jax.tree.map(np.testing.assert_array_equal, add(statistics, nothing + 5, nothing, 0.1), statistics)


# --- rescaled heads ------------------------------------------------------------------------------------


def test_only_the_rescaled_output_of_a_network_changes():
    made = network(BOX, {"policy": Head(3, num_free=1), "a": Head(1)}, NetworkConfig(hidden=(4,)))
    params = jax.tree.map(lambda x: x + 0.1, jit(made.init)(KEY))
    observation, apply = jax.random.normal(KEY, (T, B, 3)), jit(made.apply)
    before, _ = apply(params, observation)
    for head in before:
        after, _ = apply(made.rescale(params, head, jnp.float32(3.0), jnp.float32(-2.0)), observation)
        for name, output in before.items():
            expected = 3 * output - 2 if name == head else output
            np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shared", "recurrent_size"), [(False, 0), (True, 0), (False, 3)])
def test_rescaling_changes_what_heads_predict_and_no_value(shared, recurrent_size):
    config = NetworkConfig(hidden=(4,), recurrent_size=recurrent_size, normalise_observations=True)
    model = actor_critic(SPEC, config, config, critics=("a", "b"), shared=shared, popart=0.01)
    observation, mask, carry = jax.random.normal(KEY, (T, B, 3)), jnp.ones((T, B)), model.initial_carry(B)
    rng = np.random.default_rng(3)
    params = jit(lambda key: model.observe(model.init(key), observation, mask))(KEY)
    rescale = jit(model.rescale)
    forward = jit(lambda p: [model.forward(p, observation, carry, None, normalised=raw)[:2] for raw in (False, True)])
    for size in (1.0, 1e4, 10.0):
        targets = {"a": rng.normal(5, 0.3, (T, B)) * size, "b": rng.normal(-1, 2, (T, B)) / size}
        new = rescale(params, jax.tree.map(jnp.float32, targets), mask)
        (policy, before), (_, old) = forward(params)
        (same, after), (_, raw) = forward(new)
        np.testing.assert_array_equal(policy, same)
        for name in ("a", "b"):
            assert before[name].std() > 0 and np.abs(raw[name] - old[name]).max() > 0.01
            # To the rounding of the numbers that are added.
            largest = max(np.abs(before[name]).max(), *(abs(p[STATISTICS][name].mean) for p in (params, new)))
            np.testing.assert_allclose(after[name], before[name], atol=4e-6 * largest)
            np.testing.assert_allclose(model.normalise(new, after)[name], raw[name], atol=1e-3)
        params = new


# --- the learner ---------------------------------------------------------------------------------------


def learner(**arguments):
    defaults = {"credit": CREDIT, "data": DataSpec("unroll", T, B), "network_config": NetworkConfig(hidden=(4,))}
    return policy_gradient(SPEC, **(defaults | {"popart": True, "epochs": 1} | arguments))


def trajectory_of(agent, state, seed=4):
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(T, B, 3)).astype(np.float32)
    action = rng.integers(0, 2, (T, B)).astype(np.int32)
    _, _, extras = agent.act(
        state.params, agent.initial_carry(T * B), observation.reshape(-1, 3), KEY, action=action.reshape(-1)
    )
    extras = jax.tree.map(lambda x: x.reshape(T, B, *x.shape[1:]), extras)
    rewards = {name: rng.normal(OFFSETS[name], SIZES[name], (T, B)).astype(np.float32) for name in OFFSETS}
    trajectory = Transition(
        observation=observation,
        action=action,
        rewards=rewards,
        terminated=np.zeros((T, B), bool),
        truncated=np.zeros((T, B), bool),
        next_observation=observation,
        mask=(rng.random((T, B)) < 0.8).astype(np.float32),
        extras=extras | {"episode_start": np.zeros((T, B), bool)},
    )
    return jax.tree.map(jnp.asarray, trajectory)


@pytest.fixture(scope="module")
def clipped():
    """A learner with separate critics, and its compiled update."""
    agent = learner(value_clip=CLIP, learning_rate=1e-2)
    return agent, jit(agent.update)


def values_of(agent, params, trajectory):
    observation = trajectory.observation.reshape(-1, 3)
    values = agent.act(params, agent.initial_carry(T * B), observation, KEY)[2]["value"]
    return {name: np.asarray(value).reshape(T, B) for name, value in values.items()}


def test_an_update_that_learns_nothing_changes_the_statistics_and_no_value():
    agent = learner(shared_critic=True, learning_rate=0.0)
    state = jit(agent.init)(KEY)
    trajectory = trajectory_of(agent, state)
    update = jit(agent.update)
    once, metrics = update(state, trajectory, KEY)
    twice, _ = update(once, trajectory, KEY)
    valid = np.asarray(trajectory.mask) > 0
    for head, channel in (("a", "env"), ("b", "large")):
        targets = np.asarray(trajectory.rewards[channel])[valid]
        # The same batch a second time has the same moments.
        for statistics in (once.params[STATISTICS][head], twice.params[STATISTICS][head]):
            np.testing.assert_allclose(statistics.mean, targets.mean(), rtol=1e-4)
            np.testing.assert_allclose(statistics.std, targets.std(), rtol=1e-3)
        np.testing.assert_allclose(metrics[f"popart_mean/{head}"], targets.mean(), rtol=1e-4)
        np.testing.assert_allclose(metrics[f"popart_std/{head}"], targets.std(), rtol=1e-3)
        for after in (once, twice):
            before, value = (values_of(agent, one.params, trajectory)[head] for one in (state, after))
            np.testing.assert_allclose(value, before, atol=4e-6 * np.abs(targets).max())


def test_advantages_are_in_units_of_the_reward_and_losses_in_standard_deviations(clipped):
    agent, update = clipped
    state = jit(agent.init)(KEY)
    trajectory = trajectory_of(agent, state)
    # What was recorded when acting is not what the heads predict now, so that clipping has an effect.
    shift = jnp.array([-0.8, 0.8, -0.1, 0.1])
    now = trajectory.extras["value"]
    old = {"a": now["a"] + shift * SIZES["env"], "b": now["b"] + shift * SIZES["large"]}
    trajectory = trajectory._replace(extras=trajectory.extras | {"value": old})
    after, metrics = update(state, trajectory, KEY)
    valid = np.asarray(trajectory.mask) > 0
    present = values_of(agent, state.params, trajectory)
    for head, channel in (("a", "env"), ("b", "large")):
        rewards = np.asarray(trajectory.rewards[channel], np.float64)[valid]
        mean, std = rewards.mean(), rewards.std()
        n, before, target = ((x - mean) / std for x in (present[head][valid], np.asarray(old[head])[valid], rewards))
        losses = [np.square(x - target) / 2 for x in (n, before + np.clip(n - before, -CLIP, CLIP))]
        assert np.any(losses[0] < losses[1]) and np.any(losses[0] > losses[1])
        np.testing.assert_allclose(metrics[f"value_loss/{head}"], np.maximum(*losses).mean(), rtol=1e-3)
        advantage = rewards - np.asarray(old[head])[valid]
        np.testing.assert_allclose(metrics[f"credit_std/{head}"], advantage.std(ddof=1), rtol=1e-3)
        # The optimiser, whose steps are of 0.01, has left the statistics alone.
        found = after.params[STATISTICS][head]
        np.testing.assert_allclose(found.weight, 1 - (1 - 3e-4) ** valid.sum(), rtol=1e-4)
        np.testing.assert_allclose([found.mean, found.variance], [mean, std**2], rtol=1e-3)


def test_seeds_under_vmap_equal_the_single_runs(clipped):
    agent, update = clipped
    states = jit(jax.vmap(agent.init))(jax.random.split(KEY, 2))
    single = [jax.tree.map(lambda x, i=i: x[i], states) for i in range(2)]
    trajectories = [trajectory_of(agent, state, seed) for seed, state in enumerate(single)]
    together = jax.tree.map(lambda *x: jnp.stack(x), *trajectories)
    both, _ = jit(jax.vmap(agent.update, (0, 0, None)))(states, together, KEY)
    for index, (state, trajectory) in enumerate(zip(single, trajectories, strict=True)):
        alone, _ = update(state, trajectory, KEY)
        ours = jax.tree.map(lambda x, index=index: x[index], both.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, alone.params)


def test_it_is_off_unless_it_is_asked_for():
    agent = learner(popart=False)
    state = jit(agent.init)(KEY)
    assert set(state.params) == {"policy", "critic"}
    _, metrics = jax.eval_shape(agent.update, state, trajectory_of(agent, state), KEY)
    assert not [name for name in metrics if name.startswith("popart")]


# --- learning ------------------------------------------------------------------------------------------


def value_errors(popart, factors):
    """The error of the values that PPO learns on a grid, whose rewards are multiplied by each of ``factors``, relative
    to the exact values of its policy."""
    model = gridworld(("S.+", ".#.", "-.S"), slip=0.2)
    environment, discount = TabularEnvironment(model), 0.9
    agent = policy_gradient(
        environment.spec,
        credit=Credit({"env": Entry("env", gae(discount, 0.95))}, whiten="minibatch"),
        data=DataSpec("unroll", 8, 16),
        network_config=NetworkConfig(hidden=(16,)),
        learning_rate=1e-2,
        entropy_weight=0.0,
        popart=popart,
    )

    def run(factor):
        reward = chain(scaled=scale(factor=factor))
        state = start_rollout(environment, agent, initial_state(agent, reward, KEY))
        state, metrics = run_chunk(environment, agent, reward, state, 0, iterations=400)
        states, params = jnp.arange(model.num_states), state.agent.params
        carry = agent.initial_carry(model.num_states)
        values = agent.act(params, carry, states, KEY)[2]["value"]["env"]
        return agent.action_probabilities(params, carry, states), values / factor, metrics["sum/rejected"]

    errors = []
    for policy, values, rejected in zip(*jit(jax.vmap(run))(jnp.array(factors)), strict=True):
        exact = policy_evaluation(model, policy, discount=discount, iterations=300).values
        assert rejected == 0
        errors.append(float(jnp.linalg.norm(values - exact) / jnp.linalg.norm(exact)))
    return errors


def test_values_of_rewards_times_1000_are_learned_as_well_with_popart_and_not_without():
    plain, large = value_errors(False, [1.0, 1000.0])
    [normalised] = value_errors(True, [1000.0])
    assert plain < 0.05 and normalised < 0.05 and large > 0.5


# --- refusals ------------------------------------------------------------------------------------------


def without_rescale(space, heads):
    return network(space, heads, NetworkConfig(hidden=(4,)))._replace(rescale=None)


def test_what_popart_cannot_normalise_is_refused():
    credit = Credit({"env": Entry("env", plain_return(0.9))})
    with pytest.raises(ValueError, match=r"no credit has a critic: expected popart=False"):
        learner(credit=credit, data=DataSpec("episodes", T, B))
    for shared in (False, True):
        with pytest.raises(
            ValueError, match=r"without_rescale.* builds networks without rescale: expected network.kind="
        ):
            learner(network_config=without_rescale, shared_critic=shared)


def test_a_rescale_that_changes_shapes_is_refused():
    def build(space, heads):
        made = network(space, heads, NetworkConfig(hidden=(4,)))
        return made._replace(rescale=lambda params, head, scale, shift: params | {"more": shift})

    with pytest.raises(ValueError, match=r"rescale of head 'a' returned .*'more'.*expected the shapes of the param"):
        checked_network(build, BOX, {"a": Head(1)})
