"""Fitting a reward model: optimiser steps on minibatches, the same for every model that learns by gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from agents.permutation import permutation
from envs.base import PyTree
from rewards.base import Metrics


class Fitted(NamedTuple):
    """What ``fit`` returns.

    Attributes:
      params, optimiser: after the last step.
      metrics: the loss's metrics, each the mean over the steps; 0 without a step.
    """

    params: PyTree
    optimiser: PyTree
    metrics: Metrics


Loss = Callable[..., tuple[jax.Array, Metrics]]
"""``(params, *minibatch) -> (loss [], metrics)``, every metric ``[]``."""


def check_fit(name: str, *, updates: int, minibatches: int, items: int, unit: str) -> None:
    """Refuses counts with which nothing can be fitted.

    Args:
      name: the transform's, for the message.
      updates, minibatches: as in ``random_minibatches``.
      items: how many ``unit`` there are to learn from.

    Raises:
      ValueError: if ``updates`` is negative or ``minibatches`` is not from 1 to ``items``.
    """
    if updates < 0:
        raise ValueError(f"{name}: updates={updates}: expected at least 0")
    if not 1 <= minibatches <= items:
        raise ValueError(f"{name}: minibatches={minibatches}: expected from 1 to the {items} {unit} of an update")


def random_minibatches(key: jax.Array, items: int, *, minibatches: int, updates: int) -> jax.Array:
    """Which items every optimiser step takes, ``int32 [updates, items // minibatches]``.

    Each pass over the data shuffles the items and cuts them into ``minibatches`` equal minibatches, so that none is
    taken twice; up to ``minibatches - 1`` items are left out of a pass. ``updates`` counts optimiser steps, not passes.
    """
    size = items // minibatches

    def one_pass(key):
        return permutation(key, items)[: minibatches * size].reshape(minibatches, size)

    if updates == 0:
        return jnp.zeros((0, size), jnp.int32)
    passes = -(-updates // minibatches)
    return jax.vmap(one_pass)(jax.random.split(key, passes)).reshape(-1, size)[:updates]


def take_items(tree: PyTree, index: jax.Array, axis: int) -> PyTree:
    """The items ``index [N]`` along ``axis`` of every leaf.

    A minibatch of all items is the data as they are: their order does not matter, and nothing is gathered.
    """
    items = jax.tree.leaves(tree)[0].shape[axis]
    if index.size == items:
        return tree
    return jax.tree.map(lambda x: jnp.take(x, index, axis=axis), tree)


def gradient_step(
    loss: Loss, optimiser: optax.GradientTransformation, params: PyTree, state: PyTree, *minibatch: Any
) -> tuple[PyTree, PyTree, Metrics]:
    """One optimiser step on ``minibatch``: the new parameters, the new optimiser state and the loss's metrics."""
    (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, *minibatch)
    changes, state = optimiser.update(gradient, state, params)
    return optax.apply_updates(params, changes), state, metrics


def fit(
    loss: Loss,
    optimiser: optax.GradientTransformation,
    params: PyTree,
    state: PyTree,
    draws: PyTree,
    minibatch: Callable[[Any], tuple[Any, ...]],
    *,
    after_step: Callable[[PyTree], PyTree] = lambda params: params,
) -> Fitted:
    """Takes one optimiser step per row of ``draws``, in one scan.

    Use it in the ``update`` of a reward transform. What a step learns from is ``minibatch(draw)``: a selection of the
    fresh data by ``random_minibatches`` and ``take_items``, groups sampled from a replay buffer by a key, a key for
    noise, or several of these. Losses that are played against each other (a generator and its critic) are one loss
    with ``optax.partition`` as the optimiser, in which the part that ascends negates its gradient.

    Args:
      loss: ``(params, *minibatch) -> (loss [], metrics)``.
      optimiser, state: the optimiser and its state.
      params: what the loss is differentiated by.
      draws: a pytree with a leading axis ``[updates]``: what each step's minibatch is drawn by.
      minibatch: ``(draw) -> arguments`` of ``loss`` behind ``params``; ``draw`` is a row of ``draws``.
      after_step: changes the parameters after every step, such as a target network that follows.
    """

    def step(carry, draw):
        params, state, metrics = gradient_step(loss, optimiser, *carry, *minibatch(draw))
        return (after_step(params), state), metrics

    (params, state), metrics = jax.lax.scan(step, (params, state), draws)
    steps = max(jax.tree.leaves(draws)[0].shape[0], 1)
    return Fitted(params, state, jax.tree.map(lambda each: jnp.sum(each, axis=0) / steps, metrics))
