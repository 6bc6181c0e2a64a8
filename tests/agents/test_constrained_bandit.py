"""Constrained bandits: every rule's next arm by hand, learning against the best feasible arm, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents.base import DataSpec
from agents.constrained_bandit import BanditState, constrained_bandit
from envs.base import EnvironmentSpec, Transition, UnsupportedSpaceError

KEY = jax.random.key(0)
DATA = DataSpec("unroll", 1, 1)
SPEC = EnvironmentSpec(spaces.Box(0, 1, (1,), np.float32), spaces.Discrete(3), costs=("a", "b"))
PULLS = np.array([10, 40, 90])
# Reward, and the two residuals, by arm.
MEANS = np.array([[0.5, 0.9, 0.4], [-0.1, 0.6, -0.3], [-0.2, 0.1, 0.05]])


def step(arm, reward=0.0, a=0.0, b=0.0, mask=1.0, observation=None):
    """One step of one environment."""
    observation = jnp.zeros((1, 1, 1)) if observation is None else observation
    rewards = {name: jnp.full((1, 1), value) for name, value in {"env": reward, "cost/a": a, "cost/b": b}.items()}
    no = jnp.zeros((1, 1), bool)
    return Transition(observation, jnp.full((1, 1), arm), rewards, no, no, observation, jnp.full((1, 1), mask), {})


def after_nothing(multipliers=(0.0, 0.0), pulls=PULLS, means=MEANS, **arguments):
    """The state after a masked step, so that the arm is chosen anew."""
    agent = constrained_bandit(SPEC, data=DATA, **arguments)
    state = BanditState(
        agent.init(KEY).params, jnp.asarray(pulls), jnp.asarray(means, jnp.float32), jnp.asarray(multipliers)
    )
    return agent.update(state, step(0, 7.0, 7.0, 7.0, mask=0.0), KEY)[0]


def chosen(**arguments):
    return int(after_nothing(**arguments).params["policy"].chosen)


def test_the_radius_by_hand():
    # log(2 * 3 * 3 * 10 * 11 / 0.1) = 9.893438 for 10 pulls: 0.703329; 0.393 for 40 and 0.274 for 90.
    assert chosen(rule="ucb", means=[[0.3, 0.6, 0.0], *MEANS[1:]]) == 0
    upper = 0.3 + 0.703329
    for reward, arm in ((upper - 1e-4, 0), (upper + 1e-4, 2)):
        radius = np.sqrt(np.log(2 * 3 * 3 * 90 * 91 / 0.1) / 180)
        assert chosen(rule="ucb", means=[[0.3, -9.0, reward - radius], *MEANS[1:]]) == arm


@pytest.mark.parametrize(
    ("arguments", "arm"),
    [
        # With wide bounds all arms may be feasible; the first has the widest, the second the best mean.
        ({"rule": "ofs", "bonus_scale": 2.0}, 0),
        # Lower bounds of the second arm's costs are 0.56 and 0.06: it is out.
        ({"rule": "ofs", "bonus_scale": 0.1}, 0),
        ({"rule": "ucb", "bonus_scale": 0.1}, 1),
        # The third arm's second cost is 0.05 and may be 0.04 at least.
        ({"rule": "ofs", "bonus_scale": 0.03, "means": [[0.5, 0.9, 5.0], *MEANS[1:]]}, 0),
        ({"rule": "ofs", "bonus_scale": 0.3, "means": [[0.5, 0.9, 5.0], *MEANS[1:]]}, 2),
        # None is feasible: the smallest of the largest costs is the third's.
        ({"rule": "ofs", "bonus_scale": 0.0, "means": [MEANS[0], [0.3, 0.6, 0.1], [0.1, 0.1, 0.2]]}, 2),
        # 0.5 + 0.1, 0.9 - 0.6 and 0.4 + 0.3 with a price of 1 on the first cost.
        ({"rule": "primal_dual", "bonus_scale": 0.0, "multipliers": (1.0, 0.0)}, 2),
        ({"rule": "primal_dual", "bonus_scale": 0.0, "multipliers": (0.2, 0.0)}, 1),
        ({"rule": "ofs", "bonus_scale": 0.1, "pulls": [10, 40, 0]}, 2),
        ({"rule": "primal_dual", "bonus_scale": 0.1, "pulls": [10, 0, 0]}, 1),
    ],
)
def test_the_next_arm_by_hand(arguments, arm):
    assert chosen(**arguments) == arm


def test_means_pulls_and_prices_after_steps():
    agent = constrained_bandit(SPEC, data=DATA, rule="primal_dual", multiplier_step=0.5, largest_multiplier=0.3)
    state = agent.init(KEY)
    for each in (step(1, 1.0, 0.4, -0.2), step(1, 0.5, 0.0, 0.1), step(2, 9.0, 9.0, 9.0, mask=0.0)):
        state, metrics = agent.update(state, each, KEY)
    assert state.pulls.tolist() == [0, 2, 0]
    np.testing.assert_allclose(state.means, [[0, 0.75, 0], [0, 0.2, 0], [0, -0.05, 0]], atol=1e-7)
    np.testing.assert_allclose(state.multipliers, [0.2, 0.05], atol=1e-7)
    np.testing.assert_allclose([metrics["multiplier/a"], metrics["arms_pulled"]], [0.2, 1 / 3], atol=1e-7)
    state, _ = agent.update(state, step(0, 0.0, 8.0, -8.0), KEY)
    np.testing.assert_allclose(state.multipliers, [0.3, 0.0], atol=1e-7)


def test_a_batch_plays_one_arm_and_greedily_the_one_pulled_most_often():
    agent = constrained_bandit(SPEC, data=DATA, rule="ucb", bonus_scale=0.1)
    params = after_nothing(rule="ucb", bonus_scale=0.1).params
    for greedy, arm in ((False, 1), (True, 2)):
        action, carry, extras = agent.act(params, (), jnp.zeros((4, 1)), KEY, greedy=greedy)
        assert action.tolist() == [arm] * 4 and (carry, extras) == ((), {})
        chances = agent.action_probabilities(params, (), jnp.zeros((4, 1)), greedy=greedy)
        assert chances.tolist() == np.eye(3)[[arm] * 4].tolist()
    given, _, _ = agent.act(params, (), jnp.zeros((1, 1)), KEY, action=jnp.asarray([0]))
    assert given.tolist() == [0]


@pytest.mark.parametrize("rule", ["ofs", "ucb", "primal_dual"])
def test_it_finds_its_arm_and_a_seed_under_vmap_equals_its_single_run(rule):
    # The best arm is not feasible; of the others, the third is better.
    truth = jnp.asarray([[0.2, 0.9, 0.5], [-0.3, 0.4, -0.2], [-0.3, -0.3, -0.2]])
    agent = constrained_bandit(SPEC, data=DATA, rule=rule, bonus_scale=0.2)

    def run(seed):
        def learn(state, key):
            arm = agent.act(state.params, (), jnp.zeros((1, 1)), key)[0][0]
            found = truth[:, arm] + 0.1 * jax.random.normal(key, (3,))
            return agent.update(state, step(arm, *found), key)[0], arm

        return jax.lax.scan(learn, agent.init(KEY), jax.random.split(jax.random.key(seed), 1000))

    state, arms = jax.jit(jax.vmap(run))(jnp.arange(3))
    single = jax.jit(run)
    np.testing.assert_array_equal(single(jnp.int32(1))[1], arms[1])
    single(jnp.int32(2))
    assert single._cache_size() == 1
    late = np.asarray(arms[:, -200:])
    if rule == "primal_dual":
        # It mixes arms over time, so that the cost is met on average alone.
        cost = np.asarray(truth)[1, late].mean()
        assert abs(cost) < 0.1 and 0 < (late == 1).mean() < 1
    else:
        assert (late == (2 if rule == "ofs" else 1)).mean() > 0.95
        assert (state.params["policy"].favourite == (2 if rule == "ofs" else 1)).all()


FREE = EnvironmentSpec(SPEC.observation_space, spaces.Discrete(3))
CONTINUOUS = EnvironmentSpec(SPEC.observation_space, spaces.Box(0, 1, (1,), np.float32), costs=("a",))


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (SPEC, {"rule": "exp3"}, "unknown rule 'exp3'"),
        (FREE, {}, "the environment has no costs to constrain"),
        (CONTINUOUS, {}, "action space is Box"),
        (SPEC, {"data": DataSpec("replay", 1, 1)}, "a bandit keeps no steps"),
    ],
)
def test_what_it_cannot_serve_is_refused(spec, arguments, message):
    with pytest.raises((ValueError, UnsupportedSpaceError), match=message):
        constrained_bandit(spec, **({"data": DATA} | arguments))
    constrained_bandit(FREE, data=DATA, rule="ucb")
