"""The annotation service: when labels arrive, what is asked, what is kept, and how a run resumes with them."""

from __future__ import annotations

import itertools
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from envs.base import EnvironmentSpec
from experiments.annotation.service import AnnotationService, Answer, Scripted
from experiments.assembly import registry
from experiments.assembly.build import EnvironmentSource, build_annotation, build_environment, build_parts
from experiments.commands import run
from experiments.errors import UserError
from experiments.training import learn, train
from experiments.training.host_driver import HostDriver, annotation_state
from experiments.training.progress import Silent
from experiments.training.stopping import StopRequested
from tests.experiments import corridor, talking
from tests.experiments.talking import LENGTH, read, said


def service(annotator, size=1, capacity=100, **settings):
    return AnnotationService(annotator, length=LENGTH, size=size, capacity=capacity, **settings)


def scripted(**settings):
    return Scripted(**{"phrases": ("ball", "key", "door")} | settings)


def test_labels_come_a_given_number_of_messages_late():
    prompt, late = service(scripted()), service(scripted(delay=3))
    words = [("a key", "a wall"), ("a key", "", "a key"), ("a door",), ("", ""), ("a key", "a key", "a key")]
    found = [(read(prompt.exchange(said(*texts))), read(late.exchange(said(*texts)))) for texts in words]
    assert [one for one, _ in found] == [{"a key": 1.0, "a wall": 0.0}, {}, {"a door": 1.0}, {}, {}]
    # The key was the first message and comes with the fourth, the wall with the fifth, the door, the fifth, with the
    # eighth. Silence is no message.
    assert [other for _, other in found] == [{}, {"a key": 1.0}, {"a wall": 0.0}, {}, {"a door": 1.0}]
    assert late.counts() == {"queue": 0.0, "messages": 8.0, "labels": 3.0, "waiting": 0.0}


@pytest.mark.parametrize("size", [1, 2])
def test_withheld_messages_are_never_labelled(size):
    made = service(scripted(withheld=("red", "wal+")), size, pairs=20)
    texts = ["a blue key", "a blue ball", "a red key", "a wall", "a door"]
    questions = read(made.exchange(said(*texts))) | read(made.exchange(said(*texts)))
    labelled = {"a blue key", "a blue ball", "a door"}
    assert questions.keys() == labelled if size == 1 else 0 < len(questions)
    if size == 2:
        assert all({first, second} <= labelled for first, second in questions)
    # It was answered, without a label, and is not asked again.
    assert made.counts()["queue"] == 0 and not read(made.exchange(said("a red key", "a wall")))


def test_masked_and_known_messages_are_not_asked():
    asked = []

    class Recorder(Scripted):
        def ask(self, question, number):
            asked.append((question, number))
            return super().ask(question, number)

    made = service(Recorder(phrases=("x",)))
    made.exchange(said("a", "b", "a", "", mask=[1, 0, 1, 1]))
    made.exchange(said("b", "a", "c"))
    assert asked == [((b"a",), 1), ((b"b",), 3), ((b"c",), 5)]


def test_labels_that_the_learner_replaced_are_asked_for_again():
    made = service(scripted(), capacity=2, labels=2)
    assert read(made.exchange(said("a", "b", "c"))).keys() == {"a", "b"}
    assert read(made.exchange(said("a"))).keys() == {"c"}
    # The label of c took the place of that of a.
    assert read(made.exchange(said("a", "c"))).keys() == {"a"}


def test_questions_that_the_annotator_drops_or_gives_up():
    class Moody:
        """Drops its questions when it gets a new one; gives up all others."""

        def __init__(self):
            self.held = []

        def start(self, state=None):
            pass

        def ask(self, question, number):
            dropped, self.held = self.held, [question]
            return dropped

        def answers(self, number):
            held, self.held = self.held, []
            return [Answer(question, None) for question in held]

        def state(self):
            return None

        def counts(self):
            return {}

    moody = Moody()
    made = service(moody)
    assert read(made.exchange(said("a", "b"))) == {}
    # b was given up and stays so; a was dropped and may be asked again.
    moody.answers = lambda number: [Answer(question, 1.0) for question in moody.held]
    assert read(made.exchange(said("b", "a"))) == {"a": 1.0}


def test_labels_wait_for_room():
    made = service(scripted(), labels=2)
    first = made.exchange(said("key 1", "key 2", "key 3", "key 4", "key 5"))
    assert first.messages.shape == (2, 1, LENGTH) and first.messages.dtype == np.uint8
    assert first.labels.dtype == np.float32 and first.valid.all()
    assert made.counts()["waiting"] == 3 and made.counts()["labels"] == 2
    assert list(read(first)) == ["key 1", "key 2"] and list(read(made.exchange(said("")))) == ["key 3", "key 4"]
    last = made.exchange(said(""))
    assert read(last) == {"key 5": 1.0} and last.valid.tolist() == [True, False]


@pytest.mark.parametrize("undone", [True, jnp.int32(1)])
def test_labels_of_a_step_that_was_undone_come_again(undone):
    made = service(scripted(), labels=2)
    first = made.exchange(said("key 1", "wall 2", "key 3"))
    made.note_undone(undone)
    # A state that is saved meanwhile records them as not delivered.
    assert made.counts()["labels"] == 0 and made.counts()["waiting"] == 3
    again = made.exchange(said("key 1"))
    assert read(again) == read(first) == {"key 1": 1.0, "wall 2": 0.0}
    made.note_undone(jnp.int32(0))
    assert read(made.exchange(said("wall 2"))) == {"key 3": 1.0}


def test_pairs_are_drawn_from_the_newest_and_never_asked_twice():
    made = service(scripted(), size=2, capacity=100, labels=100, pairs=4, recent=3)
    assert read(made.exchange(said("ball 0", "ball 0"))) == {}, "one message is no pair"
    found = {}
    for _ in range(12):
        found |= read(made.exchange(said("ball 1", "key 2", "wall 3")))
    # ball 0 is not among the last three.
    assert {frozenset(pair) for pair in found} == set(
        map(frozenset, itertools.combinations(["ball 1", "key 2", "wall 3"], 2))
    )
    assert len(found) == 3
    worth = {"ball 1": 3, "key 2": 2, "wall 3": 0}
    assert found == {pair: 0.5 + 0.5 * np.sign(worth[pair[0]] - worth[pair[1]]) for pair in found}
    both = [service(scripted(), size=2, pairs=2, seed=seed) for seed in (0, 0, 1)]
    words = said(*[f"key {index}" for index in range(20)])
    one, same, other = (read(each.exchange(words)) for each in both)
    assert one == same != other and set(one.values()) == {0.5}


def test_noise_flips_a_label_for_good():
    clean, noisy, other = scripted(), scripted(noise=0.25, seed=1), scripted(noise=0.25, seed=2)
    questions = [(f"{kind} {index}".encode(),) for kind in ("key", "wall") for index in range(1000)]
    wrong = np.array([clean.label(q) != noisy.label(q) for q in questions])
    assert abs(wrong.mean() - 0.25) < 5 * (0.25 * 0.75 / len(wrong)) ** 0.5
    assert [noisy.label(q) for q in questions] == [noisy.label(q) for q in questions]
    assert [noisy.label(q) for q in questions] != [other.label(q) for q in questions]
    pairs = [(b"key 1", f"wall {index}".encode()) for index in range(100)] + [(b"key 1", b"key 2")]
    assert {noisy.label(pair) for pair in pairs} == {0.0, 1.0, 0.5}


@pytest.mark.parametrize("size", [1, 2])
def test_state_survives_saving_and_restoring(size):
    def made():
        return service(scripted(delay=4, noise=0.3), size=size, labels=2, pairs=3)

    generator = np.random.default_rng(0)
    rollouts = [said(*(f"key {n}" if n % 3 else "" for n in generator.integers(12, size=6))) for _ in range(12)]
    whole, parts = made(), made()
    expected = [read(whole.exchange(each)) for each in rollouts]
    found = []
    for index, each in enumerate(rollouts):
        found.append(read(parts.exchange(each)))
        if index in (3, 7):
            # The label of an undone step is in the state, too.
            state = json.loads(json.dumps(parts.state()))
            parts = made()
            parts.start(state)
    assert found == expected and sum(map(len, found)) > 5
    assert parts.state() == whole.state()


def test_a_message_of_another_length_is_refused():
    made, trajectory = service(scripted()), said("a")
    trajectory.extras["info"]["message"] = np.ones((1, 1, 10**6), np.uint8)
    with pytest.raises(UserError, match=r"messages are uint8\[1, 1, 1000000\]: expected uint8\[1, 1, 24\]"):
        made.exchange(trajectory)


# --- in a run ------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def environments(monkeypatch):
    corridor.register(monkeypatch)
    talking.register(monkeypatch)


LATE = {"kind": "scripted", "phrases": ("reached", "cell 1"), "delay": 20, "noise": 0.2}


def trained(config, folder, seeds=(0,)):
    members = corridor.members(*seeds)
    programs = train.prepare_folder(folder, config, members)
    return train.train(config, "talking", programs, folder, Silent(), StopRequested())


@pytest.mark.parametrize("model", ["retrieval", "classification", "ranking"])
def test_a_prolonged_run_equals_the_uninterrupted_one(model, tmp_path, compiled_once):
    long = talking.config_of(model, **LATE)
    short = long.copy_and_resolve_references()
    short.iterations = 2
    trained(long, tmp_path / "whole")
    first = trained(short, tmp_path / "parts")
    second = trained(long, tmp_path / "parts")
    assert first.rows[-1]["iteration"] == 2 and second.resumed_from == 2
    rows = corridor.rows_of(tmp_path / "whole")
    assert corridor.rows_of(tmp_path / "parts") == rows
    # Labels were pending when the run was stopped.
    assert rows[0]["annotator/queue"] > 0 and rows[1]["annotator/labels"] > rows[0]["annotator/labels"] >= 0
    assert rows[1]["annotator/messages"] > rows[0]["annotator/messages"] > 0
    [make_driver] = compiled_once(long, build_environment(long), [corridor.members()])
    template = make_driver().template()
    found, expected = (corridor.checkpoint_of(tmp_path / name, template) for name in ("parts", "whole"))
    corridor.assert_same_arrays(found.state, expected.state)
    assert found.host.values == expected.host.values and found.iteration == 4
    corridor.assert_same_arrays(found.host.arrays, expected.host.arrays)


def host_driver(config):
    return HostDriver(config, build_environment(config), corridor.members()[0])


def test_labels_that_come_compile_nothing_and_survive_an_undone_step(monkeypatch):
    original = learn.learn

    def learn_with_nan(agent, reward, state, trajectory, iteration, annotations):
        def update(agent_state, relabelled, key):
            new, metrics = agent.update(agent_state, relabelled, key)
            bad = jnp.where(iteration == 1, jnp.nan, 1.0)
            return new._replace(params={name: _times(value, bad) for name, value in new.params.items()}), metrics

        return original(agent._replace(update=update), reward, state, trajectory, iteration, annotations)

    monkeypatch.setattr(learn, "learn", learn_with_nan)
    driver = host_driver(talking.config_of("retrieval"))
    state, labels = driver.start(), []
    for iteration in range(6):
        state, metrics = driver.chunk(state, iteration, 1)
        assert metrics["sum/rejected"] == (iteration == 1)
        assert metrics["reward/language/labels"] == (0 if iteration == 1 else metrics["annotator/labels"])
        labels.append(float(metrics["annotator/labels"][0]))
    # Those of the second step were not kept, and all labels arrived in the end.
    assert labels[1] == labels[0] and labels[-1] == metrics["reward/language/labels"]
    assert metrics["annotator/waiting"] == metrics["annotator/queue"] == 0
    assert driver._programs.learn._cache_size() == 1
    driver.close()


def _times(tree, number):
    return {name: _times(leaf, number) for name, leaf in tree.items()} if isinstance(tree, dict) else tree * number


def test_environments_that_cannot_be_saved_keep_their_labels():
    config = talking.config_of("retrieval")
    config.environment.saved = False
    driver = host_driver(config)
    state, _ = driver.chunk(driver.start(), 0, 1)
    snapshot, known = driver.snapshot(), driver._annotation.state()
    other = host_driver(config)
    state = other.resume(state, snapshot, 1)
    # Nothing was asked since: a second checkpoint would hold the same.
    assert other.snapshot() == snapshot and annotation_state(snapshot) == known
    other.evaluate(state)
    assert other._annotation is None
    for each in (driver, other):
        each.close()


def annotator(**changes):
    return lambda config: config.annotator.update(changes)


def without(section, name):
    return lambda config: delattr(config[section] if section else config, name)


REFUSED = {
    "no annotator": (without("", "annotator"), "language; section annotator: none: expected one of each"),
    "nobody reads": (without("rewards", "language"), "none; section annotator: there"),
    "two readers": (
        lambda config: config.rewards.update({"other": config.rewards.language}),
        "language, other; section annotator: there: expected one of each",
    ),
    "a kind": (annotator(kind="script"), "unknown annotator 'script'.*'scripted'"),
    "an argument": (annotator(late=3), "section 'annotator'.*'late'"),
    "a phrase": (annotator(phrases=("ok", "(")), r"phrase '\(' is no regular expression"),
    "no phrase": (annotator(phrases=()), r"phrases=\(\): expected one"),
    "withheld": (annotator(withheld=("(",)), r"phrase '\(' is no regular expression"),
    "withheld alone": (annotator(withheld="grey"), r"withheld='grey': expected a sequence"),
    "noise": (annotator(noise=1.5), "noise=1.5: expected a probability"),
    "a delay": (annotator(delay=-1), "delay=-1: expected a number of messages"),
    "too many labels": (annotator(labels=17), "labels=17: expected at most the capacity of the reward, 16"),
    "no labels": (annotator(labels=0), "labels=0: expected at least 1"),
    "a silent host": (lambda config: config.environment.update({"kind": "corridor_host"}), "gives no messages"),
    "a pure environment": (lambda config: config.environment.update({"kind": "corridor"}), "gives no messages"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_settings_are_refused_in_one_line_before_any_work(name, monkeypatch, tmp_path, capsys):
    change, message = REFUSED[name]
    config = talking.config_of("retrieval")
    with config.unlocked():
        change(config)
        # A channel that nothing writes may not have credit either.
        if "language" not in config.rewards:
            del config.credit["language"]
    monkeypatch.setattr(registry, "load", lambda _: corridor.loaded(config))
    assert run.main(["talking", f"--runs={tmp_path}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(message, line), line
    assert not list(tmp_path.iterdir())


def test_a_pure_environment_cannot_have_an_annotator():
    config = talking.config_of("retrieval")
    source = build_environment(config)
    with pytest.raises(
        UserError, match=r"rewards.language: a pure environment has no messages; expected a host environment"
    ):
        build_annotation(config, source._replace(pure=corridor.Corridor()))


@pytest.mark.parametrize("variant", ["", "ranking,delay_100,door_key,noisy,partial", "classification,http,multi_room"])
def test_the_sections_of_oni_minigrid_are_what_the_factories_take(variant):
    # Without MiniGrid, which may not be installed.
    config = registry.load(f"oni_minigrid:{variant}").config
    spec = EnvironmentSpec(spaces.Discrete(2), spaces.Discrete(2), info=("success",), message_length=64)
    assert build_annotation(config, EnvironmentSource(spec, None, None)) is not None
    assert build_parts(config, spec).agent.data.kind == "unroll"
    settings, tokens = config.annotator, variant.split(",")
    assert config.rewards.language.model == (tokens[0] or "retrieval")
    assert settings.kind == ("http" if "http" in tokens else "scripted")
    if settings.kind == "scripted":
        assert (settings.delay, settings.noise, len(settings.withheld)) == ((100, 0.1, 3) if variant else (0, 0.0, 0))


@pytest.mark.parametrize(
    "variant",
    ["ppo,http", "ppo,noisy", "ppo,partial", "ppo,delay_100", "http,noisy", "http,partial", "delay_0,delay_100"],
)
def test_variants_of_oni_minigrid_that_exclude_each_other(variant):
    with pytest.raises(UserError, match=r"reads no labels|exclude each other"):
        registry.load(f"oni_minigrid:{variant}")
