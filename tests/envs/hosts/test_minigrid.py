"""The MiniGrid host. What needs MiniGrid is skipped where it is not installed."""

import importlib

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

from envs.base import VectorHost
from envs.host_rollout import start_host, unroll_host
from envs.hosts.minigrid import MESSAGE_LENGTH, TASKS, MiniGridHost, _Events, decode_message, encode_message
from envs.rollout import episode_statistics

LEFT, RIGHT, FORWARD, PICK_UP, DROP, TOGGLE, DONE = range(7)


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_messages_survive_encoding_and_decoding():
    message = encode_message("You picked up the yellow key")
    assert message.shape == (MESSAGE_LENGTH,) and message.dtype == np.uint8
    assert message[:4].tolist() == [89, 111, 117, 32] and not message[28:].any()
    assert decode_message(message) == "You picked up the yellow key"
    assert not encode_message("").any() and decode_message(encode_message("")) == ""
    assert decode_message(encode_message("x" * 64)) == "x" * 64
    with pytest.raises(ValueError, match=r"has 65 bytes: expected at most 64"):
        encode_message("x" * 65)


def test_missing_minigrid_names_the_extra(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    message = r"No module named 'minigrid'.*extra 'minigrid': pip install -e '\.\[minigrid\]'"
    with pytest.raises(ImportError, match=message):
        MiniGridHost(2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            dict(task="KeyCorridorS3R4"),
            ValueError,
            "unknown task 'KeyCorridorS3R4', did you mean 'KeyCorridorS3R3'",
        ),
        (dict(image="onehot"), ValueError, "unknown image 'onehot', did you mean 'one_hot'"),
        (dict(noise="pixels"), ValueError, "unknown noise 'pixels', did you mean 'pixel'"),
        (dict(pixel_probability=2.0), ValueError, "pixel_probability=2.0: expected a probability"),
    ],
)
def test_bad_arguments_need_no_minigrid(arguments, error, message):
    with pytest.raises(error, match=message):
        MiniGridHost(2, **arguments)


class TestWithMiniGrid:
    @pytest.fixture(autouse=True)
    def minigrid(self):
        return pytest.importorskip("minigrid")

    def test_is_a_vector_host_with_the_spec_of_its_environment(self):
        host = MiniGridHost(3)
        assert isinstance(host, VectorHost) and host.num_envs == 3
        assert host.spec.max_episode_steps == 270 and host.spec.info == ("success",)
        assert host.spec.message_length == 0 and MiniGridHost(1, messages=True).spec.message_length == MESSAGE_LENGTH
        assert host.spec.action_space == spaces.Discrete(7)
        assert host.spec.observation_space == spaces.Dict(
            {"image": spaces.Box(0, 1, (7, 7, 20), np.uint8), "direction": spaces.Discrete(4)}
        )
        first = host.reset(0)
        assert all(host.spec.observation_space.contains({k: v[i] for k, v in first.items()}) for i in range(3))
        integers = MiniGridHost(1, task="Dynamic-Obstacles-8x8", image="integers", noise="pixel")
        assert integers.spec.action_space == spaces.Discrete(3)
        assert integers.spec.observation_space["image"].high[0, 0].tolist() == [10, 5, 2, 1]

    def test_sizes_are_those_of_minigrid(self):
        constants = importlib.import_module("minigrid.core.constants")
        names = constants.OBJECT_TO_IDX, constants.COLOR_TO_IDX, constants.STATE_TO_IDX
        assert tuple(map(len, names)) == (11, 6, 3)
        assert all(sorted(indices.values()) == list(range(len(indices))) for indices in names)
        actions = importlib.import_module("minigrid.core.actions").Actions
        assert [actions.forward, actions.toggle, actions.done] == [FORWARD, TOGGLE, DONE]

    @pytest.mark.parametrize("task", TASKS)
    def test_plays_the_game_of_minigrid(self, task):
        """Equals MiniGrid's environments, through resets; messages, noise and image format change nothing else."""
        plain = MiniGridHost(2, task=task, image="integers", max_episode_steps=40)
        adorned = MiniGridHost(2, task=task, messages=True, noise="pixel", max_episode_steps=40)
        references = [gymnasium.make(TASKS[task], max_steps=40).unwrapped for _ in range(2)]
        expected = [reference.reset(seed=7 + index)[0] for index, reference in enumerate(references)]
        one_hot, observation = adorned.reset(7), plain.reset(7)
        generator, ends = np.random.default_rng(0), 0
        for _ in range(90):
            for index in range(2):
                np.testing.assert_array_equal(observation["image"][index], expected[index]["image"])
                assert observation["direction"][index] == one_hot["direction"][index] == expected[index]["direction"]
            parts = np.split(one_hot["image"], [11, 17, 20], axis=-1)
            np.testing.assert_array_equal(np.stack([part.argmax(-1) for part in parts[:3]], -1), observation["image"])
            assert all((part.sum(-1) == 1).all() for part in parts[:3])
            actions = generator.integers(plain.spec.action_space.n, size=2)
            step, other = plain.step(actions), adorned.step(actions)
            assert_same((step[1:6], step.info), (other[1:6], {"success": other.info["success"]}))
            for index, reference in enumerate(references):
                expected[index], reward, terminated, truncated, _ = reference.step(actions[index])
                assert step.reward[index] == np.float32(reward)
                assert step.terminated[index] == terminated
                assert step.truncated[index] == (truncated and not terminated)
                assert step.info["success"][index] == (terminated and reward > 0)
                np.testing.assert_array_equal(step.final_observation["image"][index], expected[index]["image"])
                if terminated or truncated:
                    ends += 1
                    expected[index] = reference.reset()[0]
            observation, one_hot = step.observation, other.observation
        assert ends >= 4

    def environment(self, task, **kwargs):
        """One environment with messages, and the position of the first object of each type in its grid."""
        env = _Events(gymnasium.make(TASKS[task], **kwargs))
        env.reset(seed=3)
        grid = env.unwrapped.grid
        cells = {(x, y): grid.get(x, y) for x in range(grid.width) for y in range(grid.height)}
        places = {}
        for place, thing in cells.items():
            places.setdefault(None if thing is None else thing.type, place)
        return env, places

    def act(self, env, action, facing=None):
        """The message of one step; before it the agent is put on a free or door cell that faces ``facing``."""
        bare = env.unwrapped
        if facing is not None:
            directions = [(1, 0), (0, 1), (-1, 0), (0, -1)]
            for direction, (right, down) in enumerate(directions):
                x, y = facing[0] - right, facing[1] - down
                inside = 0 <= x < bare.grid.width and 0 <= y < bare.grid.height
                if inside and (bare.grid.get(x, y) is None or bare.grid.get(x, y).type == "door"):
                    bare.agent_pos, bare.agent_dir = (x, y), direction
                    break
            else:
                raise AssertionError(f"no way to {facing}")
        observation, _, terminated, truncated, info = env.step(action)
        self.last = terminated, truncated, info["success"]
        return decode_message(observation["message"])

    def test_events_of_keys_doors_and_the_goal(self):
        env, places = self.environment("DoorKey-8x8")
        assert self.act(env, TOGGLE, places["door"]) == "The yellow door is locked"
        assert self.act(env, FORWARD) == ""
        assert self.act(env, TOGGLE, places["key"]) == ""
        assert self.act(env, PICK_UP) == "You picked up the yellow key"
        assert self.act(env, PICK_UP) == ""
        assert self.act(env, LEFT) == ""
        assert self.act(env, TOGGLE, places["door"]) == "You unlocked the yellow door"
        assert self.act(env, TOGGLE) == "The yellow door closes"
        assert self.act(env, TOGGLE) == "The yellow door opens"
        assert self.act(env, DROP, places["key"]) == "You dropped the yellow key"
        assert self.act(env, DONE) == ""
        assert self.last == (False, False, False)
        assert self.act(env, FORWARD, places["goal"]) == "You reached the green goal"
        assert self.last == (True, False, True)

    def test_events_of_success_and_failure(self):
        env, places = self.environment("KeyCorridorS3R3")
        colour = env.unwrapped.grid.get(*places["ball"]).color
        assert self.act(env, PICK_UP, places["ball"]) == f"You picked up the {colour} ball"
        assert self.last == (True, False, True)
        env, places = self.environment("Dynamic-Obstacles-8x8")
        env.unwrapped.agent_pos, env.unwrapped.agent_dir = (1, 1), 2
        assert self.act(env, FORWARD) == "You ran into the grey wall"
        assert self.last == (True, False, False)

    def test_events_of_boxes_and_lava(self):
        things = importlib.import_module("minigrid.core.world_object")
        env, _ = self.environment("DoorKey-8x8")
        bare = env.unwrapped
        bare.agent_pos, bare.agent_dir = (1, 1), 0
        bare.grid.set(2, 1, things.Box("red", things.Key("blue")))
        assert self.act(env, TOGGLE) == "The red box opens"
        assert self.act(env, PICK_UP) == "You picked up the blue key"
        bare.grid.set(2, 1, things.Lava())
        assert self.act(env, FORWARD) == "You fell into the lava"
        assert self.last == (True, False, False)

    def test_an_end_in_the_last_step_is_terminated_not_truncated(self):
        for task, action, thing in (("DoorKey-8x8", FORWARD, "goal"), ("KeyCorridorS3R3", PICK_UP, "ball")):
            env, places = self.environment(task, max_steps=2)
            self.act(env, DONE)
            assert self.last == (False, False, False)
            self.act(env, action, places[thing])
            assert self.last == (True, False, True)
        env, _ = self.environment("DoorKey-8x8", max_steps=1)
        self.act(env, DONE)
        assert self.last == (False, True, False)

    def test_the_message_is_that_of_the_step_although_the_environment_was_reset(self):
        host = MiniGridHost(4, task="Dynamic-Obstacles-8x8", messages=True)
        host.reset(0)
        seen = set()
        for _ in range(12):
            step = host.step(np.full(4, FORWARD))
            texts = [decode_message(message) for message in step.info["message"]]
            assert step.info["message"].dtype == np.uint8
            for text, terminated in zip(texts, step.terminated, strict=True):
                assert text.startswith("You ran into the") == terminated
            seen |= set(texts)
        assert {"", "You ran into the grey wall"} <= seen

    @pytest.mark.parametrize("noise", ["pixel", "on_demand"])
    def test_noise(self, noise):
        host = MiniGridHost(8, task="DoorKey-8x8", noise=noise, pixel_probability=0.4)
        layers, actions = [host.reset(0)["image"][..., 20]], np.random.default_rng(0).integers(7, size=(60, 8))
        layers += [host.step(action).final_observation["image"][..., 20] for action in actions]
        layers = np.stack(layers)
        shown = layers.any((-1, -2))
        if noise == "on_demand":
            assert not shown[0].any()
            np.testing.assert_array_equal(shown[1:], actions == DONE)
        else:
            assert abs(shown.sum() - 0.4 * shown.size) < 5 * (0.4 * 0.6 * shown.size) ** 0.5
        bits = layers[shown]
        assert abs(bits.mean() - 0.5) < 5 * 0.5 / bits.size**0.5
        assert len(np.unique(bits, axis=0)) == len(bits), "no two frames or environments share their noise"
        assert_same(host.reset(0)["image"][..., 20], layers[0])

    def test_noise_on_demand_needs_an_action_for_it(self):
        with pytest.raises(ValueError, match=r"Dynamic-Obstacles-8x8 has 3 actions and not the action done.*'pixel'"):
            MiniGridHost(1, task="Dynamic-Obstacles-8x8", noise="on_demand")

    def test_snapshot_continues_bit_for_bit(self):
        def make():
            return MiniGridHost(3, task="KeyCorridorS3R3", noise="pixel", messages=True, max_episode_steps=15)

        host, other = make(), make()
        actions = np.random.default_rng(1).integers(7, size=(60, 3))
        with pytest.raises(RuntimeError, match="before the first reset"):
            host.snapshot()
        host.reset(5)
        for action in actions[:20]:
            last = host.step(action)
        snapshot = host.snapshot()
        other.reset(99)
        assert_same(other.restore(snapshot), last.observation)
        for action in actions[20:]:
            assert_same(tuple(other.step(action)), tuple(host.step(action)))
        with pytest.raises(ValueError, match=r"3 environments of MiniGrid-KeyCorridorS3R3-v0, expected 2 of"):
            MiniGridHost(2).restore(snapshot)

    def test_a_trajectory_holds_the_messages_and_its_statistics_leave_them_out(self):
        host = MiniGridHost(2, task="Dynamic-Obstacles-8x8", messages=True, max_episode_steps=6)

        def policy(params, carry, observation, key, t):
            return np.full(2, FORWARD if t % 3 == 0 else LEFT), carry, {}

        state = start_host(host, 0, ())
        _, trajectory = unroll_host(host, policy, (), state, jax.random.key(0), length=12, initial_carry=())
        info = trajectory.extras["info"]
        assert info["message"].shape == (12, 2, MESSAGE_LENGTH)
        sums = episode_statistics(trajectory)
        assert sorted(sums) == ["env_steps", "episodes", "length", "return", "success"]
        assert sums["episodes"] == (trajectory.terminated | trajectory.truncated).sum() > 0

    def test_a_time_limit_that_is_none(self):
        for limit, error in ((0, ValueError), (2.5, TypeError), (True, TypeError)):
            with pytest.raises(error, match=f"max_episode_steps={limit}"):
                MiniGridHost(1, max_episode_steps=limit)
        assert MiniGridHost(1, max_episode_steps=9).spec.max_episode_steps == 9

    def test_an_unknown_identifier_names_the_nearest(self):
        with pytest.raises(
            ValueError,
            match=r"unknown environment 'MiniGrid-KeyCorridorS3R9-v0', did you mean 'MiniGrid-KeyCorridorS3R",
        ):
            MiniGridHost(1, task="MiniGrid-KeyCorridorS3R9-v0")
