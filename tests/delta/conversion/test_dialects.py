"""The registry: which way there is from a dialect to another, and how an input is recognized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import delta_of, single

from svdiff_delta import convert, save
from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion import DIALECTS
from svdiff_delta.conversion.dialect import Changes, Dialect, Job, WeightChange
from svdiff_delta.conversion.lazy_tensors import OpenedAdapter
from svdiff_delta.errors import InputError
from svdiff_delta.format.lineage import Source


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return single(tmp_path / "base.safetensors", a=torch.diag(torch.tensor([3.0, 2.0, 1.0])))


@pytest.mark.parametrize("argument", ["to", "from_"])
def test_an_unknown_dialect_is_refused_with_the_known_ones(base: Base, argument: str) -> None:
    with pytest.raises(InputError, match=r"^'gguf': there is no such dialect: known are delta, full"):
        convert("x", base=base, **{argument: "gguf"})


def test_there_is_no_way_from_a_dialect_to_itself(base: Base, tmp_path: Path) -> None:
    delta = delta_of(base, a=np.ones(3))
    save(delta, tmp_path / "delta.safetensors")
    convert(delta, to="full", base=base, output=tmp_path / "full.safetensors")
    for source, name in (
        (delta, "delta"),
        (tmp_path / "delta.safetensors", "delta"),
        (tmp_path / "full.safetensors", "full"),
    ):
        with pytest.raises(InputError, match=rf"^the input is {name} already: .*svdiff rebase"):
            convert(source, to=name, base=base)


def test_a_delta_is_not_taken_for_something_else(base: Base, tmp_path: Path) -> None:
    delta = delta_of(base, a=np.ones(3))
    save(delta, tmp_path / "delta.safetensors")
    with pytest.raises(InputError, match="a Delta is not full"):
        convert(delta, from_="full", base=base)
    with pytest.raises(InputError, match=r"delta\.safetensors: is a delta, not full weights: leave `from_` away"):
        convert(tmp_path / "delta.safetensors", from_="full", base=base)


def test_a_bare_weight_file_does_not_say_what_it_is(base: Base) -> None:
    with pytest.raises(InputError, match=r"base\.safetensors: does not say what it is: give `from_`, one of full"):
        convert(base.path, base=base)


def test_an_input_that_is_not_there_is_named(base: Base, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: there is no such file or folder"):
        convert(tmp_path / "nowhere", base=base)


def test_an_unknown_number_format_is_refused(base: Base) -> None:
    with pytest.raises(InputError, match="no number format 'F8'"):
        convert(base.path, base=base, dtype="F8")  # type: ignore[arg-type]


def other(base: Base) -> Dialect:
    """A dialect that can only be read: each weight is doubled."""

    def read(source: OpenedAdapter, job: Job) -> Changes:
        names = [*job.base.names()]
        sha256 = "0" * 64
        return Changes(
            dict.fromkeys(names, ("spectral", 0)),
            lambda name: WeightChange(job.base.read(name)),
            lambda: [(sha256, Source(sha256, source.path.name))],
        )

    return Dialect("twice the base", lambda source: source.path.suffix == ".twice", read)


def test_a_dialect_is_one_entry_with_a_reader(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DIALECTS, "twice", other(base))  # type: ignore[arg-type]
    (tmp_path / "x.twice").write_text("")
    found = convert(tmp_path / "x.twice", base=base)
    assert np.allclose(found.delta["model.a.weight"], [3, 2, 1])
    lineage = found.delta.metadata.lineage
    assert lineage is not None
    assert lineage.record.arguments == {"from": "twice", "captured": 1.0}
    assert [source.title for source in lineage.files.values()] == ["x.twice"]


def test_one_dialect_becomes_another_by_way_of_delta(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DIALECTS, "twice", other(base))  # type: ignore[arg-type]
    (tmp_path / "x.twice").write_text("")
    found = convert(tmp_path / "x.twice", to="full", base=base, output=tmp_path / "full.safetensors")
    assert found.output == tmp_path / "full.safetensors"
    back = convert(tmp_path / "full.safetensors", base=base).delta
    assert np.allclose(back["model.a.weight"], [3, 2, 1])


def test_a_dialect_without_a_writer_or_reader_says_so(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DIALECTS, "twice", other(base))  # type: ignore[arg-type]
    monkeypatch.setitem(DIALECTS, "none", Dialect("nothing", lambda source: False))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="twice: can be read and not written"):
        convert(delta_of(base, a=np.ones(3)), to="twice", base=base)
    with pytest.raises(InputError, match="none: can be written and not read"):
        convert(base.path, from_="none", base=base)
