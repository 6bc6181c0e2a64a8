"""The reward transform: optax's gradient transformation, for rewards.

A reward transform is a named tuple of pure functions. ``apply`` relabels (channels, and where asked for the mask
of what is learned from) and never learns, so that a replayed or evaluated trajectory is scored without side effects;
``update`` learns and never relabels. A learner calls ``update`` and then ``apply``; a transform that must be scored
*before* its update (the "single forward" of PRIME) keeps the parameters it scores with in its own state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from envs.base import PyTree, Trajectory

Metrics = dict[str, jax.Array]


class InitFn(Protocol):
    def __call__(self, key: jax.Array, **extra: Any) -> PyTree: ...


class ApplyFn(Protocol):
    def __call__(self, state: PyTree, trajectory: Trajectory, **extra: Any) -> tuple[Trajectory, Metrics]: ...


class UpdateFn(Protocol):
    def __call__(
        self, state: PyTree, trajectory: Trajectory, key: jax.Array, **extra: Any
    ) -> tuple[PyTree, Metrics]: ...


class UndoFn(Protocol):
    def __call__(self, old: PyTree, new: PyTree) -> PyTree: ...


def put_back(old: PyTree, new: PyTree) -> PyTree:
    """``old``: nothing is left of the update that made ``new`` of it."""
    del new
    return old


class RewardTransform(NamedTuple):
    """A pure-functional change of a trajectory's reward channels.

    Attributes:
      init: ``(key, **extra) -> state``. ``extra`` may hold ``policy_params``, the initial policy.
      apply: ``(state, trajectory, **extra) -> (trajectory, metrics)``; never learns.
      update: ``(state, trajectory, key, **extra) -> (state, metrics)``; learns, never relabels.
      undo: ``(old, new) -> state``, what is left where the update from ``old`` to ``new`` is undone: ``old`` with what
        ``new`` remembers of each environment (a carry, the counts of the running episode, a return so far), because the
        environments went on. All that was learned is put back. By default it is ``old``.

    Extra arguments are keyword-only and ignored where they are not needed. A factory that needs to know
    the environment takes its ``EnvironmentSpec``, because ``apply`` and ``update`` need it as much as ``init``.
    """

    init: InitFn
    apply: ApplyFn
    update: UpdateFn
    undo: UndoFn = put_back


def stateless(relabel: Callable[[Trajectory], Trajectory]) -> RewardTransform:
    """A transform without state from ``relabel(trajectory) -> trajectory``."""

    def init_fn(key, **extra):
        del key, extra
        return ()

    def apply_fn(state, trajectory, **extra):
        del state, extra
        return relabel(trajectory), {}

    def update_fn(state, trajectory, key, **extra):
        del trajectory, key, extra
        return state, {}

    return RewardTransform(init_fn, apply_fn, update_fn)


def chain(**transforms: RewardTransform) -> RewardTransform:
    """Applies named transforms one after the other; each sees the channels of those before it.

    The state is a dictionary with one entry per transform; metrics are prefixed by ``NAME/``. With no
    transform, ``chain()`` is the identity.

    Each transform draws from its own key stream, ``fold_in(key, position)``.

    Raises:
      TypeError: if a value is not a ``RewardTransform``.
    """
    for name, transform in transforms.items():
        if not isinstance(transform, RewardTransform):
            raise TypeError(f"chain: {name!r} is {type(transform).__name__}, expected a RewardTransform")
    last = len(transforms) - 1

    def init_fn(key, **extra):
        return {
            name: transform.init(jax.random.fold_in(key, position), **extra)
            for position, (name, transform) in enumerate(transforms.items())
        }

    def apply_fn(state, trajectory, **extra):
        metrics: Metrics = {}
        for name, transform in transforms.items():
            trajectory, own = transform.apply(state[name], trajectory, **extra)
            metrics |= {f"{name}/{key}": value for key, value in own.items()}
        return trajectory, metrics

    def update_fn(state, trajectory, key, **extra):
        metrics: Metrics = {}
        new_state: dict[str, PyTree] = {}
        for position, (name, transform) in enumerate(transforms.items()):
            new_state[name], own = transform.update(state[name], trajectory, jax.random.fold_in(key, position), **extra)
            metrics |= {f"{name}/{key_}": value for key_, value in own.items()}
            if position < last:
                trajectory, _ = transform.apply(new_state[name], trajectory, **extra)
        return new_state, metrics

    def undo_fn(old, new):
        return {name: transform.undo(old[name], new[name]) for name, transform in transforms.items()}

    return RewardTransform(init_fn, apply_fn, update_fn, undo_fn)
