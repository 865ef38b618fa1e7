"""Baked checkpoints: the right weights in the base's own layout, which plain libraries load."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.files import parts, tree, written
from support.models import MINILM, base_delta
from support.weights import relative
from transformers import AutoModel

from svdiff_delta import Delta, add, bake, load, open_base, save, scale, select, zero_delta
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import BaseMismatchError, DeltaError, InputError, SelectionError, TensorError
from svdiff_delta.format.dtypes import Dtype
from svdiff_train.tiny import base_path, open_tiny


def truth(weight: torch.Tensor, shift: np.ndarray, kind: str) -> torch.Tensor:
    """W + U diag(max(δ, −σ)) Vᵀ in float64, with the singular vectors of the weight rounded to float16."""
    if kind == "elementwise":
        return weight.double() + torch.from_numpy(shift.astype("f8"))
    U, sigma, Vt = torch.linalg.svd(weight.half().double(), full_matrices=False)
    return weight.double() + U * torch.maximum(torch.from_numpy(shift.astype("f8")), -sigma) @ Vt


def test_every_baked_weight_equals_the_float64_formula(minilm: Base, delta: Delta, tmp_path: Path) -> None:
    bake(minilm, [delta], tmp_path / "out")
    baked = load_file(tmp_path / "out" / "model.safetensors")
    for name, parameter in delta.metadata.parameters.items():
        key = name.removeprefix("model.")
        expected = truth(minilm.read(name), delta[name], parameter.kind)
        assert relative(baked[key], expected) < 2e-7, name


def test_weights_that_are_not_shifted_keep_their_bytes(minilm: Base, delta: Delta, tmp_path: Path) -> None:
    bake(minilm, [delta], tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (MINILM, tmp_path / "out"))
    untouched = before.keys() - {name.removeprefix("model.") for name in delta}
    assert untouched
    assert all(torch.equal(before[key], after[key]) for key in untouched)


def test_a_zero_delta_bakes_to_the_same_tensors_bit_for_bit(minilm: Base, tmp_path: Path) -> None:
    bake(minilm, [zero_delta(minilm, "model.encoder.layer.1.*")], tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (MINILM, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(before[key].numpy().tobytes() == after[key].numpy().tobytes() for key in before)


def test_an_embedding_is_baked_when_its_name_is_asked_for(minilm: Base, tmp_path: Path) -> None:
    name = "model.embeddings.token_type_embeddings.weight"
    delta = base_delta(minilm, name)
    assert list(delta) == [name]
    bake(minilm, [delta], tmp_path / "out")
    baked = load_file(tmp_path / "out" / "model.safetensors")["embeddings.token_type_embeddings.weight"]
    assert relative(baked, truth(minilm.read(name), delta[name], "spectral")) < 2e-7


def test_two_names_of_one_weight_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    base, key = open_tiny(), "encoder.layers.0.mlp.fc1.weight"
    delta = base_delta(base, f"text_encoder.{key}")
    names = [f"text_encoder.{key}", f"text_encoder.text_model.{key}"]
    parameters = dict.fromkeys(names, delta.metadata.parameters[names[0]])
    twice = Delta(dict.fromkeys(names, delta[names[0]]), replace(delta.metadata, parameters=parameters))
    with pytest.raises(BaseMismatchError, match="shifts the same weight as"):
        bake(base, [twice], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_transformers_loads_a_baked_model_as_it_is(minilm: Base, delta: Delta, tmp_path: Path) -> None:
    bake(minilm, [delta], tmp_path / "out")
    model = AutoModel.from_pretrained(tmp_path / "out")
    name = next(iter(delta))
    weight = model.get_parameter(name.removeprefix("model."))
    assert torch.equal(weight, load_file(tmp_path / "out" / "model.safetensors")[name.removeprefix("model.")])


def test_two_deltas_are_summed_first_and_clipped_once(minilm: Base, tmp_path: Path) -> None:
    zero = zero_delta(minilm, "model.pooler.dense.weight")
    (name,) = zero
    down, up = (Delta({name: np.full(zero[name].shape, value)}, zero.metadata) for value in (-50.0, 50.125))
    bake(minilm, [(down, 1.0), (up, 1.0)], tmp_path / "out")
    baked = load_file(tmp_path / "out" / "model.safetensors")["pooler.dense.weight"]
    expected = truth(minilm.read(name), np.full(zero[name].shape, 0.125), "spectral")
    assert relative(baked, expected) < 2e-6


def test_weights_of_deltas_are_factors_on_them(minilm: Base, delta: Delta, tmp_path: Path) -> None:
    bake(minilm, [(delta, 0.5)], tmp_path / "a")
    bake(minilm, [scale(delta, 0.5)], tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_weights_may_differ_by_parameter(minilm: Base, delta: Delta, tmp_path: Path) -> None:
    norms = {"model.encoder.layer.0.*LayerNorm*": 0.5}
    bake(minilm, [(delta, norms)], tmp_path / "a")
    bake(minilm, [add((delta, norms))], tmp_path / "b")
    bake(minilm, [delta], tmp_path / "whole")
    assert tree(tmp_path / "a") == tree(tmp_path / "b") != tree(tmp_path / "whole")


@pytest.mark.parametrize(
    ("weight", "error", "match"),
    [
        (float("nan"), InputError, "^weights must be finite numbers$"),
        ({"model.nothing*": 2.0}, SelectionError, "matches none"),
        ("much", InputError, "^a weight: must be a number, is of type str$"),
    ],
)
def test_a_weight_that_cannot_be_is_refused(
    minilm: Base, delta: Delta, tmp_path: Path, weight: Any, error: type[DeltaError], match: str
) -> None:
    with pytest.raises(error, match=match):
        bake(minilm, [delta, (delta, weight)], tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_delta_without_a_list_around_it_is_refused(minilm: Base, delta: Delta, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^input 1 is neither a delta nor a pair"):
        bake(minilm, delta, tmp_path / "out")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_given_dtype_is_rounded_to_once(minilm: Base, delta: Delta, tmp_path: Path, dtype: str) -> None:
    bake(minilm, [delta], tmp_path / "wide")
    bake(minilm, [delta], tmp_path / "narrow", dtype=dtype)
    wide, narrow = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "narrow"))
    target = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    floating = [key for key in wide if wide[key].is_floating_point()]
    assert all(torch.equal(narrow[key], wide[key].to(target)) for key in floating)
    assert narrow["embeddings.position_ids"].dtype == torch.int64


def test_a_pipeline_keeps_its_other_components_and_settings(tmp_path: Path) -> None:
    base = open_tiny()
    bake(base, [base_delta(base, "mid")], tmp_path / "out")
    before, after = parts(base_path()), written(tmp_path / "out")
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == ["unet/diffusion_pytorch_model.safetensors"]


def test_a_sharded_base_bakes_to_the_same_shards(tmp_path: Path) -> None:
    weights = load_file(MINILM / "model.safetensors")
    keys = sorted(weights)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text((MINILM / "config.json").read_text())
    shards = {"model-00001-of-00002.safetensors": keys[:60], "model-00002-of-00002.safetensors": keys[60:]}
    for shard, part in shards.items():
        save_file({key: weights[key] for key in part}, tmp_path / "base" / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: shard for shard, part in shards.items() for key in part}}
    (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    base = open_base(tmp_path / "base")
    bake(base, [base_delta(base, "model.encoder.layer.0.*")], tmp_path / "out")
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "model-00002-of-00002.safetensors").is_file()
    assert not torch.equal(
        model.get_parameter("encoder.layer.0.output.dense.weight"), weights["encoder.layer.0.output.dense.weight"]
    )


def test_a_single_file_bakes_to_a_file(delta: Delta, tmp_path: Path, minilm: Base) -> None:
    bake(open_base(MINILM / "model.safetensors"), [delta], tmp_path / "out.safetensors")
    bake(minilm, [delta], tmp_path / "out")
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_a_delta_for_another_base_is_refused_and_nothing_is_written(delta: Delta, tmp_path: Path) -> None:
    weights = load_file(MINILM / "model.safetensors")
    name = next(name for name in delta if delta.metadata.parameters[name].kind == "spectral")
    weights[name.removeprefix("model.")][0, 0] += 1
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(BaseMismatchError, match=name.replace(".", r"\.")):
        bake(open_base(tmp_path / "other.safetensors"), [delta], tmp_path / "out.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"other.safetensors"}


def test_a_weight_too_large_for_the_dtype_is_refused_and_nothing_is_written(minilm: Base, tmp_path: Path) -> None:
    zero = zero_delta(minilm, "model.pooler.dense.weight")
    huge = Delta({name: np.full(zero[name].shape, 1e8) for name in zero}, zero.metadata)
    with pytest.raises(TensorError, match=r"model\.pooler\.dense\.weight.*too large for F16"):
        bake(minilm, [huge], tmp_path / "out", dtype="F16")
    assert not list(tmp_path.iterdir())


def test_slices_of_a_delta_bake_like_the_whole(minilm: Base, delta: Delta, tmp_path: Path) -> None:
    names = list(delta)
    parts = [select(delta, *names[:5]), select(delta, *names[5:])]
    bake(minilm, parts, tmp_path / "parts")
    bake(minilm, [add(*parts)], tmp_path / "whole")
    bake(minilm, [delta], tmp_path / "same")
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole") == tree(tmp_path / "same")


DELTA_WEIGHT = """
import sys, numpy as np, torch
from svdiff_delta import load, open_base
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.prepare import verify_and_prepare
from svdiff_delta.svd.shifted_weight import delta_weight
from pathlib import Path
from typing import Any
base, path, cache, out = open_base(sys.argv[1], component="model"), sys.argv[2], sys.argv[3], sys.argv[4]
delta = load(path)
cache = BasisCache(Path(cache))
def change(name):
    prepared = verify_and_prepare(base, name, delta, cache)
    return delta_weight(prepared, torch.from_numpy(delta[name].astype("f8"))).numpy()
np.savez(out, **{name: change(name) for name in delta})
"""


@pytest.mark.slow
def test_delta_weight_is_the_same_from_the_float32_and_the_float16_variant_in_another_process(
    minilm: Base, delta: Delta, tmp_path: Path
) -> None:
    weights = load_file(MINILM / "model.safetensors")
    halves = {key: weight.half() if weight.is_floating_point() else weight for key, weight in weights.items()}
    save_file(halves, tmp_path / "fp16.safetensors")
    save(delta, tmp_path / "delta.safetensors")
    results = []
    for number, path in enumerate([MINILM / "model.safetensors", tmp_path / "fp16.safetensors"]):
        out = tmp_path / f"{number}.npz"
        arguments = [str(path), str(tmp_path / "delta.safetensors"), str(tmp_path / f"cache{number}"), str(out)]
        subprocess.run([sys.executable, "-c", DELTA_WEIGHT, *arguments], check=True)
        results.append(np.load(out))
    assert set(results[0].files) == set(delta)
    for name in delta:
        error = np.linalg.norm(results[0][name] - results[1][name]) / np.linalg.norm(results[0][name])
        assert error <= 1e-6, name


def test_a_delta_loaded_from_its_file_bakes_like_the_one_in_memory(minilm: Base, delta: Delta, tmp_path: Path) -> None:
    save(delta, tmp_path / "delta.safetensors")
    bake(minilm, [load(tmp_path / "delta.safetensors")], tmp_path / "a")
    bake(minilm, [delta], tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def lost(base: Base, delta: Delta, baked: Path, name: str) -> float:
    """‖(rounded W_δ − rounded W) − ΔW‖ / ‖ΔW‖ in float64."""
    weight, after = base.read(name), load_file(baked)[name.removeprefix("model.")]
    change = truth(weight, delta[name], delta.metadata.parameters[name].kind) - weight.double()
    difference = after.double() - weight.to(after.dtype).double()
    return float((difference - change).norm() / change.norm())


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_what_rounding_lost_of_each_change_is_reported(
    minilm: Base, delta: Delta, tmp_path: Path, dtype: Dtype
) -> None:
    baked = bake(minilm, [scale(delta, 0.1)], tmp_path / "out", dtype=dtype)
    assert baked.losses.keys() == set(delta)
    for name, loss in baked.losses.items():
        expected = lost(minilm, scale(delta, 0.1), tmp_path / "out" / "model.safetensors", name)
        assert loss.share == pytest.approx(expected, rel=1e-3)
    shares = [loss.share for loss in baked.losses.values()]
    assert min(shares) < baked.loss.share < max(shares)


def test_float32_loses_nothing_that_would_be_reported(minilm: Base, delta: Delta, tmp_path: Path) -> None:
    baked = bake(minilm, [delta], tmp_path / "out")
    assert (baked.path, baked.losses) == (tmp_path / "out", {})


def test_a_given_dtype_stands_in_the_configuration(minilm: Base, delta: Delta, tmp_path: Path) -> None:
    bake(minilm, [delta], tmp_path / "out", dtype="BF16")
    assert AutoModel.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


def sharded(folder: Path) -> Path:
    """MiniLM in two shards with an index that says their size."""
    AutoModel.from_pretrained(MINILM).save_pretrained(folder, max_shard_size="50MB")
    return folder


def test_the_index_of_a_sharded_base_says_the_size_of_the_output(tmp_path: Path) -> None:
    base = open_base(sharded(tmp_path / "base"))
    bake(base, [base_delta(base, "model.pooler.*")], tmp_path / "out", dtype="F16")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = [load_file(tmp_path / "out" / name) for name in sorted(set(index["weight_map"].values()))]
    assert len(shards) == 2
    assert index["metadata"]["total_size"] == sum(w.nbytes for shard in shards for w in shard.values())
    assert AutoModel.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.float16
