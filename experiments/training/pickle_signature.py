"""Whether a pickle in a run folder was written by this user on this machine.

Unpickling runs code, and a run folder may be somebody else's. A pickle is therefore signed (HMAC-SHA256) with a secret
key that is kept outside every run folder, in ``$XDG_STATE_HOME/sagax/pickle_key`` or
``~/.local/state/sagax/pickle_key``, and is loaded only with the signature of that key. Without a folder that can hold a
key nothing is signed, and nothing is trusted.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
import tempfile
from pathlib import Path

STATE_VARIABLE = "XDG_STATE_HOME"
_BYTES = 32
# What is signed begins with what it is, so that a signature is good for nothing else.
_PURPOSE = b"sagax: pickled environments of a checkpoint\0"


def signature(pickled: bytes) -> str | None:
    """The signature of what this process pickled; ``None`` where there is no key and none can be kept."""
    path = _key_path()
    key = None if path is None else _read(path) or _make(path)
    return None if key is None else _digest(key, pickled)


def is_ours(pickled: bytes, signed: str | None) -> bool:
    """Whether ``signed`` is this user's signature of ``pickled``."""
    path = _key_path()
    key = None if path is None else _read(path)
    return (
        key is not None
        and signed is not None
        and hmac.compare_digest(_digest(key, pickled).encode(), signed.encode(errors="replace"))
    )


def _digest(key: bytes, pickled: bytes) -> str:
    return hmac.digest(key, _PURPOSE + pickled, "sha256").hex()


def _key_path() -> Path | None:
    folder = os.environ.get(STATE_VARIABLE, "")
    if not os.path.isabs(folder):
        try:
            folder = os.fspath(Path.home() / ".local" / "state")
        except RuntimeError:
            # There is no home folder.
            return None
    return Path(folder) / "sagax" / "pickle_key"


def _read(path: Path) -> bytes | None:
    """The key, if it is this user's alone."""
    with contextlib.suppress(OSError), open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        status = os.fstat(file.fileno())
        private = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077 and status.st_uid == os.getuid()
        key = file.read(_BYTES + 1)
        if private and len(key) == _BYTES:
            return key
    return None


def _make(path: Path) -> bytes | None:
    """A new key, or the one that another process has made meanwhile."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent) as file:
            # Readable by this user alone from the start; complete once it has its name, and never replaced.
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)
    except OSError:
        return None
    return _read(path)
