"""Gymnasium's wrappers by name: each one of the catalogue wraps something, and a refusal says which wrapper refused."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from envs.base import ObservationRangeError
from envs.hosts.gymnasium import GymnasiumHost
from envs.hosts.wrappers import WRAPPERS, wrapper
from envs.kinds import Kind


class Picture(gymnasium.Env):
    """An image whose every pixel is the number of the step; the reward is that number, too."""

    observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros((8, 8, 3), np.uint8), {}

    def step(self, action):
        self.steps += 1
        return np.full((8, 8, 3), self.steps, np.uint8), float(self.steps), False, False, {}


class Arm(gymnasium.Env):
    """Observes its last action, which is its velocity, beside a constant; the reward is its first component."""

    observation_space = spaces.Dict(
        action=spaces.Box(-2, 2, (2,), np.float32), other=spaces.Box(-1, 1, (1,), np.float32)
    )
    action_space = spaces.Box(-2, 2, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"action": np.zeros(2, np.float32), "other": np.ones(1, np.float32)}, {}

    def step(self, action):
        observation = {"action": np.asarray(action, np.float32), "other": np.ones(1, np.float32)}
        velocity = dict(zip(("x_velocity", "y_velocity"), map(float, action), strict=True))
        return observation, float(action[0]), False, False, velocity


class Masked(gymnasium.Env):
    """Allows the action that is the number of the step, modulo 3, and the next one; the mask can be made wrong."""

    observation_space = spaces.Box(0, 9, (1,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, wrong=None, key="action_mask"):
        self.wrong, self.key = wrong, key

    def _info(self):
        mask = np.zeros(3, np.int8)
        mask[[self.steps % 3, (self.steps + 1) % 3]] = 1
        if self.steps == 2:
            mask = {"short": mask[:2], "empty": mask * 0}.get(self.wrong, mask)
        return {} if self.wrong == "missing" and self.steps == 2 else {self.key: mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), self._info()

    def step(self, action):
        assert self._info()[self.key][action], f"action {action} is not allowed"
        self.steps += 1
        return np.full(1, self.steps, np.float32), float(action), self.steps == 9, False, self._info()


for entry_point in (Picture, Arm, Masked):
    gymnasium.register(f"sagax_test/{entry_point.__name__}-v0", entry_point, max_episode_steps=20)

PICTURE, ARM = "sagax_test/Picture-v0", "sagax_test/Arm-v0"
# By kind: the environment, what the wrapper is given, and the shape of the observation.
CASES = {
    "frame_stack": (PICTURE, {"stack_size": 3}, (3, 8, 8, 3)),
    "max_and_skip": (PICTURE, {"skip": 2}, (8, 8, 3)),
    "grayscale": (PICTURE, {}, (8, 8)),
    "resize": (PICTURE, {"shape": (4, 4)}, (4, 4, 3)),
    "rescale_observation": ("MountainCar-v0", {"min_obs": -1.0, "max_obs": 1.0}, (2,)),
    "reshape": (PICTURE, {"shape": (64, 3)}, (64, 3)),
    "flatten": (ARM, {}, (3,)),
    "filter": (ARM, {"filter_keys": ("action",)}, {"action": (2,)}),
    "delay": (PICTURE, {"delay": 1}, (8, 8, 3)),
    "time_aware": (ARM, {}, None),
    "action_mask": ("sagax_test/Masked-v0", {}, {"observation": (1,), "action_mask": (3,)}),
    # On a game: tests/envs/hosts/test_atari.py.
    "atari_preprocessing": ("CartPole-v1", None, None),
    "repeat_action": (PICTURE, {"num_repeats": 2}, (8, 8, 3)),
    "sticky_action": (PICTURE, {"repeat_action_probability": 0.5}, (8, 8, 3)),
    "clip_action": (ARM, {}, {"action": (2,), "other": (1,)}),
    "rescale_action": (ARM, {"min_action": -1.0, "max_action": 1.0}, {"action": (2,), "other": (1,)}),
    "discretise_action": (ARM, {"bins": 3}, {"action": (2,), "other": (1,)}),
    "clip_reward": (PICTURE, {"max_reward": 2.0}, (8, 8, 3)),
    "speed_limit": (ARM, {"limit": 1.0}, {"action": (2,), "other": (1,)}),
    "time_limit": (PICTURE, {"max_episode_steps": 3}, (8, 8, 3)),
}


def factory_of(kind):
    entry = WRAPPERS[kind]
    return entry.factory if isinstance(entry, Kind) else entry


def wrapped(identifier, *kinds, num_envs=2):
    wrappers = [wrapper(kind, factory_of(kind), arguments) for kind, arguments in kinds]
    return GymnasiumHost(identifier, num_envs, wrappers=wrappers)


def shapes(space):
    return {name: part.shape for name, part in space.items()} if isinstance(space, spaces.Dict) else space.shape


def test_every_wrapper_has_a_case():
    assert CASES.keys() == WRAPPERS.keys()


@pytest.mark.parametrize("kind", [kind for kind, (_, arguments, _) in CASES.items() if arguments is not None])
def test_a_wrapper_by_name_gives_an_environment_that_runs(kind):
    identifier, arguments, expected = CASES[kind]
    host = wrapped(identifier, (kind, arguments))
    assert expected is None or shapes(host.spec.observation_space) == expected
    observation = host.reset(0)
    template = host.spec.observation_template()
    leaves = observation if isinstance(observation, dict) else {"": observation}
    wanted = template if isinstance(template, dict) else {"": template}
    assert {name: leaf.shape for name, leaf in leaves.items()} == {name: (2, *x.shape) for name, x in wanted.items()}
    # The first action is allowed where there is a mask.
    action = np.zeros(2, int) if kind == "action_mask" else [host.spec.action_space.sample() for _ in range(2)]
    action = np.stack(action)
    host.step(action)
    host.close()


def test_what_wrappers_do_and_in_which_order():
    stacked = wrapped(PICTURE, ("frame_stack", {"stack_size": 3}), ("clip_reward", {"max_reward": 2.0}))
    stacked.reset(0)
    steps = [stacked.step(np.zeros(2, int)) for _ in range(3)]
    assert [step.observation[0, :, 0, 0, 0].tolist() for step in steps] == [[0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert [step.reward.tolist() for step in steps] == [[1, 1], [2, 2], [2, 2]]
    # Each step is two of the environment's: 1 + 2 and 3 + 4, clipped after they are added, or before.
    for kinds, rewards in (
        ([("repeat_action", {"num_repeats": 2}), ("clip_reward", {"max_reward": 2.0})], [2, 2]),
        ([("clip_reward", {"max_reward": 2.0}), ("repeat_action", {"num_repeats": 2})], [3, 4]),
    ):
        host = wrapped(PICTURE, *kinds, num_envs=1)
        host.reset(0)
        assert [host.step(np.zeros(1, int)).reward[0] for _ in range(2)] == rewards
    limited = wrapped(PICTURE, ("time_limit", {"max_episode_steps": 3}), num_envs=1)
    limited.reset(0)
    assert [bool(limited.step(np.zeros(1, int)).truncated[0]) for _ in range(4)] == [False, False, True, False]
    assert limited.spec.max_episode_steps == 3


def test_a_wrapped_environment_goes_on_from_a_snapshot():
    def started():
        host = wrapped(
            "CartPole-v1", ("frame_stack", {"stack_size": 2}), ("sticky_action", {"repeat_action_probability": 0.5})
        )
        host.reset(0)
        return host

    whole, first, second = started(), started(), started()
    for _ in range(5):
        whole.step(np.array([0, 1]))
        first.step(np.array([0, 1]))
    second.restore(first.snapshot())
    for _ in range(10):
        expected, found = whole.step(np.array([1, 0])), second.step(np.array([1, 0]))
        np.testing.assert_array_equal(found.observation, expected.observation)


def test_the_mask_of_an_ended_episode_is_that_of_its_last_step():
    host = wrapped("sagax_test/Masked-v0", ("action_mask", {}), num_envs=1)
    assert host.reset(0)["action_mask"].tolist() == [[1, 1, 0]]
    for index in range(8):
        mask = host.step(np.array([index % 3])).observation["action_mask"][0]
        assert mask.tolist() == [int(action != (index + 3) % 3) for action in range(3)]
    last = host.step(np.array([8 % 3]))
    assert last.terminated[0] and last.final_observation["action_mask"].tolist() == [[1, 1, 0]]
    assert last.observation["observation"].tolist() == [[0.0]] and last.observation["action_mask"].tolist() == [
        [1, 1, 0]
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("short", r"'action_mask' has the shape \[2\], expected one entry for each of 3 actions"),
        ("empty", r"'action_mask' allows no action, and the episode has not ended"),
        ("missing", r"info has no 'action_mask'.*: expected one in every step"),
    ],
)
def test_a_wrong_mask_is_refused(wrong, message):
    make = wrapper("mask", factory_of("action_mask"), {})
    host = GymnasiumHost("sagax_test/Masked-v0", 1, make_kwargs={"wrong": wrong}, wrappers=[make])
    host.reset(0)
    host.step(np.array([0]))
    with pytest.raises(ObservationRangeError, match=message):
        host.step(np.array([1]))


@pytest.mark.parametrize(
    ("components", "expected"), [(("x_velocity",), [0, 0, 1, 0]), (("x_velocity", "y_velocity"), [0, 1, 1, 1])]
)
def test_what_is_faster_than_the_limit_costs_one(components, expected):
    make = wrapper("slow", factory_of("speed_limit"), {"limit": 1.0, "components": components})
    host = GymnasiumHost(ARM, 1, wrappers=[make], cost_keys={"cost": "speed"})
    assert host.spec.costs == ("speed",)
    host.reset(0)
    # At the limit, at an angle, forwards, backwards.
    actions = [[1.0, 0.0], [0.8, 0.8], [1.5, 0.0], [-1.5, 0.0]]
    assert [float(host.step(np.array([action]))[2]["speed"][0]) for action in actions] == expected
    host.close()


def test_speeds_that_are_not_there_are_refused():
    make = wrapper("slow", factory_of("speed_limit"), {"limit": 1.0, "components": ("z_velocity",)})
    with pytest.raises(ValueError, match=r"reports no 'z_velocity' in info, did you mean 'y_velocity' or 'x_velocity'"):
        GymnasiumHost(ARM, 1, wrappers=[make])
    for arguments, message in (
        ({"limit": 0.0}, "limit=0.0"),
        ({"limit": 1.0, "components": ()}, "components is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            GymnasiumHost(ARM, 1, wrappers=[wrapper("slow", factory_of("speed_limit"), arguments)])


def test_masks_of_what_has_none_are_refused():
    make = wrapper("mask", factory_of("action_mask"), {"key": "legal"})
    with pytest.raises(ValueError, match=r"wrapper 'mask': ActionMask\(key='legal'\) refuses .*actions are Box"):
        GymnasiumHost(ARM, 1, wrappers=[make])
    with pytest.raises(ValueError, match=r"info has no 'legal'"):
        GymnasiumHost("sagax_test/Masked-v0", 1, wrappers=[make])
    GymnasiumHost("sagax_test/Masked-v0", 1, make_kwargs={"key": "legal"}, wrappers=[make]).close()


def test_refusals_name_the_wrapper():
    with pytest.raises(ValueError, match=r"wrapper 'grey': GrayscaleObservation\(\) refuses .*CartPole-v1.*: "):
        GymnasiumHost("CartPole-v1", 1, wrappers=[wrapper("grey", factory_of("grayscale"), {})])
    with pytest.raises(ValueError, match=r"wrapper 'game': AtariPreprocessing\(\) refuses .*CartPole-v1"):
        GymnasiumHost("CartPole-v1", 1, wrappers=[wrapper("game", factory_of("atari_preprocessing"), {})])
    with pytest.raises(ValueError, match=r"wrapper 'own': type returned type, expected a gymnasium.Env"):
        GymnasiumHost("CartPole-v1", 1, wrappers=[wrapper("own", type, {})])
    with pytest.raises(ValueError, match=r"NormalizeObservation .*: expected network.normalise_observations=True"):
        wrapper("own", gymnasium.wrappers.NormalizeObservation, {})
    with pytest.raises(ValueError, match=r"NormalizeReward keeps .*: expected .* normalise_by_return"):
        wrapper("own", gymnasium.wrappers.NormalizeReward, {})
