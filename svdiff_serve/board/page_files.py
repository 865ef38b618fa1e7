"""Give out the page: its files as they are in the package, and headers that let nothing else in."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final

from starlette.responses import Response

INDEX: Final = "index.html"

KINDS: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "png": "image/png",
    "webp": "image/webp",
}

NAME: Final = re.compile(r"[a-z0-9_-]+\.(?P<suffix>[a-z0-9]+)")

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

CLOSED: Final = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": POLICY,
}
"""Headers of all that the board gives out."""


def page_file(name: str) -> Response | None:
    """Return a file of the page; None if there is none of this name."""
    found = NAME.fullmatch(name)
    if found is None or found["suffix"] not in KINDS:
        return None
    try:
        content = files("svdiff_serve.board").joinpath("page", name).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return None
    return Response(content, media_type=KINDS[found["suffix"]], headers=CLOSED)
