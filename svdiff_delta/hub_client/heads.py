"""The first bytes of files of a repository: headers are fetched by range requests, and nothing is kept."""

from __future__ import annotations

import re
from typing import Any, Final

from svdiff_delta.errors import HubError

from .errors import client_errors, explain
from .reference import Reference, list_files
from .watch import watched

FIRST: Final = 2**16
"""Bytes that are asked for first: most headers of adapters are shorter."""

_RANGE: Final = re.compile(r"bytes \d+-\d+/(\d+)")


def names_of(reference: Reference) -> list[str]:
    """Return the paths of all files of a repository, sorted.

    Raises:
        HubError: there is no such repository or revision, or it cannot be reached.
    """
    try:
        return list_files(reference)
    except client_errors() as error:
        raise explain(reference, error) from None


def fetch_start(reference: Reference, count: int) -> tuple[bytes, int]:
    """Return the first bytes of a file, as many as there are of `count`, and its size.

    Raises:
        HubError: there is no such file, or the server does not answer as a Hub does.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    url = hf_hub_url(reference.repository, reference.path, revision=reference.revision)
    heads = {**build_hf_headers(), "Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    try:
        with watched(reference, count):
            answer = get_session().get(url, headers=heads)
            hf_raise_for_status(answer)
    except client_errors() as error:
        raise explain(reference, error) from None
    return answer.content[:count], _size(answer, reference)


def fetch_header(reference: Reference, largest: int) -> tuple[bytes, int]:
    """Return a safetensors file's bytes up to the end of its header at least, and the file's size.

    Args:
        reference: the file.
        largest: bytes of a header beyond which it is not fetched: what is wrong with it, its length tells.

    Raises:
        HubError: as `fetch_start`.
    """
    start, size = fetch_start(reference, FIRST)
    length = 8 + int.from_bytes(start[:8], "little")
    if len(start) >= length or not 8 < length <= largest or length > size:
        return start, size
    return fetch_start(reference, length)


def _size(answer: Any, reference: Reference) -> int:
    if answer.status_code != 206:
        return len(answer.content)  # a server that knows no ranges, or an empty file, sent all of it
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if match is None:
        raise HubError(f"{reference}: the server does not answer as a Hub does", fix="check HF_ENDPOINT and the proxy")
    return int(match[1])
