"""The annotators that a configuration can name as ``annotator.kind``."""

from __future__ import annotations

from collections.abc import Callable

from experiments.annotation.http import Http
from experiments.annotation.service import Annotator, Scripted

ANNOTATORS: dict[str, Callable[..., Annotator]] = {"scripted": Scripted, "http": Http}
