"""svdiff-pytorch's files: ΔW is that of its own formula, on every kind of weight that it shifts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import bert, changed, document
from support.files import listing
from support.older import saved, shifts_for, svdiff_pytorch, whisper
from transformers import GPT2Config, GPT2Model

from svdiff_delta import Delta, convert, open_base
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import BaseMismatchError, HeaderError, InputError, TensorError
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.prepare import verify_and_prepare
from svdiff_delta.svd.shifted_weight import delta_weight
from svdiff_train.tiny import open_tiny

ENCODER = {
    "Conv1d": "encoder.conv1",
    "Linear": "encoder.layers.0.fc1",
    "Embedding": "decoder.embed_tokens",
    "LayerNorm": "encoder.layers.0.final_layer_norm",
}
UNET = {
    "Linear": "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "Conv2d": "mid_block.resnets.0.conv1",
    "1x1 Conv2d": "conv_out",
    "GroupNorm": "mid_block.resnets.0.norm1",
    "LayerNorm": "mid_block.attentions.0.transformer_blocks.0.norm2",
}
TEXT = {"Embedding": "text_model.embeddings.position_embedding", "Linear": "text_model.encoder.layers.0.mlp.fc1"}
QUERY = "encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return whisper(tmp_path_factory.mktemp("whisper") / "base")


def applied(base: Base, delta: Delta, name: str) -> np.ndarray:
    """ΔW of one parameter as the library materializes it."""
    prepared = verify_and_prepare(base, name, delta, BasisCache())
    return delta_weight(prepared, torch.from_numpy(delta[name].astype("f8"))).double().numpy()


def check_formula(base: Base, delta: Delta, name: str, given: np.ndarray) -> None:
    weight = base.read(name)
    expected = svdiff_pytorch(weight, given) - weight.double().numpy()
    error = np.linalg.norm(applied(base, delta, name) - expected) / np.linalg.norm(expected)
    assert error <= 2e-6, (name, error)  # what section 6.5 of the spec allows a basis that is kept in float32


@pytest.mark.parametrize("layer", ENCODER)
def test_an_unrounded_weight_changes_as_in_svdiff_pytorch(base: Base, layer: str, tmp_path: Path) -> None:
    key, name = f"{ENCODER[layer]}.delta", f"model.{ENCODER[layer]}.weight"
    shifts = shifts_for(base, {key: name})
    found = convert(saved(tmp_path / "spectral_shifts.safetensors", shifts), base=base)
    assert list(found.delta) == [name]
    check_formula(base, found.delta, name, shifts[key])
    assert found.captured == pytest.approx(1, abs=1e-6)
    assert found.delta.metadata.parameters[name].dtype == "F32"


def test_a_folder_holds_the_files_of_both_models(tmp_path: Path) -> None:
    tiny = open_tiny()
    unet = {f"{path}.delta": f"unet.{path}.weight" for path in UNET.values()}
    text = {f"{path}.delta": f"text_encoder.{path}.weight" for path in TEXT.values()}
    shifts = {**shifts_for(tiny, unet), **shifts_for(tiny, text, seed=1)}
    saved(tmp_path / "spectral_shifts.safetensors", {key: shifts[key] for key in unet})
    saved(tmp_path / "spectral_shifts_te.safetensors", {key: shifts[key] for key in text})
    found = convert(tmp_path, base=tiny)
    assert len(found.delta) == len(shifts)
    for key, name in {**unet, **text}.items():
        (stored,) = (other for other in found.delta if other in (name, name.replace("text_model.", "")))
        check_formula(tiny, found.delta, stored, shifts[key])


def test_a_norm_beyond_zero_stays_at_zero(base: Base, tmp_path: Path) -> None:
    name = f"model.{ENCODER['LayerNorm']}.weight"
    path = saved(tmp_path / "x.safetensors", {f"{ENCODER['LayerNorm']}.delta": np.array([-1e3])})
    found = convert(path, base=base)
    assert np.array_equal(found.delta[name], -base.read(name).numpy())


def test_a_norm_with_a_number_for_each_element_is_the_author_s(base: Base, tmp_path: Path) -> None:
    given = np.linspace(-0.1, 0.1, 12).astype("f4").astype("f8")
    path = saved(tmp_path / "x.safetensors", {f"{ENCODER['LayerNorm']}.delta": given})
    assert np.array_equal(convert(path, base=base).delta[f"model.{ENCODER['LayerNorm']}.weight"], given)


def test_keys_may_stand_below_a_parametrization(base: Base, tmp_path: Path) -> None:
    plain = shifts_for(base, {f"{ENCODER['Linear']}.delta": f"model.{ENCODER['Linear']}.weight"})
    below = {f"{ENCODER['Linear']}.parametrizations.weight.0.delta": next(iter(plain.values()))}
    one, two = (
        convert(saved(tmp_path / f"{name}.safetensors", shifts), base=base).delta
        for name, shifts in (("a", plain), ("b", below))
    )
    assert {name: shift.tolist() for name, shift in one.items()} == {
        name: shift.tolist() for name, shift in two.items()
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_shifts_of_other_number_formats_are_read(base: Base, dtype: torch.dtype, tmp_path: Path) -> None:
    shifts = shifts_for(base, {f"{ENCODER['Linear']}.delta": f"model.{ENCODER['Linear']}.weight"})
    (given,) = shifts.values()
    (shift,) = convert(saved(tmp_path / "x.safetensors", shifts, dtype), base=base).delta.values()
    assert np.array_equal(shift, torch.from_numpy(given).to(dtype).float().numpy())


def test_shifts_beyond_zero_stay_what_they_are_so_that_scaling_means_the_same(base: Base, tmp_path: Path) -> None:
    name = f"model.{ENCODER['Linear']}.weight"
    shifts = shifts_for(base, {f"{ENCODER['Linear']}.delta": name})
    (given,) = shifts.values()
    found = convert(saved(tmp_path / "x.safetensors", shifts), base=base)
    assert np.array_equal(found.delta[name], given)


def test_tied_shifts_are_their_mean_and_what_is_lost_is_told(tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    base = open_base(changed(tmp_path / "bert", tmp_path / "ones", {f"{QUERY}.weight": lambda w: torch.eye(16)}))
    given = np.zeros(16)
    given[:2] = 1.0, 3.0
    found = convert(saved(tmp_path / "x.safetensors", {f"{QUERY}.delta": given}), base=base)
    assert np.array_equal(found.delta[f"model.{QUERY}.weight"], np.full(16, 0.25))
    assert found.captured == pytest.approx(16 * 0.25**2 / 10)


def test_a_shift_of_a_null_singular_value_is_lost_and_told(tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    diagonal = torch.diag(torch.tensor([*range(15, -1, -1)], dtype=torch.float32))
    base = open_base(changed(tmp_path / "bert", tmp_path / "null", {f"{QUERY}.weight": lambda w: diagonal}))
    given = np.zeros(16)
    given[[0, 15]] = 3.0, 4.0
    found = convert(saved(tmp_path / "x.safetensors", {f"{QUERY}.delta": given}), base=base)
    assert found.delta[f"model.{QUERY}.weight"].tolist() == [3.0, *[0.0] * 15]
    assert found.captured == pytest.approx(9 / 25)


def test_the_lineage_names_each_file_by_its_hash(base: Base, tmp_path: Path) -> None:
    key = f"{ENCODER['Linear']}.delta"
    path = saved(tmp_path / "x.safetensors", shifts_for(base, {key: f"model.{ENCODER['Linear']}.weight"}))
    found = convert(path, base=base, output=tmp_path / "delta.safetensors")
    lineage = document(tmp_path / "delta.safetensors")["lineage"]
    assert lineage["arguments"] == {"from": "svdiff-pytorch", "captured": round(found.captured, 6)}
    assert lineage["inputs"] == [hashlib.sha256(path.read_bytes()).hexdigest()]


def test_what_somebody_wrote_into_the_file_goes_along(base: Base, tmp_path: Path) -> None:
    key = f"{ENCODER['Linear']}.delta"
    shifts = shifts_for(base, {key: f"model.{ENCODER['Linear']}.weight"})
    strings = {
        "modelspec.title": "Dog",
        "modelspec.license": "MIT",
        "modelspec.architecture": "x",
        "org.example.a": "b",
    }
    save_file({name: torch.from_numpy(shift) for name, shift in shifts.items()}, tmp_path / "x.safetensors", strings)
    found = convert(tmp_path / "x.safetensors", base=base).delta.metadata
    assert (found.title, found.modelspec["license"], found.foreign) == ("Dog", "MIT", {"org.example.a": "b"})
    assert found.modelspec["architecture"] == "WhisperModel/svdiff"
    assert found.lineage is not None
    assert [source.title for source in found.lineage.files.values()] == ["Dog"]


def test_there_is_no_way_back(base: Base, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.safetensors", shifts_for(base, {"encoder.conv1.delta": "model.encoder.conv1.weight"}))
    with pytest.raises(InputError, match="svdiff-pytorch: can be read and not written"):
        convert(convert(path, base=base).delta, to="svdiff-pytorch", base=base)


# --- Bad input ---

GOOD = {"encoder.conv1.delta": np.linspace(0.1, 0.2, 12)}

LEFT_OUT = {
    "a token": ({"<new1>": np.ones(12)}, "<new1>", "is no shift of svdiff-pytorch"),
    "a missing module": ({"encoder.conv9.delta": np.ones(12)}, "model.encoder.conv9.weight", "is not in the base"),
    "another length": ({"encoder.conv2.delta": np.ones(5)}, "model.encoder.conv2.weight", "has 5 shifts, the base's"),
    "a matrix": ({"encoder.conv2.delta": np.ones((3, 4))}, "model.encoder.conv2.weight", "has a matrix in the place"),
}


@pytest.mark.parametrize(("bad", "name", "reason"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_keys_that_nothing_explains_are_listed_and_fail(
    base: Base, tmp_path: Path, bad: dict, name: str, reason: str
) -> None:
    path = saved(tmp_path / "x.safetensors", GOOD | bad)
    with pytest.raises(InputError, match=rf"x\.safetensors: 1 weight cannot be carried over: {name} \({reason}"):
        convert(path, base=base, output=tmp_path / "out.safetensors")
    assert listing(tmp_path) == ["x.safetensors"]
    found = convert(path, base=base, allow_unmatched=True)
    assert list(found.left_out) == [name]
    assert list(found.delta) == ["model.encoder.conv1.weight"]


def test_a_layer_that_svdiff_pytorch_does_not_shift_is_listed(tmp_path: Path) -> None:
    GPT2Model(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "base"
    )
    path = saved(tmp_path / "x.safetensors", {"h.0.mlp.c_fc.delta": np.ones(8), "h.0.ln_1.delta": np.ones(1)})
    found = convert(path, base=open_base(tmp_path / "base"), allow_unmatched=True)
    assert found.left_out == {"model.h.0.mlp.c_fc.weight": "is of a class that svdiff-pytorch does not shift"}


def test_a_file_of_another_architecture_is_refused_as_a_whole(base: Base, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.safetensors", {"down_blocks.0.delta": np.ones(3), "up.delta": np.ones(2)})
    with pytest.raises(BaseMismatchError, match=r"none of its 2 tensors \(down_blocks\.0\.delta, up\.delta\) is a"):
        convert(path, base=base, allow_unmatched=True)


def test_two_keys_for_one_weight_are_refused(base: Base, tmp_path: Path) -> None:
    twice = {"encoder.conv1.parametrizations.weight.0.delta": np.ones(12)}
    with pytest.raises(
        InputError,
        match=r"^model.encoder.conv1.weight: .*delta in .*x\.safetensors shifts it, and encoder.conv1\.delta",
    ):
        convert(saved(tmp_path / "x.safetensors", GOOD | twice), base=base)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_shifts_that_are_not_finite_are_named(base: Base, tmp_path: Path, value: float) -> None:
    path = saved(tmp_path / "x.safetensors", {"encoder.conv1.delta": np.full(12, value)})
    with pytest.raises(TensorError, match=r"^encoder\.conv1\.delta in .*x\.safetensors: holds NaN or infinity"):
        convert(path, base=base)


def test_shifts_that_are_no_numbers_are_named(base: Base, tmp_path: Path) -> None:
    save_file({"encoder.conv1.delta": torch.ones(12, dtype=torch.int32)}, tmp_path / "x.safetensors")
    with pytest.raises(TensorError, match=r"^encoder\.conv1\.delta: .*x\.safetensors has it as I32"):
        convert(tmp_path / "x.safetensors", base=base)


def test_shifts_of_zero_change_nothing(base: Base, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.safetensors", {"encoder.conv1.delta": np.zeros(12)})
    with pytest.raises(InputError, match="nothing that can be shifted changes"):
        convert(path, base=base)


def test_a_norm_weight_of_zero_has_no_direction(base: Base, tmp_path: Path) -> None:
    key = f"{ENCODER['LayerNorm']}.weight"
    zero = open_base(changed(base.path, tmp_path / "zero", {key: torch.zeros_like}))
    path = saved(tmp_path / "x.safetensors", {f"{ENCODER['LayerNorm']}.delta": np.ones(1)})
    with pytest.raises(InputError, match=rf"^model\.{key}: the base's norm weight is 0 throughout"):
        convert(path, base=zero)


def test_a_broken_file_says_what_is_broken(base: Base, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.safetensors", GOOD)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(HeaderError, match=r"x\.safetensors: the file is cut off"):
        convert(path, base=base)


def test_a_folder_without_such_files_is_refused(base: Base, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"out: has neither spectral_shifts\.safetensors nor spectral_shifts_te"):
        convert(tmp_path / "out", from_="svdiff-pytorch", base=base)


@pytest.mark.parametrize("from_", [None, "svdiff-pytorch", "transformer2", "svdiff-author", "svf"])
def test_a_pickle_is_never_opened_and_the_way_out_is_told(base: Base, tmp_path: Path, from_: str | None) -> None:
    (tmp_path / "delta.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"delta\.pt: is a pickle, which is never opened: convert .*weights_only"):
        convert(tmp_path / "delta.pt", from_=from_, base=base)


def test_shifts_that_fit_two_components_alike_ask_for_one(tmp_path: Path) -> None:
    tiny = open_tiny()
    twins = Base(tiny.path, {"a": tiny.components["unet"], "b": tiny.components["unet"]}, True)
    path = saved(tmp_path / "x.safetensors", shifts_for(tiny, {"conv_in.delta": "unet.conv_in.weight"}))
    with pytest.raises(InputError, match="fits the components a and b alike"):
        convert(path, base=twins)
