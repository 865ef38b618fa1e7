"""Fetching the two emoji packages with npm, checking them, and unpacking what is used."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from svdiff_delta._util.paths import below

from .subjects import STYLES

VERSION = "16.0.0"
INTEGRITY = {
    "google": "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    "twitter": "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
}
"""Vendor to the SHA-512 of its package's archive, in base64, as npm states it."""


class WrongArchiveError(ValueError):
    """A package's archive is not the one that the recipe was made with."""


def fetch(folder: Path) -> Path:
    """Bring both packages to `folder/<vendor>`, unless they lie there; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for vendor in STYLES.values():
        if not (folder / vendor / "emoji.json").exists():
            unpack(_pack(folder, vendor), folder / vendor, vendor)
    return folder


def _pack(folder: Path, vendor: str) -> Path:
    name = f"emoji-datasource-{vendor}"
    archive = folder / f"{name}-{VERSION}.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", f"{name}@{VERSION}"], cwd=folder, check=True)  # noqa: S603, S607
    check(archive, INTEGRITY[vendor])
    return archive


def check(archive: Path, integrity: str) -> None:
    """Refuse an archive whose SHA-512, in base64, is another than `integrity`."""
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != integrity:
        raise WrongArchiveError(
            f"{archive.name}: its SHA-512 is {found}, not {integrity}: delete it and fetch it again"
        )


def unpack(archive: Path, folder: Path, vendor: str) -> None:
    """Unpack the table of names and the vendor's own pictures; the table comes last."""
    with tarfile.open(archive) as packed:
        for member in list(_wanted(packed, vendor)):
            target, stream = below(folder, member.name, source=archive.name, deep=True), packed.extractfile(member)
            if stream is not None:  # a file, and nothing else
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(stream.read())


def _wanted(packed: tarfile.TarFile, vendor: str) -> Iterator[tarfile.TarInfo]:
    table = None
    for member in packed:
        member.name = member.name.removeprefix("package/")
        if member.name == "emoji.json":
            table = member
        elif member.name.startswith(f"img/{vendor}/64/") or member.name in ("LICENSE", "README.md"):
            yield member
    if table is not None:
        yield table
