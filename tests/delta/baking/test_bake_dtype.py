"""What a bake in another number format says of itself: configurations, indices, variants and the call that loads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from support.commands import svdiff
from support.files import written
from support.models import base_delta
from transformers import AutoModel, CLIPTextModel

from svdiff_delta import bake, open_base, save
from svdiff_delta.base_model.base import Base
from svdiff_delta.format.delta import Delta
from svdiff_train.tiny import base_path, open_tiny

NORM = "unet.conv_norm_out.weight"


def text_config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "text_encoder" / "config.json").read_text())
    return found


@pytest.fixture(scope="module")
def norm() -> Delta:
    """A delta of one norm, which bakes without a basis."""
    return base_delta(open_tiny(), NORM)


@pytest.mark.parametrize(("dtype", "name"), [("F16", "float16"), ("BF16", "bfloat16")])
def test_the_text_encoder_of_a_pipeline_says_its_dtype(norm: Delta, tmp_path: Path, dtype: Any, name: str) -> None:
    baked = bake(open_tiny(), [norm], tmp_path / "out", dtype=dtype)
    before = json.loads((base_path() / "text_encoder" / "config.json").read_text())
    assert text_config(tmp_path / "out") == {**before, "dtype": name}
    assert (tmp_path / "out" / "unet" / "config.json").read_text().find("dtype") == -1
    assert CLIPTextModel.from_pretrained(tmp_path / "out" / "text_encoder").dtype == getattr(torch, name)
    assert baked.loading == f'DiffusionPipeline.from_pretrained("{tmp_path / "out"}", dtype=torch.{name})'


def test_the_call_that_a_bake_names_loads_all_parts_alike(norm: Delta, tmp_path: Path) -> None:
    call = bake(open_tiny(), [norm], tmp_path / "out", dtype="F16").loading
    pipe = eval(call, {"DiffusionPipeline": DiffusionPipeline, "torch": torch})
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float16}


def half(folder: Path, variant: str | None = None) -> Base:
    pipe = DiffusionPipeline.from_pretrained(base_path(), dtype=torch.float16)
    pipe.save_pretrained(folder, variant=variant)
    return open_base(folder, variant=variant)


def test_float32_of_a_half_precision_base_loads_by_its_folder_alone(tmp_path: Path) -> None:
    base = half(tmp_path / "half")
    assert text_config(tmp_path / "half")["dtype"] == "float16"
    baked = bake(base, [base_delta(base, NORM)], tmp_path / "out", dtype="F32")
    assert (baked.loading, baked.remarks) == ("", ())
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}


def test_a_variant_says_how_it_is_loaded_and_what_it_holds(tmp_path: Path) -> None:
    base = half(tmp_path / "half", "fp16")
    save(base_delta(base, NORM), tmp_path / "d.safetensors")
    done = svdiff("bake", f"{base.path}:fp16", str(tmp_path / "d.safetensors"), "-o", str(tmp_path / "same"))
    assert done.code == 0, done.err
    call = f'DiffusionPipeline.from_pretrained("{tmp_path / "same"}", variant="fp16", dtype=torch.float16)'
    assert f"it is loaded with `{call}`" in done.out
    assert eval(call, {"DiffusionPipeline": DiffusionPipeline, "torch": torch}).unet.dtype == torch.float16
    assert "note:" not in done.err
    words = [
        "bake",
        f"{base.path}:fp16",
        str(tmp_path / "d.safetensors"),
        "--dtype",
        "F32",
        "-o",
        str(tmp_path / "wide"),
    ]
    for more in ([], ["--dry-run", "--force"]):
        done = svdiff(*words, *more)
        assert "note: the files are called fp16, as in the base, and hold F32" in done.err
    found = json.loads(svdiff(*words, "--force", "--json").out)
    assert found["loading"] == f'DiffusionPipeline.from_pretrained("{tmp_path / "wide"}", variant="fp16")'
    assert len(found["remarks"]) == 1


def test_nested_configurations_and_the_older_key_say_the_dtype(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base_path() / "text_encoder", folder)
    said = json.loads((folder / "config.json").read_text())
    said["torch_dtype"] = said.pop("dtype")
    said |= {"text_config": {"dtype": "float32", "hidden_size": 8}, "vision_config": {"torch_dtype": None}}
    said["rope_parameters"] = {"dtype": "kept"}
    (folder / "config.json").write_text(json.dumps(said))
    base = open_base(folder)
    name = next(name for name in base.names() if name.endswith("final_layer_norm.weight"))
    bake(base, [base_delta(base, name)], tmp_path / "out", dtype="BF16")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    want = {"text_config": {"dtype": "bfloat16", "hidden_size": 8}, "vision_config": {"torch_dtype": None}}
    assert found == {**said, "torch_dtype": "bfloat16", **want}


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_the_index_of_a_pipeline_s_shards_says_their_size(tmp_path: Path, variant: str | None) -> None:
    shutil.copytree(base_path(), tmp_path / "base")
    folder = tmp_path / "base" / "unet"
    UNet2DConditionModel.from_pretrained(folder).half().save_pretrained(
        tmp_path / "unet", max_shard_size="4MB", variant=variant
    )
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    shutil.copytree(tmp_path / "unet", folder, dirs_exist_ok=True)
    base = open_base(tmp_path / "base", variant=variant)
    bake(base, [base_delta(base, NORM)], tmp_path / "out", dtype="F32")
    (path,) = (tmp_path / "out" / "unet").glob("*index*.json")
    before, index = json.loads((folder / path.name).read_text()), json.loads(path.read_text())
    shards = [load_file(path.parent / name) for name in sorted(set(index["weight_map"].values()))]
    assert len(shards) > 1
    assert index["weight_map"] == before["weight_map"]
    assert index["metadata"]["total_size"] == sum(w.nbytes for shard in shards for w in shard.values())
    assert index["metadata"]["total_size"] > 1.9 * before["metadata"]["total_size"]
    UNet2DConditionModel.from_pretrained(path.parent, variant=variant)


def test_indices_of_files_that_stay_behind_stay_behind(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base_path() / "text_encoder", folder)
    for name in ("model.safetensors.index.fp16.json", "pytorch_model.bin.index.json"):
        (folder / name).write_text(json.dumps({"weight_map": {"a": name.replace(".index", "-00001-of-00002")}}))
    base = open_base(folder)
    name = next(name for name in base.names() if name.endswith("final_layer_norm.weight"))
    bake(base, [base_delta(base, name)], tmp_path / "out")
    assert written(tmp_path / "out").keys() == {"config.json", "model.safetensors"}
    assert AutoModel.from_pretrained(tmp_path / "out") is not None
