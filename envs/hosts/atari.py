"""Atari games as a host, by the protocol with sticky actions (Machado et al., 2018); needs the extra ``atari``."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np

from envs.hosts.gymnasium import GymnasiumHost


class _ChannelsLast(gymnasium.ObservationWrapper):
    """Stacked frames ``[frames, height, width]`` as the image ``[height, width, frames]``."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, gymnasium.spaces.Box)
        self.observation_space = gymnasium.spaces.Box(
            np.moveaxis(space.low, 0, -1), np.moveaxis(space.high, 0, -1), dtype=np.uint8
        )

    def observation(self, observation):
        return np.moveaxis(np.asarray(observation), 0, -1)


def atari_host(
    game: str,
    num_envs: int,
    *,
    sticky: float = 0.25,
    frame_skip: int = 4,
    frames: int = 4,
    size: int = 84,
    time_limit: int = 27_000,
    render: str | None = None,
) -> GymnasiumHost:
    """``num_envs`` environments of ``game``.

    A step runs ``frame_skip`` frames. Its picture is the pixel-wise maximum of the last two, in grey, ``size`` pixels
    wide and high; an observation is the last ``frames`` pictures, ``uint8 [size, size, frames]``. In every frame but
    the first of an episode the previous action is repeated with probability ``sticky``. gymnasium's wrapper does this:
    the emulator could, too, but its saved state lacks the previous action. Losing a life does not end the episode.

    Args:
      game: the name in gymnasium's identifier, such as ``Pong`` for ``ALE/Pong-v5``.
      num_envs: ``B``.
      sticky, frame_skip, frames, size: see above.
      time_limit: steps after which an episode is truncated.
      render: see ``GymnasiumHost``.

    Raises:
      ValueError: the game is unknown, or a number is out of range.
      ImportError: the extra ``atari`` is not installed.
    """
    for name, value in {"frame_skip": frame_skip, "frames": frames, "size": size, "time_limit": time_limit}.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")
    if not 0 <= sticky < 1:
        raise ValueError(f"sticky={sticky}: expected a probability from 0 to below 1")
    try:
        import ale_py
        import cv2  # noqa: F401  (what resizes the frames)
    except ImportError as error:
        hint = "it comes with the extra 'atari': pip install -e '.[atari]'"
        raise ImportError(f"game={game!r}: {error}; {hint}") from error
    gymnasium.register_envs(ale_py)
    wrappers = gymnasium.wrappers
    return GymnasiumHost(
        f"ALE/{game}-v5",
        num_envs,
        make_kwargs={"frameskip": 1, "repeat_action_probability": 0.0},
        wrappers=(
            partial(wrappers.StickyAction, repeat_action_probability=sticky),
            partial(wrappers.AtariPreprocessing, noop_max=0, frame_skip=frame_skip, screen_size=size),
            partial(wrappers.FrameStackObservation, stack_size=frames),
            _ChannelsLast,
            partial(wrappers.TimeLimit, max_episode_steps=time_limit),
        ),
        finite=False,
        render=render,
    )
