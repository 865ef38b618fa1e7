"""ModelSpec fields: what model browsers show of a file (spec, sections 5.1 and 7.4; Stability AI's standard, 1.0.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

VERSION: Final = "1.0.1"
HASH: Final = "hash_sha256"
"""SHA-256 of the data section; calculated whenever a file with this field is written."""

OWN: Final = ("title", "merged_from", HASH)
"""Fields that the result of an operation does not share with its inputs as others do."""

MAIN: Final = ("unet", "transformer")
"""Components whose class names the architecture, in this order; else the first one's does."""


BOUND: Final = ("sai_model_spec", "architecture", "implementation", HASH)
"""Fields that say how a file is built; they do not go along into another format."""


def portable_modelspec(fields: Mapping[str, str]) -> dict[str, str]:
    """Return the fields that a file in another format keeps: title, author, licence, and the like."""
    return {key: value for key, value in fields.items() if key not in BOUND}


def known_modelspec(components: Mapping[str, str]) -> dict[str, str]:
    """Return the fields that are known of a delta that is made from a base, given the class names by component."""
    names = [*(name for name in MAIN if components.get(name)), *sorted(name for name in components if components[name])]
    fields = {"sai_model_spec": VERSION, HASH: "", "implementation": "https://github.com/huggingface/diffusers"}
    if names:
        fields["architecture"] = f"{components[names[0]]}/svdiff"
    return fields


def combine_modelspec(inputs: Sequence[Mapping[str, str]], *, single: bool) -> dict[str, str]:
    """Return the fields of an operation's result: what all inputs say alike, their titles, and a place for the hash.

    Args:
        inputs: their fields, in order.
        single: whether the inputs are one and the same file, which keeps its title.
    """
    shared = set.intersection(*({*fields.items()} for fields in inputs))
    result = {key: value for key, value in inputs[0].items() if (key, value) in shared and (single or key not in OWN)}
    titles = dict.fromkeys(fields["title"] for fields in inputs if fields.get("title"))
    if titles and not single:
        result["merged_from"] = ", ".join(titles)
    if any(HASH in fields for fields in inputs):
        result[HASH] = ""
    return result


def with_hash(fields: Mapping[str, str], data: Iterable[bytes | memoryview]) -> dict[str, str]:
    """Return the fields with the hash of a file's data section, given in pieces, if they have a place for it."""
    if HASH not in fields:
        return dict(fields)
    digest = hashlib.sha256()
    for piece in data:
        digest.update(piece)
    return {**fields, HASH: f"0x{digest.hexdigest()}"}
