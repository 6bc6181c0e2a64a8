"""Asking for labels of an environment's messages while a run goes on. The learner never waits for an answer.

After a rollout the driver hands its messages to an ``AnnotationService`` and gets what labels there are. What was not
asked yet goes to an *annotator*, which answers whenever it can: ``Scripted`` here, after a number of messages; a
language model behind HTTP in ``experiments/annotation/http.py``, from a thread of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from envs.base import Trajectory
from experiments.errors import UserError
from rewards.feedback.language_feedback import Annotations

Question = tuple[bytes, ...]
"""One message, or two to compare, without the zeros that fill them."""


class Answer(NamedTuple):
    """A label, ``None`` where the annotator gave the question up."""

    question: Question
    label: float | None


class Annotator(Protocol):
    """Who answers. No call but ``start`` waits for anything."""

    def start(self, state: Any = None) -> None:
        """Gets ready, or goes on from ``state()`` of an earlier run.

        Raises:
          UserError: if it cannot be reached as it is configured.
          ValueError: ``state`` is none of an annotator of this kind.
        """

    def require(self) -> None:
        """Checks, before anything is written, what ``start`` needs of this machine; asks nobody.

        Raises:
          UserError: if something is missing.
        """

    def ask(self, question: Question, number: int) -> Sequence[Question]:
        """Takes a question, after ``number`` messages; returns those that it dropped for want of room."""

    def answers(self, number: int) -> Sequence[Answer]:
        """What was answered since the last call, after ``number`` messages."""

    def counts(self) -> dict[str, float]:
        """What happened so far, by name, for the rows."""

    def state(self) -> Any:
        """All that ``start`` needs to go on, in JSON values."""

    def close(self) -> None: ...


class Scripted:
    """Labels by phrases, a given number of messages late: the same run gets the same labels at the same time.

    A message is as good as the first phrase that it matches, the last phrase being the least, and worth nothing where
    it matches none. Alone it is labelled 1 where it is worth something; of two the better one is preferred.

    Args:
      phrases: regular expressions, searched for in the message; the best first.
      noise: the probability that a label is turned around, for each question once and for all.
      delay: an answer comes when so many more messages were submitted, those that are known included.
      withheld: regular expressions; a question with a message that one of them is found in is given up.
      seed: of the noise.
      size, folder: see ``AnnotationService``; not used.

    Raises:
      ValueError: no phrase, one that is no regular expression, or a number out of its range.
    """

    def __init__(
        self,
        *,
        phrases: Sequence[str],
        noise: float = 0.0,
        delay: int = 0,
        withheld: Sequence[str] = (),
        seed: int = 0,
        size: int = 1,
        folder: Path | None = None,
    ):
        del size, folder
        if not phrases or isinstance(phrases, str):
            raise ValueError(f"phrases={phrases!r}: expected one regular expression or more")
        if isinstance(withheld, str):
            raise ValueError(f"withheld={withheld!r}: expected a sequence of regular expressions")
        if not 0 <= noise <= 1:
            raise ValueError(f"noise={noise}: expected a probability from 0 to 1")
        if delay < 0:
            raise ValueError(f"delay={delay}: expected a number of messages, at least 0")
        self._phrases, self._withheld = _compiled(phrases), _compiled(withheld)
        self._noise, self._delay, self._seed = noise, delay, seed
        self._line: deque[tuple[int, Question]] = deque()

    def start(self, state: Any = None) -> None:
        self._line = deque((numbered(each[0]), question_from(each[1])) for each in listed(state or [], 2))

    def require(self) -> None:
        pass

    def ask(self, question: Question, number: int) -> Sequence[Question]:
        self._line.append((number + self._delay, question))
        return ()

    def answers(self, number: int) -> Sequence[Answer]:
        found = []
        while self._line and self._line[0][0] <= number:
            _, question = self._line.popleft()
            found.append(Answer(question, self.label(question)))
        return found

    def label(self, question: Question) -> float | None:
        """What it says, noise included; ``None`` where it says nothing."""
        if self.withholds(question):
            return None
        worth = [self.worth(message) for message in question]
        label = float(worth[0] > 0) if len(worth) == 1 else 0.5 + 0.5 * float(np.sign(worth[0] - worth[1]))
        draw = hashlib.sha256(b"\0".join([str(self._seed).encode(), *question])).digest()
        noisy = int.from_bytes(draw[:8]) < self._noise * 2**64
        return 1.0 - label if noisy else label

    def withholds(self, question: Question) -> bool:
        """Whether it says nothing about it."""
        return any(phrase.search(as_text(message)) for phrase in self._withheld for message in question)

    def worth(self, message: bytes) -> int:
        """How good a message is: the number of phrases for the first, 1 for the last, 0 where it matches none."""
        text = as_text(message)
        ranks = (len(self._phrases) - index for index, phrase in enumerate(self._phrases) if phrase.search(text))
        return next(ranks, 0)

    def counts(self) -> dict[str, float]:
        return {"queue": float(len(self._line))}

    def state(self) -> Any:
        return [[number, as_values(question)] for number, question in self._line]

    def close(self) -> None:
        pass


def _compiled(phrases: Sequence[str]) -> list[re.Pattern[str]]:
    """Regular expressions, ready to search with.

    Raises:
      ValueError: one of them is none.
    """
    compiled = []
    for phrase in phrases:
        try:
            compiled.append(re.compile(phrase))
        except re.error as error:
            raise ValueError(f"phrase {phrase!r} is no regular expression: {error}") from error
    return compiled


def as_values(question: Question) -> list[str]:
    """A question in JSON values. Messages are any bytes, and Latin-1 has a letter for every byte."""
    return [message.decode("latin-1") for message in question]


def question_from(values: Any) -> Question:
    """The inverse of ``as_values``.

    Raises:
      ValueError: ``values`` is no question.
    """
    if not isinstance(values, list) or len(values) not in (1, 2) or not all(isinstance(each, str) for each in values):
        raise ValueError(f"{str(values)[:40]} is no question of one message or two")
    # Text beyond Latin-1 raises a ValueError, too.
    return tuple(each.encode("latin-1") for each in values)


def numbered(value: Any) -> int:
    """``value``, a count.

    Raises:
      ValueError: it is none.
    """
    if type(value) is not int or value < 0:
        raise ValueError(f"{str(value)[:40]} is no count")
    return value


def labelled(value: Any) -> float | None:
    """``value``, a label or none.

    Raises:
      ValueError: it is neither.
    """
    if value is not None and (isinstance(value, bool) or value not in (0, 0.5, 1)):
        raise ValueError(f"{str(value)[:40]} is no label: expected 0, 0.5, 1 or none")
    return None if value is None else float(value)


def listed(values: Any, size: int | None = None) -> list[Any]:
    """``values``, a list, of lists of ``size`` values each where there is one.

    Raises:
      ValueError: it is none.
    """
    if not isinstance(values, list):
        raise ValueError(f"{str(values)[:40]} is no list")
    for each in values if size is not None else ():
        if not isinstance(each, list) or len(each) != size:
            raise ValueError(f"{str(each)[:40]} is no list of {size} values")
    return values


def as_text(message: bytes) -> str:
    """The text of a message; what is no UTF-8 is replaced."""
    return message.decode(errors="replace")


class AnnotationService:
    """Chooses what is asked, and keeps labels until the learner takes them.

    About single messages (``size`` 1) every one is asked that was not, as it is seen. About pairs, ``pairs`` are drawn
    per rollout of the messages seen last, as far as they were not asked. A question that the annotator dropped may be
    asked again when its message comes again, and so may one whose label was given so long ago that the learner's own
    memory of ``capacity`` labels has lost it.

    Args:
      annotator: who answers.
      length: bytes of a message.
      size: messages per question, 1 or 2.
      capacity: how many labels the learner remembers.
      labels: ``N``, how many labels a learn step takes at most.
      pairs, recent: how many pairs are drawn per rollout, and of how many different messages.
      seed: of the draws.

    Raises:
      ValueError: a number out of its range.
    """

    def __init__(
        self,
        annotator: Annotator,
        *,
        length: int,
        size: int,
        capacity: int,
        labels: int = 32,
        pairs: int = 16,
        recent: int = 1000,
        seed: int = 0,
    ):
        for name, value, lowest in (("labels", labels, 1), ("pairs", pairs, 1), ("recent", recent, 2)):
            if value < lowest:
                raise ValueError(f"{name}={value}: expected at least {lowest}")
        if labels > capacity:
            raise ValueError(f"labels={labels}: expected at most the capacity of the reward, {capacity}")
        self._annotator, self._length, self._size = annotator, length, size
        self._capacity, self._labels, self._pairs, self._most_recent = capacity, labels, pairs, recent
        self._seed = seed
        self._messages = self._rollouts = self._delivered = 0
        self._recent: dict[bytes, None] = {}
        self._pending: set[Question] = set()
        self._known: dict[Question, None] = {}
        self._outbox: deque[Answer] = deque()
        self._taken: list[Answer] = []
        self._undone: Any = False

    def start(self, state: dict[str, Any] | None = None) -> None:
        """Starts the annotator; goes on from ``state()`` of an earlier run.

        Raises:
          UserError: see ``Annotator``, or ``state`` is none of a service with questions of this size.
        """
        try:
            if state is not None:
                self._restore(state)
            self._annotator.start(None if state is None else state.get("annotator"))
        except ValueError as error:
            raise UserError(f"the checkpoint's annotations cannot be read: {error}") from error

    def _restore(self, state: dict[str, Any]) -> None:
        totals = [numbered(each) for each in listed(state.get("totals"))]
        if len(totals) != 3:
            raise ValueError(f"{totals} are no three totals")
        self._messages, self._rollouts, self._delivered = totals
        known, pending = ([self._own(each) for each in listed(state.get(name))] for name in ("known", "pending"))
        recent = [question_from([each])[0] for each in listed(state.get("recent"))]
        self._recent, self._known, self._pending = dict.fromkeys(recent), dict.fromkeys(known), set(pending)
        outbox = listed(state.get("outbox"), 2)
        self._outbox = deque(Answer(self._own(question), labelled(label)) for question, label in outbox)

    def _own(self, values: Any) -> Question:
        """A question that this service may have asked."""
        question = question_from(values)
        if len(question) != self._size or any(len(message) > self._length for message in question):
            raise ValueError(f"a question is not of {self._size} messages of at most {self._length} bytes")
        return question

    def require(self) -> None:
        """Checks, before anything is written, what ``start`` needs of this machine.

        Raises:
          UserError: see ``Annotator``.
        """
        self._annotator.require()

    def exchange(self, trajectory: Trajectory) -> Annotations:
        """Asks about the messages of a rollout; the labels for its learn step, as many as there are and room for.

        Args:
          trajectory: with ``extras["info"]["message"]``, ``uint8 [T, B, length]``, all 0 where nothing was said.

        Raises:
          UserError: messages of another shape.
        """
        self._settle()
        self._submit(trajectory.extras["info"]["message"], np.asarray(trajectory.mask))
        return self._collect()

    def note_undone(self, undone: Any) -> None:
        """Says of the learn step with the last labels whether it was undone, a number that may still be computed. If
        so, nothing is lost: they are the first of the next step."""
        self._undone = undone

    def _settle(self) -> None:
        if bool(self._undone):
            self._outbox.extendleft(reversed(self._taken))
            for question, _ in self._taken:
                self._known.pop(question, None)
                self._pending.add(question)
            self._delivered -= len(self._taken)
        self._taken, self._undone = [], False

    def _submit(self, messages: np.ndarray, mask: np.ndarray) -> None:
        expected = (*mask.shape, self._length)
        if messages.shape != expected or messages.dtype != np.uint8:
            raise UserError(
                f"messages are {messages.dtype}{list(messages.shape)}: expected uint8{list(expected)}, as the "
                f"environment's "
                "spec says"
            )
        said = messages[messages.any(axis=-1) & (mask > 0)]
        for row in said:
            message = row.tobytes().rstrip(b"\0")
            self._messages += 1
            if self._size == 1:
                self._ask((message,))
            else:
                # At the end: the newest.
                self._recent.pop(message, None)
                self._recent[message] = None
        _forget(self._recent, self._most_recent)
        if self._size == 2 and len(self._recent) > 1:
            generator = np.random.default_rng((self._seed, self._rollouts))
            known = list(self._recent)
            for _ in range(self._pairs):
                first, second = generator.choice(len(known), 2, replace=False)
                self._ask((known[first], known[second]))
        self._rollouts += 1

    def _ask(self, question: Question) -> None:
        for turned in itertools.permutations(question):
            if turned in self._pending or turned in self._known:
                return
        self._pending.add(question)
        self._pending.difference_update(self._annotator.ask(question, self._messages))

    def _collect(self) -> Annotations:
        for answer in self._annotator.answers(self._messages):
            if answer.label is None:
                self._remember(answer.question)
            else:
                self._outbox.append(answer)
        while self._outbox and len(self._taken) < self._labels:
            self._taken.append(self._outbox.popleft())
        messages = np.zeros((self._labels, self._size, self._length), np.uint8)
        labels = np.zeros(self._labels, np.float32)
        for place, (question, label) in enumerate(self._taken):
            for part, message in enumerate(question):
                messages[place, part, : len(message)] = np.frombuffer(message, np.uint8)
            labels[place] = label
            self._remember(question)
        self._delivered += len(self._taken)
        return Annotations(messages, labels, np.arange(self._labels) < len(self._taken))

    def _remember(self, question: Question) -> None:
        self._pending.discard(question)
        self._known[question] = None
        _forget(self._known, self._capacity)

    def counts(self) -> dict[str, float]:
        """Totals since the run began, for the rows: the annotator's, and ``messages`` submitted, ``labels`` delivered
        and ``waiting`` for a learn step."""
        self._settle()
        own = {"messages": self._messages, "labels": self._delivered, "waiting": len(self._outbox)}
        return self._annotator.counts() | {name: float(value) for name, value in own.items()}

    def state(self) -> dict[str, Any]:
        """All that ``start`` needs to go on, in JSON values."""
        self._settle()
        return {
            "totals": [self._messages, self._rollouts, self._delivered],
            "recent": as_values(tuple(self._recent)),
            "known": [as_values(question) for question in self._known],
            "pending": [as_values(question) for question in sorted(self._pending)],
            "outbox": [[as_values(question), label] for question, label in self._outbox],
            "annotator": self._annotator.state(),
        }

    def close(self) -> None:
        self._annotator.close()


def remembered_messages(state: dict[str, Any]) -> list[bytes]:
    """Every message that the saved state of a service knows of, sorted.

    Raises:
      UserError: ``state`` is none of a service.
    """
    try:
        questions = [question_from(each) for name in ("known", "pending") for each in listed(state.get(name))]
        questions += [question_from([each]) for each in listed(state.get("recent"))]
    except ValueError as error:
        raise UserError(f"the checkpoint's annotations cannot be read: {error}") from error
    return sorted({message for question in questions for message in question})


def _forget(remembered: dict[Any, None], most: int) -> None:
    """Drops the oldest entries until there are ``most``."""
    while len(remembered) > most:
        del remembered[next(iter(remembered))]
