"""What a result is made of and says of itself (spec, sections 7.1, 7.2, 7.4 and 8)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .container import JSON
from .delta import Delta, Param, Runs, file_bytes, made_up

OWN = {"format", "version", "base", "parameters", "lineage", "training"}


class MismatchError(ValueError):
    """Two inputs disagree about a parameter."""


def combine_runs(size: int, inputs: Sequence[tuple[Runs, int]]) -> tuple[Runs, int]:
    """Return the finest runs that cover those of all inputs (spec, section 7.2)."""
    groups: list[set[int]] = []
    for tied, _ in inputs:
        for first, last in tied:
            run = set(range(first, last + 1))
            for other in [group for group in groups if group & run]:
                run |= other
                groups.remove(other)
            groups.append(run)
    null = max(null for _, null in inputs)
    while reaching := [group for group in groups if max(group) >= size - null]:
        null = max(null, size - min(map(min, reaching)))
        groups = [group for group in groups if group not in reaching]
    return tuple(sorted((min(group), max(group)) for group in groups)), null


def combine_params(inputs: Sequence[Delta]) -> dict[str, Param]:
    """Return the union of the inputs' parameters, the first one's word standing."""
    result: dict[str, Param] = {}
    for name in sorted({name for delta in inputs for name in delta.params}):
        found = [delta.params[name] for delta in inputs if name in delta.params]
        if len({_identity(name, param) for param in found}) > 1:
            raise MismatchError(name)
        tied, null = combine_runs(found[0].size, [(param.tied, param.null) for param in found])
        result[name] = replace(found[0], tied=tied, null=null)
    return result


def _identity(name: str, param: Param) -> tuple[object, ...]:
    return param.fingerprint or made_up(name), param.shape, param.spectral, param.axis


def first_wins(mappings: Sequence[Mapping[str, JSON]]) -> dict[str, JSON]:
    """Return the union; where they differ, the first one's value."""
    result: dict[str, JSON] = {}
    for mapping in mappings:
        result = {**mapping, **result}
    return result


def _base(inputs: Sequence[Delta]) -> dict[str, JSON]:
    bases = [delta.base for delta in inputs]
    named = next((base for base in bases if "repository" in base), bases[0])
    result = first_wins(bases)
    result["components"] = first_wins([base["components"] for base in bases])
    for key in ("repository", "revision"):
        result.pop(key, None)
        if key in named:
            result[key] = named[key]
    return result


def _strings(inputs: Sequence[Delta], *, single: bool) -> dict[str, str]:
    every = [delta.strings for delta in inputs]
    result = {key: value for key, value in first_wins(every).items() if not key.startswith("modelspec.")}
    for key, value in every[0].items():
        shared = key.startswith("modelspec.") and all(strings.get(key) == value for strings in every)
        if shared and (single or key not in ("modelspec.title", "modelspec.merged_from")):
            result[key] = value
    titles = dict.fromkeys(strings["modelspec.title"] for strings in every if strings.get("modelspec.title"))
    if titles and not single:
        result["modelspec.merged_from"] = ", ".join(titles)
    if any("modelspec.hash_sha256" in strings for strings in every):
        result["modelspec.hash_sha256"] = ""  # until the tensors are known
    return result


def digest(delta: Delta) -> str:
    """Return the SHA-256 of the file that a delta came from, or would be."""
    return hashlib.sha256(delta.raw or file_bytes(delta)).hexdigest()


def _entry(delta: Delta) -> dict[str, JSON]:
    """Return what a lineage says of an input (spec, section 8)."""
    lineage = delta.document.get("lineage", {})
    entry: dict[str, JSON] = {key: value for key, value in lineage.items() if key != "files"}
    raw = delta.raw or file_bytes(delta)
    entry["digest"] = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    if "modelspec.title" in delta.strings:
        entry["title"] = delta.strings["modelspec.title"]
    if "training" in delta.document:
        entry["training"] = delta.document["training"]
    return entry


def result_metadata(
    inputs: Sequence[Delta], params: Mapping[str, Param], operation: str, arguments: Mapping[str, JSON]
) -> Delta:
    """Return the result of an operation but for its values."""
    digests = [digest(delta) for delta in inputs]
    single = len(set(digests)) == 1
    files: dict[str, JSON] = {}
    for delta in inputs:
        files |= delta.document.get("lineage", {}).get("files", {})
    files |= {own: _entry(delta) for own, delta in zip(digests, inputs, strict=True)}
    document = {
        key: value for key, value in first_wins([delta.document for delta in inputs]).items() if key not in OWN
    }  # fmt: skip
    document.pop("must_understand", None)
    if any(name.endswith("]") for name in params):
        document["must_understand"] = ["stacked"]
    document["lineage"] = {"operation": operation, "arguments": dict(arguments), "inputs": digests, "files": files}
    if single and "training" in inputs[0].document:
        document["training"] = inputs[0].document["training"]
    return Delta(dict(params), {}, _base(inputs), document, _strings(inputs, single=single))
