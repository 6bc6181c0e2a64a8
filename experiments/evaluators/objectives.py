"""What a stock-augmented agent is evaluated for: each objective from its own initial stock, on realised returns.

One agent serves many objectives: the greedy action depends on the stock, and what is asked for (a target, a share of
the worst returns) is said by the stock that an episode starts with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.base import Agent
from agents.functionals import FIXED, Functional, searched_stock, statistic
from agents.return_networks import ReturnNetwork, utilities
from envs.base import Observation, PyTree, Trajectory
from envs.stock import StartingAt, StockAugmented, with_start
from experiments.errors import UserError
from experiments.training.learn import evaluation_rollout

# The channel whose realised returns are judged.
JUDGED = "env"
# Start states over which the utility of an initial stock is averaged.
START_STATES = 32


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


def require_units_of_stock(agent: Mapping[str, Any], channel: str, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses an agent whose predicted returns are not in the units of the stock that they are added to.

    The stock adds up a channel as the environment pays it; the agent predicts returns of what the reward chain and its
    own weights make of the channels. Stock plus return means something only if the agent's reward is the stock's
    channel alone, changed by nothing but factors, and ``return_scale * weight * factors = 1``. Traced numbers have no
    value.

    Args:
      agent: the section, with ``channels`` and ``return_scale``.
      channel: what the stock adds up.
      changes: sections of the reward transforms that write this channel, by name.

    Raises:
      UserError: names the key and what it should be.
    """
    if list(agent["channels"]) != [channel]:
        raise UserError(
            f"agent.channels: the agent's reward is made of {', '.join(agent['channels'])}, the stock adds up "
            f"{channel!r}; an objective of stock plus return expects {channel!r} alone"
        )
    factors = {f"agent.channels.{channel}": agent["channels"][channel]}
    for name, section in changes.items():
        if section["kind"] != "scale":
            raise UserError(
                f"rewards.{name}: kind {section['kind']!r} changes the channel {channel!r}, which the stock adds up as "
                "the environment pays it; expected kind 'scale', or another channel"
            )
        factors[f"rewards.{name}.factor"] = section["factor"]
    scale = agent["return_scale"]
    if any(isinstance(number, jax.core.Tracer) for number in (scale, *factors.values())):
        return
    product = math.prod(float(factor) for factor in factors.values())
    if not math.isclose(float(scale) * product, 1.0, rel_tol=1e-5):
        shown = " and ".join(f"{key}={float(factor):g}" for key, factor in factors.items())
        expected = f"agent.return_scale={1 / product:g}" if product > 0 else "factors whose product is above 0"
        raise UserError(
            f"agent.return_scale={float(scale):g} does not undo {shown}: a predicted return would not be in the units "
            f"of the stock; expected {expected}"
        )


def predicted_utilities(
    objectives: Objectives, functional: Functional, online: PyTree, observation: Observation
) -> jax.Array:
    """``U(c) = mean over start states of max_a E f(c + G)`` at every candidate, by the network; ``[C]``.

    ``observation [S, ...]`` is of episodes at their start, whatever their stocks.
    """
    count = observation["stock"].shape[0]

    def at(stock):
        # At the start no discount has made the stock grow.
        return with_start(observation, jnp.full(count, stock), 1.0)

    candidates = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.vmap(at)(objectives.candidates))
    distribution = objectives.returns.distribution(objectives.returns.apply(online, candidates))
    best = jnp.max(utilities(distribution, candidates, functional, return_scale=objectives.return_scale), axis=-1)
    return jnp.mean(best.reshape(-1, count), axis=1)


def initial_stocks(objectives: Objectives, online: PyTree, observation: Observation) -> jax.Array:
    """The stock that each objective starts with, ``[K]``, traced; ``observation`` as in ``predicted_utilities``."""

    def initial(functional: Functional) -> jax.Array:
        if functional.start.kind == FIXED:
            return jnp.asarray(functional.start.stock, jnp.float32)
        if not objectives.use_stock:
            return jnp.zeros(())
        predicted = predicted_utilities(objectives, functional, online, observation)
        return objectives.candidates[searched_stock(functional, objectives.candidates, predicted)[1]]

    return jnp.stack([initial(functional) for functional in objectives.functionals.values()])


def discounted_returns(trajectory: Trajectory, discount: float) -> jax.Array:
    """``sum_t discount^t r_t`` of whole episodes ``[T, B]``; ``[B]``."""
    powers = discount ** jnp.arange(trajectory.mask.shape[0], dtype=jnp.float32)
    return jnp.sum(powers[:, None] * trajectory.rewards[JUDGED] * trajectory.mask, axis=0)


def objective_metrics(objectives: Objectives, stocks: jax.Array, returns: jax.Array) -> dict[str, jax.Array]:
    """What became of every objective, from its initial stock, ``stocks [K]``, and the realised ``returns [K, N]``.

    By name ``objective/NAME``, ``mean/NAME`` (of the return), ``stock/NAME`` (the initial one) and ``edge/NAME``, and
    ``objective``, the mean of the first over the names. ``edge/NAME`` is 1 where the candidates, and with them the
    range of start stocks, may be too narrow for an agent that uses its stock: what was searched is the first or the
    last of them, or a stock that is fixed lies beyond them.
    """
    # By the distribution's own best stock where it is searched: a badly chosen one is judged by what it led to, not by
    # itself.
    weights = jnp.full(returns.shape[1], 1 / returns.shape[1])
    functionals = objectives.functionals
    values = [statistic(each, paid, weights) for each, paid in zip(functionals.values(), returns, strict=True)]
    first, last = objectives.candidates[0], objectives.candidates[-1]
    metrics = {"objective": jnp.mean(jnp.stack(values))}
    for (name, functional), value, stock, paid in zip(functionals.items(), values, stocks, returns, strict=True):
        fixed = functional.start.kind == FIXED
        edge = (stock < first) | (stock > last) if fixed else (stock <= first) | (stock >= last)
        metrics |= {f"objective/{name}": value, f"mean/{name}": jnp.mean(paid), f"stock/{name}": stock}
        metrics[f"edge/{name}"] = jnp.float32(objectives.use_stock) * edge
    return metrics


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
    """``objective_metrics`` of ``num_episodes`` episodes for each objective, in a pure environment.

    Args:
      environment: the environment that was trained in.
      agent, objectives: see ``Objectives``.
      params: of the agent.
      key: of the evaluation; every objective sees the same start states.
      num_episodes, length, greedy: as in ``learn.evaluate_episodes``.
    """

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
        return discounted_returns(trajectory, environment.discount)

    _, observation = jax.vmap(environment.reset)(jax.random.split(key, START_STATES))
    stocks = initial_stocks(objectives, params["online"], observation)
    return objective_metrics(objectives, stocks, jax.vmap(returns_from)(stocks))
