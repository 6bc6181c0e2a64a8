"""A model behind any HTTP endpoint that speaks OpenAI's protocol for chats: where it is, and one question to it.

Where it is comes from the environment: ``SAGAX_ANNOTATOR_URL`` (requests go to ``URL/chat/completions``),
``SAGAX_ANNOTATOR_MODEL`` and, where one is needed, ``SAGAX_ANNOTATOR_KEY``.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
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
      UserError: for a variable that is missing or no address, model or key.
    """
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
    except ValueError:
        named = False
    if not named or not base.isascii() or " " in base:
        raise UserError(
            f"{URL} is no address such as http://localhost:8000/v1, without a name or password in it and without ? or #"
        )
    if not (key.isascii() and key.isprintable()):
        # Its value is a secret.
        raise UserError(f"{KEY} has characters that no key has: expected printable ASCII in one line")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    return Endpoint(base.rstrip("/") + "/chat/completions", f"{parts.scheme}://{parts.netloc}", model, headers)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Another host must not get the key. Where it would be is not even read: it may be no address."""

    def http_error_302(self, *arguments):
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Request(urllib.request.Request):
    """A request that ends at a deadline. A time-out of a socket is one of a single read: who sends a byte now and then
    holds the line as long as he likes."""

    def __init__(self, endpoint: Endpoint, body: bytes, timeout: float):
        super().__init__(endpoint.address, body, endpoint.headers, method="POST")
        self._deadline = time.monotonic() + timeout
        self._sockets: list[socket.socket] = []

    @property
    def late(self) -> bool:
        return time.monotonic() >= self._deadline

    def opened(self, connection: socket.socket) -> None:
        """Notes a socket that this request waits for."""
        self._sockets.append(connection)
        if self.late:
            self.hang_up()

    def hang_up(self) -> None:
        """Whoever reads from its sockets finds the end."""
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                # Not the method of a socket with TLS, which must not be called while another thread reads.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _noted(kind: type[http.client.HTTPConnection], request: Any) -> type[http.client.HTTPConnection]:
    """``kind`` of connection that tells ``request`` of its socket."""

    class Noted(kind):  # type: ignore[misc, valid-type]
        def connect(self):
            super().connect()
            request.opened(self.sock)

    return Noted


class _Http(urllib.request.HTTPHandler):
    def http_open(self, request):
        return self.do_open(_noted(http.client.HTTPConnection, request), request)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, request):
        return self.do_open(_noted(http.client.HTTPSConnection, request), request)


_OPENER = urllib.request.build_opener(_NoRedirects, _Http, _Https)


class GarbageReplyError(Exception):
    """A reply that is none."""


def phrase(status: int) -> str:
    """What a status means, in the standard's words: the server's own could repeat the key that it was sent."""
    return http.client.responses.get(status, "no standard status")


def why_unreachable(error: Exception) -> str:
    """Why there is no reply, in the words of this machine: an exception about a reply may quote the server."""
    cause = getattr(error, "reason", error)
    if isinstance(cause, OSError) and not isinstance(cause, http.client.HTTPException):
        return cause.strerror or type(cause).__name__
    return type(cause).__name__ if isinstance(cause, Exception) else type(error).__name__


def may_pass(error: urllib.error.HTTPError) -> bool:
    """Whether a refusal may be none the next time."""
    return error.code in _TRANSIENT or error.code >= 500


def retry_after(error: urllib.error.HTTPError) -> float:
    """The seconds that the endpoint asks to wait, 0 where it does not say."""
    try:
        seconds = float(error.headers.get("Retry-After", ""))
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0


def chat(endpoint: Endpoint, body: bytes, timeout: float) -> tuple[str, Any]:
    """What the model says and the tokens it took, within ``timeout`` seconds in all; connecting may take as long again.

    Raises:
      urllib.error.HTTPError: another status than 2xx.
      TimeoutError: it took too long.
      OSError, http.client.HTTPException: there is no connection, or it broke.
      GarbageReplyError: the reply is no chat completion.
    """
    request = _Request(endpoint, body, timeout)
    watch = threading.Timer(timeout, request.hang_up)
    watch.daemon = True
    watch.start()
    try:
        reply = _reply(request, timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise
    except (OSError, http.client.HTTPException) as error:
        if request.late or isinstance(getattr(error, "reason", None), TimeoutError):
            raise TimeoutError from error
        raise
    except ValueError as error:
        raise GarbageReplyError from error
    finally:
        watch.cancel()
    try:
        decoded = json.loads(reply)
        text = decoded["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise GarbageReplyError from error
    if not isinstance(text, str):
        raise GarbageReplyError
    return text, decoded.get("usage")


def _reply(request: _Request, timeout: float) -> bytes:
    """The body of the reply, whole."""
    reply = bytearray()
    with _OPENER.open(request, timeout=timeout) as response:
        while part := response.read1(2**16):
            reply += part
            if len(reply) > LARGEST_REPLY:
                raise GarbageReplyError
        if response.length:
            raise http.client.IncompleteRead(bytes(reply), response.length)
    if request.late:
        raise TimeoutError
    return bytes(reply)
