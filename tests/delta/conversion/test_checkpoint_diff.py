"""Tuned checkpoints: δ from what a fine-tuning changed, and everything that changed and cannot be δ."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import WEIGHTS, bert, changed, document, true_shift
from support.files import listing
from support.models import base_delta
from torch import Tensor
from transformers import GPT2Config, GPT2Model

from svdiff_delta import bake, convert, open_base, save
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import BaseError, InputError
from svdiff_train.tiny import base_path, open_tiny

QUERY = "encoder.layer.0.attention.self.query.weight"
KEY = "encoder.layer.0.attention.self.key.weight"
NORM = "encoder.layer.0.output.LayerNorm.weight"
BIAS = "encoder.layer.0.attention.self.query.bias"
WORDS = "embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert") / "base"
    bert(folder)
    return folder


@pytest.fixture
def base(folder: Path) -> Base:
    return open_base(folder)


def moved(weight: Tensor) -> Tensor:
    """Add random numbers of a hundredth."""
    return weight + 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(9))


def test_delta_is_the_float64_formula_on_the_base_s_singular_vectors(base: Base, folder: Path, tmp_path: Path) -> None:
    tuned = changed(folder, tmp_path / "tuned", {QUERY: moved, NORM: moved})
    found = convert(tuned, from_="full", base=base)
    assert list(found.delta) == sorted([f"model.{QUERY}", f"model.{NORM}"])
    before, after = load_file(folder / WEIGHTS), load_file(tuned / WEIGHTS)
    shift = found.delta[f"model.{QUERY}"]
    change = after[QUERY].double() - before[QUERY].double()
    expected = true_shift(before[QUERY], change)
    assert np.linalg.norm(shift - expected) <= 1e-6 * np.linalg.norm(expected)
    energy = found.layers[f"model.{QUERY}"]
    assert energy.captured == pytest.approx(float(expected @ expected) / float(change.square().sum()), rel=1e-6)
    assert np.array_equal(found.delta[f"model.{NORM}"], (after[NORM].double() - before[NORM].double()).float().numpy())
    assert found.layers[f"model.{NORM}"].captured == 1


def test_what_the_checkpoint_says_of_itself_goes_along(base: Base, folder: Path, tmp_path: Path) -> None:
    tuned = changed(folder, tmp_path / "tuned", {QUERY: moved})
    strings = {"format": "pt", "modelspec.title": "Dog", "modelspec.author": "Ann", "org.example.a": "b"}
    save_file(load_file(tuned / WEIGHTS), tuned / WEIGHTS, metadata=strings)
    found = convert(tuned, base=base).delta.metadata
    assert (found.title, found.modelspec["author"], found.foreign) == ("Dog", "Ann", {"org.example.a": "b"})
    assert found.lineage is not None
    assert [source.title for source in found.lineage.files.values()] == ["Dog"]


def test_a_baked_delta_comes_back(base: Base, tmp_path: Path) -> None:
    delta = base_delta(base, size=0.01)
    bake(base, [delta], tmp_path / "baked")
    found = convert(tmp_path / "baked", base=base)
    assert list(found.delta) == list(delta)
    for name, parameter in delta.metadata.parameters.items():
        # W + ΔW is F32, where ΔW is a hundredth of W: that alone costs about 6e-6 of ΔW.
        change = found.delta[name] - delta[name]
        assert np.linalg.norm(change) <= 2e-5 * np.linalg.norm(delta[name]), (name, parameter.kind)
    assert found.captured == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("form", ["pipeline", "component", "file"])
def test_a_tuned_pipeline_a_component_and_a_file_give_the_same_delta(form: str, tmp_path: Path) -> None:
    base = open_tiny()
    delta = base_delta(base, "mid-ca", size=1e-3)
    bake(base, [delta], tmp_path / "tuned", dtype="F32")
    unet = tmp_path / "tuned" / "unet"
    path = {"pipeline": tmp_path / "tuned", "component": unet, "file": unet / "diffusion_pytorch_model.safetensors"}
    found = convert(path[form], from_="full", base=base)
    assert list(found.delta) == list(delta)
    for name in delta:
        assert np.linalg.norm(found.delta[name] - delta[name]) <= 1e-3 * np.linalg.norm(delta[name])
    metadata = found.delta.metadata
    assert (metadata.base.repository, metadata.base.components) == ("tiny", {"unet": "UNet2DConditionModel"})
    assert metadata.base.sample_size == base.info.sample_size
    assert metadata.modelspec["architecture"] == "UNet2DConditionModel/svdiff"


def test_a_transposed_layer_has_its_own_axis(tmp_path: Path) -> None:
    model = GPT2Model(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    model.save_pretrained(tmp_path / "base")
    key = "h.0.mlp.c_fc.weight"
    tuned = changed(tmp_path / "base", tmp_path / "tuned", {key: moved})
    found = convert(tuned, base=open_base(tmp_path / "base"))
    before, after = load_file(tmp_path / "base" / WEIGHTS)[key], load_file(tuned / WEIGHTS)[key]
    (name,) = found.delta
    assert found.delta.metadata.parameters[name].axis == 1
    expected = true_shift(before.T, (after.double() - before.double()).T)
    assert np.linalg.norm(found.delta[name] - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_weight_that_was_only_rounded_has_not_changed(
    base: Base, folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    weights = {key: weight.to(dtype) for key, weight in load_file(folder / WEIGHTS).items()}
    shutil.copytree(folder, tmp_path / "tuned")
    save_file(weights, tmp_path / "tuned" / WEIGHTS)
    with pytest.raises(InputError, match="has the same weights as the base"):
        convert(tmp_path / "tuned", base=base)
    weights[QUERY] = weights[QUERY] * 1.5
    save_file(weights, tmp_path / "tuned" / WEIGHTS)
    assert list(convert(tmp_path / "tuned", base=base).delta) == [f"model.{QUERY}"]


def test_a_wider_copy_of_the_base_has_not_changed(base: Base, folder: Path, tmp_path: Path) -> None:
    tuned = changed(folder, tmp_path / "tuned", dict.fromkeys(load_file(folder / WEIGHTS), Tensor.double))
    with pytest.raises(InputError, match="has the same weights as the base"):
        convert(tuned, base=base)


def test_how_many_weights_are_the_base_s_own_is_counted(base: Base, folder: Path, tmp_path: Path) -> None:
    tuned = changed(folder, tmp_path / "tuned", {QUERY: moved})
    assert convert(tuned, base=base).unchanged == len(load_file(folder / WEIGHTS)) - 1


def test_the_lineage_names_the_tuned_file_by_its_hashes(base: Base, folder: Path, tmp_path: Path) -> None:
    tuned = changed(folder, tmp_path / "tuned", {QUERY: moved})
    found = convert(tuned, base=base, output=tmp_path / "delta.safetensors", title="Tuned")
    raw = (tuned / WEIGHTS).read_bytes()
    sha256 = hashlib.sha256(raw).hexdigest()
    digest = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    arguments = {"from": "full", "captured": round(found.captured, 6)}
    assert document(tmp_path / "delta.safetensors")["lineage"] == {
        "operation": "convert",
        "arguments": arguments,
        "inputs": [sha256],
        "files": {sha256: {"digest": digest}},
    }
    assert found.delta.metadata.title == "Tuned"
    assert str(tmp_path).encode() not in (tmp_path / "delta.safetensors").read_bytes()


def test_the_same_input_gives_the_same_bytes(base: Base, folder: Path, tmp_path: Path) -> None:
    tuned = changed(folder, tmp_path / "tuned", {QUERY: moved, KEY: moved})
    for name in ("a", "b"):
        save(convert(tuned, base=base).delta, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# --- What cannot be shifted ---

LEFT_OUT = {
    "a bias": ({BIAS: moved}, BIAS, "differs, and is of no kind that can be shifted"),
    "an embedding": ({WORDS: moved}, WORDS, "differs, and is of no kind that can be shifted"),
    "a missing weight": ({KEY: None}, KEY, "is not in the checkpoint"),
    "another shape": ({KEY: lambda w: torch.cat([w, w])}, KEY, r"has shape \[32, 16\], the base has \[16, 16\]"),
    "whole numbers": ({KEY: lambda w: w.to(torch.int8)}, KEY, "differs, and is I8 where the base has F32"),
}
each_left_out = pytest.mark.parametrize(("change", "key", "reason"), LEFT_OUT.values(), ids=LEFT_OUT)


@each_left_out
def test_what_cannot_be_carried_over_is_named_and_refused(
    base: Base, folder: Path, tmp_path: Path, change: dict, key: str, reason: str
) -> None:
    tuned = changed(folder, tmp_path / "tuned", {QUERY: moved, **change})
    match = rf"tuned: 1 weight cannot be carried over: model\.{key} \({reason}\): leave them out with `allow_unm"
    with pytest.raises(InputError, match=match):
        convert(tuned, base=base, output=tmp_path / "out")
    assert listing(tmp_path) == ["tuned"]


@each_left_out
def test_what_cannot_be_carried_over_is_listed_where_it_may_be_left_out(
    base: Base, folder: Path, tmp_path: Path, change: dict, key: str, reason: str
) -> None:
    tuned = changed(folder, tmp_path / "tuned", {QUERY: moved, **change})
    found = convert(tuned, base=base, allow_unmatched=True)
    assert list(found.left_out) == [f"model.{key}"]
    assert list(found.delta) == [f"model.{QUERY}"]
    assert found.delta.metadata.lineage is not None
    assert found.delta.metadata.lineage.record.arguments["left_out"] == 1


def test_weights_that_the_base_lacks_are_left_out_by_name(base: Base, folder: Path, tmp_path: Path) -> None:
    tuned = changed(folder, tmp_path / "tuned", {QUERY: moved})
    weights = load_file(tuned / WEIGHTS)
    save_file({**weights, "lm_head.weight": torch.ones(2, 2)}, tuned / WEIGHTS)
    assert convert(tuned, base=base, allow_unmatched=True).left_out == {"model.lm_head.weight": "is not in the base"}


def test_of_many_left_out_some_are_named_and_all_counted(base: Base, folder: Path, tmp_path: Path) -> None:
    biases = [key for key in load_file(folder / WEIGHTS) if key.endswith(".bias")]
    tuned = changed(folder, tmp_path / "tuned", dict.fromkeys(biases, moved))
    with pytest.raises(InputError, match=rf": {len(biases)} weights cannot be .*\), and {len(biases) - 3} more: leave"):
        convert(tuned, base=base)


def test_where_nothing_else_changed_there_is_nothing_to_convert(base: Base, folder: Path, tmp_path: Path) -> None:
    tuned = changed(folder, tmp_path / "tuned", {BIAS: moved})
    with pytest.raises(InputError, match="nothing that can be shifted changes"):
        convert(tuned, base=base, allow_unmatched=True)


def test_an_embedding_is_shifted_on_request(base: Base, folder: Path, tmp_path: Path) -> None:
    tuned = changed(folder, tmp_path / "tuned", {WORDS: lambda weight: 1.1 * weight})
    found = convert(tuned, base=base, embeddings=True)
    assert list(found.delta) == [f"model.{WORDS}"]
    assert found.captured > 0.999
    assert found.delta.metadata.lineage is not None
    assert found.delta.metadata.lineage.record.arguments["embeddings"] is True


def test_a_component_that_the_checkpoint_lacks_is_no_change(tmp_path: Path) -> None:
    shutil.copytree(base_path() / "unet", tmp_path / "unet")
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    key = "mid_block.attentions.0.proj_in.weight"
    save_file({**weights, key: weights[key] * 1.5}, path)
    assert list(convert(tmp_path / "unet", base=open_tiny()).delta) == [f"unet.{key}"]


# --- Threshold ---


def test_a_least_energy_that_is_not_reached_fails_and_writes_nothing(base: Base, folder: Path, tmp_path: Path) -> None:
    tuned = changed(folder, tmp_path / "tuned", {QUERY: moved})
    captured = convert(tuned, base=base).captured
    assert 0 < captured < 0.3
    with pytest.raises(
        InputError, match=rf"^only {captured:.2%} of the change is captured, less .* 30\.00%: .*: lower `min_energy`"
    ):
        convert(tuned, base=base, min_energy=0.3, output=tmp_path / "out")
    assert listing(tmp_path) == ["tuned"]
    assert convert(tuned, base=base, min_energy=captured).captured == captured


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_least_energy_that_is_no_share_is_refused(base: Base, folder: Path, share: float) -> None:
    with pytest.raises(InputError, match=r"must be within \[0, 1\]"):
        convert(folder, base=base, min_energy=share)


# --- Broken inputs ---


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_checkpoint_that_is_not_finite_is_named(base: Base, folder: Path, tmp_path: Path, value: float) -> None:
    tuned = changed(folder, tmp_path / "tuned", {QUERY: lambda weight: weight.index_fill(0, torch.tensor([2]), value)})
    with pytest.raises(BaseError, match=rf"^model\.{QUERY}: .*tuned holds NaN or infinity: fetch the checkpoint again"):
        convert(tuned, base=base, allow_unmatched=True)


def test_a_quantized_checkpoint_is_refused_with_its_dtype(base: Base, folder: Path, tmp_path: Path) -> None:
    tuned = changed(folder, tmp_path / "tuned", {QUERY: lambda weight: weight.to(torch.float8_e4m3fn)})
    with pytest.raises(BaseError, match=rf"^model\.{QUERY}: .*tuned has it as F8_E4M3: use the unquantized checkpoint"):
        convert(tuned, base=base, allow_unmatched=True)


def test_a_model_of_another_kind_is_refused(base: Base, tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(BaseError, match="has none of the components of the base, text_encoder, unet, vae"):
        convert(tmp_path / "x.safetensors", from_="full", base=open_tiny())
    with pytest.raises(InputError, match="weights cannot be carried over"):
        convert(tmp_path / "x.safetensors", from_="full", base=base)


def test_a_base_without_a_class_cannot_say_what_is_shifted(folder: Path, tmp_path: Path) -> None:
    tuned = changed(folder, tmp_path / "tuned", {QUERY: moved})
    with pytest.raises(BaseError, match="nothing says which class this model has"):
        convert(tuned, base=open_base(folder / WEIGHTS))


def test_a_pickle_is_never_opened(base: Base, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(BaseError, match="is a pickle, which is never opened"):
        convert(tmp_path / "model.ckpt", from_="full", base=base)


# --- Tensors that are no weights ---

INDICES = {
    "indices": torch.arange(12)[None],
    "a mask": torch.ones(3, 3, dtype=torch.bool),
    "a counter": torch.tensor(7, dtype=torch.int32),
    "small numbers": torch.arange(4, dtype=torch.uint8),
}


def beside(folder: Path, copy: Path, key: str, value: Tensor) -> Path:
    """Return a copy of a model's folder with one more tensor."""
    shutil.copytree(folder, copy)
    save_file({**load_file(folder / WEIGHTS), key: value}, copy / WEIGHTS, metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("value", INDICES.values(), ids=INDICES)
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_whole_numbers_in_only_one_model_are_no_weights(folder: Path, tmp_path: Path, side: str, value: Tensor) -> None:
    tuned, other = changed(folder, tmp_path / "tuned", {QUERY: moved}), folder
    if side == "base":
        other = beside(folder, tmp_path / "more", "embeddings.extra_ids", value)
    else:
        tuned = beside(tuned, tmp_path / "more", "embeddings.extra_ids", value)
    found = convert(tuned, base=open_base(other))
    assert ([*found.delta], found.left_out) == ([f"model.{QUERY}"], {})
    (remark,) = found.remarks
    assert remark.startswith(
        "1 tensor of whole numbers, which are no weights, in only one of the models, such as model."
    )


def test_whole_numbers_that_differ_are_named(folder: Path, tmp_path: Path) -> None:
    base = beside(folder, tmp_path / "base", "embeddings.extra_ids", torch.arange(3))
    tuned = beside(
        changed(folder, tmp_path / "x", {QUERY: moved}), tmp_path / "y", "embeddings.extra_ids", torch.ones(3).long()
    )
    reason = {"model.embeddings.extra_ids": "differs, and I64 is no number format of weights"}
    assert convert(tuned, base=open_base(base), allow_unmatched=True).left_out == reason


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e8m0fnu, torch.float8_e4m3fn])
def test_what_is_no_weight_and_the_base_s_own_has_not_changed(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.tensor([1.0, 2.0, 4.0]).to(dtype)
    base = beside(folder, tmp_path / "base", "extra.scale", value)
    tuned = beside(changed(folder, tmp_path / "x", {QUERY: moved}), tmp_path / "y", "extra.scale", value)
    assert [*convert(tuned, base=open_base(base)).delta] == [f"model.{QUERY}"]
