"""Rules for Lagrange multipliers: from how far each constraint is violated to how much its channel weighs.

A problem with ``K`` constraints is ``max J_0 subject to g_k <= 0`` (or ``g_k = 0``), where ``g_k`` is the *violation*
of constraint ``k``, in units of its channel: how far its total is on the wrong side of its limit. The multiplier of a
constraint is its weight ``lambda_k`` in

    L = J_0 - sum_k lambda_k g_k.

A rule is a ``Multiplier`` of pure functions. ``MULTIPLIERS`` lists what a configuration can name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from envs.base import PyTree
from envs.choices import require_known
from envs.kinds import Kind
from envs.ranges import DECAY, POSITIVE, ZERO_UP

PROJECTIONS = ("box", "softplus", "sigmoid", "tanh")
OPTIMISERS = ("sgd", "adam")


class Multiplier(NamedTuple):
    """A rule for the multipliers of ``K`` constraints.

    Attributes:
      init: ``(equality bool [K]) -> state``. ``equality`` is concrete: which constraints are equations, whose
        multipliers may be negative.
      update: ``(state, violation [K], equality) -> state``, once per update of the agent.
      value: ``(state) -> [K]``, the multipliers.
    """

    init: Callable[[np.ndarray], PyTree]
    update: Callable[[PyTree, jax.Array, np.ndarray], PyTree]
    value: Callable[[PyTree], jax.Array]


class DualState(NamedTuple):
    """State of ``dual_ascent``: the ``parameter [K]`` behind each multiplier, and its optimiser's state."""

    parameter: jax.Array
    optimiser: PyTree


def dual_ascent(
    *,
    learning_rate: float | jax.Array = 0.05,
    optimiser: str = "adam",
    momentum: float | jax.Array = 0.0,
    projection: str = "box",
    largest: float | jax.Array = math.inf,
    initial: float | jax.Array = 0.0,
) -> Multiplier:
    """Gradient ascent on the dual: multipliers grow while their constraint is violated and shrink while it is met.

        loss      = -sum_k lambda_k(p_k) g_k
        p        <- optimiser step on the gradient of loss
        lambda_k  = p_k, kept in [0, largest] ([-largest, largest] for an equation)      box
                    softplus(p_k)   or   sigmoid(p_k)   or   tanh(p_k)                   otherwise

    It is the integral of the violation, which lags behind it by a quarter of a period: the total swings around its
    limit before it settles, the more the faster the multiplier learns. ``pid`` damps that. Adam takes steps of about
    ``learning_rate`` whatever the units of the cost are; for SGD choose the rate by the size of the violations.

    Sources: Ray, Achiam and Amodei (2019, section 4, PPO-Lagrangian: Adam, rate .05); Tessler et al. (2019, RCPO);
    Moskovitz et al. (2024, arXiv 2310.04373: SGD with rate .1 and momentum .1 on the sigmoid or tanh of a parameter).

    Args:
      learning_rate: of the optimiser.
      optimiser: ``sgd`` or ``adam``.
      momentum: of SGD; 0 for none.
      projection: how a multiplier comes from its parameter. ``sigmoid`` keeps it in (0, 1); ``tanh`` in (-1, 1), for
        equations only; ``box`` and ``softplus`` have no bound but ``largest``.
      largest: bound of ``box``.
      initial: of the parameter.

    Raises:
      ValueError: an unknown optimiser or projection; when initialised, an equation with a projection that cannot be
        negative, or an inequality with ``tanh``, which can.
    """
    require_known("optimiser", optimiser, OPTIMISERS, "of dual_ascent")
    require_known("projection", projection, PROJECTIONS, "of dual_ascent")
    transform = optax.adam(learning_rate) if optimiser == "adam" else optax.sgd(learning_rate, momentum)
    squash = {"box": lambda x: x, "softplus": jax.nn.softplus, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}[projection]

    def init_fn(equality):
        if equality.any() and projection in ("softplus", "sigmoid"):
            raise ValueError(
                f"dual_ascent: projection={projection!r} has no negative multipliers, which an equation needs: "
                "expected 'tanh' or 'box'"
            )
        if not equality.all() and projection == "tanh":
            raise ValueError(
                "dual_ascent: projection='tanh' has negative multipliers, which would reward breaking an inequality: "
                "expected 'sigmoid', 'softplus' or 'box', or sense='equal' for every constraint"
            )
        parameter = jnp.broadcast_to(jnp.asarray(initial, jnp.float32), equality.shape)
        return DualState(parameter, transform.init(parameter))

    def update_fn(state, violation, equality):
        gradient = jax.grad(lambda parameter: -jnp.sum(squash(parameter) * violation))(state.parameter)
        updates, optimiser_state = transform.update(gradient, state.optimiser, state.parameter)
        parameter = optax.apply_updates(state.parameter, updates)
        if projection == "box":
            parameter = jnp.clip(parameter, jnp.where(equality, -largest, 0.0), largest)
        return DualState(parameter, optimiser_state)

    return Multiplier(init_fn, update_fn, lambda state: squash(state.parameter))


class PidState(NamedTuple):
    """State of ``pid``.

    Attributes:
      integral: of the violation, in units of the multiplier, ``[K]``.
      output: the multipliers, ``[K]``.
      averages: the last running averages of the violation, the oldest first, ``[delay, K]``.
    """

    integral: jax.Array
    output: jax.Array
    averages: jax.Array


def pid(
    *,
    proportional: float | jax.Array = 0.1,
    integral: float | jax.Array = 0.01,
    derivative: float | jax.Array = 0.01,
    smoothing: float | jax.Array = 0.0,
    delay: int = 1,
    largest: float | jax.Array = math.inf,
    initial: float | jax.Array = 0.0,
) -> Multiplier:
    """A controller of three terms (Stooke, Achiam and Abbeel, 2020, arXiv 2007.03964, algorithm 2).

        I        <- max(I + integral * g, 0)
        P        <- smoothing * P + (1 - smoothing) * g
        lambda    = max(proportional * P + I + derivative * max(P - P of ``delay`` updates ago, 0), 0)

    The integral alone is ``dual_ascent`` with SGD, which swings around the limit; the proportional term damps the
    swing and the derivative term counters a violation that grows. For an equation nothing is cut off at 0. The result
    and the integral stay below ``largest``.

    Use it where a limit must not be overshot, or where several constraints pull at one another.

    Args:
      proportional, integral, derivative: the gains, in multiplier per unit of violation.
      smoothing: in [0, 1), weight of the past in the average ``P``.
      delay: in updates, at least 1.
      largest: bound of the integral and of the multiplier.
      initial: of the integral.

    Raises:
      ValueError: ``delay`` below 1.
    """
    if delay < 1:
        raise ValueError(f"pid: delay={delay}: expected at least 1")

    def kept(value, equality):
        return jnp.clip(value, jnp.where(equality, -largest, 0.0), largest)

    def init_fn(equality):
        start = kept(jnp.zeros(equality.shape) + initial, equality)
        return PidState(start, start, jnp.zeros((delay, *equality.shape)))

    def update_fn(state, violation, equality):
        average = smoothing * state.averages[-1] + (1 - smoothing) * violation
        change = average - state.averages[0]
        change = jnp.where(equality, change, jnp.maximum(change, 0.0))
        total = kept(state.integral + integral * violation, equality)
        output = kept(proportional * average + total + derivative * change, equality)
        return PidState(total, output, jnp.concatenate([state.averages[1:], average[None]]))

    return Multiplier(init_fn, update_fn, lambda state: state.output)


def barrier(*, sharpness: float | jax.Array = 20.0, margin: float | jax.Array = 1e-3) -> Multiplier:
    """The gradient of a logarithmic barrier in front of each limit (Liu, Ding and Liu, 2020, IPO, equation 9).

        lambda_k = 1 / (sharpness * max(-g_k, margin))

    That is the derivative of ``log(-g_k) / sharpness``: the closer a constraint is to its limit, the more it weighs.
    There is no state that could swing, but an error of order ``K / sharpness`` in the optimum, and what leads back
    from the wrong side is the weight ``1 / (sharpness * margin)`` and no more.

    Use it where the start is feasible and must stay so.

    Args:
      sharpness: ``t`` of the paper; the barrier is the steeper the larger it is.
      margin: the smallest distance from the limit that counts, in units of the channel.

    Raises:
      ValueError: when initialised, for an equation, which has no inside.
    """

    def init_fn(equality):
        if equality.any():
            raise ValueError("barrier: an equation has no inside to stay in: expected sense 'at_most' or 'at_least'")
        return jnp.zeros(equality.shape)

    def update_fn(state, violation, equality):
        del state, equality
        return 1.0 / (sharpness * jnp.maximum(-violation, margin))

    return Multiplier(init_fn, update_fn, lambda state: state)


def fixed(*, value: float | jax.Array = 1.0) -> Multiplier:
    """Multipliers that stay what they are: a penalty whose size has to be found by hand.

    Use it as the baseline of the other rules, and with the exact multipliers of a known model.

    Args:
      value: of every multiplier.
    """

    def init_fn(equality):
        return jnp.broadcast_to(jnp.asarray(value, jnp.float32), equality.shape)

    return Multiplier(init_fn, lambda state, violation, equality: state, lambda state: state)


MULTIPLIERS: dict[str, Kind | Callable[..., Any]] = {
    "dual_ascent": Kind(
        dual_ascent,
        ranges={"learning_rate": ZERO_UP, "momentum": DECAY, "largest": POSITIVE},
        needs={"momentum": {"optimiser": ("sgd",)}, "largest": {"projection": ("box",)}},
    ),
    "pid": Kind(
        pid,
        ranges={
            "proportional": ZERO_UP,
            "integral": ZERO_UP,
            "derivative": ZERO_UP,
            "smoothing": DECAY,
            "largest": POSITIVE,
        },
    ),
    "barrier": Kind(barrier, ranges={"sharpness": POSITIVE, "margin": POSITIVE}),
    "fixed": fixed,
}
