"""Text of a file in Markdown, Python and shell: shown as it is, and never markup, whatever it holds.

Words stay words. All else stands as code, in which Markdown knows no links, HTML, headings or emphasis; backslashes
alone would not do, since renderers make links of addresses in text that is escaped, too.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from typing import Final

from .printable import plain, printable

LONGEST: Final = 1_000
"""Characters of a value that a cell shows."""

_WORDS: Final = re.compile(r"[^\W_](?:[^\W_]|[ ,.;!?()'/%+-]|(?<=[^\W_])_(?=[^\W_]))*")
_ADDRESS: Final = re.compile(r"www\.|//", re.IGNORECASE)
_OPEN, _CLOSE = "<!--", "-->"


def inert(line: str) -> str:
    """Return a line without the begin or end of a comment: marks of a card cannot be forged by what it quotes."""
    return line.replace(_OPEN, r"\x3c!--").replace(_CLOSE, r"--\x3e")


def code(value: object) -> str:
    """Return a value as code within a line."""
    line = _line(value)
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if "`" in line else ""
    return f"{ticks}{pad}{line}{pad}{ticks}" if line else ""


def prose(value: object) -> str:
    """Return a value as words, or as code if it is more than words."""
    line = _line(value)
    return line if _WORDS.fullmatch(line) and not _ADDRESS.search(line) else code(value)


def cell(value: object) -> str:
    """Return a value as `prose` for a cell of a table, which ends at a bar even within code; a long one is cut."""
    line = _line(value)
    return prose(line if len(line) <= LONGEST else f"{line[:LONGEST]} …").replace("|", r"\x7c")


def link(name: str, address: str) -> str:
    """Return a link with a name that has letters, digits, `/`, `.`, `-` and `_` only."""
    return f"[{name.replace('_', chr(92) + '_')}]({address})"


def python_literal(text: str) -> str:
    r"""Return a text as a Python literal on one line, in ASCII and printable characters; `<!--` is `\x3c!--`."""
    return inert(printable(json.dumps(text, ensure_ascii=False)))


def shell_line(words: Iterable[str]) -> str:
    """Return words as a line for a shell; line breaks are spaces, and control characters stand as they are escaped."""
    quoted = shlex.join(printable(" ".join(word.split())) for word in words)
    return quoted.replace(_OPEN, "<''!--").replace(_CLOSE, "--''>")  # both only ever stand in single quotes


def _line(value: object) -> str:
    return inert(" ".join(plain(value).split()))
