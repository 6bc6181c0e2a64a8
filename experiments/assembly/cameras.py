"""Episodes of a policy, drawn: as text for a terminal or as images for a film."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from agents.base import Agent
from envs.base import DrawnAsImage, DrawnAsText, PyTree
from envs.keys import seed_key
from envs.wrappers import ReportsStates, innermost
from experiments.assembly.build import EnvironmentSource, build_parts
from experiments.errors import UserError
from experiments.evaluators.base import HostEpisodes, PureEpisodes, episode_length, host_act


class Episode(NamedTuple):
    """One episode.

    Attributes:
      frames: before its first step and after each, text or ``uint8 [H, W, 3]``.
      rewards: of the channel ``env``, ``[steps]``.
      terminated: whether the environment ended it, and no limit of time.
    """

    frames: list[Any]
    rewards: np.ndarray
    terminated: bool


class Camera:
    """Films whole episodes of ``agent``.

    Args:
      source: of the environments.
      agent: that acts.
      count, length: how many episodes, of at most so many steps.
      greedy: whether it acts greedily, or draws its actions.
      text: whether frames are text, or images.

    Raises:
      UserError: if the environment cannot be drawn so.
    """

    def __init__(
        self, source: EnvironmentSource, agent: Agent, *, count: int, length: int, greedy: bool, text: bool = False
    ):
        require_drawable(source, text=text)
        self._source, self._agent, self._text = source, agent, text
        self._episodes = {"count": count, "length": length, "greedy": greedy}
        if source.pure is None:
            self._act = host_act(agent)
        else:
            played = PureEpisodes(ReportsStates(source.pure), agent)
            self._play = jax.jit(lambda params, key: played.play(params, key, **self._episodes))

    def film(self, params: PyTree, key: jax.Array) -> list[Episode]:
        """The episodes that ``key`` draws, of the agent with ``params``."""
        if self._source.pure is None:
            trajectory, frames = self._host_frames(params, key)
        else:
            trajectory = jax.device_get(self._play(params, key))
            frames = [self._pure_frames(trajectory, index) for index in range(self._episodes["count"])]
        filmed = []
        for index, pictures in enumerate(frames):
            steps = int(np.asarray(trajectory.mask)[:, index].sum())
            rewards = np.asarray(trajectory.rewards["env"])[:steps, index]
            ended = bool(np.asarray(trajectory.terminated)[steps - 1, index])
            filmed.append(Episode(pictures[: steps + 1], rewards, ended))
        return filmed

    def _host_frames(self, params: PyTree, key: jax.Array) -> tuple[Any, list[list[Any]]]:
        hosts: list[Any] = []

        def make(num_envs: int) -> Any:
            hosts.append(_drawn_host(self._source, num_envs, self._text))
            return hosts[-1]

        episodes = HostEpisodes(make, self._agent, self._act)
        try:
            trajectory = episodes.play(params, key, **self._episodes)
            return trajectory, hosts[0].frames()
        finally:
            episodes.close()

    def _pure_frames(self, trajectory: Any, index: int) -> list[Any]:
        info, steps = trajectory.extras["info"], int(trajectory.mask[:, index].sum())

        def drawn(states: PyTree, step: int) -> Any:
            return _draw(self._source.pure, jax.tree.map(lambda leaf: leaf[step, index], states), self._text)

        first = [drawn(info["state"], step) for step in range(steps)]
        return [*first, drawn(info["next_state"], steps - 1)]


def _draw(environment: Any, state: PyTree, text: bool) -> Any:
    inside, own = innermost(environment, state)
    return inside.draw_text(own) if text else inside.draw_image(own)


def _drawn_host(source: EnvironmentSource, num_envs: int, text: bool) -> Any:
    make: Any = source.host
    return make(num_envs, render="ansi" if text else "rgb_array")


def require_drawable(source: EnvironmentSource, *, text: bool) -> None:
    """Checks that an environment can be drawn, by drawing one start state.

    Raises:
      UserError: it cannot.
    """
    if source.pure is None:
        _drawn_host(source, 1, text).close()
        return
    inside, _ = innermost(source.pure)
    wanted, method = ("text", "draw_text") if text else ("images", "draw_image")
    why = f"it has no {method}"
    if isinstance(inside, DrawnAsText if text else DrawnAsImage):
        try:
            _draw(source.pure, jax.device_get(source.pure.reset(seed_key(0))[0]), text)
            return
        except NotImplementedError as error:
            why = str(error) or why
        # What a missing screen or library makes an environment raise may be anything.
        except Exception as error:
            why = f"{type(error).__name__}: {error}".rstrip(": ")
    raise UserError(f"environment {type(inside).__name__} cannot be drawn as {wanted} ({why})")


def film_length(config: ConfigDict, source: EnvironmentSource) -> int:
    """The steps of an episode at most: those of the evaluation.

    Raises:
      UserError: if nothing bounds them.
    """
    cuts = [cut for cut in (section.get("cut") for section in config.evaluators.values()) if cut]
    try:
        return episode_length(source.spec, max(cuts, default=None))
    except ValueError as error:
        raise UserError(str(error)) from error


def cameras(config: ConfigDict, source: EnvironmentSource, values: dict[str, float]) -> dict[str, Camera]:
    """The cameras of the evaluators that have a ``video``, by the name of the evaluator.

    Raises:
      UserError: if the environment cannot be drawn, or a run has several processes.
    """
    found = {name: section for name, section in config.evaluators.items() if section.get("video")}
    if not found:
        return {}
    if jax.process_count() > 1:
        name = next(iter(found))
        raise UserError(f"evaluators.{name}.video={found[name].video}: expected 0, or a run of one process")
    agent = build_parts(config, source.spec, values).agent
    made = {}
    for name, section in found.items():
        length = episode_length(source.spec, section.get("cut"))
        greedy = bool(section.get("greedy", False))
        try:
            made[name] = Camera(source, agent, count=section.video, length=length, greedy=greedy)
        except UserError as error:
            raise UserError(f"evaluators.{name}.video={section.video}: {error}") from error
    return made
