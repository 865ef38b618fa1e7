"""Pulling a delta: always from the Hub, every byte read, a copy on request."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.downloads import FILES, RAW
from support.hub import Hub

from svdiff_delta import pull
from svdiff_delta.errors import FormatError, HubError, OutputError
from svdiff_delta.format.file import dumps
from svdiff_delta.hub_client import download
from svdiff_delta.hub_client.reference import Reference


def test_pull_always_asks_for_a_delta_of_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("alice/cat", FILES)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alice" / "cat").mkdir(parents=True)
    assert dumps(pull("alice/cat")) == dumps(pull("hf://alice/cat")) == RAW


def test_pull_reads_every_byte(hub: Hub) -> None:
    nan = RAW[:-4] + b"\xff\xff\xff\x7f"
    hub.add("alice/cat", {"svdiff.safetensors": nan})
    with pytest.raises(FormatError, match=r"^alice/cat/svdiff.safetensors: .*NaN"):
        pull("alice/cat")


def test_pull_writes_a_copy(hub: Hub, tmp_path: Path) -> None:
    hub.add("alice/cat", FILES)
    pull("alice/cat", tmp_path / "cat.safetensors")
    assert (tmp_path / "cat.safetensors").read_bytes() == RAW
    assert not (tmp_path / "cat.safetensors").is_symlink()


def test_pull_overwrites_only_on_request(hub: Hub, tmp_path: Path) -> None:
    hub.add("alice/cat", FILES)
    (tmp_path / "cat").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already"):
        pull("alice/cat", tmp_path / "cat")
    assert not hub.asked
    pull("alice/cat", tmp_path / "cat", overwrite=True)
    assert (tmp_path / "cat").read_bytes() == RAW


def test_a_branch_that_moves_meanwhile_is_noticed(hub: Hub) -> None:
    hub.add("alice/cat", FILES)
    found = download.find_delta(Reference("alice/cat"))
    hub.add("alice/cat", FILES | {"svdiff.safetensors": FILES["old/svdiff.safetensors"]})
    with pytest.raises(HubError, match=re.escape("alice/cat/svdiff.safetensors: it was changed meanwhile")):
        download.fetch(found)
