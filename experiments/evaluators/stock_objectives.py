"""What a stock-augmented agent achieves of each objective, from the objective's own initial stock.

One agent serves many objectives: its greedy action depends on the stock, and the stock that an episode starts with says
what is asked for (a target, a share of the worst returns).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.channels import channel_weights
from agents.functionals import FIXED, FUNCTIONALS, Functional, searched_stock, statistic
from envs.base import Observation, PyTree
from envs.choices import require_known
from envs.stock import with_start
from experiments.errors import UserError
from experiments.evaluators.base import Context, Evaluator, episode_length
from experiments.evaluators.episodes import discounted_returns

# The channel whose returns are judged.
JUDGED = "env"
# Start states over which the utility of an initial stock is averaged.
START_STATES = 32


class Objectives(NamedTuple):
    """Objectives of a stock-augmented agent, and what it takes to choose their initial stocks.

    Attributes:
      functionals: by name.
      return_distribution: that of ``agents.base.Agent``.
      candidates: ``[C]``, initial stocks among which an objective's is searched.
      use_stock: whether the agent sees its stock; without, the stock that an episode starts with makes no difference.
    """

    functionals: Mapping[str, Functional]
    return_distribution: Callable[..., Any]
    candidates: jax.Array
    use_stock: bool = True


def stock_objectives(
    context: Context,
    *,
    objectives: Mapping[str, Mapping[str, Any]],
    candidates: int = 181,
    count: int = 256,
    greedy: bool = True,
) -> Evaluator:
    """Every objective on the realised returns of ``count`` whole episodes from its initial stock.

    Reports ``objective_metrics``. All objectives see the same start states.

    Args:
      context: of an environment with a stock.
      objectives: by name, each ``{"kind": ..., ...}`` of ``agents.functionals.FUNCTIONALS``.
      candidates: so many initial stocks, evenly from the lowest to the highest start stock, are searched.
      count: episodes per objective.
      greedy: whether the agent acts greedily.

    Raises:
      ValueError: see ``build_objectives``; a count below 1; an environment whose episodes have no bound.
      UserError: see ``require_units_of_stock``.
    """
    wanted = build_objectives(context, objectives, candidates)
    if count < 1:
        raise ValueError(f"count={count}: expected at least 1")
    if context.spec.max_episode_steps is None:
        raise ValueError(
            "the episodes of this environment have no bound, and objectives are of whole returns: expected an "
            "environment with a time limit"
        )
    length, discount = episode_length(context.spec), context.sections["agent"]["discount"]
    # Compiled by itself for host environments, whose driver calls ``evaluate`` from Python.
    choose = jax.jit(lambda params, observation: initial_stocks(wanted, params, observation))

    def evaluate(state, key):
        params = state.agent.params
        start_key, episode_key = jax.random.split(key)
        stocks = choose(params, context.episodes.first_observations(start_key, min(count, START_STATES)))
        played = context.episodes.play(params, episode_key, count=count, length=length, greedy=greedy, stocks=stocks)
        returns = jax.vmap(lambda trajectory: discounted_returns(trajectory, JUDGED, discount))(
            played._replace(observation=(), next_observation=(), action=(), extras={})
        )
        return objective_metrics(wanted, stocks, returns)

    return Evaluator(evaluate, objective_names(wanted.functionals))


def build_objectives(context: Context, sections: Mapping[str, Mapping[str, Any]], candidates: int) -> Objectives:
    """The objectives that ``sections`` describe, checked against the environment and the agent.

    Raises:
      ValueError: no objective or no candidate; an unknown functional, one that refuses its arguments, or one of
        vectors; an agent that predicts no return distribution; an environment without stock, or whose stock adds up
        another channel than the one that is judged.
      UserError: see ``require_units_of_stock``.
    """
    if not sections:
        raise ValueError("objectives={}: expected at least one, such as {'tau_10': {'kind': 'cvar', 'level': 0.1}}")
    if candidates < 1:
        raise ValueError(f"candidates={candidates}: expected at least 1")
    stock = context.sections["environment"].get("stock")
    if stock is None:
        raise ValueError("the environment has no stock; expected a section environment.stock")
    channel = stock.get("channels", JUDGED)
    if channel != JUDGED:
        raise ValueError(
            f"judged are returns of the channel {JUDGED!r}, the stock adds up {channel!r}; expected "
            f"environment.stock.channels={JUDGED!r}"
        )
    if context.agent.return_distribution is None:
        raise ValueError("the agent predicts no return distribution; expected agent.family='value_based'")
    functionals = {name: _functional(name, section) for name, section in sections.items()}
    rewards = context.sections["rewards"]
    changes = {name: rewards[name] for name, written in context.written.items() if channel in written}
    require_units_of_stock(context.sections["agent"], channel, changes)
    points = jnp.linspace(stock["low"], stock["high"], candidates)
    use_stock = context.sections["agent"]["use_stock"]
    return Objectives(functionals, context.agent.return_distribution, points, use_stock)


def _functional(name: str, section: Mapping[str, Any]) -> Functional:
    arguments = dict(section)
    kind = arguments.pop("kind", None)
    if kind == "mean":
        raise ValueError(f"objectives.{name}: kind 'mean' is no functional; expected 'expectation'")
    require_known("functional", kind, FUNCTIONALS, f"in objectives.{name}")
    try:
        functional = FUNCTIONALS[kind](**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"objectives.{name}: {error}") from error
    if functional.dimension not in (None, 0):
        raise ValueError(
            f"objectives.{name}: {functional.name} is for vectors of {functional.dimension}, the return is a number; "
            "expected a functional of numbers, such as 'target_return'"
        )
    return functional


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
    weights = channel_weights(agent.get("channels"))
    if list(weights) != [channel]:
        raise UserError(
            f"agent.channels: the agent's reward is made of {', '.join(weights)}, the stock adds up "
            f"{channel!r}; an objective of stock plus return expects {channel!r} alone"
        )
    factors = {f"agent.channels.{channel}": weights[channel]}
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
    objectives: Objectives,
    functional: Functional,
    params: PyTree,
    observation: Observation,
    weights: jax.Array | None = None,
) -> jax.Array:
    """``U(c) = mean over start states of max_a E f(c + G)`` at every candidate, by the agent's prediction; ``[C]``.

    Args:
      objectives, functional: what is evaluated, and which of it.
      params: of the agent.
      observation: ``[S, ...]``, of episodes at their start, whatever their stocks.
      weights: ``[S]``, probabilities of the start states; equal where ``None``.
    """
    count = observation["stock"].shape[0]

    def at(stock):
        # At the start no discount has made the stock grow.
        return with_start(observation, jnp.full(count, stock), 1.0)

    candidates = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.vmap(at)(objectives.candidates))
    predicted = objectives.return_distribution(params, candidates)
    totals = candidates["stock"][:, None, None] + predicted.particles
    best = jnp.max(functional.value(totals, predicted.weights), axis=-1).reshape(-1, count)
    return jnp.average(best, axis=1, weights=weights)


def initial_stocks(
    objectives: Objectives, params: PyTree, observation: Observation, weights: jax.Array | None = None
) -> jax.Array:
    """The stock that each objective starts with, ``[K]``, traced; arguments as in ``predicted_utilities``."""

    def initial(functional: Functional) -> jax.Array:
        if functional.start.kind == FIXED:
            return jnp.asarray(functional.start.stock, jnp.float32)
        if not objectives.use_stock:
            return jnp.zeros(())
        predicted = predicted_utilities(objectives, functional, params, observation, weights)
        return objectives.candidates[searched_stock(functional, objectives.candidates, predicted)[1]]

    return jnp.stack([initial(functional) for functional in objectives.functionals.values()])


def objective_names(functionals: Mapping[str, Functional]) -> tuple[str, ...]:
    """The names of ``objective_metrics``."""
    kinds = ("objective", "mean", "stock", "edge")
    return ("objective", *(f"{kind}/{name}" for name in functionals for kind in kinds))


def objective_metrics(
    objectives: Objectives, stocks: jax.Array, returns: jax.Array, weights: jax.Array | None = None
) -> dict[str, jax.Array]:
    """What became of every objective, from its initial stock ``stocks [K]`` and the return distribution that followed.

    By name ``objective/NAME``, ``mean/NAME`` (of the return), ``stock/NAME`` (the initial one) and ``edge/NAME``, and
    ``objective``, the mean of the first over the names. ``edge/NAME`` is 1 where the candidates, and with them the
    range of start stocks, may be too narrow for an agent that uses its stock: what was searched is the first or the
    last of them, or a stock that is fixed lies beyond them.

    Args:
      objectives, stocks: what is evaluated, from where.
      returns: ``[K, N]``, realised or possible returns.
      weights: ``[K, N]``, their probabilities; equal where ``None``.
    """
    if weights is None:
        weights = jnp.full(returns.shape, 1 / returns.shape[1])
    # Where the stock is searched, the value is that of the best stock for these returns (``statistic``): a badly chosen
    # stock is judged by what it led to, not by itself.
    functionals = objectives.functionals
    values = [
        statistic(functional, paid, weight)
        for functional, paid, weight in zip(functionals.values(), returns, weights, strict=True)
    ]
    means = jnp.sum(weights * returns, axis=1)
    first, last = objectives.candidates[0], objectives.candidates[-1]
    metrics = {"objective": jnp.mean(jnp.stack(values))}
    for (name, functional), value, stock, mean in zip(functionals.items(), values, stocks, means, strict=True):
        fixed = functional.start.kind == FIXED
        edge = (stock < first) | (stock > last) if fixed else (stock <= first) | (stock >= last)
        metrics |= {f"objective/{name}": value, f"mean/{name}": mean, f"stock/{name}": stock}
        metrics[f"edge/{name}"] = jnp.float32(objectives.use_stock) * edge
    return metrics
