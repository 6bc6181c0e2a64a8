"""The evaluators that a configuration can name: ``config.evaluators.NAME = {"kind": KIND, ...}``."""

from __future__ import annotations

from collections.abc import Callable

from experiments.evaluators.base import Evaluator
from experiments.evaluators.episodes import episodes
from experiments.evaluators.exact import exact
from experiments.evaluators.stock_objectives import stock_objectives

# By kind: a factory ``(context, **section) -> Evaluator``.
EVALUATORS: dict[str, Callable[..., Evaluator]] = {
    "episodes": episodes,
    "stock_objectives": stock_objectives,
    "exact": exact,
}
