"""Read API keys from a file, and find out whose a request's key is in a time that does not depend on it."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from svdiff_delta._util.limits import KEYS
from svdiff_delta._util.reading import read_text
from svdiff_delta.errors import InputError

SHORTEST: Final = 16
"""Characters of a key: shorter ones can be tried out."""

ANYONE: Final = "anyone"
"""The name under which requests count where no keys are asked for."""

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Key(NamedTuple):
    """A key as it is kept: never in plain text.

    Attributes:
        name: whose it is, for limits, logs and metrics.
        digest: the SHA-256 of the key.
    """

    name: str
    digest: bytes


class Keys:
    """The keys that a server takes.

    Args:
        keys: by whoever they are of.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def owner(self, header: str | None) -> str | None:
        """Return the name whose key an `Authorization` header holds; None if there is none.

        All keys are compared, each in constant time.
        """
        scheme, _, given = (header or "").partition(" ")
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest) and scheme.lower() == "bearer":
                found = key.name
        return found


def read_keys(path: Path) -> Keys:
    """Return the keys of a file: one per line as `NAME KEY`; empty lines and those that begin with # do not count.

    Raises:
        InputError: it cannot be read, has no key, or a line is none; no message shows a key.
    """
    keys: list[Key] = []
    for number, line in enumerate(read_text(path, KEYS).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not _NAME.fullmatch(words[0]):
            raise InputError(f"{path}: line {number} is not NAME KEY", fix="write a name, a space and the key")
        name, text = words
        if len(text) < SHORTEST:
            raise InputError(
                f"{path}: the key of {name} has {len(text)} characters, {SHORTEST} is the least",
                fix="make one with `python -c 'import secrets; print(secrets.token_urlsafe(32))'`",
            )
        if not (text.isascii() and text.isprintable()):  # clients and servers disagree on how a header spells others
            raise InputError(f"{path}: the key of {name} has letters beyond ASCII", fix="use letters, digits, - and _")
        key = Key(name, hashlib.sha256(text.encode()).digest())
        if any(key.digest == other.digest for other in keys):
            raise InputError(f"{path}: the key of {name} stands there twice", fix="give each its own")
        keys.append(key)
    if not keys:
        raise InputError(f"{path}: has no key", fix="write NAME KEY on a line")
    return Keys(keys)
