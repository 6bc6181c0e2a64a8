"""Every environment in JAX keeps its types when 64-bit numbers are enabled; it is only traced, not compiled."""

import jax
import jax.numpy as jnp
import pytest

from agents.distributions import distribution_for
from envs.native import probes
from envs.native.breakout import Breakout
from envs.native.maze import Maze
from envs.native.noisy_line import noisy_line
from envs.native.sokoban import Sokoban
from envs.native.tabular import TabularEnvironment, gridworld
from envs.rollout import episodes, start_unroll, unroll
from envs.stock import StockAugmented
from envs.suites.functional import make_functional
from envs.wrappers import TimeLimit

BATCH, LENGTH = 2, 3
ENVIRONMENTS = {
    "sokoban": Sokoban(),
    "sokoban with pushes": Sokoban(height=8, width=8, num_boxes=2, pushes_low=2, pushes_high=6, inner_walls=True),
    "sokoban in rgb": Sokoban(observation="rgb", reward="dense"),
    "breakout": Breakout(),
    "maze": Maze(report_cell=True),
    "gridworld": TabularEnvironment(gridworld(("S.", ".G"))),
    "noisy line": TabularEnvironment(noisy_line(), "one_hot"),
    "stock": StockAugmented(TimeLimit(Sokoban(), LENGTH), 0.9, -1.0, 1.0),
    **{name: make_functional(name) for name in ("CartPole-v1", "Pendulum-v1", "CliffWalking-v1", "Blackjack-v1")},
    **{
        kind.__name__: kind()
        for kind in vars(probes).values()
        if isinstance(kind, type) and kind.__module__ == probes.__name__ and hasattr(kind, "optimal_value")
    },
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_types_do_not_depend_on_x64(name):
    environment = ENVIRONMENTS[name]
    if environment.spec.max_episode_steps is None:
        environment = TimeLimit(environment, LENGTH)
    distribution = distribution_for(environment.spec.action_space)

    def policy(carry, observation, key):
        return distribution.sample(key, jnp.zeros((BATCH, distribution.num_parameters), jnp.float32)), carry, {}

    def roll(key):
        state = start_unroll(environment, key, BATCH, ())
        after, trajectory = unroll(environment, policy, state, key, length=LENGTH, initial_carry=(), start_states=1)
        whole = episodes(environment, policy, key, length=LENGTH, batch=BATCH, group_size=1, initial_carry=())
        return state, after, trajectory, whole

    with jax.enable_x64(True):
        state, after, trajectory, whole = jax.eval_shape(roll, jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == jax.tree.map(lambda leaf: leaf.dtype, after)
    templates = jax.tree.leaves(environment.spec.observation_template())
    for each in (trajectory, whole):
        for observation in (each.observation, each.next_observation):
            found = jax.tree.leaves(observation)
            assert [leaf.dtype for leaf in found] == [template.dtype for template in templates]
        numbers = [*each.rewards.values(), each.mask, each.extras["episode_return"]]
        assert {number.dtype for number in numbers} == {jnp.dtype(jnp.float32)}
