"""Known models: refusals, models read from gymnasium, and environments that sample as their model says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.base import Environment
from envs.native.tabular import (
    LAYOUTS,
    TabularEnvironment,
    TabularModel,
    from_dense,
    from_gymnasium,
    from_outcomes,
    gridworld,
    one_state,
    scalarised,
    validated,
)
from envs.rollout import episodes
from envs.wrappers import TimeLimit

STAY, UP, RIGHT, DOWN, LEFT = range(5)


@pytest.fixture
def coin():
    """One state, one action: 4 or -1."""
    return one_state([[(4.0, 0.5), (-1.0, 0.5)]], horizon=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probability": [[[0.5, 0.4]]]}, r"state 0, action 0: the probabilities sum to 0\.9"),
        ({"probability": [[[1.5, -0.5]]]}, r"probability\[0, 0, 1\]=-0\.5: expected at least 0"),
        ({"probability": [[[np.nan, 1.0]]]}, "expected at least 0"),
        ({"next_state": [[[0, 1]]]}, r"next_state\[0, 0, 1\]=1: expected a state from 0 to 0"),
        ({"next_state": [[[0, 0.7]]]}, r"next_state\[0, 0, 1\]=0\.7: expected an integer"),
        ({"next_state": [[[0, np.nan]]]}, r"next_state\[0, 0, 1\]=nan: expected a state from 0 to 0"),
        ({"reward": [[[0.0, np.inf]]]}, r"reward\[0, 0, 1\] is inf"),
        ({"reward": [[0.0, 1.0]]}, "reward has shape"),
        ({"terminated": [[True, False]]}, "terminated has shape"),
        ({"initial": [0.4]}, r"initial sums to 0\.4"),
        ({"initial": [1.0, 0.0]}, "initial has shape"),
        ({"horizon": 0}, "horizon=0: expected an integer, at least 1"),
    ],
)
def test_a_bad_model_is_refused_by_name(coin, change, message):
    with pytest.raises(ValueError, match=message):
        validated(coin._replace(**change))


def test_equal_outcomes_are_merged_and_rows_padded():
    model = from_outcomes(
        [
            [[(0.25, 1, 2.0, False), (0.25, 1, 2.0, False), (0.5, 1, 2.0, True), (0.0, 0, 9.0, False)]],
            [[(1.0, 0, 0, True)]],
        ],
        [1, 0],
    )
    np.testing.assert_array_equal(model.probability, [[[0.5, 0.5]], [[1.0, 0.0]]])
    np.testing.assert_array_equal(model.terminated[0, 0], [False, True])
    np.testing.assert_array_equal(model.reward[0, 0], [2.0, 2.0])
    with pytest.raises(ValueError, match=r"states have \[1, 2\] actions"):
        from_outcomes([[[(1, 0, 0, False)]], [[(1, 0, 0, False)]] * 2], [1, 0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        # Merged, the two outcomes would have the probability 1.
        ([(1.5, 0, 1.0, False), (-0.5, 0, 1.0, False)], r"state 0, action 0: probability -0\.5, expected at least 0"),
        ([(np.nan, 0, 1.0, False)], "probability nan, expected at least 0"),
        ([(1.0, 0.9, 1.0, False)], r"next_state\[0, 0, 0\]=0\.9: expected an integer"),
        ([(0.5, 0, 1.0, False), (0.5, 0, (1.0, 2.0), False)], r"reward \(1\.0, 2\.0\) has shape \(2,\), expected \(\)"),
    ],
)
def test_a_bad_outcome_is_refused_before_it_is_merged(row, message):
    with pytest.raises(ValueError, match=message):
        from_outcomes([[row]], [1.0])


def test_dense_matrices():
    transition = np.zeros((3, 1, 3))
    transition[0, 0], transition[1, 0] = [0.25, 0.5, 0.25], [0.0, 0.0, 1.0]
    by_next = np.zeros((3, 1, 3))
    by_next[0, 0] = [1.0, 2.0, 3.0]
    model = from_dense(transition, by_next, [1, 0, 0], terminal=[2], horizon=7)
    np.testing.assert_array_equal(model.next_state[0, 0], [0, 1, 2])
    np.testing.assert_array_equal(model.reward[0, 0], [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(model.terminated[0, 0], [False, False, True])
    assert model.terminated[2, 0, 0] and model.probability[2, 0, 0] == 1 and model.horizon == 7

    vector = from_dense(transition, np.ones((3, 1, 2)), [1, 0, 0], terminal=[2], vector=True)
    assert vector.reward.shape == (3, 1, 3, 2) and vector.reward_dimension == 2
    assert scalarised(vector, [1.0, 3.0]).reward[0, 0, 0] == 4.0
    with pytest.raises(ValueError, match="weights has shape"):
        scalarised(vector, [1.0])
    with pytest.raises(ValueError, match=r"expected \(3, 1\) or \(3, 1, 3\)"):
        from_dense(transition, np.ones((3, 2)), [1, 0, 0])
    with pytest.raises(ValueError, match="terminal state 3"):
        from_dense(transition, by_next, [1, 0, 0], terminal=[3])


def test_gymnasium_models():
    lake = from_gymnasium("FrozenLake-v1")
    assert lake.probability.shape == (16, 4, 3) and lake.horizon == 100
    # In the corner, left and up both stay: one outcome of two thirds.
    np.testing.assert_allclose(sorted(lake.probability[0, 0]), [0, 1 / 3, 2 / 3])
    cliff = from_gymnasium("CliffWalking-v1")
    assert cliff.probability.shape == (48, 4, 1) and cliff.horizon is None
    assert cliff.reward[36, 1, 0] == -100 and cliff.next_state[36, 1, 0] == 36
    taxi = from_gymnasium("Taxi-v4")
    assert taxi.probability.shape == (500, 6, 1) and taxi.horizon == 200
    assert set(np.unique(taxi.reward)) == {-10, -1, 20}
    with pytest.raises(ValueError, match="CartPole-v1 publishes no model"):
        from_gymnasium("CartPole-v1")
    for unknown in ("CliffWalkin-v1", "CliffWalking-v7"):
        with pytest.raises(
            ValueError, match=f"environment_id='{unknown}'.*did you mean 'CliffWalking-v1'.*known: .*Taxi-v4"
        ):
            from_gymnasium(unknown)


def test_gridworld_by_hand():
    model = gridworld(["S+", "#G"], horizon=5)
    assert model.num_states == 3 and model.horizon == 5
    # State 0 is S, 1 is +, 2 is G.
    np.testing.assert_array_equal(model.next_state[0, :, 0], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(model.reward[0, :, 0], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(model.reward[1, :, 0], 0)
    assert model.terminated[1, DOWN, 0] and not model.terminated[1, LEFT, 0]
    np.testing.assert_array_equal(model.initial, [1, 0, 0])

    slipping = gridworld(["S+", "#G"], slip=0.5)
    distribution = slipping.probability[0, RIGHT], slipping.next_state[0, RIGHT]
    assert {int(state): mass for mass, state in zip(*distribution, strict=True) if mass} == pytest.approx(
        {1: 0.6, 0: 0.4}
    )


def test_gridworld_layouts_and_refusals():
    for name in LAYOUTS:
        assert gridworld(name).num_actions == 5
    np.testing.assert_allclose(gridworld(["..G"]).initial, [0.5, 0.5, 0])
    with pytest.raises(ValueError, match=r"unknown layout 'opne'.*open"):
        gridworld("opne")
    with pytest.raises(ValueError, match=r"cell \(0, 1\) is 'x'"):
        gridworld(["Sx"])
    with pytest.raises(ValueError, match="expected one length"):
        gridworld(["S.", "."])
    with pytest.raises(ValueError, match=r"slip=1\.5"):
        gridworld(["S."], slip=1.5)
    with pytest.raises(ValueError, match="expected a cell to start in"):
        gridworld(["G#"])


def test_an_environment_draws_what_its_model_says():
    model = TabularModel(
        probability=np.array([[[0.2, 0.5, 0.3, 0.0]], [[1.0, 0.0, 0.0, 0.0]]]),
        next_state=np.array([[[0, 1, 1, 0]], [[1, 0, 0, 0]]]),
        reward=np.array([[[1.0, 2.0, 3.0, 99.0]], [[0.0, 99.0, 99.0, 99.0]]]),
        terminated=np.array([[[False, False, True, False]], [[False] * 4]]),
        initial=np.array([0.75, 0.25]),
    )
    environment = TabularEnvironment(model)
    keys = jax.random.split(jax.random.key(0), 20_000)
    starts, observations = jax.jit(jax.vmap(environment.reset))(keys)
    assert (starts == observations).all()
    assert abs(float(starts.mean()) - 0.25) < 0.02
    step = jax.jit(jax.vmap(environment.step, in_axes=(0, None, None)))
    following, timestep = step(keys, jnp.int32(0), jnp.int32(0))
    for reward, share, ends in ((1, 0.2, False), (2, 0.5, False), (3, 0.3, True)):
        chosen = np.asarray(timestep.reward) == reward
        assert abs(chosen.mean() - share) < 0.02
        assert (np.asarray(timestep.terminated)[chosen] == ends).all()
    assert set(np.unique(timestep.reward)) == {1, 2, 3}
    assert (np.asarray(following) == (np.asarray(timestep.reward) > 1)).all()
    assert not timestep.truncated.any()


def test_spec_observation_and_objectives():
    model = one_state([[((1.0, -2.0), 1.0)], [((0.0, 5.0), 1.0)]], horizon=4)
    environment = TabularEnvironment(model, "one_hot")
    assert isinstance(environment, Environment)
    assert environment.spec.objectives == ("0", "1") and environment.spec.max_episode_steps is None
    assert environment.spec.observation_space.shape == (1,) and environment.spec.action_space.n == 2
    state, observation = environment.reset(jax.random.key(0))
    assert observation.tolist() == [1.0]
    _, timestep = environment.step(jax.random.key(0), state, jnp.int32(1))
    assert timestep.reward == 0.0 and timestep.objectives["1"] == 5.0
    assert TabularEnvironment(model).spec.observation_space.n == 1
    with pytest.raises(ValueError, match=r"unknown observation 'one-hot'.*one_hot"):
        TabularEnvironment(model, "one-hot")


def test_a_rollout_with_the_time_limit(coin):
    environment = TimeLimit(TabularEnvironment(coin), coin.horizon)

    def policy(carry, observation, key):
        return jnp.zeros(observation.shape[0], jnp.int32), carry, {}

    run = jax.jit(lambda key: episodes(environment, policy, key, length=5, batch=4, group_size=1, initial_carry=()))
    trajectory = run(jax.random.key(0))
    np.testing.assert_array_equal(trajectory.mask.sum(0), 3)
    assert trajectory.truncated[2].all() and not trajectory.terminated.any()
    assert set(np.unique(trajectory.rewards["env"][:3])) <= {-1.0, 4.0}
