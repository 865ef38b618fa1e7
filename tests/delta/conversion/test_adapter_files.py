"""A file of low-rank factors: what it says of itself, the same in any process, and when none is written."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support.adapters import weights_file
from support.checkpoints import delta_of, document, single
from support.commands import python
from support.files import listing
from support.weights import normal

from svdiff_delta import Delta, convert, load, open_base, save
from svdiff_delta._util.atomic import MARKER
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import BaseMismatchError, InputError, OutputError, TensorError
from svdiff_delta.format.file import file_digest

DIALECTS = ("peft", "diffusers", "kohya", "comfyui", "lycoris")
KEY = "svdiff.adapter"


# --- What the file says ---


def test_the_same_delta_gives_the_same_bytes_in_any_process(tiny: Base, delta: Delta, tmp_path: Path) -> None:
    save(delta, tmp_path / "delta.safetensors")
    code = (
        "import sys; from svdiff_delta import convert; from svdiff_train.tiny import open_tiny\n"
        "for dialect in sys.argv[3:]:\n"
        "    convert(sys.argv[1], to=dialect, base=open_tiny(), rank=3, output=f'{sys.argv[2]}/{dialect}')"
    )
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    python(code, tmp_path / "delta.safetensors", tmp_path / "there", *DIALECTS)
    for dialect in DIALECTS:
        convert(delta, to=dialect, base=tiny, rank=3, output=tmp_path / "here" / dialect)
    files = sorted(path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("*") if path.is_file())
    assert {file.parts[0] for file in files} == set(DIALECTS)
    for file in files:
        content = (tmp_path / "here" / file).read_bytes()
        assert content == (tmp_path / "there" / file).read_bytes(), file
        assert str(tmp_path).encode() not in content, file


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_file_says_what_it_retains_and_where_it_comes_from(
    tiny: Base, delta: Delta, dialect: str, tmp_path: Path
) -> None:
    told = replace(
        delta.metadata,
        training={"steps": 5},
        extra={"org.example.a": 1},
        modelspec={"title": "Dog", "author": "Ann", "architecture": "UNet2DConditionModel/svdiff", "hash_sha256": ""},
        foreign={"org.example.b": "c"},
    )
    given = Delta(dict(delta), told)
    found = convert(given, to=dialect, base=tiny, energy=0.6, max_rank=9, output=tmp_path / "x")
    said = document(weights_file(tmp_path / "x"), KEY)
    assert (said["format"], said["version"]) == ("svdiff-adapter", 1)
    assert said["names"] == list(delta)
    assert said["retained"]["all"] == round(found.captured, 6)
    assert said["retained"]["parameters"] == [round(found.layers[name].captured, 6) for name in delta]
    assert said["lineage"]["operation"] == "convert"
    assert said["lineage"]["arguments"] == {"to": dialect, "energy": 0.6, "max_rank": 9}
    assert said["lineage"]["inputs"] == [file_digest(given)[0]]
    raw = weights_file(tmp_path / "x").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    strings = json.loads(raw[8 : 8 + length])["__metadata__"]
    assert strings["modelspec.title"] == "Dog"
    assert strings["modelspec.author"] == "Ann"
    assert strings["modelspec.architecture"] == "UNet2DConditionModel/lora"
    assert strings["org.example.b"] == "c"
    assert strings["modelspec.hash_sha256"] == f"0x{hashlib.sha256(raw[8 + length :]).hexdigest()}"
    back = convert(tmp_path / "x", base=tiny, min_energy=0).delta.metadata
    assert (back.title, back.training, back.extra) == ("Dog", {"steps": 5}, {"org.example.a": 1})
    assert back.modelspec["author"] == "Ann"
    assert back.modelspec["architecture"] == "UNet2DConditionModel/svdiff"
    assert back.foreign == {"org.example.b": "c"}
    assert back.lineage is not None
    assert back.lineage.record.arguments["from"] == dialect
    (between,) = back.lineage.record.inputs
    record = back.lineage.files[between].record
    assert record is not None
    assert record.inputs == (file_digest(given)[0],)


def test_what_another_program_says_in_its_file_goes_along(tiny: Base, delta: Delta, tmp_path: Path) -> None:
    convert(delta, to="kohya", base=tiny, rank=2, output=tmp_path / "x.safetensors")
    strings = {
        "ss_base_model_version": "sd_v1",
        "ss_network_dim": "2",
        "modelspec.title": "Cat",
        "modelspec.license": "MIT",
        "modelspec.architecture": "stable-diffusion-v1/lora",
    }
    save_file(load_file(tmp_path / "x.safetensors"), tmp_path / "y.safetensors", metadata=strings)
    found = convert(tmp_path / "y.safetensors", base=tiny, output=tmp_path / "z.safetensors").delta.metadata
    assert (found.title, found.modelspec["license"]) == ("Cat", "MIT")
    assert found.foreign == {"ss_base_model_version": "sd_v1"}
    assert load(tmp_path / "z.safetensors").metadata.modelspec["license"] == "MIT"
    assert found.lineage is not None
    assert [source.title for source in found.lineage.files.values()] == ["Cat"]


def test_a_copy_that_was_made_for_another_base_is_known_by_its_fingerprints(
    tiny: Base, delta: Delta, tmp_path: Path
) -> None:
    convert(delta, to="diffusers", base=tiny, rank=2, output=tmp_path / "x.safetensors")
    shutil.copytree(tiny.path, tmp_path / "other")
    path = tmp_path / "other" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["mid_block.resnets.0.conv1.weight"][0, 0, 0, 0] += 1
    save_file(weights, path)
    with pytest.raises(BaseMismatchError, match=r"^unet\.mid_block\.resnets\.0\.conv1\.weight: .* another base"):
        convert(tmp_path / "x.safetensors", base=open_base(tmp_path / "other"))


def test_below_nine_tenths_the_result_says_that_it_is_a_poor_copy(tiny: Base, delta: Delta) -> None:
    (remark,) = convert(delta, to="kohya", base=tiny, rank=1).remarks
    assert remark.startswith("only ")
    assert "of the change is retained at rank 1" in remark
    assert convert(delta, to="kohya", base=tiny, energy=0.95).remarks == ()


def test_the_remark_and_the_error_have_the_report_s_figure_norms_included(tiny: Base, whole: Delta) -> None:
    found = convert(whole, to="lycoris", base=tiny, rank=1)
    spectral = [found.layers[name] for name in found.ranks]
    assert sum(layer.kept for layer in spectral) / sum(layer.whole for layer in spectral) < found.captured - 0.001
    figure = f"only {found.captured:.2%} of the change is retained"
    assert found.remarks[0].startswith(figure)
    with pytest.raises(InputError, match=rf"^{figure}, less than the least share of 90\.00%"):
        convert(whole, to="lycoris", base=tiny, rank=1, min_energy=0.9)


# --- What is refused ---


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "kohya: nothing says the rank: give `rank`, such as 32, or `energy`"),
        ({"rank": 0}, "`rank` must be at least 1, is 0"),
        ({"energy": 0.0}, r"`energy` must be within \(0, 1\], is 0.0"),
        ({"energy": 1.1}, r"`energy` must be within \(0, 1\]"),
        ({"energy": float("nan")}, r"`energy` must be within \(0, 1\]"),
        ({"energy": 0.5, "max_rank": 0}, "`max_rank` must be at least 1, is 0"),
        ({"rank": 1, "energy": 0.5}, "`rank` and `energy` contradict each other"),
        ({"max_rank": 5}, "`max_rank` says nothing without `energy`"),
        ({"rank": 1, "dtype": "I8"}, "kohya: cannot be stored as I8, as deltas can: use `dtype=.F32.` or"),
        ({"rank": 1, "min_energy": 0.99}, "is retained, less than the least share of 99.00%: give a higher `rank`"),
    ],
)
def test_arguments_that_cannot_work(
    tiny: Base, delta: Delta, how: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        convert(delta, to="kohya", base=tiny, output=tmp_path / "x.safetensors", **how)
    assert listing(tmp_path) == []


def test_a_delta_of_zeros_has_nothing_to_write(base: Base) -> None:
    with pytest.raises(InputError, match="δ is 0 wherever peft has a place"):
        convert(delta_of(base, a=np.zeros(12)), to="peft", base=base, rank=1)


def test_a_value_beyond_the_format_is_refused_and_nothing_is_written(base: Base, tmp_path: Path) -> None:
    before = listing(tmp_path)
    with pytest.raises(TensorError, match=r"lora_B\.weight: reaches .*, F16 ends at 65504: use `dtype=\"F32\"`"):
        convert(delta_of(base, a=np.full(12, 1e12)), to="peft", base=base, rank=1, output=tmp_path / "x", dtype="F16")
    assert listing(tmp_path) == before


def test_a_delta_of_another_base_is_refused_and_nothing_is_written(base: Base, tmp_path: Path) -> None:
    other = single(tmp_path / "other.safetensors", a=normal(12, 20), b=normal(20, 12))
    before = listing(tmp_path)
    with pytest.raises(BaseMismatchError, match=r"^model\.a\.weight: the delta was made for another base"):
        convert(delta_of(base, a=np.ones(12)), to="peft", base=other, rank=1, output=tmp_path / "x")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("dialect", ["peft", "kohya"])
def test_an_output_that_exists_is_left_alone(tiny: Base, delta: Delta, dialect: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        convert(delta, to=dialect, base=tiny, rank=1, output=tmp_path / "x")
    assert (tmp_path / "x").read_text() == "mine"
    convert(delta, to=dialect, base=tiny, rank=1, output=tmp_path / "x", overwrite=True)
    assert convert(tmp_path / "x", base=tiny, min_energy=0).captured == pytest.approx(1, abs=1e-6)


def test_without_an_output_everything_is_calculated_and_nothing_written(
    tiny: Base, delta: Delta, tmp_path: Path
) -> None:
    for dialect in DIALECTS:
        found = convert(delta, to=dialect, base=tiny, rank=2)
        written = convert(delta, to=dialect, base=tiny, rank=2, output=tmp_path / dialect)
        assert found.output is None
        files = [path for path in [tmp_path / dialect, *(tmp_path / dialect).rglob("*")] if path.is_file()]
        files = [path for path in files if path.name != MARKER]
        assert found.size == written.size == sum(path.stat().st_size for path in files)
