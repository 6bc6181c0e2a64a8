"""What a language model is asked about messages, and the labels that its reply holds."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from experiments.annotation.service import Question, as_text

_LABELS = {1: {"1": 1.0, "0": 0.0}, 2: {"1": 1.0, "2": 0.0, "tie": 0.5}}
_LONGEST_LINE = 100
_LINE = re.compile(r"\W*(\d+)\s*[:.)]\s*\W*(\w+)\W*")
_MEANINGS = {
    1: "LABEL is 1 if the message says that something happened that helps to reach the goal, and 0 otherwise",
    2: "LABEL is 1 if the first of the two messages helps more to reach the goal, 2 if the second does, and tie if "
    "neither does",
}


def instructions(goal: str, size: int) -> str:
    """What the model is told before it is shown questions of ``size`` messages."""
    shown = "a message" if size == 1 else "two messages"
    return (
        f"You watch a player whose goal is this: {goal}\nEvery line of the user has a number and {shown} of the game, "
        f"in quotes. Answer each of them with a line NUMBER: LABEL, where {_MEANINGS[size]}. Write these lines and "
        "nothing else."
    )


def listing(questions: Sequence[Question]) -> str:
    """The questions, numbered from 1; quoted, so that no message can look like a line of its own."""
    quoted = (", ".join(json.dumps(as_text(message)) for message in question) for question in questions)
    return "\n".join(f"{number}: {each}" for number, each in enumerate(quoted, 1))


def read_labels(text: str, count: int, size: int) -> list[float | None]:
    """The labels of ``count`` questions in a reply; ``None`` where there is none for a question."""
    found: dict[int, float | None] = {}
    for line in text.splitlines():
        # A pattern takes its time over a line of a million blanks, and the learner would wait for it.
        match = _LINE.fullmatch(line[:_LONGEST_LINE])
        if match:
            found.setdefault(int(match[1]), _LABELS[size].get(match[2].lower()))
    return [found.get(number) for number in range(1, count + 1)]
