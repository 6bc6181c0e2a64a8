"""What a network is and what builds one: pure functions over plain parameter pytrees, called time-major."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import gymnasium
import jax
import jax.numpy as jnp

from envs.base import PyTree, observation_template
from envs.keys import seed_key


@dataclass(frozen=True)
class Head:
    """A linear output.

    Attributes:
      size: numbers per step.
      scale: gain of the initial weights; 0 for an output that starts at 0.
      num_free: how many of the last numbers are free parameters, which do not depend on the observation.
    """

    size: int
    scale: float = 1.0
    num_free: int = 0


def observe_nothing(params: PyTree, observation: PyTree, mask: jax.Array) -> PyTree:
    """``params`` as they are: what a network does with observations that keeps no statistics of them."""
    del observation, mask
    return params


def all_learned(params: PyTree) -> PyTree:
    """True for every parameter."""
    return jax.tree.map(lambda _: True, params)


class Network(NamedTuple):
    """A network as pure functions.

    Attributes:
      init: ``(key) -> params``.
      apply: ``(params, observation [T, B, ...], carry [B, ...], episode_start [T, B] or None)
        -> (outputs, carry)`` with ``outputs`` a dictionary of ``[T, B, size]`` by head. The carry is set to
        its initial value before every step whose ``episode_start`` is set.
      initial_carry: ``(batch) -> carry``; ``()`` for a feed-forward network.
      recurrent: whether there is a carry.
      observe: ``(params, observation [T, B, ...], mask [T, B]) -> params``: running statistics that the network keeps
        of its observations, with the valid steps added. A learner calls it once per fresh trajectory, after it has
        learned from it: the statistics stay the same while it learns, and the policy that learns begins as the one
        that acted.
      learned: ``(params) -> bools`` in the structure of ``params``: False for what ``observe`` keeps. No gradient
        reaches it; whatever else changes parameters, such as weight decay, has to leave it alone.
      rescale: ``(params, head, scale [], shift []) -> params`` with which the output ``head`` is ``scale`` times what
        it was plus ``shift``, for every observation, and the other outputs are the same. ``None`` where a network
        offers no such change; PopArt (``agents.popart``) needs it.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[..., tuple[dict[str, jax.Array], PyTree]]
    initial_carry: Callable[[int], PyTree]
    recurrent: bool
    observe: Callable[[PyTree, PyTree, jax.Array], PyTree] = observe_nothing
    learned: Callable[[PyTree], PyTree] = all_learned
    rescale: Callable[[PyTree, str, jax.Array, jax.Array], PyTree] | None = None


class NetworkBuilder(Protocol):
    """What the factory of a network kind returns: ``build(observation_space, heads) -> Network``.

    A kind is a factory whose keyword arguments are the keys of the section ``network``. It stands in
    ``agents.networks.catalogue``, or is named by import path. A frozen dataclass with ``__call__`` is a factory and
    what it returns at once. A network with a carry is a function of one step::

        h_t = where(episode_start_t, initial_carry, carry_{t-1})
        outputs_t, carry_t = f(params, observation_t, h_t)

    What is built, see ``Network``, keeps to this:

    * ``init(key) -> params``: a pytree of float arrays, which depends on the key alone.
    * ``apply(params, observation [T, B, ...], carry=(), episode_start=None) -> (outputs, carry)``: ``outputs`` has an
      array ``[T, B, head.size]`` by the name of every head, and the carry the shapes of ``initial_carry(B)``. One call
      over ``T`` steps equals ``T`` calls of one step; acting is a call with ``T = 1``.
    * An observation has the structure of ``observation_space``: a leaf, or a dictionary or a tuple of such.
      ``agents.networks.encoders.observation_features`` makes ``[T, B, features]`` of any.
    * Statistics of observations are kept among the parameters, by ``observe``, and are no part of what is ``learned``.
    * ``rescale`` changes the last layer of a head. It may be left out; ``agent.popart`` then refuses the network.
    * A network without a carry has ``recurrent=False`` and the carry ``()``, and ignores ``episode_start``.
    * Outputs are linear in the last features, without an activation: they are logits, means, values and quantiles.
      ``head.scale`` is the gain at the start, because of which a policy begins near uniform and values near 0; a head
      of scale 0 begins at 0. The last ``head.num_free`` numbers are parameters that are the same for every
      observation, such as logarithms of a standard deviation.

    It must not mix the steps of a batch (batch normalisation), draw random numbers in ``apply`` (dropout), keep state
    outside of ``params`` and ``carry``, or decide in Python by the values of arrays: it is traced, differentiated and
    vmapped over seeds.

    Use a kind of your own where the architecture is the question: attention over entities, another recurrence.
    Widths, convolutions, normalisation and a GRU are keys of the kind ``sequence``.

    A policy-gradient agent builds one network with the head ``policy`` and another one with a head of size 1 per
    critic, or one with all of them. A value-based agent builds one without a carry, with the head ``advantage`` and,
    where it is dueling, ``value``. Its head ``implicit_quantile`` and the curiosity transforms make networks of their
    own of the numbers of kind ``sequence``, and refuse others (``agents.networks.sequence.require_sequence``).

    Raises:
      ValueError: arguments that do not go together; best by the factory, before anything is built.
      UnsupportedSpaceError: a space that it cannot encode.
    """

    def __call__(self, observation_space: gymnasium.Space, heads: Mapping[str, Head]) -> Network: ...


def checked_network(build: NetworkBuilder, observation_space: gymnasium.Space, heads: Mapping[str, Head]) -> Network:
    """``build(observation_space, heads)``, with its shapes checked by ``jax.eval_shape``: nothing is computed.

    Use it on a builder from elsewhere: what breaks the contract of ``NetworkBuilder`` would show up far from its
    cause, or, where shapes happen to broadcast, not at all.

    Raises:
      ValueError: anything but a ``Network``; parameters that are not floats; a head that is missing or not
        ``[T, B, size]``; a carry whose shapes change, that has no batch axis, or that ``recurrent`` denies.
    """
    made = build(observation_space, heads)
    if not isinstance(made, Network):
        raise ValueError(f"what is built is {type(made).__name__}, expected {Network.__module__}.Network")
    time, batch = 2, 3
    params = jax.eval_shape(made.init, jax.eval_shape(lambda: seed_key(0)))
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"parameter {jax.tree_util.keystr(path)} is {_shown(leaf)}, expected floats")
    carry = jax.eval_shape(lambda: made.initial_carry(batch))
    shown = jax.tree.map(_shown, carry)
    if made.recurrent != bool(jax.tree.leaves(carry)):
        raise ValueError(f"recurrent={made.recurrent}, initial_carry({batch}) is {shown}: expected () without a carry")
    if any(leaf.shape[:1] != (batch,) for leaf in jax.tree.leaves(carry)):
        raise ValueError(f"initial_carry({batch}) is {shown}, expected {batch} as the first size of every array")
    observation = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((time, batch, *leaf.shape), leaf.dtype),
        observation_template(observation_space),
    )
    for start in (None, jax.ShapeDtypeStruct((time, batch), jnp.bool_)):
        returned = jax.eval_shape(made.apply, params, observation, carry, start)
        if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[0], Mapping):
            raise ValueError(f"apply returned {type(returned).__name__}, expected (outputs by head, carry)")
        outputs, after = returned
        for name, head in heads.items():
            if name not in outputs:
                raise ValueError(f"apply returned the heads {sorted(outputs)}, expected {sorted(heads)}")
            if outputs[name].shape != (time, batch, head.size):
                expected = [time, batch, head.size]
                raise ValueError(f"head {name!r} is {_shown(outputs[name])}, expected [T, B, size] = {expected}")
        if jax.tree.structure(after) != jax.tree.structure(carry) or jax.tree.map(_shown, after) != shown:
            raise ValueError(
                f"apply returned the carry {jax.tree.map(_shown, after)}, expected {shown} as it was given"
            )
    mask = jax.ShapeDtypeStruct((time, batch), jnp.float32)
    observed, flags = jax.eval_shape(made.observe, params, observation, mask), made.learned(params)
    if jax.tree.structure(observed) != jax.tree.structure(params) or jax.tree.map(_shown, observed) != jax.tree.map(
        _shown, params
    ):
        raise ValueError(f"observe returned {jax.tree.map(_shown, observed)}, expected the shapes of the parameters")
    if jax.tree.structure(flags) != jax.tree.structure(params):
        raise ValueError(f"learned returned {jax.tree.structure(flags)}, expected a bool for every parameter")
    if (rescale := made.rescale) is not None:
        number = jax.ShapeDtypeStruct((), jnp.float32)
        changed = jax.eval_shape(
            lambda params, x: {name: rescale(params, name, x, x) for name in heads}, params, number
        )
        for name, rescaled in jax.tree.map(_shown, changed).items():
            if rescaled != jax.tree.map(_shown, params):
                raise ValueError(f"rescale of head {name!r} returned {rescaled}, expected the shapes of the parameters")
    return made


def _shown(leaf: jax.ShapeDtypeStruct) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
