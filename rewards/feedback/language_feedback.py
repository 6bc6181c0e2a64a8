"""Intrinsic rewards from labels of an environment's messages (ONI: Zheng et al., 2024).

An environment says in words what happened. An annotator, such as a language model, labels some of these messages later,
and a model of the labels pays for messages now. Labels reach the transform as the keyword ``annotations`` of ``update``
whenever they come; nothing here waits for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from agents.base import DataSpec
from agents.moments import SMALLEST_STD, Moments, merge_moments, no_moments
from agents.networks.characters import CharacterConfig, character_network
from agents.observation_hash import observation_hash
from agents.optimisers import chained
from agents.state import fields
from agents.statistics import masked_mean
from envs.base import EnvironmentSpec, PyTree, Trajectory
from envs.choices import require_known
from rewards.base import Metrics, RewardTransform, write_channel
from rewards.fitting import gradient_step
from rewards.moments import (
    LARGEST_TABLE,
    check_episode_counts,
    counts_carried_on,
    counts_within_episodes,
    entering_counts,
    episode_starts,
)
from rewards.preference.losses import outcome_cross_entropy

QUESTION_SIZES = {"retrieval": 1, "classification": 1, "ranking": 2}
"""How many messages one label is about, by the name of the model."""

# Messages are scored in blocks of this size until none is left: at most steps nothing is said.
_BLOCK = 64


class Annotations(NamedTuple):
    """Labels from an annotator, in arrays with places for ``N`` of them.

    Attributes:
      messages: what the labels are about, ``uint8 [N, P, L]``: one message (``P = 1``), or two to compare (``P = 2``).
      labels: ``float32 [N]``. Of one message: 1 if it is good and 0 if not. Of two: 1 if the first is better, 0 if the
        second is, 0.5 for a tie.
      valid: whether there is a label in this place, ``bool [N]``.
    """

    messages: jax.Array
    labels: jax.Array
    valid: jax.Array


class Table(NamedTuple):
    """The labels that the model ``retrieval`` remembers.

    Attributes:
      keys: two 32-bit hashes of each message, ``uint32 [capacity, 2]``.
      labels: ``[capacity]``.
      cursor, size: the place of the next label, and how many there are, ``int32 []``.
    """

    keys: jax.Array
    labels: jax.Array
    cursor: jax.Array
    size: jax.Array


class Judge(NamedTuple):
    """A network that predicts labels.

    Attributes:
      params, optimiser: the network's parameters and the optimiser's state.
      messages, labels: what the network learns from, ``uint8 [capacity, P, L]`` and ``[capacity]``.
      cursor, size: the place of the next label, and how many there are, ``int32 []``.
      scores: moments of the network's outputs for the messages seen since the first label.
      loss: the loss of the last optimiser step.
    """

    params: PyTree
    optimiser: PyTree
    messages: jax.Array
    labels: jax.Array
    cursor: jax.Array
    size: jax.Array
    scores: Moments
    loss: jax.Array


class LanguageFeedbackState(NamedTuple):
    """State of ``language_feedback``.

    Attributes:
      counts: how often each message was said in the running episodes, ``[B, 2 ** bits]``.
      entering: the counts at the start of the last unroll.
      model: a ``Table`` or a ``Judge``.
    """

    counts: jax.Array
    entering: jax.Array
    model: PyTree


class _Model(NamedTuple):
    """How labels become rewards.

    Attributes:
      init: ``(key) -> state``.
      learn: ``(state, annotations or None, key) -> state``.
      score: ``(state, messages [N, L]) -> [N]``.
      observe: ``(state, scores [T, B], said [T, B]) -> state``.
      reward: ``(state, scores [T, B]) -> [T, B]``.
      metrics: ``(state) -> metrics``.
    """

    init: Callable[[jax.Array], Any]
    learn: Callable[[Any, Annotations | None, jax.Array], Any]
    score: Callable[[Any, jax.Array], jax.Array]
    observe: Callable[[Any, jax.Array, jax.Array], Any]
    reward: Callable[[Any, jax.Array], jax.Array]
    metrics: Callable[[Any], Metrics]


def question(model: str = "retrieval", capacity: int = 2048, **others: Any) -> tuple[int, int]:
    """Of ``language_feedback`` with these arguments: messages per question, and how many labels it remembers.

    Raises:
      ValueError: an unknown ``model``.
    """
    del others
    require_known("model", model, QUESTION_SIZES, "of language_feedback")
    return QUESTION_SIZES[model], capacity


def language_feedback(
    spec: EnvironmentSpec,
    *,
    data: DataSpec,
    model: str = "retrieval",
    capacity: int = 2048,
    beta: float = 3.0,
    bits: int = 12,
    threshold: float = 0.5,
    cutoff: float = -0.5,
    embedding_size: int = 16,
    channels: int = 32,
    kernels: tuple[int, ...] = (5, 3),
    pools: tuple[int, ...] = (3, 3),
    hidden: tuple[int, ...] = (64,),
    updates: int = 32,
    small: int = 25_000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    max_gradient_norm: float = 10.0,
    flatten: bool = True,
    channel: str = "language",
) -> RewardTransform:
    """Pays for messages as their labels say, and less for each repetition (ONI: Zheng et al., 2024, section 3).

        r_t = rhat(message_t) * N(message_t) ** -beta

    ``N`` counts how often the message was said in the episode so far, this time included; the reward is 0 where
    nothing was said. ``rhat`` is learned from the labels in ``Annotations``, which ``update`` takes as
    ``annotations=``:

    * ``retrieval``: the message's label, and 0 as long as it has none. The last ``capacity`` labels are kept in a table
      by a 64-bit hash of the message; nothing is learned about other messages.
    * ``classification``: ``1[sigmoid(f) > threshold]``. The network ``f`` minimises the cross-entropy of the labels.
    * ``ranking``: ``z = (f - mean) / std`` over the messages seen, and 0 where ``z <= cutoff``. ``f`` minimises
      ``-y * log sigmoid(f_1 - f_2) - (1 - y) * log sigmoid(f_2 - f_1)`` over labelled pairs (Bradley and Terry, 1952).

    Both networks pay nothing before the first label. They learn from the last ``capacity`` labels. While there are
    fewer than ``small``, every update that brings labels takes ``updates`` optimiser steps and the others take none;
    from then on every update takes one.

    Use it in environments that describe events in words, where a person or a language model can tell which events are
    progress.

    Args:
      spec: the environment; its ``message_length`` must not be 0.
      data: the rollouts. Counts are carried from one unroll to the next.
      model, capacity, threshold: see above.
      cutoff: in standard deviations, as in the released code of the paper.
      beta: 3 pays an eighth for the second time; 0 does not count repetitions.
      bits: messages are counted in ``2 ** bits`` buckets by hash; two messages of one bucket share their count within
        an episode.
      embedding_size, channels, kernels, pools, hidden: see ``CharacterConfig``. The paper's messages have 256 bytes; it
        uses 32, 64, (7, 7, 3, 3, 3, 3), (3, 3, 1, 1, 1, 3), (128,) and a small network after that.
      updates, small: see above.
      batch_size: labels per optimiser step, drawn with replacement. The paper uses 256.
      learning_rate, max_gradient_norm: Adam's, with the gradient's global norm clipped. The paper's learning rate is
        1e-4, and only its ranking clips the gradient.
      flatten: update all parameters as one vector, see ``agents.optimisers``; False for large or sharded networks.
      channel: the channel that is written, ``[T, B]``.

    Raises:
      ValueError: an environment without messages, replayed data (a replay buffer keeps no messages), an unknown
        ``model``, or sizes out of range; in ``update``, annotations of other shapes.
    """
    require_known("model", model, QUESTION_SIZES, "of language_feedback")
    if not spec.message_length:
        raise ValueError(
            "language_feedback: this environment gives no messages: expected one that does, such as kind='minigrid' "
            "with messages=True"
        )
    if data.kind == "replay":
        raise ValueError(
            "language_feedback: data.kind='replay': a replay buffer keeps no messages, expected 'unroll' or 'episodes'"
        )
    sizes = {"capacity": capacity, "bits": bits, "updates": updates, "batch_size": batch_size}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"language_feedback: {name}={value}: expected at least 1")
    largest = LARGEST_TABLE.bit_length() - 1
    if bits > largest:
        raise ValueError(f"language_feedback: bits={bits}: expected a number from 1 to {largest}")
    check_episode_counts("language_feedback", data.batch, 2**bits)
    length, size = spec.message_length, QUESTION_SIZES[model]
    shape = CharacterConfig(embedding_size, channels, kernels, pools, hidden)
    if model == "retrieval":
        chosen = _retrieval(capacity)
    else:
        chosen = _judge(
            (capacity, size, length),
            shape,
            chained(optax.clip_by_global_norm(max_gradient_norm), optax.adam(learning_rate), flatten=flatten),
            steps=lambda labels, came: jnp.where(labels >= small, 1, jnp.where(came, updates, 0)),
            batch_size=batch_size,
        )
        chosen = chosen._replace(**_ranked(cutoff) if model == "ranking" else _classified(threshold))

    def messages_of(trajectory: Trajectory):
        """Messages ``[T, B, L]``, and whether there is one."""
        messages = jnp.asarray(trajectory.extras["info"]["message"])
        expected = (*trajectory.mask.shape, length)
        if messages.shape != expected:
            raise ValueError(f"language_feedback: messages have the shape {messages.shape}: expected {expected}")
        return messages, jnp.any(messages > 0, axis=-1) & (trajectory.mask > 0)

    def bucket(messages):
        """``int32 [1, T, B]``."""
        return (observation_hash(messages)[0] & jnp.uint32(2**bits - 1)).astype(jnp.int32)[None]

    def scores(state, messages, said):
        """The model's score of every message, ``[T, B]``; 0 where there is none."""
        flat = messages.reshape(-1, length)
        found = _in_blocks(lambda part: chosen.score(state.model, part), flat, said.reshape(-1))
        return found.reshape(said.shape)

    def init_fn(key, **extra):
        del extra
        counts = jnp.zeros((data.batch, 2**bits))
        return LanguageFeedbackState(counts, jnp.zeros_like(counts), chosen.init(key))

    def apply_fn(state, trajectory, **extra):
        del extra
        messages, said = messages_of(trajectory)
        entering = entering_counts(state.entering, said.shape[1], data)
        counts = counts_within_episodes(bucket(messages), said[None], episode_starts(trajectory), entering)
        raw = jnp.where(said, chosen.reward(state.model, scores(state, messages, said)), 0.0)
        rewards = raw * jnp.maximum(counts, 1.0) ** -beta
        metrics = {
            "reward_mean": masked_mean(rewards, trajectory.mask),
            "message_reward": masked_mean(raw, said),
            "messages": masked_mean(said.astype(jnp.float32), trajectory.mask),
        }
        return write_channel(trajectory, channel, rewards), metrics

    def update_fn(state, trajectory, key, *, annotations: Annotations | None = None, **extra):
        del extra
        messages, said = messages_of(trajectory)
        if annotations is not None:
            _check(annotations, (size, length), capacity)
        learned = state._replace(model=chosen.learn(state.model, annotations, key))
        counts = counts_carried_on(state.counts, bucket(messages), said[None], episode_starts(trajectory))
        new_model = chosen.observe(learned.model, scores(learned, messages, said), said)
        return LanguageFeedbackState(counts, state.counts, new_model), chosen.metrics(new_model)

    return RewardTransform(init_fn, apply_fn, update_fn, remembered=fields("counts", "entering"))


def _check(annotations: Annotations, question: tuple[int, int], capacity: int) -> None:
    count = annotations.labels.shape[0]
    found = annotations.messages.shape, annotations.labels.shape, annotations.valid.shape
    if found != ((count, *question), (count,), (count,)) or count > capacity:
        raise ValueError(
            f"language_feedback: annotations of the shapes {found}: expected messages {('N', *question)}, labels and "
            f"valid ('N',), with N of at most capacity={capacity}"
        )


def _in_blocks(score: Callable[[jax.Array], jax.Array], messages: jax.Array, said: jax.Array) -> jax.Array:
    """``score`` of the messages that were said, ``[N, L]`` to ``[N]``, and 0 for the others, which are not computed."""
    count = said.shape[0]
    order = jnp.argsort(~said)
    order = jnp.pad(order, (0, -count % _BLOCK), constant_values=count)

    def step(index, found):
        rows = jax.lax.dynamic_slice(order, (index * _BLOCK,), (_BLOCK,))
        return found.at[rows].set(score(messages.at[rows].get(mode="fill", fill_value=0)), mode="drop")

    blocks = (jnp.sum(said) + _BLOCK - 1) // _BLOCK
    return jnp.where(said, jax.lax.fori_loop(0, blocks, step, jnp.zeros(count)), 0.0)


# --- retrieval -----------------------------------------------------------------------------------------


def _keys(messages: jax.Array) -> jax.Array:
    """``[..., L]`` to ``uint32 [..., 2]``."""
    flat = messages.reshape(1, -1, messages.shape[-1])
    return jnp.stack(observation_hash(flat), axis=-1).reshape(*messages.shape[:-1], 2)


def _retrieval(capacity: int) -> _Model:
    places = jnp.arange(capacity)

    def there(table: Table, keys):
        """Whether a place of the table holds the label of ``keys [..., 2]``, ``bool [..., capacity]``."""
        return jnp.all(table.keys == keys[..., None, :], axis=-1) & (places < table.size)

    def add(table: Table, annotation):
        key, label, valid = annotation
        same = there(table, key)
        old = jnp.any(same)
        at = jnp.where(valid, jnp.where(old, jnp.argmax(same), table.cursor), capacity)
        new = (valid & ~old).astype(jnp.int32)
        added = Table(
            table.keys.at[at].set(key, mode="drop"),
            table.labels.at[at].set(label, mode="drop"),
            (table.cursor + new) % capacity,
            jnp.minimum(table.size + new, capacity),
        )
        return added, None

    def learn(table, annotations, key):
        del key
        if annotations is None:
            return table
        keys = _keys(annotations.messages[:, 0])
        return jax.lax.scan(add, table, (keys, annotations.labels, annotations.valid))[0]

    def init(key):
        del key
        nothing = jnp.zeros((), jnp.int32)
        return Table(jnp.zeros((capacity, 2), jnp.uint32), jnp.zeros(capacity), nothing, jnp.zeros_like(nothing))

    return _Model(
        init=init,
        learn=learn,
        score=lambda table, messages: jnp.sum(jnp.where(there(table, _keys(messages)), table.labels, 0.0), axis=-1),
        observe=lambda table, scores, said: table,
        reward=lambda table, scores: scores,
        metrics=lambda table: {"labels": table.size.astype(jnp.float32)},
    )


# --- networks ------------------------------------------------------------------------------------------


def _judge(
    shape: tuple[int, int, int],
    config: CharacterConfig,
    optimiser: optax.GradientTransformation,
    steps: Callable[[jax.Array, jax.Array], jax.Array],
    batch_size: int,
) -> _Model:
    """A network that learns from labels; the caller replaces ``observe`` and ``reward`` by the method's own.

    Args:
      shape: ``(capacity, P, L)``, the shape of the messages that are kept.
      config, optimiser: the network's.
      steps: ``(size, came) -> optimiser steps`` of an update, by the number of labels kept and whether new ones came.
      batch_size: labels per optimiser step.
    """
    capacity, size, length = shape
    network = character_network(length, config)

    def loss_fn(params, messages, labels):
        outputs = network.apply(params, messages.reshape(-1, length)).reshape(-1, size)
        logits = outputs[:, 0] - outputs[:, 1] if size == 2 else outputs[:, 0]
        loss = jnp.mean(outcome_cross_entropy(logits, labels))
        return loss, {"loss": loss}

    def learn(judge: Judge, annotations, key):
        came: jax.Array = jnp.bool_(False)
        if annotations is not None:
            valid = annotations.valid
            position = (judge.cursor + jnp.cumsum(valid) - 1) % capacity
            at = jnp.where(valid, position, capacity)
            count = jnp.sum(valid, dtype=jnp.int32)
            judge = judge._replace(
                messages=judge.messages.at[at].set(annotations.messages, mode="drop"),
                labels=judge.labels.at[at].set(annotations.labels, mode="drop"),
                cursor=(judge.cursor + count) % capacity,
                size=jnp.minimum(judge.size + count, capacity),
            )
            came = count > 0

        def step(index, carry):
            params, optimiser_state, _ = carry
            rows = jax.random.randint(jax.random.fold_in(key, index), (batch_size,), 0, jnp.maximum(judge.size, 1))
            batch = judge.messages[rows], judge.labels[rows]
            params, optimiser_state, metrics = gradient_step(loss_fn, optimiser, params, optimiser_state, *batch)
            return params, optimiser_state, metrics["loss"]

        # Without a label there is nothing to learn, whatever ``small`` is.
        count = jnp.where(judge.size > 0, steps(judge.size, came), 0)
        carry = jax.lax.fori_loop(0, count, step, (judge.params, judge.optimiser, judge.loss))
        return judge._replace(params=carry[0], optimiser=carry[1], loss=carry[2])

    def init(key):
        params = network.init(key)
        nothing = jnp.zeros((), jnp.int32)
        return Judge(
            params=params,
            optimiser=optimiser.init(params),
            messages=jnp.zeros(shape, jnp.uint8),
            labels=jnp.zeros(capacity),
            cursor=nothing,
            size=jnp.zeros_like(nothing),
            scores=no_moments(),
            loss=jnp.zeros(()),
        )

    return _Model(
        init=init,
        learn=learn,
        score=lambda judge, messages: network.apply(judge.params, messages),
        observe=lambda judge, scores, said: judge,
        reward=lambda judge, scores: scores,
        metrics=lambda judge: {"labels": judge.size.astype(jnp.float32), "loss": judge.loss},
    )


def _classified(threshold: float | jax.Array) -> dict[str, Callable]:
    def reward(judge, scores):
        return jnp.where((judge.size > 0) & (jax.nn.sigmoid(scores) > threshold), 1.0, 0.0)

    return {"reward": reward}


def _ranked(cutoff: float | jax.Array) -> dict[str, Callable]:
    def observe(judge, scores, said):
        counted = (said & (judge.size > 0)).astype(jnp.float32)
        return judge._replace(scores=merge_moments(judge.scores, scores, counted))

    def reward(judge, scores):
        normalised = (scores - judge.scores.mean) / jnp.maximum(judge.scores.std, SMALLEST_STD)
        return jnp.where((judge.size > 0) & (normalised > cutoff), normalised, 0.0)

    return {"observe": observe, "reward": reward}
