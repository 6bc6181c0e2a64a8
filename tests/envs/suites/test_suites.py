"""The adapters of other libraries' suites: types, ends of episodes, and what they refuse."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.action_masks import action_mask_of
from envs.base import Environment
from envs.catalogue import ENVIRONMENTS
from envs.native.breakout import Breakout
from envs.suites.adapter import Game, Step, Suite, box
from envs.suites.functional import make_functional
from envs.suites.gymnax import craftax_environment, gymnax_environment
from envs.suites.jumanji import jumanji_environment
from envs.suites.navix import navix_environment
from envs.suites.playground import playground_environment
from envs.suites.xminigrid import xminigrid_environment
from envs.wrappers import TimeLimit
from experiments.assembly import registry
from experiments.assembly.build import EnvironmentSource, build_environment
from experiments.assembly.checks import require_observations
from experiments.errors import UserError

KEY = jax.random.key(0)
FORWARD, LEFT, RIGHT = 0, 1, 2


def sampled(space, key):
    if hasattr(space, "nvec"):
        return jax.random.randint(key, space.shape, 0, jnp.asarray(space.nvec))
    if hasattr(space, "n"):
        return jax.random.randint(key, (), 0, int(space.n))
    return jax.random.uniform(key, space.shape, minval=jnp.asarray(space.low), maxval=jnp.asarray(space.high))


def played(environment, steps, actions=None, key=KEY):
    """The ``TimeStep`` of ``steps`` steps, each leaf ``[T, ...]``, also after an end."""

    def run(key, actions):
        state, _ = environment.reset(key)

        def body(state, inputs):
            step_key, action = inputs
            return environment.step(step_key, state, action)

        keys = jax.random.split(key, steps)
        if actions is None:
            actions = jax.vmap(lambda each: sampled(environment.spec.action_space, each))(keys)
        return jax.lax.scan(body, state, (keys, actions))[1]

    return jax.device_get(jax.jit(run)(key, actions))


def require_environment(environment, steps=12):
    """An environment that scans with the shapes and types of its spec; its steps."""
    assert isinstance(environment, Environment)
    template = environment.spec.observation_template()
    _, observation = jax.eval_shape(environment.reset, KEY)
    done = played(environment, steps)
    for found in (observation, jax.tree.map(lambda x: x[0], done.observation)):
        assert jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), found) == jax.tree.map(
            lambda x: (x.shape, np.dtype(x.dtype)), template
        )
    assert done.reward.dtype == np.float32 and done.reward.shape == (steps,)
    assert not (done.terminated & done.truncated).any()
    return done


@pytest.mark.parametrize(
    ("kind", "environment_id", "settings"),
    [
        ("gymnax", "MountainCarContinuous-v0", {}),
        ("gymnax", "DeepSea-bsuite", {}),
        ("jumanji", "Knapsack-v1", {}),
        ("jumanji", "Minesweeper-v0", {}),
        ("jumanji", "Tetris-v0", {}),
        ("jumanji", "MultiCVRP-v0", {}),
        ("jumanji", "Sokoban-v0", {"generator": "SimpleSolveGenerator"}),
        ("xminigrid", "MiniGrid-MemoryS8", {}),
    ],
)
def test_is_an_environment_that_scans_with_the_types_of_its_spec(kind, environment_id, settings):
    environment = ENVIRONMENTS[kind](environment_id, **settings)
    require_environment(environment)
    assert ENVIRONMENTS[kind](environment_id, **settings) == environment


def test_cart_pole_of_gymnax_is_that_of_gymnasium():
    ours, theirs = (
        environment.environment for environment in (make_functional("CartPole-v1"), gymnax_environment("CartPole-v1"))
    )
    state, start = theirs.reset(KEY)
    actions = jnp.asarray([0, 1, 1, 0] + [1] * 20)
    known = start
    for action in actions:
        state, step = theirs.step(KEY, state, action)
        _, expected = ours.step(KEY, known, action)
        known = expected.observation
        np.testing.assert_allclose(step.observation, known, rtol=1e-4, atol=1e-6)
        assert bool(step.terminated) == bool(expected.terminated) and float(step.reward) == 1.0
        if expected.terminated:
            break
    assert expected.terminated


def test_breakout_of_gymnax_is_the_native_one_without_sticky_actions():
    """Two implementations of MinAtar's rules: the same planes, rewards and end, whatever the actions."""
    ours, theirs = Breakout(sticky=0.0), gymnax_environment("Breakout-MinAtar").environment
    compared = set()
    for seed in range(4):
        side = ours.reset(jax.random.key(seed))[1]
        key = next(key for key in map(jax.random.key, range(20)) if (theirs.reset(key)[1] == side).all())
        actions = jax.random.randint(jax.random.key(100 + seed), (60,), 0, 3)
        expected = played(ours, 60, actions, jax.random.key(seed))
        found = played(theirs, 60, actions, key)
        end = int(expected.terminated.argmax()) if expected.terminated.any() else 59
        kept = slice(0, end + 1)
        np.testing.assert_array_equal(found.observation[kept], expected.observation[kept])
        np.testing.assert_array_equal(found.reward[kept], expected.reward[kept])
        np.testing.assert_array_equal(found.terminated[kept], expected.terminated[kept])
        compared.add((end, float(expected.reward[kept].sum())))
    assert len(compared) > 1


@pytest.mark.parametrize(
    ("environment", "limit"),
    [
        (lambda limit: gymnax_environment("CartPole-v1", time_limit=limit), 4),
        (lambda limit: gymnax_environment("Breakout-MinAtar", max_steps_in_episode=limit), 5),
        (lambda limit: gymnax_environment("Pendulum-v1", time_limit=limit), 6),
        (lambda limit: jumanji_environment("Snake-v1", time_limit=limit), 3),
        (lambda limit: jumanji_environment("SlidingTilePuzzle-v0", time_limit=limit), 5),
        (lambda limit: xminigrid_environment("MiniGrid-Empty-6x6", max_steps=limit), 4),
    ],
)
def test_a_time_limit_truncates_and_does_not_terminate(environment, limit):
    made = environment(limit)
    assert made.spec.max_episode_steps == limit
    done = played(made, limit)
    assert done.truncated.tolist() == [False] * (limit - 1) + [True]
    assert not done.terminated.any()


def test_the_own_limit_of_a_suite_is_kept_and_can_be_taken_away():
    assert gymnax_environment("MountainCar-v0").spec.max_episode_steps == 200
    assert gymnax_environment("MountainCar-v0", time_limit=None).spec.max_episode_steps is None
    assert jumanji_environment("Maze-v0").spec.max_episode_steps == 100
    endless = played(jumanji_environment("SlidingTilePuzzle-v0", time_limit=None), 520)
    assert not (endless.truncated | endless.terminated).any()


def test_a_horizon_that_belongs_to_the_task_terminates():
    done = played(gymnax_environment("DiscountingChain-bsuite", max_steps_in_episode=7), 7)
    assert done.terminated.tolist() == [False] * 6 + [True] and not done.truncated.any()
    np.testing.assert_allclose(done.observation[:, 1], np.arange(1, 8) / 7, rtol=1e-6)
    with pytest.raises(ValueError, match="time_limit=9: the horizon of DiscountingChain-bsuite belongs to the task"):
        gymnax_environment("DiscountingChain-bsuite", time_limit=9)


def test_the_way_to_the_goal_of_an_empty_room_ends_the_task_with_its_reward():
    """In the 5x5 room the agent starts in the corner and the goal is in the opposite one: two steps, a turn, two."""
    environment = xminigrid_environment("MiniGrid-Empty-5x5", max_steps=100)
    for turn in (LEFT, RIGHT):
        actions = jnp.asarray([FORWARD, FORWARD, turn, FORWARD, FORWARD])
        done = played(environment, 5, actions)
        if done.terminated.any():
            break
    assert done.terminated.tolist() == [False] * 4 + [True] and not done.truncated.any()
    np.testing.assert_allclose(done.reward, [0, 0, 0, 0, 1 - 0.9 * 5 / 100], rtol=1e-6)


def test_the_action_mask_of_a_suite_rules_out_actions():
    environment = jumanji_environment(
        "Maze-v0", generator="RandomGenerator", generator_settings={"num_rows": 5, "num_cols": 5}
    )
    assert environment.spec.max_episode_steps == 25
    allowed = action_mask_of(environment.spec)
    state, observation = environment.reset(KEY)
    mask = np.asarray(allowed(observation))
    assert 0 < mask.sum() < 4
    before = observation["agent_position"]
    for action in range(4):
        _, step = environment.step(KEY, state, jnp.asarray(action))
        moved = any(before[axis] != step.observation["agent_position"][axis] for axis in ("row", "col"))
        assert moved == mask[action]


def test_an_own_field_that_counts_steps_is_a_number():
    space = jumanji_environment("Snake-v1").spec.observation_space["step_count"]
    assert space.shape == () and not hasattr(space, "n")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: gymnax_environment("Breakout"),
            ValueError,
            "environment of gymnax 'Breakout', did you mean 'Breakout-M",
        ),
        (
            lambda: gymnax_environment("CartPole-v1", gravty=3.0),
            TypeError,
            "parameter 'gravty', did you mean 'gravity'",
        ),
        (lambda: jumanji_environment("Snake-v2"), ValueError, "did you mean 'Snake-v1'"),
        (lambda: jumanji_environment("Maze-v0", speed=3), TypeError, "Maze-v0 has no parameter 'speed'"),
        (lambda: jumanji_environment("Maze-v0", generator="Toy"), ValueError, "did you mean 'ToyGenerator'"),
        (
            lambda: jumanji_environment("Maze-v0", generator="RandomGenerator", generator_settings={"num_row": 5}),
            TypeError,
            "RandomGenerator has no parameter 'num_row', did you mean 'num_rows'",
        ),
        (lambda: jumanji_environment("Game2048-v1", generator="X"), ValueError, "Game2048-v1 has no generators"),
        (lambda: jumanji_environment("Connector-v3"), ValueError, r"rewards have the shape \[10\], one for each of"),
        (lambda: xminigrid_environment("MiniGrid-Doorkey-5x5"), ValueError, "did you mean 'MiniGrid-DoorKey-5x5'"),
        (lambda: xminigrid_environment("XLand-MiniGrid-R1-9x9"), ValueError, "has no goal without a rule set"),
        (lambda: xminigrid_environment("MiniGrid-Empty-5x5", steps=1), TypeError, "no parameter 'steps'"),
        (lambda: craftax_environment("Craftax-Symbolic"), ValueError, "did you mean 'Craftax-Symbolic-v1'"),
    ],
)
def test_refusals_name_the_nearest(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "module", "extra"),
    [
        (gymnax_environment, "gymnax", "gymnax"),
        (craftax_environment, "craftax.craftax_env", "craftax"),
        (jumanji_environment, "jumanji", "jumanji"),
        (navix_environment, "navix", "navix"),
        (playground_environment, "mujoco_playground", "playground"),
        (xminigrid_environment, "xminigrid", "xminigrid"),
    ],
)
def test_a_missing_suite_names_the_extra(monkeypatch, make, module, extra):
    kept = importlib.import_module

    def missing(name, *rest):
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return kept(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    known = {craftax_environment: "Craftax-Symbolic-v1"}.get(make, "any")
    with pytest.raises(ImportError, match=rf"No module named.*extra '{extra}': pip install -e '\.\[{extra}\]'"):
        make(known)


def counting(observation_space, reward=0.0):
    def start(key):
        return 0, jnp.zeros(2)

    def step(key, state, action):
        return Step(state + 1, jnp.zeros(2), jnp.asarray(reward), False, False)

    return Game("counting", start, step, observation_space, box(-1, 1, (1,), np.float32))


def test_a_state_that_starts_with_a_python_number_keeps_one_type():
    made = Suite(counting(box(0, 1, (2,), np.float32)))
    state, _ = made.reset(KEY)
    following, _ = made.step(KEY, state, jnp.zeros(1))
    assert state.dtype == following.dtype == jnp.int32
    assert isinstance(TimeLimit(made, 3), Environment)


@pytest.mark.parametrize(
    ("space", "reward", "message"),
    [
        (box(0, 1, (3,), np.float32), 0.0, r"the observation of reset has the shape \(2,\), expected \(3,\)"),
        (box(0, 1, (2,), np.float32), (0.0, 1.0), r"reward of step has the shape \(2,\), expected one number"),
    ],
)
def test_what_a_game_returns_is_checked_as_of_every_environment(space, reward, message):
    config = registry.load("ppo_cartpole:native,smoke").config
    environment = Suite(counting(space, reward))
    with pytest.raises(UserError, match=message):
        require_observations(config, EnvironmentSource(environment.spec, environment, None))


def test_a_game_that_fails_is_named_before_the_run():
    """gymnax 0.0.9 makes the state of this bandit with its fields in another order than it reads them."""
    config = registry.load("ppo_minatar:smoke").config
    config.environment.environment_id = "SimpleBandit-bsuite"
    with pytest.raises(UserError, match="'gymnax': reset or step fails: IndexError: Too many indices"):
        require_observations(config, build_environment(config))


def test_bounds_are_those_of_the_type_at_most():
    assert box(0, 1, (2,), bool).dtype == np.uint8
    space = box(-(2.0**40), 2.0**40, (1,), np.int32)
    assert space.low[0] == -(2**31) and space.high[0] == 2**31 - 1
    assert box(0, np.inf, (2, 2), np.float32).high.max() == np.inf


@pytest.mark.study
def test_craftax():
    environment = craftax_environment("Craftax-Classic-Symbolic-v1", time_limit=6)
    done = require_environment(environment, 6)
    assert done.truncated.tolist() == [False] * 5 + [True]
    assert craftax_environment("Craftax-Classic-Symbolic-v1").spec.max_episode_steps == 10_000
    image = environment.environment.draw_image(environment.environment.reset(KEY)[0])
    # Nine rows and columns of 32 pixels each, of which the lowest two rows show the inventory.
    assert (image.shape, image.dtype) == ((288, 288, 3), np.uint8) and len(np.unique(image[:224])) > 20


@pytest.mark.optional
def test_navix():
    environment = navix_environment("Navix-DoorKey-5x5-v0", max_steps=6)
    done = require_environment(environment, 6)
    assert done.truncated.tolist() == [False] * 5 + [True]
    with pytest.raises(ValueError, match="did you mean 'symbolic'"):
        navix_environment("Navix-DoorKey-5x5-v0", observation="symbol")


@pytest.mark.optional
def test_playground():
    environment = playground_environment("CartpoleBalance", time_limit=4)
    done = require_environment(environment, 4)
    assert done.truncated.tolist() == [False] * 3 + [True]
    assert playground_environment("CartpoleBalance").spec.max_episode_steps == 1000
    with pytest.raises(TypeError, match="no parameter 'ctrl_td', did you mean 'ctrl_dt'"):
        playground_environment("CartpoleBalance", ctrl_td=1.0)
