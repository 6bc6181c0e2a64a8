"""What a threshold leads to in the closed loop of ``envs.native.selection``, exactly, beside the best fixed one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from envs.native.selection import Selection
from envs.wrappers import innermost
from experiments.evaluators.base import Context, Evaluator


def steady_state(context: Context) -> Evaluator:
    """The population's reward and residuals once it has settled under the agent's greedy threshold.

        return    = expected reward of a period at the mix ``target(theta)``
        violation = max_j max(residual_j, 0) there
        gap       = (best return of the fixed thresholds whose residuals are all <= 0 where they settle) - return

    Of every period of training, whose mix and threshold are known, rows have the means ``train/reward``,
    ``train/violation`` and ``train/gap`` (to the same best return), without the noise that the agent sees. Their sums
    are the means times the iterations. A gap below 0 is a higher reward than any feasible fixed threshold's.

    Args:
      context: of the environment ``selection``; the agent's greedy threshold is asked for in the starting mix.

    Raises:
      ValueError: another environment, or one in which no threshold is feasible.
    """
    environment = innermost(context.environment)[0]
    if not isinstance(environment, Selection):
        raise ValueError("the environment has no steady state that is known: expected environment.kind='selection'")
    best = best_feasible(environment)
    agent = context.agent

    def evaluate(state, key):
        observation = jnp.full((1, 1), environment.start, jnp.float32)
        action, _, _ = agent.act(state.agent.params, agent.initial_carry(1), observation, key, greedy=True)
        found = environment.expected(jnp.asarray(environment.target, jnp.float32)[action[0]], action[0])
        violation = jnp.max(jnp.maximum(found.residuals, 0.0))
        return {"return": found.reward, "violation": violation, "gap": best - found.reward}

    def watch(state, trajectory):
        del state
        found = environment.expected(trajectory.observation[..., 0], trajectory.action)
        violation = jnp.maximum(found.residuals, 0.0).max(-1)
        return {"reward": found.reward.mean(), "violation": violation.mean(), "gap": best - found.reward.mean()}

    return Evaluator(evaluate, ("return", "violation", "gap"), watch)


def best_feasible(environment: Selection) -> float:
    """The largest reward of a fixed threshold at its steady state, among those with no residual above 0 there.

    Raises:
      ValueError: if there is none.
    """
    actions = np.arange(environment.thresholds)
    with jax.ensure_compile_time_eval():
        reward, residuals = map(np.asarray, environment.expected(environment.target, actions))
    feasible = (residuals <= 0).all(-1)
    if not feasible.any():
        raise ValueError(
            f"tolerance={environment.tolerance:g}, service={environment.service:g}: no threshold meets both; the "
            f"smallest violation is {residuals.max(-1).min():.4g}"
        )
    return float(reward[feasible].max())
