"""Where a policy goes in the maze."""

from __future__ import annotations

from agents.statistics import masked_mean
from envs.native.maze import NO_OP
from envs.native.maze import visits as cell_visits
from experiments.evaluators.base import Context, Evaluator, episode_length


def visits(context: Context, *, count: int = 16, cut: int | None = None) -> Evaluator:
    """``visits [H, W]``, how often the policy stood on each cell, and ``no_op``, the share of steps in which it chose
    to do nothing, over ``count`` episodes of sampled actions.

    It reports an array, so that it is asked for by the command ``visits`` and is no evaluator of a run, whose rows hold
    numbers.

    Args:
      context: of a ``Maze(report_cell=True)``.
      count: of the episodes.
      cut: ends every episode after so many steps; ``None`` for whole episodes.

    Raises:
      ValueError: a count below 1, or no ``cut`` where episodes have no bound.
    """
    if count < 1:
        raise ValueError(f"count={count}: expected at least 1")
    length = episode_length(context.spec, cut)

    def evaluate(state, key):
        trajectory = context.episodes.play(state.agent.params, key, count=count, length=length, greedy=False)
        share = masked_mean(trajectory.action == NO_OP, trajectory.mask)
        return {"visits": cell_visits(trajectory), "no_op": share}

    return Evaluator(evaluate, ("visits", "no_op"))
