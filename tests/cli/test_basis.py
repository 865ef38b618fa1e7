"""`svdiff basis`: building, listing, checking and pruning what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import svdiff

from svdiff_cli.basis import Size
from svdiff_delta.svd.cache import BasisCache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty SVDIFF_HOME."""
    monkeypatch.setenv("SVDIFF_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def built(folder: Path) -> list[Path]:
    """The entries of the mid block's attention."""
    done = svdiff("basis", "build", "tiny", "unet.mid_block.attentions.*", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    return sorted(folder.rglob("*.safetensors"))


def test_build_says_what_is_kept_where(folder: Path) -> None:
    done = svdiff("basis", "build", "tiny", "unet.mid_block.attentions.*", "--json")
    found = json.loads(done.out)
    paths = list(folder.rglob("*.safetensors"))
    assert found["folder"] == str(BasisCache().root)
    assert found["bases"] == len(paths) > 0
    assert found["bytes"] == sum(path.stat().st_size for path in paths)


def test_build_keeps_both_factors_on_demand(folder: Path, built: list[Path]) -> None:
    before = sum(path.stat().st_size for path in built)
    done = svdiff("basis", "build", "tiny", "unet.mid_block.attentions.*", "--two-sided", "--workers", "2", "--json")
    assert json.loads(done.out)["bytes"] > 1.2 * before


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--quiet"]])
@pytest.mark.filterwarnings("default:going on without the basis cache")
def test_build_that_can_keep_nothing_says_so_and_fails(folder: Path, arguments: list[str]) -> None:
    (folder / "basis").write_text("no folder can be made here")
    done = svdiff("basis", "build", "tiny", "unet.mid_block.attentions.*", *arguments)
    assert done.code == 1
    warning, line = (line for line in done.err.splitlines() if line.startswith(("warning", "error")))
    assert warning.startswith("warning: going on without the basis cache: ")  # once, not for each basis
    assert line.startswith(f"error: {BasisCache().root}: ")
    assert "UserWarning" not in done.err
    assert " bases could not be kept: free some space or mend the folder's rights, or set SVDIFF_HOME" in line
    if "--json" in arguments:
        assert json.loads(done.out)["bases"] == 0


@pytest.mark.filterwarnings("ignore:going on without the basis cache", "ignore:.*damaged cache entry")
def test_build_that_can_keep_only_some_says_how_many_and_fails(folder: Path, built: list[Path]) -> None:
    lost = built[0]
    lost.unlink()
    lost.mkdir()  # nothing can take its place
    done = svdiff("basis", "build", "tiny", "unet.mid_block.attentions.*")
    assert done.code == 1
    assert f"1 of {len(built)} bases could not be kept" in done.err


def test_build_refuses_a_device_that_is_not_there(folder: Path) -> None:
    done = svdiff("basis", "build", "tiny", "--device", "cuda:99")
    assert done.code == 1
    assert done.err.startswith("error: cuda:99: there is no such device here (")


def test_ls_lists_every_entry(built: list[Path]) -> None:
    done = svdiff("basis", "ls")
    *rows, last = done.out.splitlines()
    assert sorted(row.split()[0] for row in rows) == sorted(path.stem for path in built)
    assert last == f"{len(built)} entries, {sum(path.stat().st_size for path in built):,} bytes in {BasisCache().root}"
    entries = json.loads(svdiff("basis", "ls", "--json").out)["entries"]
    assert {entry["file"] for entry in entries} == set(map(str, built))


def test_ls_of_an_empty_cache_says_so(folder: Path) -> None:
    assert svdiff("basis", "ls").out == f"0 entries, 0 bytes in {BasisCache().root}\n"


def test_verify_finds_nothing_where_nothing_is_damaged(built: list[Path]) -> None:
    done = svdiff("basis", "verify")
    assert (done.code, done.out) == (0, f"{len(built)} entries, 0 damaged\n")


def test_verify_names_what_is_damaged(built: list[Path]) -> None:
    raw = bytearray(built[0].read_bytes())
    raw[-1] ^= 1
    built[0].write_bytes(raw)
    done = svdiff("basis", "verify")
    assert done.code == 1
    assert done.out.splitlines()[0] == f"{built[0]}: its checksum does not fit"
    assert f"1 of {len(built)} entries are damaged" in done.err
    done = svdiff("basis", "verify", "--json")
    assert json.loads(done.out)["damaged"] == {str(built[0]): "its checksum does not fit"}


def test_prune_removes_what_is_too_much(built: list[Path], folder: Path) -> None:
    done = svdiff("basis", "prune", "--max-size", "0", "--dry-run")
    total = sum(path.stat().st_size for path in built)
    assert done.out == f"would remove {len(built)} entries, {total:,} bytes, from {BasisCache().root}\n"
    assert json.loads(svdiff("basis", "prune", "--max-size", "1GB", "--json").out)["removed"] == []
    assert svdiff("basis", "prune", "--max-size", "0", "-q").out == ""
    assert list(folder.rglob("*.safetensors")) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("123", 123), ("20GB", 20 * 10**9), ("1.5 g", 1_500_000_000), ("4GiB", 4 * 2**30), ("7k", 7_000)],
)
def test_sizes_are_written_with_units(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "-1", "GB", "20 gigs", "1e9", "nan", "5i"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    done = svdiff("basis", "prune", f"--max-size={text}")
    assert done.code == 2
    assert f"'{text}' is not a size" in done.err
