"""Names of repositories and revisions by the Hub's grammar (spec, section 5.2)."""

from __future__ import annotations

import re
from typing import Final

REPOSITORY: Final = "owner/repo or repo: letters, digits, `_`, `-` and `.`, neither `-` nor `.` at an end or twice"
REVISION: Final = "a commit, tag or branch: letters, digits and `._-+/@=#,%`, as git names them"
"""What errors say is allowed."""

_PART: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY: Final = re.compile(rf"(?:{_PART}/)?{_PART}(?<!\.git)")
_STEP: Final = r"(?!\.)[A-Za-z0-9._+@=#,%-]{1,255}(?<!\.lock)"
_REVISION: Final = re.compile(rf"(?!-){_STEP}(?:/{_STEP})*(?<!\.)")

LONGEST_REVISION: Final = 255

EMBEDDED: Final = "tiny"
"""In the place of a repository: the base that this package ships."""


def is_repository(text: str) -> bool:
    """Tell whether a text can be the name of a repository, with or without its owner."""
    return _REPOSITORY.fullmatch(text) is not None and "--" not in text and ".." not in text


def is_revision(text: str) -> bool:
    """Tell whether a text can be the name of a commit, tag or branch."""
    return len(text) <= LONGEST_REVISION and ".." not in text and _REVISION.fullmatch(text) is not None
