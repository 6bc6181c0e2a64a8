"""The reward transform: what optax's gradient transformation is to gradients, for rewards.

A reward transform is a named tuple of pure functions. ``apply`` relabels (it writes reward channels, and where that is
its purpose the mask of what is learned from) and never learns, so that replayed or evaluated trajectories are scored
without side effects. ``update`` learns and never relabels. A learner calls ``update`` and then ``apply``; a transform
that scores with the parameters from *before* its update keeps those parameters in its own state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from agents.channels import require_step_shape
from agents.state import NO_PART, Part, by_name
from envs.base import PyTree, Trajectory

Metrics = dict[str, jax.Array]

NON_FINITE = "non_finite/"
"""Prefix of the flags by which a chain reports what its transforms wrote, see ``chain``."""


class InitFn(Protocol):
    def __call__(self, key: jax.Array, **extra: Any) -> PyTree: ...


class ApplyFn(Protocol):
    def __call__(self, state: PyTree, trajectory: Trajectory, **extra: Any) -> tuple[Trajectory, Metrics]: ...


class UpdateFn(Protocol):
    def __call__(
        self, state: PyTree, trajectory: Trajectory, key: jax.Array, **extra: Any
    ) -> tuple[PyTree, Metrics]: ...


class RewardTransform(NamedTuple):
    """A pure function of a trajectory's reward channels, with a state that learns.

    Attributes:
      init: ``(key, **extra) -> state``. ``extra`` may hold ``policy_params``, the parameters of the initial policy.
      apply: ``(state, trajectory, **extra) -> (trajectory, metrics)``; never learns.
      update: ``(state, trajectory, key, **extra) -> (state, metrics)``; learns, never relabels.
      remembered: the part of the state that follows the environments from one trajectory to the next (a recurrent
        carry, counts of the running episode, a running return). The environments go on even where a learning step is
        undone, so that this part is kept then, and everything else is restored.
      stored: the part of the state that is stored data, such as a replay buffer. A learner neither checks it for
        finite numbers nor copies it: where a step is undone, it keeps the new data. The next update must overwrite
        them before it reads them, which it does where the counter that says where to write is restored.

    Extra arguments are keyword-only and ignored where they are not needed. A factory that has to know the environment
    takes its ``EnvironmentSpec``, because ``apply`` and ``update`` need it as much as ``init`` does. The same array may
    stand twice in the state that ``init`` returns.
    """

    init: InitFn
    apply: ApplyFn
    update: UpdateFn
    remembered: Part = NO_PART
    stored: Part = NO_PART


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


def write_channel(trajectory: Trajectory, channel: str, rewards: jax.Array) -> Trajectory:
    """``trajectory`` with ``rewards [T, B]`` as its channel ``channel``."""
    return trajectory._replace(rewards=trajectory.rewards | {channel: rewards})


def chain(**transforms: RewardTransform) -> RewardTransform:
    """Applies named transforms one after the other; each sees the channels of those before it.

    The state is a dictionary with one entry per transform; metrics are prefixed by ``NAME/``. Without transforms,
    ``chain()`` is the identity. Each transform draws from its own key stream, ``fold_in(key, position)``.

    What a transform writes is checked. Its shape is checked while the program is traced. Its numbers are checked in the
    program: the metrics of ``apply`` have a flag ``bool []`` named ``non_finite/NAME/CHANNEL`` for every channel that
    the transform ``NAME`` wrote, true where the channel holds a NaN or an infinity and everything before it was
    finite, so that only the first transform that went wrong is named. ``credit_weight/CHANNEL`` stands for the weight
    that a transform writes into ``extras``.

    Raises:
      TypeError: if a value is not a ``RewardTransform``.
      ChannelError: in ``apply`` and ``update``, if a channel, a credit weight or the mask is not ``[T, B]``.
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

    def applied(name, state, trajectory, extra):
        relabelled, metrics = transforms[name].apply(state, trajectory, **extra)
        _check_shapes(f"written by the reward transform {name!r}", relabelled, trajectory)
        return relabelled, metrics

    def apply_fn(state, trajectory, **extra):
        if not transforms:
            return trajectory, {}
        _check_shapes("given by the environment", trajectory, trajectory)
        metrics: Metrics = {}
        finite = _finite(_arrays(trajectory).values())
        for name in transforms:
            before = _arrays(trajectory)
            trajectory, own = applied(name, state[name], trajectory, extra)
            metrics |= {_prefixed(name, key): value for key, value in own.items()}
            written = {key: each for key, each in _arrays(trajectory).items() if each is not before.get(key)}
            metrics |= {_prefixed(name, NON_FINITE + key): finite & ~_finite([each]) for key, each in written.items()}
            finite &= _finite(written.values())
        return trajectory, metrics

    def update_fn(state, trajectory, key, **extra):
        _check_shapes("given by the environment", trajectory, trajectory)
        metrics: Metrics = {}
        new_state: dict[str, PyTree] = {}
        for position, (name, transform) in enumerate(transforms.items()):
            new_state[name], own = transform.update(state[name], trajectory, jax.random.fold_in(key, position), **extra)
            metrics |= {_prefixed(name, metric): value for metric, value in own.items()}
            if position < last:
                trajectory, _ = applied(name, new_state[name], trajectory, extra)
        return new_state, metrics

    return RewardTransform(
        init_fn,
        apply_fn,
        update_fn,
        remembered=by_name({name: transform.remembered for name, transform in transforms.items()}),
        stored=by_name({name: transform.stored for name, transform in transforms.items()}),
    )


def _prefixed(name: str, metric: str) -> str:
    """``metric`` of the transform ``name``; a flag keeps its own prefix in front."""
    flag = NON_FINITE if metric.startswith(NON_FINITE) else ""
    return f"{flag}{name}/{metric.removeprefix(flag)}"


def _arrays(trajectory: Trajectory) -> dict[str, jax.Array]:
    """The arrays of real numbers that reward transforms write, by name: channels and credit weights."""
    weights = trajectory.extras.get("credit_weight", {})
    return trajectory.rewards | {f"credit_weight/{name}": each for name, each in weights.items()}


def _finite(arrays: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.logical_and, (jnp.all(jnp.isfinite(each)) for each in arrays), jnp.bool_(True))


def _check_shapes(source: str, trajectory: Trajectory, before: Trajectory) -> None:
    """Refuses a channel, a credit weight or a mask that is not ``[T, B]`` as in ``before``."""
    for name, each in _arrays(trajectory).items():
        require_step_shape(f"the channel {name!r}, {source},", each, before)
    require_step_shape(f"the mask, {source},", trajectory.mask, before)
