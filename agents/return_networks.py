"""Networks that predict returns, and what is greedy by their predictions: actions, and the start stock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp

from agents.functionals import Functional, initial_stock
from agents.networks import Head, NetworkConfig, implicit_quantile_network, network
from agents.value_losses import midpoints
from envs.spaces import nearest
from envs.stock import is_augmented, visible
from envs.types import EnvironmentSpec, Observation, PyTree, UnsupportedSpaceError

HEADS = ("expected", "categorical", "quantile", "implicit_quantile")
# Actions whose utility is this close to the best, relative to the largest, tie: rounding of a mean in 32 bits.
TIE_TOLERANCE = 1e-6


class Law(NamedTuple):
    """Laws of the return by action: ``particles [B, A, N]`` and ``weights``, which broadcast to them."""

    particles: jax.Array
    weights: jax.Array


class ReturnNetwork(NamedTuple):
    """A network that predicts returns, as pure functions.

    Attributes:
      init: ``(key) -> params``.
      apply: ``(params, observation [B, ...], fractions [B, N] or None) -> outputs [B, A, N]``: values (N = 1), logits
        or quantiles. ``fractions`` are for an implicit head; ``None`` is the midpoints.
      law: ``(outputs) -> Law``.
      atoms: ``[N]`` for a categorical head, else ``None``.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[..., jax.Array]
    law: Callable[[jax.Array], Law]
    atoms: jax.Array | None


def return_network(
    spec: EnvironmentSpec,
    config: NetworkConfig,
    *,
    head: str = "expected",
    dueling: bool = False,
    quantiles: int = 32,
    atoms: int = 51,
    value_low: float | jax.Array = -10.0,
    value_high: float | jax.Array = 10.0,
) -> ReturnNetwork:
    """The network of ``agents.value_based``; see there for the arguments.

    Raises:
      ValueError: unknown head; a recurrent network; a dueling implicit head; fewer than 1 quantile or 2 atoms.
      UnsupportedSpaceError: actions that are not Discrete, or an observation without encoder.
    """
    if head not in HEADS:
        raise ValueError(f"head={head!r}: expected one of {HEADS}; {nearest(str(head), HEADS)}")
    if not isinstance(spec.action_space, gymnasium.spaces.Discrete):
        raise UnsupportedSpaceError(
            f"value_based: no greedy action in the space {spec.action_space}: expected Discrete"
        )
    if config.recurrent_size > 0:
        raise ValueError(f"recurrent_size={config.recurrent_size}: value_based has no recurrence, expected 0")
    if head == "implicit_quantile" and dueling:
        raise ValueError(f"dueling=True: expected one of the heads {HEADS[:3]}, got {head!r}")
    if quantiles < 1 or atoms < 2:
        raise ValueError(f"quantiles={quantiles}, atoms={atoms}: expected at least 1 and 2")
    space = spec.observation_space
    augmented = is_augmented(space)
    space = visible(space) if augmented else space
    actions = int(spec.action_space.n)
    size = {"expected": 1, "categorical": atoms}.get(head, quantiles)
    support = jnp.linspace(value_low, value_high, atoms) if head == "categorical" else None

    def time_major(observation):
        return jax.tree.map(lambda x: jnp.asarray(x)[None], visible(observation) if augmented else observation)

    def law(outputs):
        if head == "categorical":
            return Law(jnp.broadcast_to(support, outputs.shape), jax.nn.softmax(outputs))
        return Law(outputs, jnp.full(outputs.shape[-1], 1 / outputs.shape[-1]))

    # Heads start near 0: a first guess of no return, for every action alike.
    if head == "implicit_quantile":
        implicit = implicit_quantile_network(space, Head(actions, scale=0.01), config)

        def apply_implicit(params, observation, fractions=None):
            observation = time_major(observation)
            if fractions is None:
                batch = jax.tree.leaves(observation)[0].shape[1]
                fractions = jnp.broadcast_to(midpoints(quantiles), (batch, quantiles))
            return jnp.swapaxes(implicit.apply(params, observation, fractions[None])[0], 1, 2)

        return ReturnNetwork(implicit.init, apply_implicit, law, support)

    heads = {"advantage": Head(actions * size, scale=0.01)}
    heads |= {"value": Head(size, scale=0.01)} if dueling else {}
    explicit = network(space, heads, config)

    def apply_explicit(params, observation, fractions=None):
        del fractions
        outputs, _ = explicit.apply(params, time_major(observation))
        advantage = outputs["advantage"][0].reshape(-1, actions, size)
        if not dueling:
            return advantage
        return outputs["value"][0][:, None] + advantage - jnp.mean(advantage, axis=1, keepdims=True)

    return ReturnNetwork(explicit.init, apply_explicit, law, support)


def utilities(
    law: Law, observation: Observation, functional: Functional | None, *, return_scale: float | jax.Array = 1.0
) -> jax.Array:
    """What each action is worth, ``[B, A]``: the mean of its law, or the functional of stock plus return."""
    if functional is None:
        return jnp.sum(law.weights * law.particles, axis=-1)
    particles = return_scale * law.particles
    if isinstance(observation, Mapping) and "stock" in observation:
        particles = particles + jnp.asarray(observation["stock"])[:, None, None]
    return functional.value(particles, law.weights)


def best_actions(utility: jax.Array) -> jax.Array:
    """The uniform policy over the best actions: ``[B, A]`` to probabilities ``[B, A]``; ties within rounding."""
    scale = jnp.max(jnp.abs(utility), axis=-1, keepdims=True)
    tied = utility >= jnp.max(utility, axis=-1, keepdims=True) - TIE_TOLERANCE * scale
    return tied / jnp.sum(tied, axis=-1, keepdims=True)


def search_stock(
    returns: ReturnNetwork,
    params: PyTree,
    observation: Observation,
    functional: Functional,
    grid: jax.Array,
    *,
    return_scale: float = 1.0,
) -> tuple[float, float]:
    """The start stock that the functional's rule takes from ``grid``, by what the network predicts.

    ``U(c) = max_a K(law of c + G at (s_0, c, a))`` at every ``c`` of the grid, and then
    ``agents.functionals.initial_stock``. Concrete arrays only.

    Args:
      returns, params: the network and its parameters, ``state.params["online"]`` of an agent.
      observation: one observation of a stock-augmented world at its start, without batch axis.
      functional: the objective.
      grid: ``[C]``, candidates.
      return_scale: see ``agents.value_based``.

    Returns:
      The value of the functional and the stock.
    """
    grid = jnp.asarray(grid, jnp.float32)
    batch = jax.tree.map(lambda x: jnp.broadcast_to(x, (grid.shape[0], *jnp.shape(x))), observation)
    batch = batch | {"stock": grid, "start_stock": grid}
    law = returns.law(returns.apply(params, batch))
    best = jnp.max(utilities(law, batch, functional, return_scale=return_scale), axis=-1)
    value, index = initial_stock(functional, grid, best)
    return value, float(grid[index])
