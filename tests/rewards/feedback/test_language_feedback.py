"""Language feedback: rewards and counts by hand, the table against a dictionary, what the networks learn, and when."""

from collections import OrderedDict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents.base import DataSpec
from agents.networks.characters import CharacterConfig, character_network
from envs.base import EnvironmentSpec, Transition
from rewards.base import chain
from rewards.feedback.language_feedback import Annotations, language_feedback
from tests.rewards.contract import KEY, assert_same, jit, undone

LENGTH = 16
SPEC = EnvironmentSpec(spaces.Discrete(2), spaces.Discrete(2), message_length=LENGTH)
SILENT = EnvironmentSpec(spaces.Discrete(2), spaces.Discrete(2))
SHAPE = {"embedding_size": 8, "channels": 16, "kernels": (5,), "pools": (3,), "hidden": (8,)}
GOOD = ("got red key", "got blue key", "got green key", "got grey key", "met red key", "met blue key")
BAD = ("red door shut", "blue door shut", "green door shut", "grey door shut", "red wall hit", "blue wall hit")
# Messages about another colour, which never get a label.
UNSEEN_GOOD, UNSEEN_BAD = "got pink key", "pink door shut"


def encoded(*texts):
    """``uint8 [len(texts), LENGTH]``."""
    return np.stack([np.frombuffer(text.encode().ljust(LENGTH, b"\0"), np.uint8) for text in texts])


def trajectory_of(texts, starts=None, mask=None):
    """A trajectory ``[T, B]`` with the messages ``texts``, rows of equal length."""
    messages = np.stack([encoded(*row) for row in texts])
    shape = messages.shape[:2]
    nothing, zeros = jnp.zeros(shape, bool), jnp.zeros(shape)
    starts = nothing if starts is None else jnp.asarray(starts, bool)
    mask = jnp.ones(shape) if mask is None else jnp.asarray(mask, jnp.float32)
    extras = {"episode_start": starts, "info": {"message": jnp.asarray(messages)}}
    return Transition(zeros, zeros, {"env": zeros}, nothing, nothing, zeros, mask, extras)


def annotations(labels, room=4):
    """``Annotations`` with ``room`` places from a dictionary of messages, or pairs of messages, to labels."""
    questions = [(key,) if isinstance(key, str) else key for key in labels]
    size = len(questions[0]) if questions else 1
    messages, values = np.zeros((room, size, LENGTH), np.uint8), np.zeros(room, np.float32)
    for place, question in enumerate(questions):
        messages[place], values[place] = encoded(*question), list(labels.values())[place]
    return Annotations(jnp.asarray(messages), jnp.asarray(values), jnp.arange(room) < len(labels))


def rewards(apply, state, trajectory):
    return np.asarray(apply(state, trajectory)[0].rewards["language"])


def started(transform):
    """A state like the one from ``init`` with a network that is drawn here, so that nothing is compiled for it."""
    generator = np.random.default_rng(2)
    shapes = jax.eval_shape(transform.init, KEY)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    def draw(leaf):
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.0
        return np.asarray(scale * generator.normal(size=leaf.shape), leaf.dtype)

    if hasattr(state.model, "params"):
        state = state._replace(model=state.model._replace(params=jax.tree.map(draw, shapes.model.params)))
    return jax.tree.map(jnp.asarray, state)


def test_rewards_and_counts_by_hand():
    transform = language_feedback(SPEC, data=DataSpec("unroll", 4, 1))
    update, apply = jit(transform.update), jit(transform.apply)
    said = lambda *words, starts: trajectory_of([[word] for word in words], [[start] for start in starts])  # noqa: E731
    first = said("a", "a", "", "b", starts=[1, 0, 0, 0])
    state, _ = update(started(transform), first, KEY, annotations=annotations({"a": 1.0, "b": 0.5, "never": 1.0}))
    np.testing.assert_allclose(rewards(apply, state, first)[:, 0], [1, 1 / 8, 0, 0.5])
    # The episode continues with a third a and a second b; in the next one both are new. c has no label.
    second = said("a", "b", "a", "c", starts=[0, 0, 1, 0])
    state, metrics = update(state, second, KEY, annotations=annotations({}))
    np.testing.assert_allclose(rewards(apply, state, second)[:, 0], [1 / 27, 0.5 / 8, 1, 0])
    assert metrics["labels"] == 3
    # The label of c comes one rollout later, and c is said for the second time.
    third = said("c", "a", "", "", starts=[0, 0, 0, 0])
    state, _ = update(state, third, KEY, annotations=annotations({"c": 1.0}))
    np.testing.assert_allclose(rewards(apply, state, third)[:, 0], [1 / 8, 1 / 8, 0, 0])


def test_an_undone_update_keeps_the_counts_and_restores_the_model():
    transform = language_feedback(SPEC, data=DataSpec("unroll", 2, 1))
    update = jit(transform.update)
    words = trajectory_of([["a"], ["b"]], [[1], [0]])
    old, _ = update(started(transform), words, KEY, annotations=annotations({"a": 1.0}))
    new, _ = update(old, words, KEY, annotations=annotations({"b": 1.0}))
    left = undone(transform, old, new)
    assert_same((left.counts, left.entering, left.model), (new.counts, new.entering, old.model))
    # The labels are delivered again, and the next unroll continues the episode that started in the undone one.
    state, _ = update(left, trajectory_of([["b"], ["b"]]), KEY, annotations=annotations({"b": 1.0}))
    found = rewards(transform.apply, state, trajectory_of([["b"], ["b"]]))
    np.testing.assert_allclose(found[:, 0], [1 / 8, 1 / 27])


def test_each_environment_has_counts_of_its_own_and_padding_does_not_count():
    data = DataSpec("episodes", 3, 2)
    transform = language_feedback(SPEC, data=data, channel="told", beta=1.0)
    words = [["a", "a"], ["a", "b"], ["a", "a"]]
    trajectory = trajectory_of(words, [[1, 1], [0, 0], [0, 0]], [[1, 1], [1, 1], [0, 1]])
    update, state = jit(transform.update), started(transform)
    for _ in range(2):
        state, _ = update(state, trajectory, KEY, annotations=annotations({"a": 1.0}))
    relabelled, metrics = jit(transform.apply)(state, trajectory)
    # Counts of whole episodes begin at 0, whatever the episodes before said.
    np.testing.assert_allclose(relabelled.rewards["told"], [[1, 1], [0.5, 0], [0, 0.5]])
    assert_same(relabelled.rewards["env"], trajectory.rewards["env"])
    np.testing.assert_allclose(metrics["messages"], 1.0)
    np.testing.assert_allclose(metrics["message_reward"], 4 / 5)


def test_the_table_is_a_dictionary_of_the_last_labels():
    transform = language_feedback(SPEC, data=DataSpec("unroll", 1, 12), capacity=5)
    update, apply = jit(transform.update), jit(transform.apply)
    state, expected = started(transform), OrderedDict()
    generator = np.random.default_rng(0)
    names = [f"m{index}" for index in range(12)]
    everything = trajectory_of([names], [[True] * 12])
    for _ in range(30):
        chosen = generator.choice(12, generator.integers(0, 5), replace=False)
        labels = {names[index]: float(generator.integers(0, 3)) / 2 for index in chosen}
        state, _ = update(state, everything, KEY, annotations=annotations(labels))
        # A new label of a known message keeps its place.
        for name, label in labels.items():
            expected[name] = label
            if len(expected) > 5:
                expected.popitem(last=False)
        found = rewards(apply, state, everything)[0]
        np.testing.assert_array_equal(found, [expected.get(name, 0.0) for name in names])
    assert len(expected) == 5 == int(state.model.size)


def labelled(model):
    """Questions about all messages except the unseen ones, with their labels."""
    if model == "classification":
        return {text: float(text in GOOD) for text in GOOD + BAD}
    generator = np.random.default_rng(0)
    pairs = [tuple(map(str, generator.choice(GOOD + BAD, 2, replace=False))) for _ in range(24)]
    return {pair: 0.5 + 0.5 * ((pair[0] in GOOD) - (pair[1] in GOOD)) for pair in pairs}


EVERYTHING = trajectory_of([[*GOOD, UNSEEN_GOOD, *BAD, UNSEEN_BAD, ""]], [[True] * 15])


@pytest.fixture(scope="module", params=["classification", "ranking"])
def learned(request):
    """The rewards of a network before and after it learned in two parts, its outputs for everything seen since the
    first label, the last metrics, and how often its programs were traced."""
    model = request.param
    settings = {"capacity": 32, "updates": 60, "batch_size": 32, "learning_rate": 3e-3, **SHAPE}
    transform = language_feedback(SPEC, data=DataSpec("unroll", 1, 15), model=model, **settings)
    network = jit(character_network(LENGTH, CharacterConfig(**SHAPE)).apply)
    traces = {"update": 0, "apply": 0}

    def counted(name, function):
        def call(*arguments, **keywords):
            traces[name] += 1
            return function(*arguments, **keywords)

        return jit(call)

    update, apply = counted("update", transform.update), counted("apply", transform.apply)
    questions = list(labelled(model).items())
    nothing = annotations(dict(questions[:1]), room=12)._replace(valid=jnp.zeros(12, bool))
    state, _ = update(started(transform), EVERYTHING, KEY, annotations=nothing)
    before = rewards(apply, state, EVERYTHING)[0]
    parts = [annotations(dict(questions[start : start + 12]), room=12) for start in range(0, len(questions), 12)]
    seen = []
    for come in (*parts, nothing, nothing):
        state, metrics = update(state, EVERYTHING, KEY, annotations=come)
        seen.append(np.asarray(network(state.model.params, EVERYTHING.extras["info"]["message"][0]))[:-1])
    return model, before, rewards(apply, state, EVERYTHING)[0], np.stack(seen), metrics, traces


def test_a_network_learns_the_labels_and_generalises(learned):
    model, before, paid, _, metrics, _ = learned
    assert not before.any(), "without labels nothing is paid"
    labels = np.asarray(list(labelled(model).values()))
    assert metrics["labels"] == len(labels)
    # The least possible loss of a tie is log 2.
    assert metrics["loss"] < np.mean(labels == 0.5) * np.log(2) + 0.2
    good, bad = paid[: len(GOOD) + 1], paid[len(GOOD) + 1 : -1]
    assert paid[-1] == 0
    if model == "classification":
        assert (good == 1).all() and (bad == 0).all()
    else:
        assert good.min() > 0.5 > 0 >= bad.max()


def test_ranking_is_normalised_by_what_was_seen(learned):
    model, _, paid, seen, _, _ = learned
    normalised = (seen[-1] - seen.mean()) / seen.std()
    expected = normalised > -0.5
    assert 0 < expected.sum() < len(expected)
    if model == "ranking":
        np.testing.assert_allclose(paid[:-1], np.where(expected, normalised, 0.0), rtol=1e-3, atol=1e-4)
    else:
        np.testing.assert_array_equal(paid[:-1], seen[-1] > 0)


def test_nothing_is_compiled_again_whether_labels_come_or_not(learned):
    assert learned[-1] == {"update": 1, "apply": 1}


def test_few_labels_are_learned_when_they_come_and_the_newest_replace_the_oldest():
    settings = {"capacity": 5, "updates": 3, "small": 4, "batch_size": 2, **SHAPE}
    transform = language_feedback(SPEC, data=DataSpec("unroll", 1, 1), model="classification", **settings)
    update, state, taken = jit(transform.update), started(transform), []
    for labels in ({}, {"a": 1.0, "b": 0.0}, {}, {"c": 1.0}, {"d": 0.0}, {}, {"e": 0.0, "f": 1.0, "g": 1.0}):
        state, _ = update(state, trajectory_of([["a"]]), KEY, annotations=annotations(labels))
        [count] = [leaf for leaf in jax.tree.leaves(state.model.optimiser) if leaf.dtype == jnp.int32]
        taken.append(int(count))
    assert np.diff(taken, prepend=0).tolist() == [0, 3, 0, 3, 1, 1, 1]
    np.testing.assert_array_equal(state.model.messages[:, 0], encoded("f", "g", "c", "d", "e"))
    np.testing.assert_array_equal(state.model.labels, [1.0, 1.0, 1.0, 0.0, 0.0])
    assert (int(state.model.cursor), int(state.model.size)) == (2, 5)


def test_labels_reach_a_transform_in_a_chain_and_are_not_required():
    alone = language_feedback(SPEC, data=DataSpec("unroll", 1, 1))
    made = chain(language=alone)
    state, trajectory = {"language": started(alone)}, trajectory_of([["a"]])
    update, apply = jit(made.update), jit(made.apply)
    told, metrics = update(state, trajectory, KEY, policy_params=None, annotations=annotations({"a": 1.0}))
    assert metrics["language/labels"] == 1 and rewards(apply, told, trajectory) == 1
    # Without an annotator there are no annotations at all.
    state, _ = update(state, trajectory, KEY, policy_params=None)
    assert rewards(apply, state, trajectory) == 0


make = partial(language_feedback, data=DataSpec("unroll", 1, 1))


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (SPEC, {"model": "rankin"}, "unknown model 'rankin' of language_feedback, did you mean 'ranking'"),
        (SILENT, {}, "gives no messages: expected one that does, such as kind='minigrid' with messages=True"),
        (SPEC, {"data": DataSpec("replay", 1, 1)}, "data.kind='replay': a replay buffer keeps no messages"),
        (SPEC, {"capacity": 0}, "capacity=0: expected at least 1"),
        (SPEC, {"bits": 25}, "bits=25: expected a number from 1 to 24"),
        (
            SPEC,
            {"bits": 22, "data": DataSpec("unroll", 1, 8)},
            "4194304 counts for each of the 8 environments.*bits=21",
        ),
        (SPEC, {"model": "ranking", "kernels": (9, 9)}, r"kernels=\(9, 9\).*leave nothing of 16 characters"),
        (SPEC, {"model": "ranking", "kernels": (3,)}, "expected one pool per kernel"),
        (SPEC, {"model": "ranking", "channels": 0}, "expected numbers of at least 1"),
    ],
)
def test_language_feedback_refuses(spec, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(spec, **arguments)


def test_other_shapes_are_refused():
    transform = make(SPEC, capacity=3)
    state, trajectory = started(transform), trajectory_of([["a"]])
    long = trajectory.extras | {"info": {"message": jnp.zeros((1, 1, 10**6), jnp.uint8)}}
    with pytest.raises(ValueError, match=r"shape \(1, 1, 1000000\): expected \(1, 1, 16\)"):
        transform.apply(state, trajectory._replace(extras=long))
    with pytest.raises(ValueError, match="N of at most capacity=3"):
        transform.update(state, trajectory, KEY, annotations=annotations({}))
    pairs = annotations({("a", "b"): 1.0}, room=2)
    with pytest.raises(ValueError, match=r"expected messages \('N', 1, 16\)"):
        transform.update(state, trajectory, KEY, annotations=pairs)
