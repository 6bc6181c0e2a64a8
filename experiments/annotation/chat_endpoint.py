"""A model behind any HTTP endpoint that speaks OpenAI's protocol for chats: where it is, and one question to it.

Where it is comes from the environment: ``SAGAX_ANNOTATOR_URL`` (requests go to ``URL/chat/completions``),
``SAGAX_ANNOTATOR_MODEL`` and, where one is needed, ``SAGAX_ANNOTATOR_KEY``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import http
import json
import math
import os
import socket
import ssl
import urllib.parse
from collections.abc import Coroutine
from typing import Any, NamedTuple

from experiments.errors import UserError

URL, MODEL, KEY = "SAGAX_ANNOTATOR_URL", "SAGAX_ANNOTATOR_MODEL", "SAGAX_ANNOTATOR_KEY"
LARGEST_REPLY = 2**20

_TRANSIENT = (408, 425, 429)


class Endpoint(NamedTuple):
    """Where requests go: the address, its form without anything secret, the model and the headers."""

    address: str
    shown: str
    model: str
    headers: dict[str, str]


def endpoint() -> Endpoint:
    """The endpoint that the environment names.

    Raises:
      UserError: for a variable that is missing or no address, model or key, or without the extra ``annotator``.
    """
    try:
        import httpx2
        import tenacity  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"annotator kind 'http': a package is missing ({error}); it comes with the extra 'annotator': "
            "pip install -e '.[annotator]'"
        ) from error
    base, model, key = (os.environ.get(name, "").strip() for name in (URL, MODEL, KEY))
    missing = [name for name, value in ((URL, base), (MODEL, model)) if not value]
    if missing:
        raise UserError(
            f"annotator kind 'http': the environment lacks {' and '.join(missing)}: expected the base URL of an "
            "OpenAI-compatible endpoint, such as http://localhost:8000/v1, and the name of a model it has"
        )
    try:
        parts = urllib.parse.urlsplit(base)
        # Reading the port checks it, and so does encoding the host.
        named = parts.scheme in ("http", "https") and bool((parts.hostname or "").encode("idna")) and parts.port != 0
        named = named and parts.username is None and not parts.query and not parts.fragment
        httpx2.URL(base)
    except (ValueError, httpx2.InvalidURL):
        named = False
    if not named or not base.isascii() or " " in base:
        raise UserError(
            f"{URL} is no address such as http://localhost:8000/v1, without a name or password in it and without ? or #"
        )
    if not (key.isascii() and key.isprintable()):
        # Its value is a secret.
        raise UserError(f"{KEY} has characters that no key has: expected printable ASCII in one line")
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"} | (
        {"Authorization": f"Bearer {key}"} if key else {}
    )
    return Endpoint(base.rstrip("/") + "/chat/completions", f"{parts.scheme}://{parts.netloc}", model, headers)


class FailedRequestError(Exception):
    """A request without an answer.

    Attributes:
      counted: the name under which the rows count it.
      charged: whether it may have cost something.
      may_pass: whether the next one may be answered.
      retry_after: the seconds that the endpoint asks to wait, 0 where it does not say.
    """

    counted: str
    charged = False
    may_pass = True
    retry_after = 0.0


class RefusedError(FailedRequestError):
    """A reply with another status than 2xx. A redirect is one, too: another host must not get the key."""

    counted = "http_errors"

    def __init__(self, status: int, retry_after: float):
        super().__init__(status)
        self.status, self.retry_after = status, retry_after
        self.may_pass = status in _TRANSIENT or status >= 500


class LateError(FailedRequestError):
    """It took too long."""

    counted, charged = "timeouts", True


class UnreachableError(FailedRequestError):
    """There is no connection, or it broke; the text says why, in the words of this machine."""

    counted = "unreachable"


class GarbageReplyError(FailedRequestError):
    """A reply that is no chat completion."""

    counted, charged = "garbage", True


def phrase(status: int) -> str:
    """What a status means, in the standard's words: the server's own could repeat the key that it was sent."""
    return http.HTTPStatus(status).phrase if status in {*http.HTTPStatus} else "no standard status"


def chat(endpoint: Endpoint, body: bytes, timeout: float) -> tuple[str, Any]:
    """What the model says and the tokens it took, within ``timeout`` seconds in all.

    Raises:
      FailedRequestError: one of those above.
    """
    reply = _run(_reply(endpoint, body, timeout))
    try:
        decoded = json.loads(reply)
        text = decoded["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise GarbageReplyError from error
    if not isinstance(text, str):
        raise GarbageReplyError
    return text, decoded.get("usage")


def _run(work: Coroutine[Any, Any, bytes]) -> bytes:
    """What ``work`` returns; in a thread of its own where this one has a loop that runs, as that of a notebook has."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


async def _reply(endpoint: Endpoint, body: bytes, timeout: float) -> bytes:
    """The body of the reply, whole.

    The deadline is of the whole exchange. The client's own time-outs are of single reads: who sends a byte now and then
    holds the line as long as he likes.
    """
    import httpx2

    reply = bytearray()
    try:
        async with (
            httpx2.AsyncClient(timeout=None, follow_redirects=False, verify=_certificates()) as client,
            asyncio.timeout(timeout),
            client.stream("POST", endpoint.address, content=body, headers=endpoint.headers) as response,
        ):
            if not response.is_success:
                raise RefusedError(response.status_code, _seconds(response.headers.get("Retry-After", "")))
            # As it is sent: what is small compressed may be of any size.
            async for part in response.aiter_raw():
                reply += part
                if len(reply) > LARGEST_REPLY:
                    raise GarbageReplyError
    except TimeoutError as error:
        raise LateError from error
    # Some proxies that the environment names are refused by a ValueError, or for want of a package.
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, ImportError) as error:
        raise UnreachableError(_why(error)) from error
    return bytes(reply)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Those that this machine trusts, read once: reading them takes longer than a request to a neighbour."""
    return ssl.create_default_context()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0


def _why(error: BaseException) -> str:
    """Why there is no reply, in the words of this machine: an exception about a reply may quote the server."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        if isinstance(cause, OSError) and cause.errno:
            own = isinstance(cause, ssl.SSLError | socket.gaierror)
            return (cause.strerror or type(cause).__name__) if own else os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
