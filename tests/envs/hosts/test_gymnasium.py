"""The gymnasium adapter on small environments whose observations and rewards are known."""

import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from envs.base import NonFiniteEnvironmentError, ObservationRangeError, UnsupportedSpaceError, VectorHost
from envs.hosts.gymnasium import GymnasiumHost


class Counter(gymnasium.Env):
    """Observes ``[episode, steps]``, after a reset ``[100 + episode, 0]``; the action 1 terminates."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, bad_step=None, bad_part="observation", extra=0.5):
        self.bad_step, self.bad_part, self.extra, self.episode = bad_step, bad_part, extra, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return np.array([100 + self.episode, 0], np.float32), {"cost": 77.0, "is_success": True}

    def step(self, action):
        self.steps += 1
        bad = np.nan if self.steps == self.bad_step else 0.0
        observation = np.array([self.episode, self.steps + (bad if self.bad_part == "observation" else 0)], np.float32)
        reward = 10.0 * self.steps + (bad if self.bad_part == "reward" else 0)
        # An integer in the first step, a fraction later, as environments do.
        cost = self.extra if self.steps > 1 else 0
        return observation, reward, bool(action == 1), False, {"cost": cost, "is_success": bool(action == 1)}


class Nested(gymnasium.Env):
    """Returns its last action as observation, so that a round trip through both pytrees can be compared."""

    action_space = spaces.Dict(
        {
            "move": spaces.Discrete(3, start=4),
            "arms": spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (2,), np.float32))),
        }
    )
    observation_space = spaces.Dict(
        {
            "move": spaces.Discrete(8),
            "arms": spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Box(-9, 9, (2,), np.float32))),
        }
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"move": 0, "arms": (np.zeros(2, np.int64), np.full(2, -9, np.float32))}, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        assert action["arms"][1].dtype == np.float32
        return {"move": action["move"], "arms": action["arms"]}, 0.0, bool(action["move"] == 6), False, {}


class Words(Nested):
    observation_space = spaces.Dict({"mission": spaces.Text(5)})


class Vector(Counter):
    """The reward is a vector: the step's number, its negative, and 1."""

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, np.array([self.steps, -self.steps, 1.0]), terminated, truncated, info


class Matrix(Counter):
    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, np.ones((2, 2)), terminated, truncated, info


class Shown(gymnasium.Env):
    """Returns the given values as observations, one after the other."""

    action_space = spaces.Discrete(2)

    def __init__(self, space, values):
        self.observation_space, self.values = space, values

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = iter(self.values)
        return next(self.left), {}

    def step(self, action):
        return next(self.left), 0.0, False, False, {}


def missing_dependency():
    raise gymnasium.error.DependencyNotInstalled("Box is not installed")


def missing_module():
    raise ModuleNotFoundError("No module named 'nowhere'")


for name, entry_point, limit in (
    ("Counter", Counter, 4),
    ("Nested", Nested, None),
    ("Words", Words, None),
    ("Shown", Shown, None),
    ("Vector", Vector, 4),
    ("Matrix", Matrix, 4),
    ("Dependency", missing_dependency, None),
    ("Module", missing_module, None),
):
    gymnasium.register(f"sagax_test/{name}-v0", entry_point, max_episode_steps=limit, disable_env_checker=True)


def assert_same(left, right):
    """Asserts that two pytrees have the same structure and that every array is equal bit for bit."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        left, right = list(left.values()), list(right.values())
    if isinstance(left, tuple | list):
        assert len(left) == len(right)
        for x, y in zip(left, right, strict=True):
            assert_same(x, y)
    else:
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def test_is_a_vector_host_with_the_spec_of_its_environment():
    host = GymnasiumHost("CartPole-v1", 2)
    assert isinstance(host, VectorHost)
    assert host.num_envs == 2
    assert host.spec.max_episode_steps == 500
    assert host.spec.observation_space.shape == (4,)
    assert host.spec.action_space == spaces.Discrete(2)
    assert (host.spec.costs, host.spec.objectives, host.spec.info) == ((), (), ())
    host.close()


def test_time_limit_of_make_is_in_the_spec():
    assert GymnasiumHost("CartPole-v1", 1, make_kwargs={"max_episode_steps": 7}).spec.max_episode_steps == 7
    assert GymnasiumHost("CliffWalking-v1", 1).spec.max_episode_steps is None


def test_resets_in_the_same_step_with_the_real_final_observation():
    host = GymnasiumHost("sagax_test/Counter-v0", 3)
    np.testing.assert_array_equal(host.reset(0), [[100, 0]] * 3)
    first = host.step(np.array([0, 1, 0]))
    # Environment 1 terminated: its observation is the next episode's first, its final one is the step's.
    np.testing.assert_array_equal(first.observation, [[0, 1], [101, 0], [0, 1]])
    np.testing.assert_array_equal(first.final_observation, [[0, 1], [0, 1], [0, 1]])
    np.testing.assert_array_equal(first.terminated, [False, True, False])
    np.testing.assert_array_equal(first.truncated, [False, False, False])
    np.testing.assert_array_equal(first.reward, np.array([10, 10, 10], np.float32))
    assert first.reward.dtype == np.float32
    second = host.step(np.array([0, 0, 0]))
    np.testing.assert_array_equal(second.observation, [[0, 2], [1, 1], [0, 2]])
    np.testing.assert_array_equal(second.final_observation, second.observation)
    host.step(np.array([0, 0, 0]))
    # Environments 0 and 2 reach the time limit of 4 steps; environment 2 also terminates in that step.
    fourth = host.step(np.array([0, 0, 1]))
    np.testing.assert_array_equal(fourth.truncated, [True, False, True])
    np.testing.assert_array_equal(fourth.terminated, [False, False, True])
    np.testing.assert_array_equal(fourth.final_observation, [[0, 4], [1, 3], [0, 4]])
    np.testing.assert_array_equal(fourth.observation, [[101, 0], [1, 3], [101, 0]])
    # Returned arrays belong to the caller: later steps do not change them.
    np.testing.assert_array_equal(first.observation, [[0, 1], [101, 0], [0, 1]])


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("nested", [False, True], ids=["array", "dictionary"])
def test_an_environment_may_write_over_the_array_that_it_returned(nested, asynchronous, monkeypatch):
    # A module of its own, because the processes of asynchronous environments import it by name.
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    host = GymnasiumHost(
        "reusing_environment:sagax_test/Reusing-v0", 2, make_kwargs={"nested": nested}, asynchronous=asynchronous
    )
    host.reset(0)
    steps = [host.step(np.array([0, 1])) for _ in range(4)]
    host.close()
    offset = np.array([[0], [10]], np.float32)
    for step, observation, final in zip(steps, (1, 2, 0, 1), (1, 2, 3, 1), strict=True):
        found = (step.observation, step.final_observation)
        found = tuple(part["x"] for part in found) if nested else found
        np.testing.assert_array_equal(found[0], observation + offset * (observation > 0))
        np.testing.assert_array_equal(found[1], final + offset)


def shown(space, *values):
    return GymnasiumHost("sagax_test/Shown-v0", 1, make_kwargs={"space": space, "values": values})


@pytest.mark.parametrize(
    ("space", "good", "bad", "message"),
    [
        (
            spaces.Box(0, 2**40, (2,), np.int64),
            np.array([0, 2**31 - 1]),
            np.array([0, 2**31]),
            r"Shown-v0: environment 0, step 1: observation\[1\] is 2147483648, expected -2147483648 to 2147483647, "
            "what int32 holds",
        ),
        (
            spaces.Dict({"clock": spaces.Box(0, 2**63, (1,), np.uint64)}),
            {"clock": np.array([2**32 - 1], np.uint64)},
            {"clock": np.array([2**32], np.uint64)},
            r"observation\['clock'\]\[0\] is 4294967296, expected 0 to 4294967295, what uint32 holds",
        ),
        (
            spaces.Box(-np.inf, np.inf, (1,), np.float64),
            np.array([1e38]),
            np.array([1e39]),
            r"observation\[0\] is 1e\+39, .* what float32 holds",
        ),
        (spaces.Discrete(3, start=5), 7, 8, r"observation is 8, expected 5 to 7, the values of Discrete\(3, start=5\)"),
        (spaces.Discrete(3, start=5), 5, 4, "observation is 4, expected 5 to 7"),
        (
            spaces.MultiDiscrete([2, 3]),
            np.array([1, 2]),
            np.array([1, 3]),
            r"observation\[1\] is 3, expected 0 to 2, the values of MultiDiscrete",
        ),
        (
            spaces.Box(0, 255, (1,), np.uint8),
            np.array([255]),
            np.array([300]),
            r"observation\[0\] is 300, which the type of its space .* cannot hold",
        ),
    ],
    ids=["int64", "uint64", "float64", "discrete above", "discrete below", "multi-discrete", "uint8"],
)
def test_values_that_would_wrap_or_vanish_are_refused(space, good, bad, message):
    host = shown(space, good, bad)
    first = host.reset(0)
    for expected, found in zip(leaves_of(good), leaves_of(first), strict=True):
        assert found.dtype.itemsize <= 4
        np.testing.assert_array_equal(found[0], np.asarray(expected, found.dtype))
    with pytest.raises(ObservationRangeError, match=message):
        host.step(np.array([0]))
    host.close()


def leaves_of(observation):
    return list(observation.values()) if isinstance(observation, dict) else [observation]


def test_success_and_costs_are_those_of_the_step_not_of_the_reset_after_it():
    host = GymnasiumHost("sagax_test/Counter-v0", 2, cost_keys={"cost": "damage"})
    assert host.spec.costs == ("damage",) and host.spec.info == ("success",)
    host.reset(0)
    first = host.step(np.array([1, 0]))
    np.testing.assert_array_equal(first.info["success"], np.array([1, 0], np.float32))
    np.testing.assert_array_equal(first.costs["damage"], np.array([0, 0], np.float32))
    # Environment 0 is in the first step of its second episode and reports the integer 0, environment 1 the fraction
    # 0.5.
    second = host.step(np.array([0, 0]))
    np.testing.assert_array_equal(second.info["success"], np.array([0, 0], np.float32))
    np.testing.assert_array_equal(second.costs["damage"], np.array([0, 0.5], np.float32))
    third = host.step(np.array([1, 1]))
    np.testing.assert_array_equal(third.info["success"], np.array([1, 1], np.float32))
    np.testing.assert_array_equal(third.costs["damage"], np.array([0.5, 0.5], np.float32))
    assert third.info["success"].dtype == third.costs["damage"].dtype == np.float32


def test_a_vector_of_rewards_is_its_objectives_and_their_weighted_sum():
    host = GymnasiumHost("sagax_test/Vector-v0", 2, objectives={"fast": 2.0, "cheap": 1.0, "alive": 0.5})
    assert host.spec.objectives == ("fast", "cheap", "alive")
    host.reset(0)
    first, second = host.step(np.array([1, 0])), host.step(np.array([0, 1]))
    # Environment 0 starts anew after its first step: the objectives are those of the step, not of the reset.
    assert {name: values.tolist() for name, values in first.objectives.items()} == {
        "fast": [1.0, 1.0],
        "cheap": [-1.0, -1.0],
        "alive": [1.0, 1.0],
    }
    assert second.objectives["fast"].tolist() == [1.0, 2.0] and second.objectives["fast"].dtype == np.float32
    assert (first.reward.tolist(), second.reward.tolist()) == ([1.5, 1.5], [1.5, 2.5])
    unnamed = GymnasiumHost("sagax_test/Vector-v0", 1)
    unnamed.reset(0)
    assert unnamed.spec.objectives == ("0", "1", "2") and unnamed.step(np.array([0])).reward.tolist() == [1.0]


def test_objectives_that_do_not_fit_the_reward_are_refused():
    with pytest.raises(ValueError, match=r"objectives=\{'fast': 1.0\}: the reward has 3 entries, expected"):
        GymnasiumHost("sagax_test/Vector-v0", 1, objectives={"fast": 1.0})
    with pytest.raises(ValueError, match=r"the reward has the shape \[\], expected a number, or a vector"):
        GymnasiumHost("sagax_test/Counter-v0", 1, objectives={"fast": 1.0})
    with pytest.raises(ValueError, match=r"the reward has the shape \[2, 2\]"):
        GymnasiumHost("sagax_test/Matrix-v0", 1)


def test_info_keys_can_be_named_or_turned_off():
    host = GymnasiumHost("sagax_test/Counter-v0", 1, info_keys={"cost": "damage", "absent": "never"})
    host.reset(0)
    host.step(np.array([0]))
    info = host.step(np.array([0])).info
    assert {name: values.tolist() for name, values in info.items()} == {"damage": [0.5], "never": [0.0]}
    host = GymnasiumHost("sagax_test/Counter-v0", 1, info_keys={})
    host.reset(0)
    assert host.step(np.array([0])).info == {}


def test_nested_spaces_round_trip():
    host = GymnasiumHost("sagax_test/Nested-v0", 2)
    start = host.reset(0)
    assert isinstance(start, dict) and isinstance(start["arms"], tuple)
    arms = (np.array([[0, 1], [1, 2]]), np.array([[0.5, -0.5], [0.25, 1]], np.float64))
    step = host.step({"move": np.array([0, 2]), "arms": arms})
    # The space counts moves from 4; the second environment's 6 ends its episode.
    np.testing.assert_array_equal(step.final_observation["move"], [4, 6])
    np.testing.assert_array_equal(step.final_observation["arms"][0], arms[0])
    np.testing.assert_array_equal(step.final_observation["arms"][1], arms[1])
    np.testing.assert_array_equal(step.observation["move"], [4, 0])
    np.testing.assert_array_equal(step.observation["arms"][0], [[0, 1], [0, 0]])
    np.testing.assert_array_equal(step.observation["arms"][1], [[0.5, -0.5], [-9, -9]])


def test_tuple_observation_of_blackjack():
    host = GymnasiumHost("Blackjack-v1", 3)
    observation = host.reset(0)
    assert isinstance(observation, tuple) and [part.shape for part in observation] == [(3,)] * 3
    step = host.step(np.zeros(3, int))
    assert step.terminated.all()
    # Sticking keeps the hand, and the reset deals another.
    assert_same(step.final_observation, observation)


def test_seeds():
    host = GymnasiumHost("CartPole-v1", 3)
    by_integer = host.reset(5)
    for index in range(3):
        alone, _ = gymnasium.make("CartPole-v1").reset(seed=5 + index)
        np.testing.assert_array_equal(by_integer[index], alone)
    np.testing.assert_array_equal(host.reset([7, 6, 5]), host.reset(5)[::-1])
    with pytest.raises(ValueError, match="got 2 seeds, expected 3"):
        host.reset([1, 2])


def test_agrees_with_gymnasium_bit_for_bit():
    host = GymnasiumHost("Pendulum-v1", 2, make_kwargs={"max_episode_steps": 9})
    reference = SyncVectorEnv(
        [lambda: gymnasium.make("Pendulum-v1", max_episode_steps=9)] * 2, autoreset_mode=AutoresetMode.SAME_STEP
    )
    np.testing.assert_array_equal(host.reset(1), reference.reset(seed=1)[0])
    generator = np.random.default_rng(0)
    for _ in range(20):
        action = generator.uniform(-2, 2, (2, 1)).astype(np.float32)
        step, expected = host.step(action), reference.step(action)
        np.testing.assert_array_equal(step.observation, expected[0])
        np.testing.assert_array_equal(step.reward, expected[1].astype(np.float32))
        np.testing.assert_array_equal(step.truncated, expected[3])


@pytest.mark.parametrize("part", ["observation", "reward"])
def test_nan_names_environment_step_and_part(part):
    host = GymnasiumHost("sagax_test/Counter-v0", 3, make_kwargs={"bad_step": 3, "bad_part": part})
    host.reset(0)
    host.step(np.array([1, 0, 1]))
    host.step(np.array([0, 0, 0]))
    with pytest.raises(NonFiniteEnvironmentError, match=rf"Counter-v0: environment 1, step 3: {part}.* is nan"):
        host.step(np.array([0, 0, 0]))


def test_nan_in_a_final_observation_is_not_hidden_by_the_reset():
    host = GymnasiumHost("sagax_test/Counter-v0", 1, make_kwargs={"bad_step": 2})
    host.reset(0)
    host.step(np.array([0]))
    with pytest.raises(NonFiniteEnvironmentError, match=r"environment 0, step 2: final_observation\[1\] is nan"):
        host.step(np.array([1]))


def test_nan_in_a_cost():
    host = GymnasiumHost("sagax_test/Counter-v0", 1, make_kwargs={"extra": np.inf}, cost_keys={"cost": "damage"})
    host.reset(0)
    host.step(np.array([0]))
    with pytest.raises(NonFiniteEnvironmentError, match=r"cost\['damage'\] is inf"):
        host.step(np.array([0]))


def test_finite_check_can_be_turned_off():
    host = GymnasiumHost("sagax_test/Counter-v0", 1, make_kwargs={"bad_step": 1}, finite=False)
    host.reset(0)
    assert np.isnan(host.step(np.array([0])).observation[0, 1])


def test_bad_arguments_name_what_was_expected():
    with pytest.raises(ValueError, match=r"unknown environment 'CartPol-v1'.*CartPole-v1"):
        GymnasiumHost("CartPol-v1", 2)
    with pytest.raises(ValueError, match=r"unknown environment 'CartPole-v9'.*CartPole-v1"):
        GymnasiumHost("CartPole-v9", 2)
    with pytest.raises(ValueError, match=r"unknown environment 'not an id'"):
        GymnasiumHost("not an id", 2)
    with pytest.raises(ValueError, match="num_envs=0: expected at least 1"):
        GymnasiumHost("CartPole-v1", 0)
    with pytest.raises(UnsupportedSpaceError, match=r"observation space\['mission'\] is Text"):
        GymnasiumHost("sagax_test/Words-v0", 1)
    with pytest.raises(ValueError, match=r"reports no cost 'cos' in info, did you mean 'cost'"):
        GymnasiumHost("sagax_test/Counter-v0", 1, cost_keys={"cos": "damage"})
    with pytest.raises(ImportError, match="a package that it needs is missing: Box is not installed"):
        GymnasiumHost("sagax_test/Dependency-v0", 1)
    with pytest.raises(ImportError, match="No module named 'nowhere'"):
        GymnasiumHost("sagax_test/Module-v0", 1)
    host = GymnasiumHost("CartPole-v1", 2)
    host.reset(0)
    with pytest.raises(ValueError, match=r"action has shape \(3,\), expected \(2,\)"):
        host.step(np.zeros(3, int))


def test_missing_dependency_of_gymnasium_names_its_extra(monkeypatch):
    monkeypatch.setattr(gymnasium, "make", lambda *_, **__: missing_module())
    with pytest.raises(ImportError, match=r"pip install 'gymnasium\[mujoco\]'"):
        GymnasiumHost("Hopper-v5", 1)
    with pytest.raises(ImportError, match=r"pip install 'gymnasium\[toy-text\]'"):
        GymnasiumHost("Taxi-v4", 1)


def test_identifiers_of_other_packages_name_the_extra(monkeypatch):
    # As if the package were not installed.
    for name in [name for name in gymnasium.registry if name.startswith("ALE/")]:
        monkeypatch.delitem(gymnasium.registry, name)
    with pytest.raises(ValueError, match=r"unknown environment 'ALE/Pong-v5'.*pip install -e '\.\[atari\]'"):
        GymnasiumHost("ALE/Pong-v5", 1)


def test_environments_with_one_seed_share_the_random_numbers_of_their_steps():
    host = GymnasiumHost("FrozenLake-v1", 3)
    host.reset([7, 7, 8])
    # On slippery ice the result of a step is random.
    steps = [host.step(np.full(3, 2)).final_observation for _ in range(6)]
    host.close()
    assert all(step[0] == step[1] for step in steps) and any(step[0] != step[2] for step in steps)


@pytest.mark.parametrize(
    "environment_id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Blackjack-v1", "sagax_test/Counter-v0"]
)
def test_continuing_from_a_snapshot_equals_never_having_stopped(environment_id):
    kwargs = {"make_kwargs": {"max_episode_steps": 7}}
    host, other = GymnasiumHost(environment_id, 3, **kwargs), GymnasiumHost(environment_id, 3, **kwargs)
    space = host.spec.action_space
    space.seed(3)
    actions = [np.stack([space.sample() for _ in range(3)]) for _ in range(60)]
    host.reset(11)
    for action in actions[:30]:
        last = host.step(action)
    snapshot = host.snapshot()
    other.reset(99)
    assert_same(other.restore(snapshot), last.observation)
    resets = 0
    for action in actions[30:]:
        expected, found = host.step(action), other.step(action)
        assert_same(tuple(found), tuple(expected))
        resets += int((expected.terminated | expected.truncated).sum())
    # The clock at step 30 is 2 steps into an episode; random numbers are drawn by the resets after it.
    assert resets >= 12


def test_snapshot_is_a_copy_and_can_be_restored_twice():
    host = GymnasiumHost("CartPole-v1", 2)
    host.reset(0)
    snapshot = host.snapshot()
    first = host.step(np.array([0, 1]))
    host.restore(snapshot)
    assert_same(tuple(host.step(np.array([0, 1]))), tuple(first))


def test_snapshot_refuses_environments_that_it_cannot_save():
    host = GymnasiumHost("CartPole-v1", 2)
    with pytest.raises(RuntimeError, match="before the first reset"):
        host.snapshot()
    host.reset(0)
    with pytest.raises(ValueError, match=r"2 environments of CartPole-v1, expected 3 of CartPole-v1"):
        GymnasiumHost("CartPole-v1", 3).restore(host.snapshot())
    with pytest.raises(ValueError, match=r"expected 2 of Pendulum-v1"):
        GymnasiumHost("Pendulum-v1", 2).restore(host.snapshot())
    with_lambda = GymnasiumHost(
        "CartPole-v1", 1, wrappers=[lambda env: gymnasium.wrappers.TransformReward(env, lambda reward: 2 * reward)]
    )
    with_lambda.reset(0)
    assert with_lambda.step(np.array([0])).reward.tolist() == [2.0]
    assert with_lambda.snapshot() is None


def test_environments_that_pickle_only_their_arguments_have_no_snapshot():
    pytest.importorskip("Box2D")
    host = GymnasiumHost("LunarLander-v3", 1)
    host.reset(0)
    host.step(np.array([0]))
    assert host.snapshot() is None
    host.close()


def test_asynchronous_environments_return_the_same():
    kwargs = {"make_kwargs": {"max_episode_steps": 5}}
    environments = GymnasiumHost("CartPole-v1", 2, asynchronous=True, **kwargs)
    reference = GymnasiumHost("CartPole-v1", 2, **kwargs)
    try:
        assert_same(environments.reset(4), reference.reset(4))
        for t in range(12):
            action = np.array([t % 2, 0])
            assert_same(tuple(environments.step(action)), tuple(reference.step(action)))
        assert environments.snapshot() is None
    finally:
        environments.close()


def calls_of_a_step(environments, num_envs):
    """Counts the function calls, C functions included, of the third step, in which no episode ends."""
    actions, calls = np.arange(num_envs) % 2, 0
    environments.step(actions)
    environments.step(actions)

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        environments.step(actions)
    finally:
        sys.setprofile(None)
    return calls


def test_the_adapter_adds_one_call_per_environment():
    """The call copies final observations. The benchmark case ``host`` measures the time that the adapter takes."""
    extra = {}
    for num_envs in (2, 64):
        raw = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        host = GymnasiumHost("CartPole-v1", num_envs)
        raw.reset(seed=0)
        host.reset(0)
        extra[num_envs] = calls_of_a_step(host, num_envs) - calls_of_a_step(raw, num_envs)
    assert extra[64] - extra[2] == 64 - 2
    assert 0 < extra[2] <= 40
