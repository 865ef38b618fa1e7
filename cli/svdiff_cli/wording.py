"""What the library says, in the command line's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

OPTIONS: Final[Mapping[str, str]] = {"`overwrite=True`": "--force", '`unchanged="symlink"`': "--unchanged symlink"}
"""The option for each argument that errors of the library name."""


def spelled(message: str) -> str:
    """Return a message of the library with options in place of arguments."""
    for argument, option in OPTIONS.items():
        message = message.replace(argument, option)
    return message
