"""The memory of fingerprints: what is remembered, for how long, and what happens when it cannot be."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save, save_file
from support.hub import fill_cache
from support.models import base_delta
from support.weights import normal

from svdiff_delta import fingerprints
from svdiff_delta.base import Base, open_base
from svdiff_delta.cache import BasisCache
from svdiff_delta.errors import BaseMismatchError
from svdiff_delta.fingerprints import Known, flush, recall
from svdiff_delta.identity import fingerprint, identify, round_weight
from svdiff_delta.prepare import fit, identity, prepare

NAME = "model.a.weight"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("SVDIFF_HOME", str(folder))
    forget_process()
    return folder


@pytest.fixture
def path(tmp_path: Path, home: Path) -> Path:
    path = tmp_path / "secret-place" / "model.safetensors"
    path.parent.mkdir()
    return written(path, normal(6, 8))


def written(path: Path, weight: torch.Tensor, *, age: float = 60) -> Path:
    """Write a weight file that was last changed some seconds ago."""
    save_file({"a.weight": weight}, path)
    os.utime(path, (time.time() - age,) * 2)
    return path


def forget_process() -> None:
    """Write what is new, and forget what this process holds in memory, as a new process would."""
    flush()
    fingerprints._documents.clear()


def document(home: Path) -> Path:
    (found,) = (home / "fingerprints").iterdir()
    return found


class Unreadable(Base):
    """A base whose weights nobody reads."""

    def read(self, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")


def unreadable(path: Path, reference: str | None = None) -> Unreadable:
    base = open_base(reference or path)
    return Unreadable(base.path, base.components)


def test_what_was_identified_once_is_remembered_by_the_next_process(path: Path) -> None:
    first = identity(open_base(path), NAME, 0)
    forget_process()
    assert identity(unreadable(path), NAME, 0) == first == Known("F16", first.fingerprint, (6, 8))


def test_what_was_chosen_is_known_where_a_file_gives_that_dtype(path: Path) -> None:
    first = identity(open_base(path), NAME, 0)
    assert identity(unreadable(path), NAME, 0, "F16") == first


@pytest.mark.parametrize(("axis", "dtype"), [(1, None), (0, "F32"), (0, "BF16")])
def test_another_axis_or_dtype_is_another_fingerprint(path: Path, axis: int, dtype: fingerprints.Dtype | None) -> None:
    base = open_base(path)
    first = identity(base, NAME, 0)
    assert recall(base, NAME, axis, dtype) is None
    assert identity(base, NAME, axis, dtype).fingerprint != first.fingerprint


def test_a_warm_basis_needs_no_weight(path: Path) -> None:
    cache = BasisCache()
    cold = prepare(open_base(path), NAME, "spectral", 0, cache)
    warm = prepare(unreadable(path), NAME, "spectral", 0, cache)
    assert warm.parameter == cold.parameter


def test_a_delta_fits_without_a_weight_being_read(path: Path) -> None:
    base = open_base(path.parent / path.name)
    parameter = prepare(base, NAME, "spectral", 0, BasisCache()).parameter
    delta = delta_for(NAME, parameter)
    assert fit(unreadable(path), NAME, delta, BasisCache()).parameter == parameter


def delta_for(name: str, parameter: fingerprints.Any) -> fingerprints.Any:
    import numpy as np

    from svdiff_delta.delta import Delta
    from svdiff_delta.metadata import BaseInfo, Metadata

    return Delta({name: np.zeros(parameter.size)}, Metadata(BaseInfo(), {name: parameter}))


@pytest.mark.parametrize("change", ["size", "time", "inode", "content"])
def test_a_file_that_changed_is_read_again(path: Path, change: str) -> None:
    first = identity(open_base(path), NAME, 0)
    forget_process()
    about = path.stat()
    weight = normal(6, 9) if change == "size" else normal(6, 8, seed=1)
    if change == "inode":
        path.rename(path.with_suffix(".old"))  # keeps its inode, so that the new file gets another
    save_file({"a.weight": weight}, path)
    if change in ("inode", "size"):
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    else:
        os.utime(path, (time.time() - 30,) * 2)
    assert identity(open_base(path), NAME, 0).fingerprint != first.fingerprint


def test_a_file_that_changed_since_it_was_opened_is_not_recalled(path: Path) -> None:
    base = open_base(path)
    identity(base, NAME, 0)
    os.utime(path, (time.time() - 30,) * 2)
    assert recall(base, NAME, 0, None) is None


def test_a_file_that_has_just_changed_is_not_remembered(path: Path, home: Path) -> None:
    written(path, normal(6, 8), age=1)
    identity(open_base(path), NAME, 0)
    flush()
    assert not (home / "fingerprints").exists()


def test_a_time_in_the_future_is_not_trusted(path: Path, home: Path) -> None:
    written(path, normal(6, 8), age=-100)
    identity(open_base(path), NAME, 0)
    flush()
    assert not (home / "fingerprints").exists()


def test_a_blob_of_the_hub_is_known_by_its_name_wherever_it_lies(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"config.json": b'{"architectures": ["BertModel"]}', "model.safetensors": save({"a.weight": normal(6, 8)})}
    found = []
    for name in ("one", "two"):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / name))
        fill_cache(tmp_path / name, "owner/repo", files)  # blobs are young, and yet remembered
        base = open_base("owner/repo", fetch=False)
        assert (recall(base, NAME, 0, None) is None) == (name == "one")
        found.append(identity(base, NAME, 0))
        forget_process()
    assert found[0] == found[1]


def test_no_local_path_stands_in_the_memory(path: Path, home: Path) -> None:
    identity(open_base(path), NAME, 0)
    flush()
    text = str(document(home).relative_to(home)) + document(home).read_text()
    assert "secret" not in text
    assert str(path.stat().st_ino) in text


def test_what_two_processes_learn_is_merged(path: Path, home: Path) -> None:
    base = open_base(path)
    identity(base, NAME, 0)
    forget_process()
    mine = document(home).read_text()
    document(home).unlink()
    identity(base, NAME, 1)
    document_path = home / "fingerprints"
    document_path.mkdir(exist_ok=True)
    name = next(iter(fingerprints._documents))[0].name
    (document_path / name).write_text(mine)  # another process was faster
    forget_process()
    assert recall(base, NAME, 0, None) is not None
    assert recall(base, NAME, 1, None) is not None


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"entries": {"chosen 0 a.weight": ["F16"]}}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_damaged_memory_is_ignored_and_written_again(path: Path, home: Path, damage: str) -> None:
    first = identity(open_base(path), NAME, 0)
    flush()
    whole = document(home).read_bytes()
    document(home).write_bytes(damage.encode("latin-1"))
    fingerprints._documents.clear()
    assert identity(open_base(path), NAME, 0) == first
    flush()
    assert document(home).read_bytes() == whole


@pytest.mark.parametrize("fields", [["F64", "A" * 22, [6, 8]], ["F16", "short", [6, 8]], ["F16", "A" * 22, ["6"]], 7])
def test_a_damaged_entry_is_ignored(path: Path, home: Path, fields: object) -> None:
    first = identity(open_base(path), NAME, 0)
    flush()
    content = json.loads(document(home).read_text())
    content["entries"] = dict.fromkeys(content["entries"], fields)
    document(home).write_text(json.dumps(content))
    fingerprints._documents.clear()
    assert identity(open_base(path), NAME, 0) == first


def test_a_home_that_cannot_be_written_is_not_needed(path: Path, home: Path) -> None:
    home.write_text("a file")
    base = open_base(path)
    first = identity(base, NAME, 0)
    flush()
    assert identity(unreadable(path), NAME, 0) == first  # this process still remembers
    forget_process()
    assert identity(open_base(path), NAME, 0) == first


def test_a_false_memory_does_not_reach_the_basis_cache(path: Path, home: Path) -> None:
    identity(open_base(path), NAME, 0)
    flush()
    content = json.loads(document(home).read_text())
    false = fingerprint(torch.ones(6, 8), 0)
    content["entries"] = {key: [fields[0], false, fields[2]] for key, fields in content["entries"].items()}
    document(home).write_text(json.dumps(content))
    fingerprints._documents.clear()
    cache = BasisCache()
    prepared = prepare(open_base(path), NAME, "spectral", 0, cache)
    true = fingerprint(round_weight(normal(6, 8), "F16"), 0)
    assert prepared.parameter.fingerprint == true
    assert cache.get(false) is None
    assert recall(open_base(path), NAME, 0, None) == Known("F16", true, (6, 8))


def test_a_file_that_is_exchanged_under_a_delta_is_refused(path: Path) -> None:
    delta = delta_for(NAME, prepare(open_base(path), NAME, "spectral", 0, BasisCache()).parameter)
    written(path, normal(6, 8, seed=1), age=30)
    with pytest.raises(BaseMismatchError, match="made for another base"):
        fit(open_base(path), NAME, delta, BasisCache())


def test_a_prepared_weight_holds_no_values(path: Path) -> None:
    prepared = prepare(open_base(path), NAME, "spectral", 0, BasisCache())
    assert not any(isinstance(value, torch.Tensor) for value in vars(prepared).values())
    assert prepared.weight is not prepared.weight
    assert torch.equal(prepared.weight, normal(6, 8))
    assert torch.equal(prepared.rounded, normal(6, 8).half().float())


def test_a_whole_base_is_remembered(home: Path) -> None:
    from svdiff_train.tiny import open_tiny

    delta = base_delta(open_tiny(), "unet-ca")
    forget_process()
    base = open_tiny()
    quiet = Unreadable(base.path, base.components)
    for name in delta:
        assert fit(quiet, name, delta, BasisCache()).parameter == delta.metadata.parameters[name]


def test_identities_are_those_of_the_values(path: Path) -> None:
    base = open_base(path)
    for dtype in ("F16", "BF16", "F32", None):
        known = identity(base, NAME, 0, dtype)
        assert known[:2] == identify(base.read(NAME), NAME, 0, dtype)
