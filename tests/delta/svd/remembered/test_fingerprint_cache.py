"""The memory of fingerprints: what is remembered, and what happens when it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.models import base_delta
from support.remembered import (
    NAME,
    Unreadable,
    delta_for,
    document,
    forget_process,
    unreadable,
    written,
)
from support.weights import normal

from svdiff_delta.base_model.base import open_base
from svdiff_delta.errors import BaseMismatchError
from svdiff_delta.svd import fingerprint_cache
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.fingerprint import fingerprint, fingerprint_stored, round_weight
from svdiff_delta.svd.fingerprint_cache import Known, flush, recall
from svdiff_delta.svd.prepare import identify_weight, prepare_weight, verify_and_prepare


def test_what_was_identified_once_is_remembered_by_the_next_process(path: Path) -> None:
    first = identify_weight(open_base(path), NAME, 0)
    forget_process()
    assert identify_weight(unreadable(path), NAME, 0) == first == Known("F16", first.fingerprint, (6, 8))


def test_what_was_chosen_is_known_where_a_file_gives_that_dtype(path: Path) -> None:
    first = identify_weight(open_base(path), NAME, 0)
    assert identify_weight(unreadable(path), NAME, 0, "F16") == first


@pytest.mark.parametrize(("axis", "dtype"), [(1, None), (0, "F32"), (0, "BF16")])
def test_another_axis_or_dtype_is_another_fingerprint(
    path: Path, axis: int, dtype: fingerprint_cache.Dtype | None
) -> None:
    base = open_base(path)
    first = identify_weight(base, NAME, 0)
    assert recall(base, NAME, axis, dtype) is None
    assert identify_weight(base, NAME, axis, dtype).fingerprint != first.fingerprint


def test_a_warm_basis_needs_no_weight(path: Path) -> None:
    cache = BasisCache()
    cold = prepare_weight(open_base(path), NAME, "spectral", 0, cache)
    warm = prepare_weight(unreadable(path), NAME, "spectral", 0, cache)
    assert warm.parameter == cold.parameter


def test_a_delta_fits_without_a_weight_being_read(path: Path) -> None:
    base = open_base(path.parent / path.name)
    parameter = prepare_weight(base, NAME, "spectral", 0, BasisCache()).parameter
    delta = delta_for(NAME, parameter)
    assert verify_and_prepare(unreadable(path), NAME, delta, BasisCache()).parameter == parameter


def test_no_local_path_stands_in_the_memory(path: Path, home: Path) -> None:
    identify_weight(open_base(path), NAME, 0)
    flush()
    text = str(document(home).relative_to(home)) + document(home).read_text()
    assert "secret" not in text
    assert str(path.stat().st_ino) in text


def test_what_two_processes_learn_is_merged(path: Path, home: Path) -> None:
    base = open_base(path)
    identify_weight(base, NAME, 0)
    forget_process()
    mine = document(home).read_text()
    document(home).unlink()
    identify_weight(base, NAME, 1)
    (place,) = (kept.path for kept in fingerprint_cache._documents.values())
    place.write_text(mine)  # another process was faster
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
    first = identify_weight(open_base(path), NAME, 0)
    flush()
    whole = document(home).read_bytes()
    document(home).write_bytes(damage.encode("latin-1"))
    fingerprint_cache._documents.clear()
    assert identify_weight(open_base(path), NAME, 0) == first
    flush()
    assert document(home).read_bytes() == whole


@pytest.mark.parametrize("fields", [["F64", "A" * 22, [6, 8]], ["F16", "short", [6, 8]], ["F16", "A" * 22, ["6"]], 7])
def test_a_damaged_entry_is_ignored(path: Path, home: Path, fields: object) -> None:
    first = identify_weight(open_base(path), NAME, 0)
    flush()
    content = json.loads(document(home).read_text())
    content["entries"] = dict.fromkeys(content["entries"], fields)
    document(home).write_text(json.dumps(content))
    fingerprint_cache._documents.clear()
    assert identify_weight(open_base(path), NAME, 0) == first


def test_a_home_that_cannot_be_written_is_not_needed(path: Path, home: Path) -> None:
    home.write_text("a file")
    base = open_base(path)
    first = identify_weight(base, NAME, 0)
    flush()
    assert identify_weight(unreadable(path), NAME, 0) == first  # this process still remembers
    forget_process()
    assert identify_weight(open_base(path), NAME, 0) == first


def test_a_false_memory_does_not_reach_the_basis_cache(path: Path, home: Path) -> None:
    identify_weight(open_base(path), NAME, 0)
    flush()
    content = json.loads(document(home).read_text())
    false = fingerprint(torch.ones(6, 8), 0)
    content["entries"] = {key: [fields[0], false, fields[2]] for key, fields in content["entries"].items()}
    document(home).write_text(json.dumps(content))
    fingerprint_cache._documents.clear()
    cache = BasisCache()
    prepared = prepare_weight(open_base(path), NAME, "spectral", 0, cache)
    true = fingerprint(round_weight(normal(6, 8), "F16"), 0)
    assert prepared.parameter.fingerprint == true
    assert cache.get(false) is None
    assert recall(open_base(path), NAME, 0, None) == Known("F16", true, (6, 8))


def test_a_file_that_is_exchanged_under_a_delta_is_refused(path: Path) -> None:
    delta = delta_for(NAME, prepare_weight(open_base(path), NAME, "spectral", 0, BasisCache()).parameter)
    written(path, normal(6, 8, seed=1))
    with pytest.raises(BaseMismatchError, match="made for another base"):
        verify_and_prepare(open_base(path), NAME, delta, BasisCache())


def test_a_prepared_weight_holds_no_values(path: Path) -> None:
    prepared = prepare_weight(open_base(path), NAME, "spectral", 0, BasisCache())
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
        assert verify_and_prepare(quiet, name, delta, BasisCache()).parameter == delta.metadata.parameters[name]


def test_identities_are_those_of_the_values(path: Path) -> None:
    base = open_base(path)
    for dtype in ("F16", "BF16", "F32", None):
        known = identify_weight(base, NAME, 0, dtype)
        assert known[:2] == fingerprint_stored(base.read(NAME), NAME, 0, dtype)
