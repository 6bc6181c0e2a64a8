"""MiniGrid's environments as a ``VectorHost`` (extra ``minigrid``): messages about what happened, noise on demand.

gymnasium runs the environments (``GymnasiumHost``). Two wrappers add what MiniGrid does not have: a line of text for
every event, such as "You picked up the yellow key", and a layer of random bits. The mission is dropped: in the
environments of ``TASKS`` it is the same in every episode or names the only ball. The agent's view is computed here,
faster than by MiniGrid, which copies and rotates the cells ahead one by one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.base import Action, Array, EnvironmentSpec, Observation, TimeStep
from envs.choices import require_known
from envs.hosts.gymnasium import GymnasiumHost
from envs.snapshots import Snapshot

TASKS = {
    "KeyCorridorS3R3": "MiniGrid-KeyCorridorS3R3-v0",
    "DoorKey-8x8": "MiniGrid-DoorKey-8x8-v0",
    # MiniGrid's own v0 has six rooms.
    "MultiRoom-N4-S5": "MiniGrid-MultiRoom-N4-S5-v1",
    "Dynamic-Obstacles-8x8": "MiniGrid-Dynamic-Obstacles-8x8-v0",
}
"""MiniGrid's identifiers by the names of the environments here."""

MESSAGE_LENGTH = 64
"""Bytes of a message; shorter ones are filled with 0."""

NOISES = ("none", "pixel", "on_demand")
IMAGES = ("one_hot", "integers")
# How many types, colours and states of a cell there are.
_SIZES = (11, 6, 3)
_FORWARD, _DONE = 2, 6
# The direction of each of the four headings, to the right and down.
_HEADINGS = ((1, 0), (0, 1), (-1, 0), (0, -1))
# Type, colour and state of nothing, and what lies outside of the grid: a grey wall.
_NOTHING = (1, 0, 0)
_OUTSIDE = SimpleNamespace(see_behind=lambda: False, encode=lambda: (2, 5, 0))


def encode_message(text: str) -> np.ndarray:
    """``text`` as ``uint8 [MESSAGE_LENGTH]``, filled with 0; all 0 for no message.

    Raises:
      ValueError: more than ``MESSAGE_LENGTH`` bytes.
    """
    data = text.encode()
    if len(data) > MESSAGE_LENGTH:
        raise ValueError(f"message {text[:40]!r}... has {len(data)} bytes: expected at most {MESSAGE_LENGTH}")
    return np.frombuffer(data.ljust(MESSAGE_LENGTH, b"\0"), np.uint8).copy()


def decode_message(message: Array) -> str:
    """The text of one message, ``uint8 [MESSAGE_LENGTH]``."""
    return np.asarray(message, np.uint8).tobytes().rstrip(b"\0").decode()


def _view(environment: Any) -> np.ndarray:
    """The agent's view in a MiniGrid environment, ``uint8 [size, size, 3]``, indexed by column and row of the view.

    The agent stands in the middle of the last row. Visibility spreads row by row away from the agent, from left to
    right and back: a visible cell that can be seen through makes visible its neighbour in that direction and the cells
    behind both. Cells that are not visible are 0; the agent's own cell shows what the agent carries.
    """
    size, grid, hidden = environment.agent_view_size, environment.grid, not environment.see_through_walls
    width, height, middle = grid.width, grid.height, size // 2
    ahead_x, ahead_y = _HEADINGS[environment.agent_dir]
    # The left end of the row that is looked at, at first the agent's own.
    x, y = int(environment.agent_pos[0]) + middle * ahead_y, int(environment.agent_pos[1]) - middle * ahead_x
    image = np.zeros((size, size, 3), np.uint8)
    seen = [not hidden or index == middle for index in range(size)]
    for line in range(size - 1, -1, -1):
        behind = [not hidden] * size
        clear: list[bool | None] = [None] * size
        for order, side in ((range(size), 1), (range(size - 1, -1, -1), -1)):
            for index in order:
                if not seen[index]:
                    continue
                if clear[index] is None:
                    column, row = x - index * ahead_y, y + index * ahead_x
                    inside = 0 <= column < width and 0 <= row < height
                    thing = grid.grid[row * width + column] if inside else _OUTSIDE
                    image[index, line] = _NOTHING if thing is None else thing.encode()
                    clear[index] = thing is None or thing.see_behind()
                if clear[index] and 0 <= index + side < size:
                    seen[index + side] = behind[index + side] = behind[index] = True
        if not any(behind):
            break
        seen, x, y = behind, x + ahead_x, y + ahead_y
    image[middle, size - 1] = _NOTHING if environment.carrying is None else environment.carrying.encode()
    return image


def _observe(environment: Any) -> dict[str, Any]:
    """An observation as MiniGrid's ``gen_obs`` makes it."""
    return {"image": _view(environment), "direction": environment.agent_dir, "mission": environment.mission}


class _Events(gymnasium.Wrapper):
    """Describes each event in ``observation["message"]``, drops the mission, and adds ``success`` to ``info``.

    An episode is a success if it ends with a positive reward. An environment that terminates in the step that reaches
    its time limit is terminated, not truncated.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        parts = dict(env.observation_space.spaces)
        del parts["mission"]
        message = spaces.Box(0, 255, (MESSAGE_LENGTH,), np.uint8)
        self.observation_space = spaces.Dict(parts | {"message": message})

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        return self._observed(observation, ""), info

    def step(self, action):
        environment = self.env.unwrapped
        ahead, carried = environment.grid.get(*environment.front_pos), environment.carrying
        door = (ahead.is_open, ahead.is_locked) if ahead is not None and ahead.type == "door" else None
        observation, reward, terminated, truncated, info = self.env.step(action)
        text = _event(environment, int(action), ahead, carried, door, reward, terminated)
        success = bool(terminated and reward > 0)
        return (
            self._observed(observation, text),
            reward,
            terminated,
            truncated and not terminated,
            info | {"success": success},
        )

    def _observed(self, observation, text):
        return {
            "image": observation["image"],
            "direction": observation["direction"],
            "message": encode_message(text),
        }


def _event(
    environment: Any,
    action: int,
    ahead: Any,
    carried: Any,
    door: tuple[bool, bool] | None,
    reward: float,
    terminated: bool,
) -> str:
    """The message for a step; ``""`` for a move, a turn or a step without effect.

    Args:
      environment: after the step.
      action: of the step.
      ahead, carried: what was in front of the agent and in its hands before the step, or ``None``.
      door: whether the door ahead was open and locked before the step; ``None`` where there was none.
      reward, terminated: of the step.
    """
    if environment.carrying is not carried:
        if carried is None:
            return f"You picked up the {environment.carrying.color} {environment.carrying.type}"
        return f"You dropped the {carried.color} {carried.type}"
    if ahead is None:
        return ""
    if action == _FORWARD and terminated:
        if ahead.type == "lava":
            return "You fell into the lava"
        return f"You reached the {ahead.color} goal" if reward > 0 else f"You ran into the {ahead.color} {ahead.type}"
    toggles = action == environment.actions.toggle
    if door is not None and toggles:
        was_open, was_locked = door
        if was_locked:
            return f"The {ahead.color} door is locked" if ahead.is_locked else f"You unlocked the {ahead.color} door"
        return f"The {ahead.color} door closes" if was_open else f"The {ahead.color} door opens"
    if ahead.type == "box" and toggles:
        return f"The {ahead.color} box opens"
    return ""


class _Noise(gymnasium.Wrapper):
    """Adds ``observation["noise"]``, a layer of random bits in frames that show noise and of zeros in all others.

    The wrapper draws the bits from a generator of its own, seeded with the environment's seed, so that the environment
    plays the same game with and without noise.
    """

    def __init__(self, env: gymnasium.Env, noise: str, probability: float):
        super().__init__(env)
        self._noise, self._probability = noise, probability
        self._shape = env.observation_space["image"].shape[:2]
        layer = spaces.Box(0, 1, self._shape, np.uint8)
        self.observation_space = spaces.Dict(dict(env.observation_space.spaces) | {"noise": layer})
        self._generator = np.random.default_rng()

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            # A different stream than the environment's, although both have the same seed.
            self._generator = np.random.default_rng((seed, 1))
        observation, info = self.env.reset(seed=seed, options=options)
        return self._observed(observation, on_demand=False), info

    def step(self, action):
        observation, *rest = self.env.step(action)
        return self._observed(observation, on_demand=int(action) == _DONE), *rest

    def _observed(self, observation, on_demand):
        shown = on_demand if self._noise == "on_demand" else self._generator.random() < self._probability
        bits = (
            self._generator.integers(2, size=self._shape, dtype=np.uint8) if shown else np.zeros(self._shape, np.uint8)
        )
        return observation | {"noise": bits}


class _Text(gymnasium.Wrapper):
    """Draws the grid in characters, as MiniGrid prints it."""

    metadata: ClassVar = {"render_modes": ["ansi"]}
    render_mode = "ansi"

    def render(self):
        return str(self.env.unwrapped)


class MiniGridHost:
    """``num_envs`` environments of one task of MiniGrid, in numpy; resets in the same step.

    Observation: ``image``, what the agent sees of the 7x7 cells ahead of it, and ``direction``, ``Discrete(4)``.

    ``info["success"]`` is 1 in the step that ends an episode with a positive reward. With ``messages``,
    ``info["message"]`` is the text of the step's event, ``uint8 [B, MESSAGE_LENGTH]``, which a reward transform reads
    from ``trajectory.extras["info"]``. No policy sees it, and it is not a metric of an episode, so that it is declared
    by ``spec.message_length`` and not in ``spec.info``. The messages: "You picked up the COLOUR THING", "You
    dropped the COLOUR THING", "The COLOUR door opens", "... closes", "... is locked", "You unlocked the COLOUR door",
    "The COLOUR box opens", "You reached the COLOUR goal", "You ran into the COLOUR THING" (where that ends the episode)
    and "You fell into the lava".

    Args:
      num_envs: ``B``.
      task: a name of ``TASKS``, or a MiniGrid identifier whose mission can be ignored.
      image: ``one_hot``: ``uint8 [7, 7, 20]``, type, colour and state of a cell; ``integers``: ``uint8 [7, 7, 3]``,
        as MiniGrid has it, with the bounds of each entry, by which networks scale it.
      noise: ``none``; ``pixel``: one more channel of the image shows fair random bits with ``pixel_probability``,
        independently in every frame, and 0 otherwise; ``on_demand``: it shows them whenever the action is ``done``,
        which does nothing else.
      pixel_probability: the probability that a frame shows noise if ``noise`` is ``pixel``.
      messages: whether to add ``info["message"]``.
      max_episode_steps: replaces MiniGrid's time limit where given.
      render: see ``GymnasiumHost``; ``ansi`` is the grid as MiniGrid prints it.

    Raises:
      ImportError: MiniGrid is missing.
      TypeError, ValueError: an argument is out of its range, or ``noise`` is ``on_demand`` in an environment without
        the action ``done``.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        task: str = "KeyCorridorS3R3",
        image: str = "one_hot",
        noise: str = "none",
        pixel_probability: float = 0.25,
        messages: bool = False,
        max_episode_steps: int | None = None,
        render: str | None = None,
    ):
        for name, value, known in (("image", image, IMAGES), ("noise", noise, NOISES)):
            require_known(name, value, known)
        if not 0 <= pixel_probability <= 1:
            raise ValueError(f"pixel_probability={pixel_probability}: expected a probability from 0 to 1")
        if not task.startswith("MiniGrid-"):
            require_known("task", task, TASKS)
        _import_minigrid()
        make_kwargs: dict[str, Any] = {"disable_env_checker": True}
        if max_episode_steps is not None:
            if isinstance(max_episode_steps, bool) or not isinstance(max_episode_steps, int):
                raise TypeError(f"max_episode_steps={max_episode_steps!r}: expected an integer, at least 1")
            if max_episode_steps < 1:
                raise ValueError(f"max_episode_steps={max_episode_steps}: expected at least 1")
            make_kwargs["max_steps"] = max_episode_steps
        wrappers: list[Callable[[gymnasium.Env], gymnasium.Env]] = [_Events]
        if noise != "none":
            wrappers.append(partial(_Noise, noise=noise, probability=pixel_probability))
        limits: set[int] = set()

        def note_limit(env: gymnasium.Env) -> gymnasium.Env:
            # MiniGrid counts its steps itself, so that gymnasium's registry does not know the limit.
            limits.add(env.unwrapped.max_steps)
            return env

        def see_faster(env: gymnasium.Env) -> gymnasium.Env:
            env.unwrapped.gen_obs = partial(_observe, env.unwrapped)
            return env

        self._environments = GymnasiumHost(
            TASKS.get(task, task),
            num_envs,
            make_kwargs=make_kwargs,
            wrappers=[note_limit, see_faster, *wrappers, *([_Text] if render == "ansi" else [])],
            info_keys={"success": "success"},
            render=render,
        )
        self._one_hot, self._messages = image == "one_hot", messages
        spec = self._environments.spec
        if noise == "on_demand" and spec.action_space.n <= _DONE:
            raise ValueError(
                f"noise='on_demand': {task} has {spec.action_space.n} actions and not the action done; "
                "the nearest choice is 'pixel'"
            )
        side = spec.observation_space["image"].shape[:2]
        high = np.ones(sum(_SIZES), np.uint8) if self._one_hot else np.array(_SIZES, np.uint8) - 1
        if noise != "none":
            high = np.append(high, np.uint8(1))
        box = spaces.Box(
            np.zeros((*side, len(high)), np.uint8), np.broadcast_to(high, (*side, len(high))), dtype=np.uint8
        )
        self._spec = replace(
            spec,
            observation_space=spaces.Dict({"image": box, "direction": spec.observation_space["direction"]}),
            max_episode_steps=limits.pop(),
            message_length=MESSAGE_LENGTH if messages else 0,
        )

    @property
    def spec(self) -> EnvironmentSpec:
        return self._spec

    @property
    def num_envs(self) -> int:
        return self._environments.num_envs

    def reset(self, seed: int | Sequence[int]) -> Observation:
        """Starts every environment; an integer seeds environment i with ``seed + i``, a sequence seeds each."""
        return self._observe(self._environments.reset(seed))

    def step(self, action: Action) -> TimeStep:
        """Steps every environment; arrays ``[B, ...]``.

        Raises:
          ValueError: an action of another shape.
        """
        timestep = self._environments.step(action)
        observation, final = self._observe(timestep.observation), timestep.final_observation
        # The message of this step is in the final observation; ``observation`` may already follow a reset.
        message = {"message": final["message"]} if self._messages else {}
        return timestep._replace(
            observation=observation,
            final_observation=observation if final is timestep.observation else self._observe(final),
            info=timestep.info | message,
        )

    def _observe(self, batch: dict[str, np.ndarray]) -> Observation:
        image = batch["image"]
        if self._one_hot:
            image = np.concatenate(
                [np.eye(size, dtype=np.uint8)[image[..., part]] for part, size in enumerate(_SIZES)], axis=-1
            )
        if "noise" in batch:
            image = np.concatenate([image, batch["noise"][..., None]], axis=-1)
        return {"image": image, "direction": batch["direction"]}

    def snapshot(self) -> Snapshot | None:
        """The whole state of every environment, random generators and time limits included.

        Raises:
          RuntimeError: before the first ``reset``.
        """
        return self._environments.snapshot()

    def restore(self, snapshot: Snapshot) -> Observation:
        """Continues from ``snapshot``; returns the observation the policy sees next.

        Raises:
          SnapshotError: the snapshot is of another task or another number of environments.
        """
        return self._observe(self._environments.restore(snapshot))

    def frames(self) -> list[list[Any]]:
        """See ``GymnasiumHost.frames``."""
        return self._environments.frames()

    def close(self) -> None:
        self._environments.close()


def _import_minigrid() -> None:
    """Registers MiniGrid's environments."""
    try:
        importlib.import_module("minigrid")
    except ImportError as error:
        raise ImportError(
            f"MiniGrid is missing ({error}); it comes with the extra 'minigrid': pip install -e '.[minigrid]'"
        ) from error
