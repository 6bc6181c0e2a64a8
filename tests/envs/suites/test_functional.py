"""The functional environments, compared with gymnasium's registered environments of the same name."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.envs.phys2d.cartpole import CartPoleFunctional
from gymnasium.envs.tabular.blackjack import EnvState as BlackjackState

from envs.base import Environment
from envs.suites.functional import Functional, make_functional
from envs.wrappers import TimeLimit

NAMES = ("Blackjack-v1", "CartPole-v1", "CliffWalking-v1", "Pendulum-v1")


def inside(name, **parameters):
    environment = make_functional(name, **parameters)
    return environment.environment if isinstance(environment, TimeLimit) else environment


def batched_step(environment):
    key = jax.random.key(0)
    return jax.jit(jax.vmap(lambda state, action: environment.step(key, state, action)))


@pytest.mark.parametrize("name", NAMES)
def test_is_an_environment_that_scans_with_the_types_of_its_spec(name):
    environment = make_functional(name)
    assert isinstance(environment, Environment)
    assert make_functional(name) == environment and hash(make_functional(name)) == hash(environment)
    state, observation = environment.reset(jax.random.key(0))
    space = environment.spec.observation_space
    assert space.contains(np.asarray(observation, space.dtype)), observation
    action = jnp.zeros((1,)) if name == "Pendulum-v1" else jnp.zeros((), jnp.int32)

    def body(state, t):
        return environment.step(jax.random.fold_in(jax.random.key(1), t), state, action)

    _, steps = jax.jit(lambda state: jax.lax.scan(body, state, jnp.arange(3)))(state)
    assert steps.observation.shape == (3, *observation.shape) and steps.observation.dtype == observation.dtype
    assert steps.reward.shape == (3,) and steps.reward.dtype == jnp.float32
    assert steps.terminated.dtype == steps.truncated.dtype == bool
    assert (steps.costs, steps.objectives, steps.info) == ({}, {}, {})


def test_start_states_depend_on_the_key_alone():
    reset = jax.jit(jax.vmap(make_functional("CartPole-v1").reset))
    keys = jax.random.split(jax.random.key(3), 4)
    _, observations = reset(keys)
    np.testing.assert_array_equal(observations, reset(keys)[1])
    assert len(np.unique(observations[:, 0])) == 4
    assert np.abs(observations).max() <= 0.05


def test_cart_pole_has_the_dynamics_rewards_and_ends_of_gymnasium():
    reference = gymnasium.make("CartPole-v1").unwrapped
    generator = np.random.default_rng(0)
    # Wider than an episode visits, so that the pole falls to both sides and the cart leaves on both sides.
    states = generator.uniform([-2.6, -2, -0.23, -2], [2.6, 2, 0.23, 2], (300, 4))
    actions = generator.integers(2, size=300)
    following, step = batched_step(inside("CartPole-v1"))(jnp.asarray(states, jnp.float32), jnp.asarray(actions))
    expected, ends = [], []
    for state, action in zip(states, actions, strict=True):
        reference.reset()
        reference.state = state
        observation, reward, terminated, _, _ = reference.step(action)
        assert reward == 1.0
        expected.append(observation)
        ends.append(terminated)
    np.testing.assert_allclose(step.observation, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(following, step.observation)
    np.testing.assert_array_equal(step.terminated, ends)
    np.testing.assert_array_equal(step.reward, np.ones(300, np.float32))
    assert 50 < np.sum(ends) < 250


def test_cart_pole_of_gymnasium_needs_the_correction():
    # Fails once gymnasium corrects its constant; then the correction here can be removed.
    assert CartPoleFunctional().default_params.polemass_length == pytest.approx(0.6)
    assert inside("CartPole-v1").params.polemass_length == pytest.approx(0.05)
    longer = inside("CartPole-v1", length=1.0, masspole=0.2).params
    assert longer.polemass_length == pytest.approx(0.2) and longer.total_mass == pytest.approx(1.2)


def test_cart_pole_with_the_reward_of_sutton_and_barto_punishes_the_fall():
    step = batched_step(inside("CartPole-v1", sutton_barto_reward=True))
    states = jnp.array([[0, 0, 0, 0], [2.39, 3, 0, 0]], jnp.float32)
    _, result = step(states, jnp.array([1, 1]))
    np.testing.assert_array_equal(result.terminated, [False, True])
    np.testing.assert_array_equal(result.reward, [0, -1])


def test_pendulum_has_the_dynamics_and_rewards_of_gymnasium():
    reference = gymnasium.make("Pendulum-v1").unwrapped
    generator = np.random.default_rng(0)
    states = generator.uniform([-7, -8], [7, 8], (200, 2))
    # Torques beyond the bounds are clipped by both.
    actions = generator.uniform(-3, 3, (200, 1)).astype(np.float32)
    following, step = batched_step(inside("Pendulum-v1"))(jnp.asarray(states, jnp.float32), jnp.asarray(actions))
    for index, (state, action) in enumerate(zip(states, actions, strict=True)):
        reference.reset()
        reference.state = state
        observation, reward, _, _, _ = reference.step(action)
        np.testing.assert_allclose(step.observation[index], observation, rtol=1e-5, atol=3e-6)
        np.testing.assert_allclose(step.reward[index], reward, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(following[index], reference.state, rtol=1e-5, atol=1e-5)
    assert not step.terminated.any()


def test_pendulum_takes_its_parameters():
    reference = gymnasium.make("Pendulum-v1", g=3.0).unwrapped
    reference.reset()
    reference.state = np.array([0.5, 0.1])
    expected = reference.step(np.array([1.0]))[0]
    _, step = batched_step(inside("Pendulum-v1", g=3.0))(jnp.array([[0.5, 0.1]]), jnp.array([[1.0]]))
    np.testing.assert_allclose(step.observation[0], expected, rtol=1e-5)


def test_cliff_walking_has_the_table_of_gymnasium():
    reference = gymnasium.make("CliffWalking-v1").unwrapped
    environment = inside("CliffWalking-v1")
    template, observation = environment.reset(jax.random.key(0))
    assert observation == reference.reset()[0] == 36
    cells, actions = (array.ravel() for array in np.meshgrid(np.arange(37), np.arange(4), indexing="ij"))
    states = jax.vmap(lambda cell: template._replace(player_position=jnp.array([cell // 12, cell % 12])))(cells)
    _, step = batched_step(environment)(states, actions)
    for index, (cell, action) in enumerate(zip(cells, actions, strict=True)):
        ((_, following, reward, terminated),) = reference.P[cell][action]
        assert (step.observation[index], step.reward[index], step.terminated[index]) == (following, reward, terminated)


def hand(*cards):
    return jnp.zeros(21).at[: len(cards)].set(jnp.array(cards, jnp.float32))


def test_blackjack_by_hand():
    environment = inside("Blackjack-v1")

    def play(player, dealer, action):
        state = BlackjackState(hand(*dealer), hand(*player), *(jnp.asarray(n) for n in (len(dealer), len(player), 0)))
        return environment.step(jax.random.key(0), state, jnp.asarray(action))[1]

    stick, hit = 0, 1
    won = play((10, 10), (10, 8), stick)
    np.testing.assert_array_equal(won.observation, [20, 10, 0])
    assert (won.reward, won.terminated) == (1, True)
    assert play((10, 7), (10, 8), stick).reward == -1
    assert play((10, 8), (10, 8), stick).reward == 0
    natural = play((1, 10), (10, 5, 6), stick)
    np.testing.assert_array_equal(natural.observation, [21, 10, 1])
    assert natural.reward == 1
    bust = play((10, 10, 1), (10, 8), hit)
    assert (bust.reward, bust.terminated) == (-1, True)
    safe = play((2, 3), (10, 8), hit)
    assert (safe.reward, safe.terminated) == (0, False)


def test_blackjack_pays_as_gymnasium_does_on_average():
    environment = inside("Blackjack-v1")

    def episode(key):
        state, _ = environment.reset(jax.random.fold_in(key, 0))
        return environment.step(jax.random.fold_in(key, 1), state, jnp.asarray(0))[1].reward

    ours = np.asarray(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), 20_000)))
    reference = gymnasium.make("Blackjack-v1").unwrapped
    reference.reset(seed=0)
    theirs = []
    for _ in range(5_000):
        reference.reset()
        theirs.append(reference.step(0)[1])
    # Five standard errors of the difference of two independent means.
    tolerance = 5 * np.sqrt(ours.var() / len(ours) + np.var(theirs) / len(theirs))
    assert abs(ours.mean() - np.mean(theirs)) < tolerance < 0.1


@pytest.mark.parametrize(("name", "limit"), [("CartPole-v1", 500), ("Pendulum-v1", 200), ("CliffWalking-v1", None)])
def test_time_limits_are_those_of_gymnasium(name, limit):
    assert make_functional(name).spec.max_episode_steps == limit
    assert make_functional(name, max_episode_steps=7).spec.max_episode_steps == 7


def test_time_limit_truncates():
    environment = make_functional("Pendulum-v1", max_episode_steps=3)
    state, _ = environment.reset(jax.random.key(0))
    step = jax.jit(environment.step)
    truncated = []
    for _ in range(3):
        state, result = step(jax.random.key(1), state, jnp.zeros(1))
        truncated.append(bool(result.truncated))
        assert not result.terminated
    assert truncated == [False, False, True]


def test_discrete_actions_count_from_zero():
    shifted = Functional(CartPoleFunctional(), action_space=gymnasium.spaces.Discrete(2, start=0))
    from_one = Functional(CartPoleFunctional(), action_space=gymnasium.spaces.Discrete(2, start=-1))
    state, _ = shifted.reset(jax.random.key(0))
    one, _ = shifted.step(jax.random.key(0), state, jnp.asarray(0))
    # Started at -1, the index 1 is gymnasium's action 0.
    other, _ = from_one.step(jax.random.key(0), state, jnp.asarray(1))
    np.testing.assert_array_equal(one, other)


def test_bad_arguments_name_what_was_expected():
    with pytest.raises(ValueError, match=r"unknown functional environment 'CartPole-v0', did you mean 'CartPole-v1'"):
        make_functional("CartPole-v0")
    with pytest.raises(TypeError, match="gravitas"):
        make_functional("CartPole-v1", gravitas=1.0)
    with pytest.raises(TypeError, match=r"takes no parameters, got \['slippery'\]"):
        make_functional("CliffWalking-v1", slippery=True)
    with pytest.raises(ValueError, match="max_episode_steps=0"):
        make_functional("CartPole-v1", max_episode_steps=0)
    with pytest.raises(TypeError, match="expected a gymnasium FuncEnv"):
        Functional("CartPole-v1")
