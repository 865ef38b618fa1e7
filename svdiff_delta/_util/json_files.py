"""Files with JSON that people or other programs wrote: an object, or one value on each line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path

from svdiff_delta.errors import DeltaError, InputError, MetadataError

from .json import JSON, check_nodes, is_deeper, strict_json
from .limits import LINE, Limit
from .reading import decode, read_bytes


def read_object(path: Path, limit: Limit, error: type[DeltaError] = InputError) -> dict[str, JSON]:
    """Return the object in a JSON file that another program wrote: keys may stand twice, numbers be infinite.

    Raises:
        DeltaError: as `error`, if it cannot be read, is no JSON object, or is larger than `limit`; it names the file.
    """
    raw = read_bytes(path, limit.bytes, error)
    check_nodes(raw, str(path), limit, error)
    try:
        found = json.loads(decode(raw, path, error))
    except RecursionError:
        raise error(f"{path}: is nested too deeply ({limit.depth} levels are allowed)") from None
    except ValueError as cause:
        raise error(f"{path}: is not valid JSON ({cause})") from None
    if not isinstance(found, dict):
        raise error(f"{path}: is not a JSON object")
    if is_deeper(found, limit.depth):
        raise error(f"{path}: is nested too deeply ({limit.depth} levels are allowed)")
    return found


def read_lines(path: Path, limit: Limit, fix: str) -> Iterator[tuple[int, JSON]]:
    """Yield number and content of each line of a file with strict JSON on every line; empty lines count.

    Raises:
        InputError: it cannot be read, a line is no JSON or too long, or it is larger than `limit`; it names the line.
    """
    raw = read_bytes(path, limit.bytes)
    decode(raw, path)
    raw = raw.removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(raw.split(b"\n"), 1):
        where = f"{path}: line {number}"
        if len(line) > LINE:
            raise InputError(f"{where} has more than {LINE:,} bytes", fix=fix)
        if not line.strip():
            continue
        check_nodes(line, where, limit, InputError)
        try:
            yield number, strict_json(line, where, MetadataError)
        except MetadataError as error:
            raise InputError(error.message, fix=fix) from None
