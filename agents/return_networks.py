"""Networks that predict returns, and the actions that are greedy with respect to their predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from agents.functionals import Functional, statistic
from agents.networks.base import Head, NetworkBuilder
from agents.networks.implicit_quantile import implicit_quantile_network
from agents.networks.sequence import NetworkConfig, require_sequence
from agents.value_losses import midpoints
from envs.base import EnvironmentSpec, Observation, PyTree, UnsupportedSpaceError
from envs.choices import require_known
from envs.stock import is_augmented, visible

HEADS = ("expected", "categorical", "quantile", "implicit_quantile")
# Actions tie whose utilities differ from the best by at most this share of the largest: float32 rounding of a mean.
TIE_TOLERANCE = 1e-6


class ReturnDistribution(NamedTuple):
    """Return distributions by action: ``particles [B, A, N]``, and ``weights`` that broadcast to that shape."""

    particles: jax.Array
    weights: jax.Array


class ReturnNetwork(NamedTuple):
    """A network that predicts returns, as pure functions.

    Attributes:
      init: ``(key) -> params``.
      apply: ``(params, observation [B, ...], fractions [B, N] or None) -> outputs [B, A, N]``: values (N = 1), logits
        or quantiles. Only an implicit head uses ``fractions``; ``None`` means the midpoints.
      observe: ``(params, observation [T, B, ...], mask [T, B]) -> params``, see ``agents.networks.base.Network``.
      distribution: ``(outputs) -> ReturnDistribution``.
      atoms: ``[N]`` for a categorical head, else ``None``.
      head: one of ``HEADS``.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[..., jax.Array]
    observe: Callable[[PyTree, PyTree, jax.Array], PyTree]
    distribution: Callable[[jax.Array], ReturnDistribution]
    atoms: jax.Array | None
    head: str


def return_network(
    spec: EnvironmentSpec,
    config: NetworkBuilder,
    *,
    head: str = "expected",
    dueling: bool = False,
    quantiles: int = 32,
    atoms: int = 51,
    value_low: float | jax.Array = -10.0,
    value_high: float | jax.Array = 10.0,
    use_stock: bool = True,
    stock_features: int = 0,
) -> ReturnNetwork:
    """The network of ``agents.value_based``; see there for the arguments.

    Raises:
      ValueError: an unknown head; a recurrent network; an implicit head that is dueling or with a network of another
        kind than ``sequence``; fewer than 1 quantile or 2 atoms; a single stock feature, or stock features where there
        is no stock or it is not used.
      UnsupportedSpaceError: actions that are not Discrete, or an observation space that cannot be encoded.
    """
    require_known("head", head, HEADS)
    if not isinstance(spec.action_space, gymnasium.spaces.Discrete):
        raise UnsupportedSpaceError(
            f"value_based finds greedy actions in Discrete spaces only, got {spec.action_space}"
        )
    if isinstance(config, NetworkConfig) and config.recurrent_size > 0:
        raise ValueError(f"recurrent_size={config.recurrent_size}: value_based is feed-forward, expected 0")
    if head == "implicit_quantile" and dueling:
        raise ValueError(f"dueling=True: expected one of the heads {HEADS[:3]}, got {head!r}")
    if quantiles < 1 or atoms < 2:
        raise ValueError(f"quantiles={quantiles}, atoms={atoms}: expected at least 1 quantile and 2 atoms")
    see, space = _stock_encoder(spec.observation_space, use_stock, stock_features)
    actions = int(spec.action_space.n)
    size = {"expected": 1, "categorical": atoms}.get(head, quantiles)
    support = jnp.linspace(value_low, value_high, atoms) if head == "categorical" else None

    def time_major(observation):
        return jax.tree.map(lambda x: jnp.asarray(x)[None], see(observation))

    def observer(observe):
        return lambda params, observation, mask: observe(params, see(observation), mask)

    def distribution(outputs):
        if head == "categorical":
            return ReturnDistribution(jnp.broadcast_to(support, outputs.shape), jax.nn.softmax(outputs))
        return ReturnDistribution(outputs, jnp.full(outputs.shape[-1], 1 / outputs.shape[-1]))

    # Heads start near 0, so that the first prediction is a return of about 0 for every action.
    if head == "implicit_quantile":
        numbers = require_sequence(config, "head='implicit_quantile'")
        implicit = implicit_quantile_network(space, Head(actions, scale=0.01), numbers)

        def apply_implicit(params, observation, fractions=None):
            observation = time_major(observation)
            if fractions is None:
                batch = jax.tree.leaves(observation)[0].shape[1]
                fractions = jnp.broadcast_to(midpoints(quantiles), (batch, quantiles))
            return jnp.swapaxes(implicit.apply(params, observation, fractions[None])[0], 1, 2)

        return ReturnNetwork(implicit.init, apply_implicit, observer(implicit.observe), distribution, support, head)

    heads = {"advantage": Head(actions * size, scale=0.01)}
    heads |= {"value": Head(size, scale=0.01)} if dueling else {}
    explicit = config(space, heads)
    if explicit.recurrent:
        raise ValueError(f"value_based is feed-forward, got {config} with a carry: expected recurrent=False")

    def apply_explicit(params, observation, fractions=None):
        del fractions
        outputs, _ = explicit.apply(params, time_major(observation))
        advantage = outputs["advantage"][0].reshape(-1, actions, size)
        if not dueling:
            return advantage
        return outputs["value"][0][:, None] + advantage - jnp.mean(advantage, axis=1, keepdims=True)

    return ReturnNetwork(explicit.init, apply_explicit, observer(explicit.observe), distribution, support, head)


def _stock_encoder(
    space: gymnasium.Space, use_stock: bool, features: int
) -> tuple[Callable[[Observation], Observation], gymnasium.Space]:
    """The function that selects what the network sees of an observation, and the space of its result."""
    if not is_augmented(space):
        if features:
            raise ValueError(
                f"stock_features={features}: expected 0, because the environment has no stock (see envs.stock)"
            )
        return lambda observation: observation, space
    if features == 1 or features < 0 or (features and not use_stock):
        raise ValueError(
            f"stock_features={features}, use_stock={use_stock}: expected 0, or at least 2 and use_stock=True"
        )
    parts = dict(visible(space).spaces)
    start = space["start_stock"]
    if not use_stock:
        del parts["stock"]
    elif features:
        parts["stock"] = gymnasium.spaces.Box(-np.inf, np.inf, (*start.shape, features + 1), np.float32)

    def see(observation):
        seen = {name: part for name, part in observation.items() if name in parts}
        if use_stock and features:
            seen["stock"] = stock_hats(seen["stock"], start.low, start.high, features)
        return seen

    return see, gymnasium.spaces.Dict(parts)


def stock_hats(stock: jax.Array, low: np.ndarray, high: np.ndarray, count: int) -> jax.Array:
    """``count`` hat functions of a stock, and the scaled stock itself; ``[...]`` to ``[..., count + 1]``.

    The hats are ``max(0, 1 - |stock - z_i| / step)`` at ``count`` points ``z_i``, ``step`` apart from ``low`` to
    ``high``. A linear layer on them represents every function of the stock that is piecewise linear with kinks at the
    ``z_i``, which a network on the bare number would have to learn. Beyond the range the outermost hat stays 1. The
    scaled stock, ``2 (stock - low) / (high - low) - 1``, is clipped one width of the range beyond either end, because a
    discounted stock grows without bound.
    """
    low, width = jnp.asarray(low), jnp.maximum(jnp.asarray(high) - low, 1e-6)
    place = jnp.clip((jnp.asarray(stock) - low) / width, -1.0, 2.0)
    inside = jnp.clip(place, 0.0, 1.0)[..., None] * (count - 1)
    hats = jnp.clip(1 - jnp.abs(inside - jnp.arange(count)), 0.0, 1.0)
    return jnp.concatenate([hats, 2 * place[..., None] - 1], axis=-1)


def utilities(
    distribution: ReturnDistribution,
    observation: Observation,
    functional: Functional | None,
    *,
    return_scale: float | jax.Array = 1.0,
    use_stock: bool = True,
) -> jax.Array:
    """The utility of each action, ``[B, A]``: the mean of its return, or the functional of stock plus return.

    Without ``use_stock`` it is the functional's objective of the future return alone, as if the episode began here.

    Args:
      distribution: of the returns by action.
      observation: ``[B, ...]``, with the entry ``stock`` in a stock-augmented environment.
      functional: the objective; ``None`` for the mean.
      return_scale: what a predicted return is multiplied by to be in units of the stock.
      use_stock: whether to add the stock.
    """
    if functional is None:
        return jnp.sum(distribution.weights * distribution.particles, axis=-1)
    particles = return_scale * distribution.particles
    if not use_stock:
        return statistic(functional, particles, jnp.broadcast_to(distribution.weights, particles.shape))
    if isinstance(observation, Mapping) and "stock" in observation:
        particles = particles + jnp.asarray(observation["stock"])[:, None, None]
    return functional.value(particles, distribution.weights)


def best_actions(utility: jax.Array, allowed: jax.Array | None = None) -> jax.Array:
    """The uniform policy over the best of the ``allowed`` actions, utilities ``[B, A]`` to probabilities ``[B, A]``;
    see ``TIE_TOLERANCE``."""
    if allowed is not None:
        # The lowest utility that there is, and not -inf: the scale of the ties stays finite.
        lowest = jnp.min(utility, axis=-1, keepdims=True)
        utility = jnp.where(allowed, utility, lowest)
    scale = jnp.max(jnp.abs(utility), axis=-1, keepdims=True)
    tied = utility >= jnp.max(utility, axis=-1, keepdims=True) - TIE_TOLERANCE * scale
    tied = tied if allowed is None else tied & allowed
    return tied / jnp.sum(tied, axis=-1, keepdims=True)
