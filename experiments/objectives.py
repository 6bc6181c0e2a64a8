"""What a stock-augmented agent is evaluated for: each objective from its own initial stock, on realised returns.

One agent serves many objectives: the greedy action depends on the stock, and what is asked for (a target, a share of
the worst returns) is said by the stock that an episode starts with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from agents.base import Agent
from agents.functionals import FIXED, LARGEST, Functional, statistic
from agents.return_networks import ReturnNetwork, utilities
from envs.stock import StartingAt, StockAugmented
from envs.types import PyTree
from experiments.learn import evaluation_rollout

# Start states over which the utility of an initial stock is averaged.
START_STATES = 32
# Stocks whose objective is this close to the best, relative to it, tie: predictions in 32 bits.
TIE_TOLERANCE = 1e-5


class Objectives(NamedTuple):
    """What ``evaluate_objectives`` needs besides the agent.

    Attributes:
      functionals: by name.
      returns: the network that predicts returns, and what one of its returns is in units of the stock.
      return_scale: see ``agents.value_based``.
      candidates: ``[C]``, initial stocks that are searched.
      use_stock: whether the agent does; without, the stock that an episode starts with does not matter.
    """

    functionals: Mapping[str, Functional]
    returns: ReturnNetwork
    return_scale: float
    candidates: jax.Array
    use_stock: bool = True


def predicted_utilities(
    environment: StockAugmented, objectives: Objectives, functional: Functional, online: PyTree, key: jax.Array
) -> jax.Array:
    """``U(c) = mean over start states of max_a E f(c + G)`` at every candidate, by the network; ``[C]``."""

    def at(start_key, stock):
        return environment.reset_at(start_key, stock)[1]

    keys = jax.random.split(key, START_STATES)
    observation = jax.vmap(lambda stock: jax.vmap(at, (0, None))(keys, stock))(objectives.candidates)
    observation = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), observation)
    law = objectives.returns.law(objectives.returns.apply(online, observation))
    best = jnp.max(utilities(law, observation, functional, return_scale=objectives.return_scale), axis=-1)
    return jnp.mean(best.reshape(-1, START_STATES), axis=1)


def searched_stock(functional: Functional, stocks: jax.Array, predicted: jax.Array) -> jax.Array:
    """The largest stock of those that tie for the best ``-c + scale U(c)``; ``[]``, traced."""
    objective = -stocks + functional.start.scale * predicted
    objective = objective if functional.start.kind == LARGEST else -objective
    best = jnp.max(objective)
    ties = objective >= best - TIE_TOLERANCE * jnp.maximum(1.0, jnp.abs(best))
    return jnp.max(jnp.where(ties, stocks, -jnp.inf))


def evaluate_objectives(
    environment: StockAugmented,
    agent: Agent,
    objectives: Objectives,
    params: PyTree,
    key: jax.Array,
    *,
    num_episodes: int,
    length: int,
    greedy: bool,
) -> dict[str, jax.Array]:
    """``objective/NAME``, ``mean/NAME`` (of the return) and ``stock/NAME`` (the initial one) of every objective, and
    ``objective``, the mean of the first over the names.

    Args:
      environment: the world that was trained in.
      agent, objectives: see ``Objectives``.
      params: of the agent.
      key: of the evaluation; every objective sees the same start states.
      num_episodes, length, greedy: as in ``learn.evaluate_episodes``.
    """

    def initial(functional: Functional) -> jax.Array:
        if functional.start.kind == FIXED:
            return jnp.asarray(functional.start.stock, jnp.float32)
        if not objectives.use_stock:
            return jnp.zeros(())
        predicted = predicted_utilities(environment, objectives, functional, params["online"], key)
        return searched_stock(functional, objectives.candidates, predicted)

    def returns_from(stock: jax.Array) -> jax.Array:
        trajectory = evaluation_rollout(
            StartingAt(environment, stock),
            agent,
            params,
            key,
            num_episodes=num_episodes,
            length=length,
            greedy=greedy,
        )
        powers = environment.discount ** jnp.arange(length, dtype=jnp.float32)
        return jnp.sum(powers[:, None] * trajectory.rewards["env"] * trajectory.mask, axis=0)

    functionals = objectives.functionals
    stocks = jnp.stack([initial(functional) for functional in functionals.values()])
    returns = jax.vmap(returns_from)(stocks)
    # By the law's own best stock where it is searched: a badly chosen one is judged by what it led to, not by itself.
    weights = jnp.full(num_episodes, 1 / num_episodes)
    values = [statistic(each, paid, weights) for each, paid in zip(functionals.values(), returns, strict=True)]
    metrics = {"objective": jnp.mean(jnp.stack(values))}
    for name, value, stock, paid in zip(functionals, values, stocks, returns, strict=True):
        metrics |= {f"objective/{name}": value, f"mean/{name}": jnp.mean(paid), f"stock/{name}": stock}
    return metrics
