"""A language model as annotator, behind the endpoint that ``experiments/annotation/chat_endpoint.py`` finds in the
environment."""

from __future__ import annotations

import hashlib
import json
import math
import random
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.annotation.cache import Cache
from experiments.annotation.chat_endpoint import (
    KEY,
    MODEL,
    URL,
    Endpoint,
    FailedRequestError,
    RefusedError,
    UnreachableError,
    chat,
    endpoint,
    phrase,
)
from experiments.annotation.prompts import instructions, listing, read_labels
from experiments.annotation.service import Answer, Question, as_values, labelled, listed, numbered, question_from
from experiments.errors import UserError

CACHE_FILE = "annotations.jsonl"
# Whoever answers so will not answer otherwise when asked again.
_GONE = (401, 403, 404)
# What the state of an annotator holds.
_STATE = ("happened", "strikes", "alone", "answers", "dropped", "queue")
_EXAMPLES = ((b"You picked up the red key",), (b"You picked up the red key", b"The red door closes"))


class _Asked(NamedTuple):
    """A question and after how many messages it was asked."""

    number: int
    question: Question


class Http:
    """A language model, asked from a thread about the newest questions first.

    Questions wait in a queue of ``queue`` places; when it is full the oldest is dropped. A request takes the ``batch``
    newest. What fails for a reason that may pass (a time-out, no connection, a reply that is no chat completion, status
    408, 425, 429 or 5xx) is tried again after ``shortest_wait 2^k`` seconds, times a random number from 0.5 to 1, or as
    long as the endpoint says, never after more than ``longest_wait``; after ``attempts`` times its questions go back to
    the queue and nothing is asked for ``longest_wait``. A question that a reply has no label for is asked again,
    ``attempts`` times in all, after ``shortest_wait``. Statuses 401, 403 and 404 end the annotator, not the run:
    nothing is asked any more until the run is started again. After any other status the questions of the request are
    asked one by one, and a question that is refused alone is given up.

    Labels are kept in a file, by model, instructions and question, so that nothing is asked twice, by this run or by
    others with the same file; the seeds of one run share it, so that a seed has at once what another one asked. What
    the file says was spent, by whomever, counts against ``max_requests`` and ``max_cost``; runs side by side may exceed
    them by the requests that are under way. The cost of a request is what the reply says of its tokens, and the
    largest possible where it says nothing that can be believed or does not come.

    Args:
      goal: what the player is after, for the prompt.
      batch, queue, timeout, attempts, shortest_wait, longest_wait: see above; times in seconds.
      max_requests, max_cost: nothing is asked beyond, retries and the question at the start included.
      prompt_price, completion_price: of a million tokens, in the unit of ``max_cost``.
      temperature, max_tokens: of the model; ``max_tokens`` bounds a reply.
      cache: the file; ``annotations.jsonl`` in the run folder where there is none.
      seed: not used.
      size: messages per question.
      folder: the run folder; without it and ``cache``, nothing is kept.

    Raises:
      ValueError: a number out of its range.
    """

    def __init__(
        self,
        *,
        goal: str,
        batch: int = 20,
        queue: int = 10_000,
        timeout: float = 60.0,
        attempts: int = 4,
        shortest_wait: float = 1.0,
        longest_wait: float = 60.0,
        max_requests: int = 1_000,
        max_cost: float = 1.0,
        prompt_price: float = 0.0,
        completion_price: float = 0.0,
        temperature: float = 0.1,
        max_tokens: int = 1024,
        cache: str | None = None,
        seed: int = 0,
        size: int = 1,
        folder: Path | None = None,
    ):
        del seed
        positive = {"batch": batch, "queue": queue, "attempts": attempts, "max_tokens": max_tokens}
        for name, value in positive.items():
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        if not 0 < timeout < math.inf or not 0 <= shortest_wait <= longest_wait < math.inf:
            raise ValueError(
                f"timeout={timeout}, shortest_wait={shortest_wait}, longest_wait={longest_wait}: expected seconds, "
                "timeout above 0 and longest_wait at least shortest_wait"
            )
        amounts = {"max_requests": max_requests, "max_cost": max_cost, "temperature": temperature}
        amounts |= {"prompt_price": prompt_price, "completion_price": completion_price}
        for name, amount in amounts.items():
            # No limit is one; an infinite price is none.
            if not amount >= 0 or (name not in ("max_requests", "max_cost") and amount == math.inf):
                raise ValueError(f"{name}={amount}: expected at least 0")
        if not goal.strip():
            raise ValueError(f"goal={goal!r}: expected a sentence that says what the player is after")
        self._instructions, self._size = instructions(goal, size), size
        self._batch, self._room, self._timeout, self._attempts = batch, queue, timeout, attempts
        self._waits = shortest_wait, longest_wait
        self._most = max_requests, max_cost
        self._prices = prompt_price / 1e6, completion_price / 1e6
        self._temperature, self._max_tokens = temperature, max_tokens
        path = Path(cache).expanduser() if cache else None if folder is None else Path(folder) / CACHE_FILE
        self._cache = Cache(path)
        self._endpoint: Endpoint
        # Everything below is shared with the thread.
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._queue: list[_Asked] = []
        self._in_flight: list[_Asked] = []
        self._answers: list[Answer] = []
        self._dropped: list[Question] = []
        self._strikes: Counter[Question] = Counter()
        # To be asked one by one, because a request with them was refused.
        self._alone: set[Question] = set()
        self._happened: Counter[str] = Counter()
        self._gone = self._spent = False
        self._defect: BaseException | None = None

    def start(self, state: Any = None) -> None:
        """Reads the cache, asks one question to see who is there, and starts the thread.

        Raises:
          UserError: for what the environment lacks, a file that cannot be written, an endpoint that nobody listens at,
            or one that refuses the request for good (401, 403, 404, ...).
        """
        self._endpoint = endpoint()
        self._cache.open()
        if state is not None:
            self._restore(state)
        self._knock()
        threading.Thread(target=self._work, name="annotator", daemon=True).start()

    def require(self) -> None:
        """Raises ``UserError`` for what the environment lacks."""
        endpoint()

    def _restore(self, state: Any) -> None:
        parts = {name: state.get(name) for name in _STATE} if isinstance(state, dict) else {}
        happened = parts.get("happened")
        if not isinstance(happened, dict):
            raise ValueError("the state of the annotator is no object with an object 'happened'")
        self._happened = Counter({name: numbered(count) for name, count in happened.items()})
        self._strikes = Counter({question_from(q): numbered(count) for q, count in listed(parts["strikes"], 2)})
        self._alone = {question_from(each) for each in listed(parts["alone"])}
        self._answers = [Answer(question_from(q), labelled(label)) for q, label in listed(parts["answers"], 2)]
        self._dropped = [question_from(each) for each in listed(parts["dropped"])]
        for number, question in listed(parts["queue"], 2):
            self._receive(question_from(question), numbered(number))

    def _knock(self) -> None:
        [example] = [each for each in _EXAMPLES if len(each) == self._size]
        if not self._affordable([example]):
            return
        try:
            self._label([example])
        except UnreachableError as error:
            raise UserError(
                f"nobody answers at {self._endpoint.shown} ({error}): expected the annotator that {URL} names"
            ) from None
        except FailedRequestError as error:
            # What may pass is counted in the rows, and it may answer later.
            if isinstance(error, RefusedError) and not error.may_pass:
                hint = f"a key that it knows in {KEY}" if error.status in (401, 403) else f"another {URL} or {MODEL}"
                raise UserError(
                    f"the annotator at {self._endpoint.shown} answers {error.status} ({phrase(error.status)}): "
                    f"expected {hint}"
                ) from None

    def ask(self, question: Question, number: int) -> Sequence[Question]:
        self._receive(question, number)
        with self._changed:
            dropped, self._dropped = self._dropped, []
        return dropped

    def _receive(self, question: Question, number: int) -> None:
        label = self._cache.get(self._key(question))
        with self._changed:
            if label is not None:
                self._happened["cached"] += 1
                self._answers.append(Answer(question, label))
                return
            self._queue.append(_Asked(number, question))
            self._make_room()
            self._changed.notify()

    def _make_room(self) -> None:
        surplus = max(len(self._queue) - self._room, 0)
        self._dropped += [asked.question for asked in self._queue[:surplus]]
        del self._queue[:surplus]
        self._happened["dropped"] += surplus

    def answers(self, number: int) -> Sequence[Answer]:
        """See ``Annotator``; a defect of the thread is raised here."""
        del number
        with self._changed:
            if self._defect is not None:
                raise self._defect
            found, self._answers = self._answers, []
        return found

    def counts(self) -> dict[str, float]:
        """See the names below; ``garbage`` counts replies that are no chat completion, ``unlabelled`` questions that a
        reply has no label for, ``requests`` and ``cost`` are what the file says, ``queue`` holds those being asked,
        ``gone`` and ``spent`` are 1 where nothing is asked any more."""
        names = ("retries", "timeouts", "http_errors", "unreachable", "garbage", "unlabelled")
        with self._changed:
            found = {name: self._happened[name] for name in (*names, "given_up", "cached", "dropped")}
            found |= {"queue": len(self._queue) + len(self._in_flight), "gone": self._gone, "spent": self._spent}
        found |= {"requests": self._cache.requests, "unsaved": self._cache.unsaved}
        return {name: float(value) for name, value in found.items()} | {"cost": self._cache.cost}

    def state(self) -> Any:
        with self._changed:
            return {
                "happened": dict(self._happened),
                "strikes": [[as_values(question), count] for question, count in self._strikes.items()],
                "alone": [as_values(question) for question in sorted(self._alone)],
                "answers": [[as_values(question), label] for question, label in self._answers],
                "dropped": [as_values(question) for question in self._dropped],
                "queue": [[n, as_values(question)] for n, question in sorted(self._queue + self._in_flight)],
            }

    def close(self) -> None:
        """Tells the thread to end; an answer that still comes goes into the file."""
        with self._changed:
            self._stopped.set()
            self._changed.notify_all()

    # --- the thread ------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while batch := self._take():
                questions = [asked.question for asked in batch]
                labels: Mapping[Question, float | None] = self._found(questions)
                if not labels:
                    labels = self._ask_patiently(questions)
                self._put(batch, labels)
                if None in labels.values():
                    # Who gave no label will hardly give one at once.
                    self._stopped.wait(self._waits[0])
        except BaseException as error:
            self._defect = error

    def _take(self) -> list[_Asked]:
        """The newest questions, once there are any; none to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped.is_set() or self._queue)
            if self._stopped.is_set() or self._gone or self._spent:
                return []
            together = [asked for asked in self._queue if asked.question not in self._alone]
            self._in_flight = together[-self._batch :] or self._queue[-1:]
            taken = set(self._in_flight)
            self._queue = [asked for asked in self._queue if asked not in taken]
            return self._in_flight

    def _found(self, questions: Sequence[Question]) -> dict[Question, float]:
        """What another run with the same file has asked since."""
        self._cache.refresh()
        labels = {question: self._cache.get(self._key(question)) for question in questions}
        found = {question: label for question, label in labels.items() if label is not None}
        with self._changed:
            self._happened["cached"] += len(found)
        return found

    def _put(self, batch: Sequence[_Asked], labels: Mapping[Question, float | None]) -> None:
        """Hands over the answers to ``batch``; a question that is not among ``labels`` goes back to the queue."""
        with self._changed:
            self._in_flight = []
            back: list[_Asked] = []
            for asked in batch:
                question, label = asked.question, labels.get(asked.question)
                if label is None and question in labels:
                    self._strikes[question] += 1
                    self._happened["unlabelled"] += 1
                if label is not None or self._strikes[question] >= self._attempts:
                    self._happened["given_up"] += label is None
                    self._strikes.pop(question, None)
                    self._alone.discard(question)
                    self._answers.append(Answer(question, label))
                else:
                    back.append(asked)
            self._queue = sorted(self._queue + back)
            self._make_room()

    def _ask_patiently(self, questions: Sequence[Question]) -> dict[Question, float | None]:
        """Labels by question, ``None`` for what is no label; nothing at all where there is no answer for now."""
        import tenacity

        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=self._wait,
            sleep=tenacity.sleep_using_event(self._stopped),
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, FailedRequestError) and error.may_pass),
        )
        try:
            for attempt in attempts:
                with attempt:
                    self._count("retries", attempt.retry_state.attempt_number > 1)
                    self._spent = not self._affordable(questions)
                    if self._spent or self._stopped.is_set():
                        return {}
                    return dict(zip(questions, self._label(questions), strict=True))
        except tenacity.RetryError:
            self._stopped.wait(self._waits[1])
        except RefusedError as error:
            self._gone = error.status in _GONE
            if not self._gone:
                self._note_refusal(questions)
        return {}

    def _wait(self, state: Any) -> float:
        """The seconds before the next attempt."""
        shortest, longest = self._waits
        wait = min(longest, shortest * 2 ** (state.attempt_number - 1)) * random.uniform(0.5, 1.0)
        return min(longest, max(wait, state.outcome.exception().retry_after))

    def _note_refusal(self, questions: Sequence[Question]) -> None:
        """Which of several questions it was for is not known; one alone is given up."""
        with self._changed:
            if len(questions) > 1:
                self._alone.update(questions)
            else:
                self._strikes[questions[0]] = self._attempts

    def _label(self, questions: Sequence[Question]) -> list[float | None]:
        """One request; counts what happens.

        Raises:
          FailedRequestError: see ``chat``.
        """
        cost = self._largest_cost(questions)
        try:
            text, usage = chat(self._endpoint, self._body(questions), self._timeout)
            cost = self._cost(usage, cost)
        except FailedRequestError as error:
            self._count(error.counted)
            cost = cost if error.charged else 0.0
            raise
        finally:
            self._cache.spend(cost)
        labels = read_labels(text, len(questions), self._size)
        known = zip(questions, labels, strict=True)
        self._cache.add([(self._key(question), question, label) for question, label in known if label is not None])
        return labels

    def _count(self, name: str, count: int = 1) -> None:
        with self._changed:
            self._happened[name] += count

    # --- prompts and prices ----------------------------------------------------------------------------

    def _key(self, question: Question) -> str:
        identity = [self._endpoint.model, self._instructions, [message.hex() for message in question]]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]

    def _body(self, questions: Sequence[Question]) -> bytes:
        chat = [
            {"role": "system", "content": self._instructions},
            {"role": "user", "content": listing(questions)},
        ]
        limits = {"temperature": self._temperature, "max_tokens": self._max_tokens}
        return json.dumps({"model": self._endpoint.model, "messages": chat} | limits).encode()

    def _largest_cost(self, questions: Sequence[Question]) -> float:
        """No tokeniser makes more tokens than there are bytes."""
        prompt, completion = self._prices
        return prompt * len(self._body(questions)) + completion * self._max_tokens

    def _cost(self, usage: Any, otherwise: float) -> float:
        try:
            prompt, completion = (max(int(usage[name]), 0) for name in ("prompt_tokens", "completion_tokens"))
            return float(self._prices[0] * prompt + self._prices[1] * completion)
        except (TypeError, KeyError, ValueError, OverflowError):
            return otherwise

    def _affordable(self, questions: Sequence[Question]) -> bool:
        most_requests, most_cost = self._most
        in_all = self._cache.cost + self._largest_cost(questions)
        return self._cache.requests < most_requests and in_all <= most_cost
