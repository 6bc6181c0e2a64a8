"""What an agent earns: means over whole episodes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from envs.base import EnvironmentSpec, Trajectory
from envs.rollout import episode_statistics
from experiments.evaluators.base import Context, Evaluator, episode_length

# The steps after which episodes were cut; in a row only where they were.
CUT = "evaluation/cut"


def other_channels(spec: EnvironmentSpec) -> tuple[str, ...]:
    """The reward channels that an environment of ``spec`` writes besides ``env``."""
    return (*(f"cost/{name}" for name in spec.costs), *(f"objective/{name}" for name in spec.objectives))


def episodes(
    context: Context, *, count: int = 256, greedy: bool = False, cut: int | None = None, video: int = 0
) -> Evaluator:
    """Means over ``count`` episodes, each from a start state of its own.

    ``return`` (undiscounted, of ``env``), ``length``, the entries of the environment's ``info`` at the last step
    (``success``), and the undiscounted return of every other channel, ``return/cost/NAME`` and
    ``return/objective/NAME``.

    Args:
      context: see ``Context``.
      count: of the episodes.
      greedy: whether the agent acts greedily, or draws its actions.
      cut: ends every episode after so many steps. ``None``, the default, is for whole episodes: up to the environment's
        own time limit. Where episodes are cut shorter, the rows say so: ``evaluation/cut``, the number of steps.
      video: how many episodes the outer loop of a run films at each evaluation, ``experiments/training/videos.py``:
        others than those that are counted, the same ones at each evaluation of a seed.

    Raises:
      ValueError: counts below 1, a ``video`` below 0, or no ``cut`` where the environment's episodes have no bound.
    """
    for name, value in (("count", count), ("cut", cut)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")
    if video < 0:
        raise ValueError(f"video={video}: expected at least 0")
    spec, length = context.spec, episode_length(context.spec, cut)
    channels = other_channels(spec)
    marks = {CUT: jnp.float32(length)} if spec.max_episode_steps is None or length < spec.max_episode_steps else {}

    def evaluate(state, key):
        trajectory = context.episodes.play(state.agent.params, key, count=count, length=length, greedy=greedy)
        returns = {f"return/{name}": channel_return(trajectory, name) for name in channels}
        return episode_means(trajectory) | returns | marks

    metrics = ("return", "length", *spec.info, *(f"return/{name}" for name in channels), *marks)
    return Evaluator(evaluate, metrics)


def episode_means(trajectory: Trajectory) -> dict[str, jax.Array]:
    """``envs.rollout.episode_statistics`` per episode that ended in ``trajectory [T, B]``, without the counts."""
    sums = episode_statistics(trajectory)
    count = jnp.maximum(sums["episodes"], 1.0)
    return {name: value / count for name, value in sums.items() if name not in ("episodes", "env_steps")}


def channel_return(trajectory: Trajectory, channel: str, discount: float | jax.Array = 1.0) -> jax.Array:
    """``mean over episodes of sum_t discount^t r_t`` of a channel, for whole episodes ``[T, B]``."""
    return jnp.mean(discounted_returns(trajectory, channel, discount))


def discounted_returns(trajectory: Trajectory, channel: str, discount: float | jax.Array = 1.0) -> jax.Array:
    """``sum_t discount^t r_t`` of a channel in whole episodes ``[T, B]``; ``[B]``."""
    powers = jnp.asarray(discount) ** jnp.arange(trajectory.mask.shape[0], dtype=jnp.float32)
    return jnp.sum(powers[:, None] * trajectory.rewards[channel] * trajectory.mask, axis=0)
