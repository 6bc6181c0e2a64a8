"""The evaluators that a configuration can name: ``config.evaluators.NAME = {"kind": KIND, ...}``."""

from __future__ import annotations

from envs.kinds import Kind
from envs.ranges import ONE_UP, ZERO_UP
from experiments.evaluators.constrained import constrained
from experiments.evaluators.episodes import episodes
from experiments.evaluators.exact import exact
from experiments.evaluators.played_policy import played_policy
from experiments.evaluators.steady_state import steady_state
from experiments.evaluators.stock_objectives import stock_objectives

# By kind: a factory ``(context, **section) -> Evaluator``.
EVALUATORS: dict[str, Kind] = {
    "episodes": Kind(episodes, {"count": ONE_UP, "cut": ONE_UP, "video": ZERO_UP}),
    "stock_objectives": Kind(stock_objectives, {"count": ONE_UP, "candidates": ONE_UP}),
    "constrained": Kind(constrained),
    "exact": Kind(exact, {"candidates": ONE_UP}),
    "played_policy": Kind(played_policy),
    "steady_state": Kind(steady_state),
}
