"""Exact evaluation of a constrained problem on a known model, beside its optimum by linear programming."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from agents.limits import sign_of
from agents.planning.linear_programming import Limit, constrained_optimum
from experiments.evaluators.base import Context, Evaluator
from experiments.evaluators.exact import exact, known_model


def constrained(context: Context, *, transform: str = "lagrangian", greedy: bool = False) -> Evaluator:
    """The agent's exact totals on a ``TabularEnvironment`` with costs, and how far they are from the optimum.

    Besides the metrics of ``exact``, with the limits of ``rewards.<transform>.constraints`` on channels ``cost/NAME``:

        gap                    = (optimum - return) / |optimum|, negative where limits are missed for more return
        violation              = max_k max(g_k, 0) / max(|limit_k|, 1e-6), see ``rewards.constraints.lagrangian``
        optimum                = the return of the best policy that meets all limits
        optimal_multiplier/K   = by how much it would grow if limit ``K`` were looser by one unit

    The optimum is that without the environment's time limit, and without discount. A policy that meets its limits in
    expectation may have to draw its actions.

    Args:
      context: of a pure ``TabularEnvironment`` with costs, within ``TimeLimit``.
      transform: the name of the reward transform that has the constraints.
      greedy: whether the agent acts greedily.

    Raises:
      ValueError: see ``exact``; no such transform; a constraint on another channel than a cost of the environment; no
        policy meets all limits (``InfeasibleError``).
    """
    model, costs = known_model(context.environment), context.spec.costs
    section = context.sections["rewards"].get(transform, {}).get("constraints", {})
    if not section:
        raise ValueError(f"rewards.{transform} has no constraints: expected limits to compare with")
    limits = {}
    for name, one in section.items():
        cost = str(one["channel"]).removeprefix("cost/")
        if one["channel"] != f"cost/{cost}" or cost not in costs:
            raise ValueError(
                f"rewards.{transform}.constraints.{name} is on the channel {one['channel']!r}: expected one of "
                f"{', '.join(f'cost/{each}' for each in costs) or 'the costs of an environment that has some'}"
            )
        limits[name] = Limit(1 + costs.index(cost), float(one["limit"]), one.get("sense", "at_most"))
    plan = constrained_optimum(model, limits)
    inside = exact(context, greedy=greedy)
    optimum, multipliers = float(plan.totals[0]), np.asarray(plan.multipliers)

    def evaluate(state, key):
        found = inside.evaluate(state, key)
        missed = [_missed(one, found[f"return/cost/{costs[one.component - 1]}"]) for one in limits.values()]
        compared = {
            "gap": (optimum - found["return"]) / max(abs(optimum), 1e-6),
            "violation": jnp.max(jnp.stack(missed)),
            "optimum": jnp.float32(optimum),
        }
        exact_multipliers = zip(limits, multipliers, strict=True)
        return (
            found | compared | {f"optimal_multiplier/{name}": jnp.float32(value) for name, value in exact_multipliers}
        )

    names = (*inside.metrics, "gap", "violation", "optimum", *(f"optimal_multiplier/{name}" for name in limits))
    return Evaluator(evaluate, names)


def _missed(limit: Limit, total):
    """How far ``total`` is on the wrong side, as a share of the limit."""
    over = sign_of(limit.sense) * (total - limit.limit)
    return (jnp.abs(over) if limit.sense == "equal" else jnp.maximum(over, 0.0)) / max(abs(limit.limit), 1e-6)
