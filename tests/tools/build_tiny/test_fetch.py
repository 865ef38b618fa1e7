"""Fetching: only the known archive is unpacked, and only what is used."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from tools.build_tiny.fetch import WrongArchiveError, check, fetch, unpack
from tools.build_tiny.scenes import load_sprites
from tools.build_tiny.subjects import STYLES

from .pictures import archive, write_packages


def test_an_archive_gives_its_pictures_and_its_table(tmp_path: Path) -> None:
    packages = write_packages(tmp_path / "made")
    for vendor in STYLES.values():
        packed = archive(packages / vendor, tmp_path / f"{vendor}.tgz")
        unpack(packed, tmp_path / "npm" / vendor, vendor)
    assert load_sprites(tmp_path / "npm").keys() == load_sprites(packages).keys()
    assert not (tmp_path / "npm" / "google" / "emoji_pretty.json").exists()


def test_a_folder_that_has_the_packages_is_taken_as_it_is(tmp_path: Path) -> None:
    packages = write_packages(tmp_path)
    assert fetch(packages) == packages


def test_another_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "package.tgz"
    path.write_bytes(b"known")
    check(path, base64.b64encode(hashlib.sha512(b"known").digest()).decode())
    path.write_bytes(b"other")
    with pytest.raises(WrongArchiveError, match=r"package\.tgz: its SHA-512 is .*: delete it"):
        check(path, base64.b64encode(hashlib.sha512(b"known").digest()).decode())
