"""Full differences: ΔW as a file, and δ from it again."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors.torch import load_file, save_file
from support.bytes import container
from support.checkpoints import delta_of, document, single, true_change
from support.files import listing
from support.models import MINILM, base_delta
from support.weights import hadamard, normal, relative, with_spectrum

from svdiff_delta import Delta, bake, convert, load, open_base, save, scale
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import (
    BaseError,
    BaseMismatchError,
    DeltaError,
    HeaderError,
    InputError,
    MetadataError,
    OutputError,
    TensorError,
    VersionError,
)
from svdiff_delta.format.file import dumps, file_digest
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.side_by_side import cost

KEY = "svdiff.difference"
SCHEMA = json.loads((Path(__file__).parents[3] / "spec" / "v1" / "schema.json").read_text())


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """A wide, a tall and a norm weight, the singular values of the first two well apart."""
    sigma = torch.linspace(3, 1, 12)
    return single(
        tmp_path / "base.safetensors",
        a=with_spectrum(sigma, 12, 20).half().float(),
        b=with_spectrum(sigma, 20, 12, seed=3).half().float(),
        norm=normal(7).half().float(),
    )


@pytest.fixture
def delta(base: Base) -> Delta:
    draw = np.random.default_rng(0)
    shifts = {"a": draw.standard_normal(12) * 0.3, "b": draw.standard_normal(12) * 0.3, "norm": draw.standard_normal(7)}
    return delta_of(base, **shifts)


@pytest.fixture
def full(base: Base, delta: Delta, tmp_path: Path) -> Path:
    convert(delta, to="full", base=base, output=tmp_path / "full.safetensors")
    return tmp_path / "full.safetensors"


def test_a_file_of_changes_holds_the_float64_formula_in_float32(base: Base, delta: Delta, full: Path) -> None:
    changes = load_file(full)
    assert list(changes) == list(delta)
    assert {change.dtype for change in changes.values()} == {torch.float32}
    for key in ("model.a.weight", "model.b.weight"):
        assert relative(changes[key], true_change(base.read(key), delta[key])) < 1e-6
    assert changes["model.norm.weight"].numpy().tobytes() == delta["model.norm.weight"].tobytes()


def test_the_change_is_what_bake_adds(base: Base, delta: Delta, full: Path, tmp_path: Path) -> None:
    bake(base, [delta], tmp_path / "baked.safetensors")
    baked, changes = load_file(tmp_path / "baked.safetensors"), load_file(full)
    for name, change in changes.items():
        assert torch.equal(baked[name.removeprefix("model.")], base.read(name) + change), name


def test_a_change_far_smaller_than_the_weight_is_not_cancelled_away(base: Base, tmp_path: Path) -> None:
    tiny = delta_of(base, a=np.full(12, 1e-9))
    convert(tiny, to="full", base=base, output=tmp_path / "out.safetensors")
    key = "model.a.weight"
    assert relative(load_file(tmp_path / "out.safetensors")[key], true_change(base.read(key), tiny[key])) < 1e-6
    back = convert(tmp_path / "out.safetensors", base=base).delta[key]
    assert np.allclose(back, 1e-9, rtol=1e-5, atol=0)


def test_delta_to_full_to_delta_gives_delta_again(base: Base, delta: Delta, full: Path) -> None:
    found = convert(full, to="delta", base=base)
    assert list(found.delta) == list(delta)
    for name in delta:
        assert np.linalg.norm(found.delta[name] - delta[name]) <= 1e-6 * np.linalg.norm(delta[name]), name
    assert found.delta.metadata.parameters == delta.metadata.parameters
    assert found.captured == pytest.approx(1, abs=1e-7)


def test_a_clipped_shift_comes_back_as_minus_sigma(base: Base, tmp_path: Path) -> None:
    shift = np.zeros(12)
    shift[-1] = -50
    convert(delta_of(base, a=shift), to="full", base=base, output=tmp_path / "out.safetensors")
    back = convert(tmp_path / "out.safetensors", base=base).delta["model.a.weight"]
    sigma = np.linalg.svd(base.read("model.a.weight").double().numpy(), compute_uv=False)
    assert back[-1] == pytest.approx(-sigma[-1], rel=1e-6)
    assert np.abs(back[:-1]).max() < 1e-6


def test_tied_and_null_runs_come_back(tmp_path: Path) -> None:
    one_row = torch.zeros(4, 6)
    one_row[0] = 2
    base = single(tmp_path / "base.safetensors", tied=hadamard(4), null=one_row)
    delta = delta_of(base, tied=np.full(4, 0.5), null=np.array([0.25, 0, 0, 0]))
    assert (
        delta.metadata.parameters["model.tied.weight"].tied,
        delta.metadata.parameters["model.null.weight"].null,
    ) == (((0, 3),), 3)
    convert(delta, to="full", base=base, output=tmp_path / "full.safetensors")
    back = convert(tmp_path / "full.safetensors", base=base).delta
    assert back.metadata.parameters == delta.metadata.parameters
    for name in delta:
        assert np.allclose(back[name], delta[name], rtol=1e-6, atol=0)


def test_a_real_model_goes_there_and_back(tmp_path: Path) -> None:
    base = open_base(MINILM)
    delta = base_delta(base, "model.encoder.layer.0.*", size=1e-3)
    convert(delta, to="full", base=base, output=tmp_path / "full.safetensors")
    back = convert(tmp_path / "full.safetensors", base=base)
    for name, parameter in delta.metadata.parameters.items():
        basis = BasisCache().get(parameter.fingerprint) if parameter.kind == "spectral" else None
        expected = delta[name] if basis is None else np.maximum(delta[name], -basis.sigma.numpy())
        assert np.linalg.norm(back.delta[name] - expected) <= 1e-6 * np.linalg.norm(expected), name
    assert back.captured == pytest.approx(1, abs=1e-7)


# --- What the file says ---


def test_the_file_is_no_delta_file(full: Path) -> None:
    with pytest.raises(
        MetadataError, match="this is a full difference, not a delta file: make a delta of it with `svdiff convert`"
    ):
        load(full)


def test_the_document_says_base_parameters_and_lineage(delta: Delta, full: Path) -> None:
    found = document(full, KEY)
    assert (found["format"], found["version"]) == ("svdiff-difference", 1)
    sha256, source = file_digest(delta)
    lineage = {"operation": "convert", "arguments": {"to": "full"}, "inputs": [sha256]}
    assert found["lineage"] == {**lineage, "files": {sha256: {"digest": source.digest}}}
    Draft202012Validator(SCHEMA).validate({**found, "format": "svdiff-delta"})


def test_what_comes_back_goes_back_to_the_first_delta(base: Base, delta: Delta, full: Path) -> None:
    lineage = convert(full, base=base).delta.metadata.lineage
    assert lineage is not None
    assert lineage.record.arguments == {"from": "full", "captured": 1.0}
    (between,) = lineage.record.inputs
    source = lineage.files[between].record
    assert source is not None
    assert source.inputs == (file_digest(delta)[0],)
    assert set(lineage.files) == {between, file_digest(delta)[0]}


def test_what_a_delta_says_of_itself_goes_there_and_back(base: Base, delta: Delta, tmp_path: Path) -> None:
    told = replace(
        delta.metadata,
        training={"steps": 5},
        extra={"org.example.a": 1},
        modelspec={"title": "Dog", "license": "MIT", "architecture": "x/svdiff", "hash_sha256": ""},
        foreign={"org.example.b": "c"},
    )
    convert(Delta(dict(delta), told), to="full", base=base, output=tmp_path / "full.safetensors")
    raw = (tmp_path / "full.safetensors").read_bytes()
    keys = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"].keys()
    assert keys == {KEY, "modelspec.title", "modelspec.license", "org.example.b"}
    found = convert(tmp_path / "full.safetensors", base=base).delta.metadata
    assert (found.title, found.training, found.extra) == ("Dog", {"steps": 5}, {"org.example.a": 1})
    assert (found.modelspec["license"], found.foreign) == ("MIT", {"org.example.b": "c"})
    assert convert(tmp_path / "full.safetensors", base=base, title="Cat").delta.metadata.title == "Cat"


def test_no_path_stands_in_the_files(base: Base, full: Path, tmp_path: Path) -> None:
    convert(full, base=base, output=tmp_path / "back.safetensors")
    for path in (full, tmp_path / "back.safetensors"):
        assert str(tmp_path).encode() not in path.read_bytes()


def test_the_same_delta_gives_the_same_canonical_bytes(base: Base, delta: Delta, full: Path, tmp_path: Path) -> None:
    save(delta, tmp_path / "delta.safetensors")
    convert(tmp_path / "delta.safetensors", to="full", base=base, output=tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == full.read_bytes()
    raw = full.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert raw[8 : 8 + length] == text + b" " * (-len(text) % 8)


@pytest.mark.parametrize(("dtype", "loss"), [("F16", 2**-11), ("BF16", 2**-8)])
def test_a_narrower_format_rounds_once(
    base: Base, delta: Delta, full: Path, tmp_path: Path, dtype: str, loss: float
) -> None:
    found = convert(delta, to="full", base=base, output=tmp_path / "narrow.safetensors", dtype=dtype)
    wide, narrow = load_file(full), load_file(tmp_path / "narrow.safetensors")
    assert all(torch.equal(narrow[key], wide[key].to(narrow[key].dtype)) for key in wide)
    assert 0 < abs(found.captured - 1) < loss
    assert found.size == (tmp_path / "narrow.safetensors").stat().st_size
    assert document(tmp_path / "narrow.safetensors", KEY)["lineage"]["arguments"] == {"to": "full", "dtype": dtype}


def test_a_parameter_that_shifts_nothing_is_not_written(base: Base, tmp_path: Path) -> None:
    delta = delta_of(base, a=np.zeros(12), b=np.ones(12))
    found = convert(delta, to="full", base=base, output=tmp_path / "full.safetensors")
    assert found.unchanged == 1
    assert list(load_file(tmp_path / "full.safetensors")) == ["model.b.weight"]


def test_without_an_output_everything_is_calculated_and_nothing_written(
    base: Base, delta: Delta, full: Path, tmp_path: Path
) -> None:
    before = listing(tmp_path)
    found = convert(delta, to="full", base=base)
    assert (found.output, found.size) == (None, full.stat().st_size)
    assert listing(tmp_path) == before


def test_a_file_may_be_taken_for_a_base_in_one_file_whatever_its_component(
    base: Base, delta: Delta, tmp_path: Path
) -> None:
    names = {name: name.replace("model.", "unet.", 1) for name in delta}
    parameters = {names[name]: parameter for name, parameter in delta.metadata.parameters.items()}
    info = replace(delta.metadata.base, components={"unet": "UNet2DConditionModel"})
    unet = Delta(
        {names[name]: delta[name] for name in delta}, replace(delta.metadata, base=info, parameters=parameters)
    )
    convert(unet, to="full", base=base, output=tmp_path / "full.safetensors")
    back = convert(tmp_path / "full.safetensors", base=base).delta
    assert list(back) == list(unet)
    assert back.metadata.base.components == {"unet": "UNet2DConditionModel"}


def test_progress_is_told_of_each_stage(base: Base, delta: Delta, full: Path) -> None:
    sizes = {name: parameter.shape for name, parameter in delta.metadata.parameters.items()}
    bases = sum(cost(shape, delta.metadata.parameters[name].kind, 0) for name, shape in sizes.items())
    for source, way in ((delta, "full"), (full, "delta")):
        seen: list[tuple[int, int]] = []
        convert(source, to=way, base=base, progress=lambda done, total, seen=seen: seen.append((done, total)))
        assert [total for _, total in seen] == [bases] * 3 + [240 + 240 + 7] * 3
        assert [done for done, _ in seen[3:]] == [240, 480, 487]
        assert seen[2][0] == bases


# --- What is refused ---


def test_changes_of_another_base_are_refused(base: Base, full: Path, tmp_path: Path) -> None:
    weights = load_file(base.path)
    weights["b.weight"][0, 0] += 1
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(BaseMismatchError, match=r"^model\.b\.weight: .*full\.safetensors was made for another base"):
        convert(full, base=open_base(tmp_path / "other.safetensors"))


def test_a_delta_of_another_base_is_refused_and_nothing_is_written(base: Base, delta: Delta, tmp_path: Path) -> None:
    weights = load_file(base.path)
    weights["b.weight"][0, 0] += 1
    save_file(weights, tmp_path / "other.safetensors")
    before = listing(tmp_path)
    with pytest.raises(BaseMismatchError, match=r"^model\.b\.weight: the delta was made for another base"):
        convert(delta, to="full", base=open_base(tmp_path / "other.safetensors"), output=tmp_path / "out")
    assert listing(tmp_path) == before


def test_two_names_of_one_weight_are_refused(tmp_path: Path) -> None:
    save_file({"a.weight": torch.eye(2)}, tmp_path / "base.safetensors")
    base = open_base(tmp_path / "base.safetensors")
    one = delta_of(base, a=np.ones(2))
    names = ["model.a.weight", "model.text_model.a.weight"]
    twice = Delta(
        dict.fromkeys(names, np.ones(2)),
        replace(one.metadata, parameters=dict.fromkeys(names, one.metadata.parameters[names[0]])),
    )
    with pytest.raises(BaseMismatchError, match="shifts the same weight as"):
        convert(twice, to="full", base=base)


def test_a_delta_of_zeros_has_no_change_to_write(base: Base, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="δ is 0 throughout"):
        convert(delta_of(base, a=np.zeros(12)), to="full", base=base, output=tmp_path / "out")


def test_a_change_beyond_the_format_is_refused_and_nothing_is_written(base: Base, tmp_path: Path) -> None:
    before = listing(tmp_path)
    with pytest.raises(TensorError, match=r"^model\.a\.weight: ΔW reaches .*, F16 ends at 65504: use a wider `dtype`"):
        convert(delta_of(base, a=np.full(12, 1e6)), to="full", base=base, output=tmp_path / "out", dtype="F16")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("dtype", ["I8", "F64"])
def test_another_number_format_is_refused(base: Base, delta: Delta, dtype: str) -> None:
    with pytest.raises(InputError, match=dtype):
        convert(delta, to="full", base=base, dtype=dtype)  # type: ignore[arg-type]


def rewritten(full: Path, **changes: object) -> Path:
    """Write the file again with another document or other tensors."""
    raw = full.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    fields = json.loads(header["__metadata__"][KEY]) | changes
    header["__metadata__"][KEY] = json.dumps(fields)
    path = full.with_name("broken.safetensors")
    path.write_bytes(container(header, body))
    return path


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"format": "svdiff-delta"}, MetadataError),
        ({"version": 2}, VersionError),
        ({"must_understand": ["org.example.x"]}, VersionError),
        ({"parameters": {}}, MetadataError),
        ({"base": {"components": {"unet": ""}}}, MetadataError),
    ],
)
def test_a_broken_document_is_refused_with_the_file_s_name(
    base: Base, full: Path, changes: dict[str, object], error: type[DeltaError]
) -> None:
    with pytest.raises(error, match=r"broken\.safetensors: "):
        convert(rewritten(full, **changes), base=base)


def test_tensors_of_another_shape_or_dtype_are_refused(base: Base, full: Path) -> None:
    for change, words in (
        (lambda tensor: tensor.T.contiguous(), r"ΔW has shape \[20, 12\]"),
        (lambda tensor: tensor.double(), "stored as F64"),
    ):
        tensors, strings = load_file(full), {KEY: json.dumps(document(full, KEY))}
        tensors["model.a.weight"] = change(tensors["model.a.weight"])
        save_file(tensors, full.with_name("broken.safetensors"), metadata=strings)
        with pytest.raises(TensorError, match=rf"broken\.safetensors: model\.a\.weight: {words}"):
            convert(full.with_name("broken.safetensors"), base=base)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_change_that_is_not_finite_is_named(base: Base, full: Path, value: float) -> None:
    tensors, strings = load_file(full), {KEY: json.dumps(document(full, KEY))}
    tensors["model.b.weight"][3, 3] = value
    save_file(tensors, full.with_name("broken.safetensors"), metadata=strings)
    with pytest.raises(TensorError, match=r"^model\.b\.weight in .*broken\.safetensors: holds NaN or infinity"):
        convert(full.with_name("broken.safetensors"), base=base)


def test_a_file_that_is_cut_off_is_refused(base: Base, full: Path) -> None:
    full.write_bytes(full.read_bytes()[:-5])
    with pytest.raises(HeaderError, match=r"full\.safetensors: the file is cut off"):
        convert(full, base=base)
    with pytest.raises(BaseError, match=r"full\.safetensors: the file is cut off"):
        convert(full, from_="full", base=base)


def test_changes_of_zeros_are_nothing_to_convert(base: Base, full: Path) -> None:
    tensors, strings = load_file(full), {KEY: json.dumps(document(full, KEY))}
    save_file({key: tensor * 0 for key, tensor in tensors.items()}, full, metadata=strings)
    with pytest.raises(InputError, match="nothing that can be shifted changes"):
        convert(full, base=base)


def test_an_existing_output_is_kept_unless_told_otherwise(base: Base, delta: Delta, full: Path, tmp_path: Path) -> None:
    before = full.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        convert(scale(delta, 0.5), to="full", base=base, output=full)
    assert full.read_bytes() == before
    convert(scale(delta, 0.5), to="full", base=base, output=full, overwrite=True)
    assert full.read_bytes() != before


def test_an_output_that_is_an_input_is_refused(base: Base, full: Path) -> None:
    before = full.read_bytes(), base.path.read_bytes()
    for output in (full, base.path):
        with pytest.raises(InputError, match="is what it would be made of"):
            convert(full, base=base, output=output, overwrite=True)
    assert (full.read_bytes(), base.path.read_bytes()) == before


def test_what_was_converted_is_a_valid_delta_file(base: Base, full: Path, tmp_path: Path) -> None:
    found = convert(full, base=base, output=tmp_path / "back.safetensors", dtype="I8")
    assert found.output == tmp_path / "back.safetensors"
    back = load(tmp_path / "back.safetensors")
    assert dumps(back) == (tmp_path / "back.safetensors").read_bytes()
    assert set(back.dtypes.values()) == {"I8"}
    assert back.metadata.lineage is not None
    assert back.metadata.lineage.record.arguments["dtype"] == "I8"
