"""The input of a conversion is opened once, whatever it turns out to be: counted by the interpreter's own events."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file
from support.models import base_delta

from svdiff_delta import convert
from svdiff_delta.conversion.dialect import ShiftReader, WeightChange
from svdiff_delta.conversion.lazy_tensors import OpenedAdapter
from svdiff_delta.conversion.route import resolve_route
from svdiff_delta.format.delta import Delta
from svdiff_train.tiny import open_tiny

PATH = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
RANK = {"kohya": 4, "lycoris": 4, "diffusers": 4, "peft": 4, "full": None}

_counting: list[Counter[str]] = []


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _counting and isinstance(arguments[0], str | os.PathLike):
        _counting[-1][os.fspath(arguments[0])] += 1


sys.addaudithook(_count)  # none can ever be removed; this one is silent where nobody counts


@contextmanager
def opens() -> Iterator[Counter[str]]:
    """Count how often each path is opened in the block."""
    _counting.append(Counter())
    try:
        yield _counting[-1]
    finally:
        _counting.pop()


@pytest.fixture(scope="module")
def delta() -> Delta:
    return base_delta(open_tiny(), f"unet.{PATH}.weight")


@pytest.fixture(autouse=True)
def no_other_way_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse safetensors' own opening, of which the interpreter has no event."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the safetensors library opened a file")

    monkeypatch.setattr(safetensors, "safe_open", refuse)


def test_the_count_counts(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with opens() as counted:
        (tmp_path / "x").read_bytes()
        os.close(os.open(tmp_path / "x", os.O_RDONLY))
    assert counted == {str(tmp_path / "x"): 2}


@pytest.mark.parametrize("dialect", RANK)
def test_an_adapter_of_each_dialect_is_opened_once(delta: Delta, tmp_path: Path, dialect: str) -> None:
    place = tmp_path / "in"
    convert(delta, to=dialect, base=open_tiny(), rank=RANK[dialect], output=place)
    files = [path for path in [place, *place.glob("*")] if path.is_file() and path.suffix != ".json"]
    weights = [str(path) for path in files if path.name != ".svdiff-output"]
    assert weights
    with opens() as counted:
        convert(place, base=open_tiny(), output=tmp_path / "out.safetensors")
    assert {path: counted[path] for path in weights} == dict.fromkeys(weights, 1)


def test_shifts_of_another_program_are_opened_once_also_on_the_way_to_a_third(delta: Delta, tmp_path: Path) -> None:
    place = tmp_path / "shifts.safetensors"
    save_file({f"{PATH}.delta": delta[f"unet.{PATH}.weight"].astype(np.float32)}, place)
    with opens() as counted:
        convert(place, to="kohya", rank=4, base=open_tiny(), output=tmp_path / "out.safetensors")
    assert counted[str(place)] == 1


def test_an_input_is_what_it_was_when_it_was_opened(delta: Delta, tmp_path: Path) -> None:
    place, base = tmp_path / "in.safetensors", open_tiny()
    convert(delta, to="full", base=base, output=place)
    opened = OpenedAdapter(place)
    before = opened.file().digests()
    place.unlink()
    place.write_bytes(b"another file under the same name")
    assert opened.header() is not None
    assert opened.file().digests() == before
    assert opened.file().load(f"unet.{PATH}.weight").shape == base.shape(f"unet.{PATH}.weight")


def test_what_is_read_may_be_changed_in_its_place_and_is_read_again_as_it_stands(delta: Delta, tmp_path: Path) -> None:
    convert(delta, to="full", base=open_tiny(), output=tmp_path / "in.safetensors")
    file = OpenedAdapter(tmp_path / "in.safetensors").file()
    before, (key,) = file.digests(), file.keys()
    values = file.load(key)
    kept = values.clone()
    values.mul_(2)
    assert (file.load(key) == kept).all()
    assert file.digests() == before


@pytest.mark.parametrize(("shifts", "case"), [(True, ShiftReader), (False, WeightChange)])
def test_a_change_is_one_of_two_named_cases(delta: Delta, tmp_path: Path, shifts: bool, case: type) -> None:
    from svdiff_delta.conversion.dialect import Job
    from svdiff_delta.svd.cache import BasisCache

    place, base = tmp_path / "in.safetensors", open_tiny()
    if shifts:
        save_file({f"{PATH}.delta": delta[f"unet.{PATH}.weight"].astype(np.float32)}, place)
    else:
        convert(delta, to="full", base=base, output=place)
    way = resolve_route(place, base=base)
    assert way.read is not None
    assert way.opened is not None
    changes = way.read(way.opened, Job(base, BasisCache()))
    assert {type(changes.read(name)) for name in changes.kinds} == {case}
