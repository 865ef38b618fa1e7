"""Find what is private and must not be published: paths of somebody's machine, and access tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from svdiff_delta._text.printable import printable
from svdiff_delta._text.tokens import find_token
from svdiff_delta.errors import InputError

ROOTS: Final = (
    *("home", "Users", "root", "Volumes", "private/var", "private/tmp"),  # people's, on Linux and macOS
    *("mnt", "media", "tmp", "var", "opt", "srv", "etc", "proc", "usr/local", "run/user", "dev/shm", "cygdrive"),
    *("content", "kaggle", "workspace", "workspaces", "teamspace", "notebooks", "storage", "dbfs", "databricks"),
    *(
        "scratch",
        "gscratch",
        "work",
        "project",
        "projects",
        "data",
        "datasets",
        "shared",
        "export",
        "cluster",
        "nobackup",
    ),
    *("gpfs", "lustre", "beegfs", "ceph", "cephfs", "nfs", "afs", "hdfs", "fsx", "efs", "glade", "pfs", "ssd", "nvme"),
)
"""Top folders of machines, notebooks and clusters, such as /scratch; a number may follow, as in /scratch2."""

VARIABLES: Final = (
    *("HOME", "USER", "LOGNAME", "SCRATCH", "WORK", "TMPDIR", "PROJECT", "SLURM_TMPDIR"),
    *("USERPROFILE", "USERNAME", "HOMEPATH", "HOMEDRIVE", "APPDATA", "LOCALAPPDATA", "TEMP", "TMP", "OneDrive"),
)
"""Variables that stand for somebody's folders or name."""

_REST: Final = r"[^\s\"'`,;<>|)]"
_NAMES: Final = "|".join(map(re.escape, ROOTS))
_PATHS: Final = (
    rf"(?i:\bfile:/+{_REST}+)",
    rf"(?i:\b(?:ssh|sftp|scp|rsync|smb|nfs|afp)://{_REST}+)",
    # Two folders deep from the root it is a path, whatever the folders are called; so is a share of another machine.
    rf"(?:(?<![\w/.:~)\]}}*+?\\])|(?<=:))/(?!/)(?:[\w.@+-]+/){{2}}{_REST}*",
    rf"(?<![\w/:])//[\w.-]+/[\w.$-]+/{_REST}*",
    # Behind a word, a slash or a dot it is a part of an address or of a relative path; behind a colon, unless of "://".
    rf"(?i:(?:(?<![\w/.:~])/+|(?<=:)/(?!/))(?:[a-z]/)?(?:{_NAMES})\d*/+{_REST}+)",
    rf"(?<![\w/.~])~(?:[A-Za-z_][\w.-]*)?/{_REST}+",
    rf"(?<!\w)[A-Za-z]:(?:\\+|/(?!/)){_REST}+",
    rf"(?<![\w\\])\\\\+[\w.?$-]+\\+{_REST}+",
    rf"(?i:(?<![\w\\])\\+(?:Users|Documents and Settings)\\+{_REST}+)",
    rf"\$(?:env:)?\{{?(?:{'|'.join(VARIABLES)})\b(?:\}}?[\\/]{_REST}*)?",
    rf"(?i:%(?:{'|'.join(VARIABLES)})%{_REST}*)",
)
_PATH: Final = re.compile("|".join(_PATHS))
_WHOLE: Final = re.compile(rf"/(?:[\w.@+-]+/)+[\w.@+ -]*|(?i:/(?:{_NAMES})\d*/?)|~[\w.-]*/?(?<=[~/])|[A-Za-z]:[\\/]+")
"""A string that is a path and nothing else."""

_DEEPEST: Final = 50


def find_private(text: str) -> str | None:
    """Return in words what in a text is private: a path on somebody's machine, or a token; None if nothing is.

    The words hold no token.
    """
    if find_token(text) is not None:
        return "holds an access token"
    match = _PATH.search(text) or _WHOLE.fullmatch(text.strip())
    found = match[0] if match else _own_folder(text)
    return None if found is None else f"names the local path {printable(found)}"


def check_private(values: Iterable[Any], what: str) -> None:
    """Raise InputError if a string names a path on somebody's machine or holds an access token.

    Args:
        values: what would be published: strings, and mappings and lists of them, keys too. A string that is JSON is
            looked into.
        what: what errors call it.
    """
    for text in _strings(values, 0):
        if (found := find_private(text)) is not None:
            raise InputError(f"{what}: {found}, which would be published", fix="take it out")


def _strings(value: Any, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        yield str(value)
    elif isinstance(value, str):
        parsed = _parsed(value) if value.lstrip().startswith(("{", "[", '"')) else None
        if parsed is None:
            yield value
        else:  # not as it stands: escapes of JSON look like paths, and hide them
            yield from _strings(parsed, depth + 1)
    elif isinstance(value, Mapping):
        yield from _strings(value.items(), depth)
    elif isinstance(value, Iterable):
        for item in value:
            yield from _strings(item, depth + 1)


def _parsed(text: str) -> Any:
    """Return what a JSON text holds, objects as pairs, since a key may stand twice; None if it is none."""
    try:
        return json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return None


def _own_folder(text: str) -> str | None:
    """Return the home folder of this machine's user, if it is in a text, wherever that is."""
    try:
        home = str(Path.home())
    except RuntimeError:  # nobody's
        return None
    return home if len(home) > 1 and re.search(rf"{re.escape(home)}(?!\w)", text) else None
