"""Probe environments: the values that their docstrings state, compared with an enumeration of all plans."""

import itertools

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.base import Environment
from envs.native import probes

DISCOUNT = 0.9
KEYS = jax.random.split(jax.random.key(3), 16)
PROBES = [
    probes.ConstantReward(),
    probes.ObservedReward(),
    probes.DelayedReward(),
    probes.ActionReward(),
    probes.ObservationActionReward(),
    probes.TruncationProbe(),
    probes.ChainRecall(),
    probes.ContinuousTarget(),
    probes.MultiDiscreteMatch(),
]
TERMINATING = [probe for probe in PROBES if not isinstance(probe, probes.TruncationProbe)]


def name(probe):
    return type(probe).__name__


def all_actions(space):
    """Every action of a finite space; a grid with step 1/100 over a box."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return np.arange(space.n, dtype=np.int32)
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return np.array(list(itertools.product(*map(range, space.nvec))), np.int32)
    return np.linspace(-1, 1, 201, dtype=np.float32)[:, None]


def returns(probe, keys, plans):
    """Discounted returns ``[K, N]`` of every plan ``[N, T, ...]`` for every key, and first observations ``[K, ...]``.

    Every plan must end its episode at its last step, not before.
    """

    def run(key, plan):
        def step(carry, action):
            state, weight, total = carry
            state, timestep = probe.step(key, state, action)
            return (state, weight * DISCOUNT, total + weight * timestep.reward), timestep.terminated

        state, observation = probe.reset(key)
        (_, _, total), terminated = jax.lax.scan(step, (state, 1.0, 0.0), plan)
        return total, terminated, observation

    each_plan = jax.vmap(run, (None, 0), (0, 0, None))
    total, terminated, observation = jax.jit(jax.vmap(each_plan, (0, None)))(keys, plans)
    assert not terminated[..., :-1].any()
    assert terminated[..., -1].all()
    return np.asarray(total), observation


def plans_of(probe):
    actions = all_actions(probe.spec.action_space)
    return np.stack([np.stack(plan) for plan in itertools.product(actions, repeat=probe.spec.max_episode_steps)])


@pytest.mark.parametrize("probe", TERMINATING, ids=name)
def test_optimal_value_is_the_best_return_over_all_plans(probe):
    # Dynamics after the reset are deterministic, so the best plan for a key is the best policy's return.
    total, observations = returns(probe, KEYS[:4], plans_of(probe))
    values = jax.vmap(lambda observation: probe.optimal_value(observation, DISCOUNT))(observations)
    np.testing.assert_allclose(total.max(axis=1), values, atol=3e-5)


def test_values_of_policies_that_ignore_the_observation():
    """The best fixed plan, averaged over equally likely start states."""

    def best_plan(probe, num_starts):
        keys = jax.random.split(jax.random.key(0), 64)
        total, observations = returns(probe, keys, plans_of(probe))
        starts = np.unique(observations, axis=0, return_index=True)[1]
        assert len(starts) == num_starts
        return total[starts].mean(axis=0).max()

    assert best_plan(probes.ObservedReward(), 2) == 0
    assert best_plan(probes.ObservationActionReward(), 2) == 0
    np.testing.assert_allclose(best_plan(probes.ChainRecall(), 2), DISCOUNT**3 / 2, rtol=1e-6)
    np.testing.assert_allclose(best_plan(probes.MultiDiscreteMatch(), 6), (1 / 3 + 1 / 2) / 2, rtol=1e-6)
    # The mean of -(a - x / 2) ** 2 over x uniform in [-1, 1] is -a ** 2 - 1 / 12.
    continuous = probes.ContinuousTarget()
    grid = jnp.linspace(-1, 1, 2001)[:, None]
    rewards = jax.vmap(lambda x: continuous.step(KEYS[0], x, jnp.zeros(1))[1].reward)(grid)
    np.testing.assert_allclose(rewards.mean(), -1 / 12, atol=1e-3)


def test_delayed_reward_on_the_way():
    probe = probes.DelayedReward()
    state, first = probe.reset(KEYS[0])
    state, timestep = probe.step(KEYS[0], state, jnp.int32(0))
    np.testing.assert_allclose(probe.optimal_value(first, DISCOUNT), DISCOUNT)
    np.testing.assert_allclose(probe.optimal_value(timestep.observation, DISCOUNT), 1)
    assert timestep.reward == 0
    assert probe.step(KEYS[0], state, jnp.int32(0))[1].reward == 1


def test_chain_recall_shows_the_cue_once_and_flags_the_last_step():
    probe = probes.ChainRecall(length=3, num_cues=4)
    state, observation = probe.reset(KEYS[1])
    shown = [observation]
    for _ in range(2):
        state, timestep = probe.step(KEYS[1], state, jnp.int32(0))
        shown.append(timestep.observation)
    expected = np.zeros((3, 5))
    expected[0, int(state.cue)] = expected[2, 4] = 1
    np.testing.assert_array_equal(np.stack(shown), expected)
    rewards = [float(probe.step(KEYS[1], state, jnp.int32(action))[1].reward) for action in range(4)]
    assert rewards == [float(action == state.cue) for action in range(4)]


class TestTruncationProbe:
    probe = probes.TruncationProbe()

    def episode(self):
        state, observation = self.probe.reset(KEYS[0])
        steps = []
        while not steps or not steps[-1][1].truncated:
            state, timestep = self.probe.step(KEYS[0], state, jnp.int32(0))
            steps.append((observation, timestep))
            observation = timestep.observation
        return steps

    def test_stream(self):
        steps = self.episode()
        assert [float(timestep.reward) for _, timestep in steps] == [-5, 1, 1, 1, 1]
        assert not any(timestep.terminated for _, timestep in steps)
        assert [observation.tolist() for observation, _ in steps] == [[1, 0]] + [[0, 1]] * 4
        assert steps[-1][1].final_observation.tolist() == [0, 1]

    @pytest.mark.parametrize("mistake", ["none", "termination", "reset observation"])
    def test_fixed_points_of_the_docstring(self, mistake):
        """Temporal-difference learning on one episode, repeated until it converges, equals the closed forms."""
        steps, values = self.episode(), np.zeros(2)
        for _ in range(500):
            targets = [[], []]
            for observation, timestep in steps:
                successor = values[int(timestep.final_observation[1])]
                if timestep.truncated and mistake == "termination":
                    successor = 0.0
                if timestep.truncated and mistake == "reset observation":
                    successor = values[0]
                targets[int(observation[1])].append(float(timestep.reward) + DISCOUNT * successor)
            values = np.array([np.mean(target) for target in targets])
        q, start = 3 / 4, self.probe.start_reward
        running = {
            "none": 1 / (1 - DISCOUNT),
            "termination": 1 / (1 - DISCOUNT * q),
            "reset observation": (1 + DISCOUNT * (1 - q) * start) / (1 - DISCOUNT * q - DISCOUNT**2 * (1 - q)),
        }[mistake]
        np.testing.assert_allclose(values, [start + DISCOUNT * running, running], rtol=1e-6)
        np.testing.assert_allclose(
            running, {"none": 10, "termination": 3.08, "reset observation": -1.02}[mistake], rtol=2e-3
        )
        if mistake == "none":
            optimal = [self.probe.optimal_value(jnp.eye(2)[row], DISCOUNT) for row in range(2)]
            np.testing.assert_allclose(values, optimal, rtol=1e-5)


@pytest.mark.parametrize("probe", PROBES, ids=name)
def test_contract(probe):
    assert isinstance(probe, Environment)
    assert hash(probe) == hash(type(probe)())
    traces = []

    @jax.jit
    def step(state, action):
        traces.append(1)
        return probe.step(KEYS[0], state, action)

    state, observation = jax.jit(probe.reset)(KEYS[0])
    for _ in range(2):
        assert probe.spec.observation_space.contains(np.asarray(observation))
        state, timestep = step(state, jnp.asarray(all_actions(probe.spec.action_space)[-1]))
        observation = timestep.observation
        assert timestep.reward.shape == timestep.terminated.shape == timestep.truncated.shape == ()
        assert timestep.reward.dtype == jnp.float32
        assert timestep.terminated.dtype == timestep.truncated.dtype == bool
        assert (timestep.costs, timestep.objectives, timestep.info) == ({}, {}, {})
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: probes.TruncationProbe(length=1), "length=1: expected at least 2"),
        (lambda: probes.ChainRecall(length=1), "length=1"),
        (lambda: probes.ChainRecall(num_cues=1), "num_cues=1"),
        (lambda: probes.MultiDiscreteMatch(sizes=(3, 1)), r"sizes\[1\]=1"),
        (lambda: probes.MultiDiscreteMatch(sizes=()), "at least one size"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
