"""Actions that an observation rules out.

An environment says which of its Discrete actions are allowed by an entry ``action_mask`` of its Dict observations, with
one number per action, above 0 for those that are. Both families read it: a policy gives other actions a probability of
0 (Huang and Ontanon, 2022, "A closer look at invalid action masking in policy gradient algorithms"), and a value-based
agent neither takes them nor bootstraps from them. The wrapper ``action_mask`` of ``envs.hosts.wrappers`` makes the
entry of what an environment reports in ``info``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import gymnasium
import jax
import jax.numpy as jnp

from envs.base import ACTION_MASK, EnvironmentSpec, Observation
from envs.stock import is_augmented

# What a logit is replaced by: its exponential is 0, and differences of two are no NaN.
_IMPOSSIBLE = -1e9


def action_mask_of(spec: EnvironmentSpec) -> Callable[[Observation], jax.Array] | None:
    """``(observation [..., ...]) -> allowed``, bools ``[..., A]``; ``None`` where observations have no ``action_mask``.

    Where nothing is allowed, as may be after the end of an episode, everything is.

    Raises:
      ValueError: a mask where actions are not Discrete, or whose length is not their number.
    """
    augmented = is_augmented(spec.observation_space)
    space = spec.observation_space["observation"] if augmented else spec.observation_space
    if not isinstance(space, gymnasium.spaces.Dict) or ACTION_MASK not in space.spaces:
        return None
    shape = space[ACTION_MASK].shape
    if not isinstance(spec.action_space, gymnasium.spaces.Discrete) or shape != (int(spec.action_space.n),):
        raise ValueError(
            f"the observation's {ACTION_MASK!r} has the shape {list(shape or ())} and actions are {spec.action_space}: "
            "expected one entry for each of the actions of a Discrete space"
        )

    def allowed(observation: Observation) -> jax.Array:
        holder = observation["observation"] if augmented else observation
        assert isinstance(holder, Mapping)
        mask = jnp.asarray(holder[ACTION_MASK]) > 0
        return mask | ~jnp.any(mask, axis=-1, keepdims=True)

    return allowed


def masked_logits(logits: jax.Array, allowed: jax.Array) -> jax.Array:
    """``logits [..., A]`` with a probability of 0 for what is not ``allowed``."""
    return jnp.where(allowed, logits, _IMPOSSIBLE)
