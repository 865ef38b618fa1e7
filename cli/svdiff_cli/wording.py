"""Turn what the library says of its arguments into what a user of the command line can type.

The library writes an argument in backticks, with or without a value, and a call of a function with `...` for what does
not matter: `` `dtype="F32"` ``, `` `overwrite=True` ``, `` `rank` ``, `` `convert(..., to="full")` ``. All that it
says is passed through `spelled` before it is printed: errors, warnings and remarks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

OPTIONS: Final[Mapping[str, str]] = {
    "allow_missing": "--allow-missing",
    "allow_unmatched": "--allow-unmatched",
    "base_model": "--base-model",
    "component": "--component",
    "config": "--base-config",
    "dequantize": "--dequantize",
    "device": "--device",
    "direct": "--direct",
    "dtype": "--dtype",
    "embeddings": "--embeddings",
    "energy": "--energy",
    "from_": "--from",
    "fsdp": "--fsdp",
    "guidance": "--guidance",
    "host": "--host",
    "init_image": "--init-image",
    "jobs": "--jobs",
    "keys": "--keys",
    "license": "--license",
    "made_on": "--made-on",
    "max_rank": "--max-rank",
    "min_energy": "--min-energy",
    "no_auth": "--no-auth",
    "output_cache_size": "--output-cache-size",
    "overwrite": "--force",
    "port": "--port",
    "private": "--private",
    "rank": "--rank",
    "report": "--report",
    "resume": "--resume",
    "sample_size": "--sample-size",
    "skip_bad": "--skip-bad",
    "to": "--to",
    "true_cfg_scale": "--true-cfg-scale",
    "token": "--token",
    "unchanged": "--unchanged",
    "workers": "--workers",
}
"""The option of each argument that messages of the library name."""

PHRASES: Final[Mapping[str, str]] = {"`list(delta)`": "`svdiff info --layers`"}
"""What is done in Python, and the command that does it."""

_ARGUMENT: Final = re.compile(r'([a-z][a-z_]*)(?:=("[^"`]*"|[^`",\s]+))?')
_NAMED: Final = re.compile(rf"`{_ARGUMENT.pattern}`")
_CALL: Final = re.compile(r"`([a-z]+)\(\.\.\., ([^`()]*)\)`")


def spelled(message: str) -> str:
    """Return a message of the library with options in place of arguments, and commands in place of calls."""
    for phrase, command in PHRASES.items():
        message = message.replace(phrase, command)
    return _NAMED.sub(_option, _CALL.sub(_command, message))


def _command(call: re.Match[str]) -> str:
    return f"`svdiff {call[1]} {' '.join(_option(argument) for argument in _ARGUMENT.finditer(call[2]))}`"


def _option(argument: re.Match[str]) -> str:
    """Return the option for an argument; what is none of this table's stays as it is."""
    name, value = argument.groups()
    if name not in OPTIONS:
        return argument[0]
    given = "" if value in (None, "True", "...") else value.strip('"')
    return f"{OPTIONS[name]} {given}".rstrip()
