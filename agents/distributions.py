"""Action distributions as pure functions of a flat parameter array ``[..., P]``.

A network outputs one array of parameters, whatever the action space. Samples, modes, log-probabilities and entropies
are functions of that array. The distribution over a Dict or Tuple space is the product of its parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from envs.base import PyTree, UnsupportedSpaceError
from envs.choices import require_known

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
# Distributions over Box actions, by the name of ``agent.continuous``.
CONTINUOUS = ("gaussian", "state_dependent_gaussian", "tanh_gaussian")


class Distribution(NamedTuple):
    """A family of distributions over actions.

    Attributes:
      num_parameters: ``P``, the length of the parameter array.
      num_free: how many of the last parameters do not depend on the observation (log standard deviations); a network
        keeps them as parameters of its own.
      sample: ``(key, parameters [..., P]) -> action``.
      mode: ``(parameters) -> action``, the greedy action.
      log_prob: ``(parameters, action) -> [...]``, summed over action dimensions.
      entropy: ``(parameters) -> [...]``, in nats.
      divergence: ``(parameters, others) -> [...]``, ``KL(parameters || others)`` in nats.
    """

    num_parameters: int
    num_free: int
    sample: Callable[[jax.Array, jax.Array], PyTree]
    mode: Callable[[jax.Array], PyTree]
    log_prob: Callable[[jax.Array, PyTree], jax.Array]
    entropy: Callable[[jax.Array], jax.Array]
    divergence: Callable[[jax.Array, jax.Array], jax.Array]


def categorical(num_actions: int) -> Distribution:
    """``p(a) = softmax(parameters)_a`` over ``num_actions`` actions; actions are ``int32``."""

    def log_prob(parameters, action):
        # A masked sum, not a gather: the gradient of a gather is a scatter, which is slow on every device.
        chosen = jax.nn.one_hot(action, num_actions, dtype=bool)
        return jnp.sum(jnp.where(chosen, jax.nn.log_softmax(parameters), 0.0), axis=-1)

    def entropy(parameters):
        log_probabilities = jax.nn.log_softmax(parameters)
        probabilities = jnp.exp(log_probabilities)
        # 0 log 0 = 0. The infinite logarithm is replaced before the product, whose gradient would be 0 * -inf = NaN.
        log_probabilities = jnp.where(probabilities > 0, log_probabilities, 0.0)
        return -jnp.sum(probabilities * log_probabilities, axis=-1)

    def divergence(parameters, others):
        log_probabilities, log_others = jax.nn.log_softmax(parameters), jax.nn.log_softmax(others)
        possible = jnp.exp(log_probabilities) > 0
        # As in the entropy; an action that is ruled out is ruled out by both.
        change = jnp.where(possible, log_probabilities, 0.0) - jnp.where(possible, log_others, 0.0)
        return jnp.sum(jnp.exp(log_probabilities) * change, axis=-1)

    return Distribution(
        num_parameters=num_actions,
        num_free=0,
        sample=lambda key, parameters: jax.random.categorical(key, parameters).astype(jnp.int32),
        mode=lambda parameters: jnp.argmax(parameters, axis=-1).astype(jnp.int32),
        log_prob=log_prob,
        entropy=entropy,
        divergence=divergence,
    )


def multi_categorical(num_actions: tuple[int, ...]) -> Distribution:
    """Independent categorical choices; actions are ``int32 [..., len(num_actions)]``."""
    parts = [categorical(n) for n in num_actions]
    bounds = np.cumsum(num_actions)[:-1].tolist()

    def split(parameters):
        return jnp.split(parameters, bounds, axis=-1)

    def sample(key, parameters):
        pieces = split(parameters)
        keys = jax.random.split(key, len(parts))
        return jnp.stack([d.sample(k, p) for d, k, p in zip(parts, keys, pieces, strict=True)], axis=-1)

    return Distribution(
        num_parameters=int(sum(num_actions)),
        num_free=0,
        sample=sample,
        mode=lambda x: jnp.stack([d.mode(p) for d, p in zip(parts, split(x), strict=True)], axis=-1),
        log_prob=lambda x, action: sum(
            d.log_prob(p, action[..., i]) for i, (d, p) in enumerate(zip(parts, split(x), strict=True))
        ),
        entropy=lambda x: sum(d.entropy(p) for d, p in zip(parts, split(x), strict=True)),
        divergence=lambda x, y: sum(d.divergence(p, q) for d, p, q in zip(parts, split(x), split(y), strict=True)),
    )


def _moments(parameters: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean, log_std = jnp.split(parameters, 2, axis=-1)
    return mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)


def _gaussian_log_prob(mean, log_std, x):
    return jnp.sum(-0.5 * jnp.square((x - mean) * jnp.exp(-log_std)) - log_std - 0.5 * math.log(2 * math.pi), axis=-1)


def _gaussian_divergence(parameters: jax.Array, others: jax.Array) -> jax.Array:
    (mean, log_std), (other_mean, other_log_std) = _moments(parameters), _moments(others)
    squares = jnp.exp(2 * (log_std - other_log_std)) + jnp.square((mean - other_mean) * jnp.exp(-other_log_std))
    return jnp.sum(other_log_std - log_std + 0.5 * squares - 0.5, axis=-1)


def gaussian(size: int, *, state_dependent_std: bool = False) -> Distribution:
    """``a ~ N(mean, exp(log_std)^2)`` with ``parameters = [mean, log_std]``; actions ``[..., size]`` are unbounded.

    ``log_std`` is clipped to [-5, 2]. A rollout clips actions on their way to a bounded environment; the
    log-probability is that of the unclipped action. With ``state_dependent_std`` the network predicts ``log_std``,
    otherwise it is a free parameter.
    """

    def sample(key, parameters):
        mean, log_std = _moments(parameters)
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)

    def log_prob(parameters, action):
        return _gaussian_log_prob(*_moments(parameters), action)

    def entropy(parameters):
        _, log_std = _moments(parameters)
        return jnp.sum(log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    return Distribution(
        num_parameters=2 * size,
        num_free=0 if state_dependent_std else size,
        sample=sample,
        mode=lambda parameters: _moments(parameters)[0],
        log_prob=log_prob,
        entropy=entropy,
        divergence=_gaussian_divergence,
    )


def tanh_gaussian(low: np.ndarray, high: np.ndarray, *, state_dependent_std: bool = True) -> Distribution:
    """``a = low + (high - low)(tanh(x) + 1)/2``, ``x ~ N(mean, exp(log_std)^2)``; actions in ``(low, high)``.

    ``log p(a) = log N(x) - sum_i log(1 - tanh(x_i)^2) - sum_i log((high_i - low_i)/2)``
    (Haarnoja et al., 2018, appendix C). The entropy has no closed form; it is the Gaussian's plus the
    expectation of the log-derivative by the trapezoidal rule on 81 points, with an error of about 1e-4.
    ``log_prob`` treats actions beyond ``|x| = 7.25``, where float32 cannot resolve ``tanh``, as if ``|x|`` were 7.25.
    """
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    centre, half_width = (low + high) / 2, (high - low) / 2
    log_half_width = float(np.sum(np.log(half_width)))
    # Not Gauss-Hermite: for a large standard deviation the log-derivative is nearly -2|x|, whose kink costs 0.2 nats.
    nodes = np.linspace(-6.0, 6.0, 81)
    node_weights = np.exp(-0.5 * np.square(nodes))
    node_weights = node_weights / node_weights.sum()

    def log_derivative(x):
        # log(1 - tanh(x)^2), written so that it does not underflow.
        return 2.0 * (math.log(2.0) - x - jax.nn.softplus(-2.0 * x))

    def squash(x):
        return centre + half_width * jnp.tanh(x)

    def sample(key, parameters):
        mean, log_std = _moments(parameters)
        return squash(mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape))

    def log_prob(parameters, action):
        unit = jnp.clip((action - centre) / half_width, -1 + 1e-6, 1 - 1e-6)
        x = jnp.arctanh(unit)
        return _gaussian_log_prob(*_moments(parameters), x) - jnp.sum(log_derivative(x), axis=-1) - log_half_width

    def entropy(parameters):
        mean, log_std = _moments(parameters)
        x = mean[..., None] + jnp.exp(log_std)[..., None] * nodes
        expected = jnp.sum(log_derivative(x) * node_weights, axis=-1)
        base = log_std + 0.5 * math.log(2 * math.pi * math.e)
        return jnp.sum(base + expected, axis=-1) + log_half_width

    size = int(low.size)
    return Distribution(
        num_parameters=2 * size,
        num_free=0 if state_dependent_std else size,
        sample=sample,
        mode=lambda parameters: squash(_moments(parameters)[0]),
        log_prob=log_prob,
        entropy=entropy,
        # A function of both, such as tanh, does not change it.
        divergence=_gaussian_divergence,
    )


def with_constants(distribution: Distribution, space: gymnasium.spaces.Box) -> Distribution:
    """``distribution`` over the components of ``space`` that can vary; the others (``low == high``) are constant.

    A constant component has no parameters, and adds nothing to the log-probability and the entropy.
    """
    varies = np.flatnonzero(space.low < space.high)

    def complete(action):
        constant = jnp.broadcast_to(jnp.asarray(space.low), (*action.shape[:-1], space.low.size))
        return constant.at[..., varies].set(action)

    return distribution._replace(
        sample=lambda key, parameters: complete(distribution.sample(key, parameters)),
        mode=lambda parameters: complete(distribution.mode(parameters)),
        log_prob=lambda parameters, action: distribution.log_prob(parameters, action[..., varies]),
    )


def joint(parts: list[Distribution], structure: Any) -> Distribution:
    """The product of ``parts``, over actions of the pytree ``structure`` (a treedef with one leaf per part).

    Raises:
      ValueError: a part has free parameters, which would not be the last of the joint array: expected Gaussians with
        ``state_dependent_std=True``.
    """
    if any(part.num_free for part in parts):
        raise ValueError("joint: a part has observation-independent parameters; expected none")
    bounds = np.cumsum([part.num_parameters for part in parts])[:-1].tolist()

    def split(parameters):
        return jnp.split(parameters, bounds, axis=-1)

    def sample(key, parameters):
        keys = jax.random.split(key, len(parts))
        pieces = zip(parts, keys, split(parameters), strict=True)
        return jax.tree.unflatten(structure, [d.sample(k, p) for d, k, p in pieces])

    return Distribution(
        num_parameters=sum(part.num_parameters for part in parts),
        num_free=0,
        sample=sample,
        mode=lambda x: jax.tree.unflatten(structure, [d.mode(p) for d, p in zip(parts, split(x), strict=True)]),
        log_prob=lambda x, action: sum(
            d.log_prob(p, a) for d, p, a in zip(parts, split(x), jax.tree.leaves(action), strict=True)
        ),
        entropy=lambda x: sum(d.entropy(p) for d, p in zip(parts, split(x), strict=True)),
        divergence=lambda x, y: sum(d.divergence(p, q) for d, p, q in zip(parts, split(x), split(y), strict=True)),
    )


def shifted(distribution: Distribution, offset: jax.Array) -> Distribution:
    """``distribution`` of ``parameters + offset``, so that a network whose outputs start at 0 starts elsewhere.

    Args:
      distribution: of ``[..., P]`` parameters.
      offset: ``[P]``.
    """
    return distribution._replace(
        sample=lambda key, parameters: distribution.sample(key, parameters + offset),
        mode=lambda parameters: distribution.mode(parameters + offset),
        log_prob=lambda parameters, action: distribution.log_prob(parameters + offset, action),
        entropy=lambda parameters: distribution.entropy(parameters + offset),
        divergence=lambda parameters, others: distribution.divergence(parameters + offset, others + offset),
    )


def _leaf_distribution(
    space: gymnasium.Space, continuous: str, state_dependent_std: bool, initial_std: float | jax.Array
) -> Distribution | None:
    """The distribution over a space without parts, or ``None`` where there is none."""
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Discrete):
        return categorical(int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return multi_categorical(tuple(int(n) for n in space.nvec))
    if not (isinstance(space, spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)):
        return None
    varies = space.low < space.high
    if not varies.any():
        raise UnsupportedSpaceError(f"{space}: low equals high in every component, so that there is nothing to choose")
    size = int(varies.sum())
    if continuous != "tanh_gaussian":
        own = state_dependent_std or continuous == "state_dependent_gaussian"
        distribution = gaussian(size, state_dependent_std=own)
    elif space.is_bounded():
        distribution = tanh_gaussian(space.low[varies], space.high[varies])
    else:
        raise ValueError(f"tanh_gaussian needs a bounded Box, got {space}; use continuous='state_dependent_gaussian'")
    # A deviation of 1 is what the parameters start at.
    if isinstance(initial_std, jax.core.Tracer) or initial_std != 1:
        distribution = shifted(distribution, jnp.repeat(jnp.array([0.0, 1.0]), size) * jnp.log(initial_std))
    return distribution if varies.all() else with_constants(distribution, space)


def _nearest_action_space(space: gymnasium.Space) -> str:
    """What an author can declare instead of a ``space`` that has no distribution, ready to be appended to a message."""
    spaces = gymnasium.spaces
    if isinstance(space, spaces.MultiBinary):
        return f"; the nearest: MultiDiscrete([2] * {math.prod(space.shape)})"
    if isinstance(space, spaces.MultiDiscrete):
        return f"; the nearest: a flat MultiDiscrete of {space.nvec.size} choices"
    if isinstance(space, spaces.Box) and not np.issubdtype(space.dtype, np.floating):
        return "; the nearest: MultiDiscrete with one choice per value"
    if isinstance(space, spaces.Box):
        return f"; the nearest: a flat Box of {math.prod(space.shape)} components"
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return "; the nearest: one Dict or Tuple, without Dicts, Tuples or other kinds of space inside"
    return ""


def distribution_for(
    space: gymnasium.Space, *, continuous: str = "gaussian", initial_std: float | jax.Array = 1.0
) -> Distribution:
    """The distribution over ``space``.

    Args:
      space: Discrete, MultiDiscrete, one-dimensional Box, or a Dict or Tuple of these. A component of a Box whose
        ``low`` equals its ``high`` is constant: it has no parameters and adds nothing to log-probability and entropy.
      continuous: for a Box: ``gaussian`` (clipped where the environment is bounded; its standard deviation is the same
        for every observation), ``state_dependent_gaussian`` (whose standard deviation the network predicts) or
        ``tanh_gaussian`` (which stays within the bounds; the network predicts its standard deviation). The deviation is
        predicted within a Dict or a Tuple in any case.
      initial_std: the standard deviation with which a Gaussian starts, before any ``tanh``.

    Raises:
      UnsupportedSpaceError: for any other space, and for a Box whose components are all constant.
      ValueError: for an unknown ``continuous``, or ``tanh_gaussian`` on an unbounded Box.
    """
    require_known("continuous", continuous, CONTINUOUS)
    leaf = _leaf_distribution(space, continuous, False, initial_std)
    if leaf is not None:
        return leaf
    spaces = gymnasium.spaces
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        is_dict = isinstance(space, spaces.Dict)
        tree = dict(space.spaces) if is_dict else tuple(space.spaces)
        leaves = [tree[name] for name in sorted(tree)] if is_dict else list(tree)
        found = [_leaf_distribution(leaf, continuous, True, initial_std) for leaf in leaves]
        parts = [part for part in found if part is not None]
        if parts and len(parts) == len(found):
            return joint(parts, jax.tree.structure(dict.fromkeys(tree, 0) if is_dict else (0,) * len(tree)))
    raise UnsupportedSpaceError(
        f"no action distribution for {space}: expected Discrete, one-dimensional MultiDiscrete, "
        f"one-dimensional float Box, or a Dict or Tuple of these{_nearest_action_space(space)}"
    )
