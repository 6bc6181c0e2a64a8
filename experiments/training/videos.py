"""Films of episodes as files: GIF by Pillow, MP4 by OpenCV where it is installed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from experiments.assembly.build import EnvironmentSource
from experiments.assembly.cameras import Camera, Episode, cameras
from experiments.assembly.members import Member
from experiments.disk import require_writable
from experiments.errors import UserError, cannot_write, say, unknown
from experiments.evaluators.base import evaluator_key
from experiments.rows.run_folders import path_part
from experiments.training.keys import evaluation_key
from experiments.training.learn import RunState

VIDEO_FOLDER = "videos"
FRAMES_PER_SECOND = 20
SUFFIXES = (".gif", ".mp4")


def require_video(path: Path) -> None:
    """Checks, before the work, that a film can be written to ``path``.

    Raises:
      UserError: for another suffix, a file that cannot be written, or an MP4 without OpenCV.
    """
    if path.suffix not in SUFFIXES:
        raise unknown("suffix", path.suffix, SUFFIXES, f"of {path}")
    if path.suffix == ".mp4":
        _opencv()
    require_writable(path)


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"a film as .mp4 needs OpenCV ({error}): pip install -e '.[video]', or take .gif instead"
        ) from error
    return cv2


def write_video(path: Path, episodes: Sequence[Episode], frames_per_second: float = FRAMES_PER_SECOND) -> None:
    """Writes episodes one after the other, in a file that is there as a whole or not at all.

    Raises:
      UserError: as ``require_video``.
    """
    require_video(path)
    frames = [np.asarray(frame, np.uint8) for episode in episodes for frame in episode.frames]
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".gif":
            first, *others = map(Image.fromarray, frames)
            # A viewer shows no frame for less than a fiftieth of a second.
            milliseconds = max(round(1000 / frames_per_second), 20)
            first.save(partial, save_all=True, append_images=others, duration=milliseconds, loop=0)
        else:
            cv2 = _opencv()
            height, width = frames[0].shape[:2]
            code = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(str(partial), code, float(frames_per_second), (width, height))
            for frame in frames:
                writer.write(np.ascontiguousarray(frame[..., ::-1]))
            writer.release()
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def member_params(source: EnvironmentSource, state: RunState, position: int) -> Any:
    """The agent's parameters of the member at ``position`` of a program."""
    params = state.agent.params
    # The members of a pure environment's program share one state, with a leading axis.
    return params if source.pure is None else jax.tree.map(lambda leaf: leaf[position], params)


class Films:
    """The films of a run, ``videos/seed_N/EVALUATOR_ITERATION.gif`` in its folder, of a sweep
    ``videos/VARIANT/seed_N/...``."""

    def __init__(self, config: ConfigDict, source: EnvironmentSource, folder: Path, by_variant: bool):
        self._config, self._source = config, source
        self._folder, self._by_variant = folder / VIDEO_FOLDER, by_variant
        self._names = list(config.evaluators)
        self._made: dict[Any, dict[str, Camera]] = {}

    def take(self, state: RunState, members: Sequence[Member], iteration: int) -> None:
        """Films every member; what cannot be written is said, and does not end the run."""
        for position, member in enumerate(members):
            values = tuple(sorted(member.values.items()))
            if values not in self._made:
                self._made[values] = cameras(self._config, self._source, member.values)
            for name, camera in self._made[values].items():
                key = evaluator_key(evaluation_key(member.seed), self._names.index(name))
                folder = self._folder / path_part(member.variant) if self._by_variant else self._folder
                path = folder / f"seed_{member.seed}" / f"{path_part(name)}_{iteration}.gif"
                try:
                    write_video(path, camera.film(member_params(self._source, state, position), key))
                except UserError as error:
                    say(error)


def summary(episode: Episode) -> str:
    """An episode in one line."""
    end = "terminated" if episode.terminated else "cut by its time limit"
    return f"return {float(episode.rewards.sum()):.4g}, {len(episode.rewards)} steps, {end}"


def captions(episode: Episode) -> list[str]:
    """What stands over each frame of an episode: the step, its reward and the return so far."""
    rewards = [float(reward) for reward in episode.rewards]
    pairs = zip(rewards, itertools.accumulate(rewards), strict=True)
    shown = (f"step {step}  reward {reward:.4g}  return {so_far:.4g}" for step, (reward, so_far) in enumerate(pairs, 1))
    return ["start", *shown]
