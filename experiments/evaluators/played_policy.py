"""The exact value of the policy that a tabular agent plays, in every iteration of training, on a known model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from agents.planning.dynamic_programming import tables_of, value_iteration, values_under
from agents.tabular_optimism import Mixture, baseline_table, problem_size
from envs.keys import seed_key
from envs.native.tabular import scalarised
from experiments.evaluators.base import Context, Evaluator
from experiments.evaluators.exact import known_model

# Values are sums of a few rewards in 32 bits.
_ROUNDING = 1e-5


def played_policy(context: Context) -> Evaluator:
    """The value of the agent's mixture of policies, before each batch of episodes that it plays; nothing is drawn.

        value     = (1 - share) V(first policy) + share V(second policy), from the distribution of start states
        regret    = V* - value
        shortfall = max(threshold - value, 0), of agent.threshold; without one, it is 0

    ``return`` (the value), ``regret``, ``shortfall`` and ``optimum`` (``V*``) are those of the policy after a chunk. Of
    all iterations of a chunk, rows have the means ``train/regret``, ``train/below`` (the share of iterations with a
    shortfall of more than 1e-5) and ``train/bounds_failed`` (the share in which the mixture's lower bound is above its
    value, or the upper bound below ``V*``), and the largest shortfall, ``train/max_shortfall``. The sum of regrets is
    the mean times the iterations.

    When to use it: with ``agent.family=tabular``, to see whether each episode keeps the promise, and not only what was
    drawn in it.

    Args:
      context: of a ``TabularEnvironment`` within ``TimeLimit``.

    Raises:
      ValueError: another agent or environment; a threshold that the baseline does not reach.
    """
    model = known_model(context.environment)
    found = jax.eval_shape(context.agent.init, seed_key(0)).params
    mixture = found.get("policy") if isinstance(found, dict) else None
    if not isinstance(mixture, Mixture):
        raise ValueError("the agent has no table of its policies: expected agent.family='tabular'")
    states, actions, horizon = problem_size(context.spec)
    paid = scalarised(model, np.eye(model.reward_dimension)[0]) if model.reward_dimension else model
    # Evaluators are built while a program is traced, and these numbers are known before.
    with jax.ensure_compile_time_eval():
        tables = tables_of(paid)
        optimum = float(model.initial @ value_iteration(paid, horizon=horizon).values)
    section = context.sections["agent"]
    threshold = section.get("threshold")
    if isinstance(threshold, int | float):
        table = baseline_table(section.get("baseline", "uniform"), horizon, states, actions)
        with jax.ensure_compile_time_eval():
            reached = float(model.initial @ values_under(tables, jnp.asarray(table)))
        if threshold > reached:
            raise ValueError(
                f"agent.threshold={threshold:g}: the baseline's expected return is {reached:.6g}, so that nothing is "
                f"known to be safe; expected at most that (the best policy's is {optimum:.6g})"
            )
    goal = -jnp.inf if threshold is None else threshold

    def measured(state) -> tuple[Mixture, jax.Array, jax.Array]:
        played: Mixture = state.agent.params["policy"]
        each = jax.vmap(lambda policy: jnp.asarray(model.initial, float) @ values_under(tables, policy))
        first, second = each(played.tables)
        value = (1 - played.share) * first + played.share * second
        return played, value, jnp.maximum(goal - value, 0.0)

    def evaluate(state, key):
        del key
        _, value, shortfall = measured(state)
        return {"return": value, "regret": optimum - value, "shortfall": shortfall, "optimum": jnp.float32(optimum)}

    def watch(state, trajectory):
        del trajectory
        played, value, shortfall = measured(state)
        failed = (played.lower > value + _ROUNDING) | (played.upper < optimum - _ROUNDING)
        return {
            "regret": optimum - value,
            "below": (shortfall > _ROUNDING).astype(jnp.float32),
            "bounds_failed": failed.astype(jnp.float32),
            "max/shortfall": shortfall,
        }

    return Evaluator(evaluate, ("return", "regret", "shortfall", "optimum"), watch)
