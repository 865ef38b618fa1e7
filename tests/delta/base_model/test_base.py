"""Opening bases: what is found, what it is called, and what is refused with the call that mends it."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import time
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import save_file
from support.models import MINILM

from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.base_model.kinds import base_kinds
from svdiff_delta.base_model.layout import variants
from svdiff_delta.errors import BaseError, SelectionError
from svdiff_delta.format.container import header_bytes
from svdiff_delta.svd.build import zero_delta
from svdiff_train.tiny import base_path, open_tiny


def test_a_pipeline_has_its_models_as_components() -> None:
    base = open_base(base_path())
    assert dict(base.info.components) == {
        "text_encoder": "CLIPTextModel",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    }


def test_a_local_path_is_never_what_a_base_is_called() -> None:
    assert open_base(base_path()).info.repository is None


def test_the_embedded_base_is_called_tiny() -> None:
    assert open_tiny().info.repository == "tiny"


def test_a_component_s_folder_keeps_its_name_in_the_pipeline() -> None:
    assert list(open_base(base_path() / "text_encoder").components) == ["text_encoder"]


def test_a_component_on_its_own_is_called_after_its_class(tmp_path: Path) -> None:
    shutil.copytree(base_path() / "unet", tmp_path / "my-model")
    assert list(open_base(tmp_path / "my-model").components) == ["unet"]


def test_a_transformers_model_is_called_model() -> None:
    base = open_base(MINILM)
    assert dict(base.info.components) == {"model": "BertModel"}


def test_a_single_file_takes_the_name_it_is_given() -> None:
    path = base_path() / "unet" / "diffusion_pytorch_model.safetensors"
    assert list(open_base(path, component="unet").components) == ["unet"]


def test_parameters_are_read_one_by_one_as_they_stand() -> None:
    base = open_tiny()
    weight = base.read("unet.conv_in.weight")
    assert weight.dtype == torch.float16
    assert tuple(weight.shape) == base.shape("unet.conv_in.weight") == (96, 8, 3, 3)


def test_the_level_that_transformers_5_dropped_is_found_under_both_names() -> None:
    base, key = open_tiny(), "encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(base.read(f"text_encoder.text_model.{key}"), base.read(f"text_encoder.{key}"))


def test_kinds_come_from_the_classes() -> None:
    kinds = base_kinds(open_tiny())
    assert kinds["unet.conv_in.weight"] == ("spectral", 0)
    assert kinds["unet.down_blocks.0.resnets.0.norm1.weight"] == ("elementwise", 0)
    assert not any(name.endswith(".bias") or "embedding.weight" in name for name in kinds)


def test_embeddings_count_on_request_only() -> None:
    names = base_kinds(open_base(MINILM), on_request=True).keys() - base_kinds(open_base(MINILM)).keys()
    assert names == {f"model.embeddings.{part}_embeddings.weight" for part in ("position", "token_type", "word")}


@pytest.mark.slow
def test_a_base_of_100_000_tensors_opens_at_once(tmp_path: Path) -> None:
    fields = {f"model.layers.{i // 768}.mlp.experts.{i % 768}.weight": ("BF16", (1, 2)) for i in range(100_000)}
    header = header_bytes([(key, *said) for key, said in fields.items()], {})
    assert len(header) > 9_000_000
    path = tmp_path / "model.safetensors"
    path.write_bytes(header + bytes(400_000))
    begun = time.process_time()
    base = open_base(path)
    assert sum(1 for _ in base.names()) == 100_000
    assert time.process_time() - begun < 10  # 1.1 s on a slow core; 27 s is what a whole 100 MB took
    assert base.shape("model.model.layers.0.mlp.experts.7.weight") == (1, 2)


def test_a_sharded_model_is_read_across_its_shards(tmp_path: Path) -> None:
    config = json.loads((base_path() / "unet" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "diffusion_pytorch_model-00001-of-00002.safetensors")
    save_file({"b.weight": torch.zeros(3)}, tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors")
    index = {"weight_map": {"a.weight": "diffusion_pytorch_model-00001-of-00002.safetensors",
                            "b.weight": "diffusion_pytorch_model-00002-of-00002.safetensors"}}  # fmt: skip
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    base = open_base(tmp_path)
    assert sorted(base.names()) == ["unet.a.weight", "unet.b.weight"]
    assert base.read("unet.b.weight").tolist() == [0, 0, 0]


@pytest.fixture(scope="module")
def model() -> diffusers.UNet2DModel:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return diffusers.UNet2DModel(sample_size=8, block_out_channels=(32, 32), layers_per_block=1, **blocks)


@pytest.mark.parametrize("shard", ["300KB", "10GB"])
@pytest.mark.parametrize("variant", ["fp16", "non_ema", None])
def test_what_diffusers_writes_is_opened(
    tmp_path: Path, model: diffusers.UNet2DModel, variant: str | None, shard: str
) -> None:
    model.save_pretrained(tmp_path, variant=variant, max_shard_size=shard)
    base = open_base(tmp_path, variant=variant)
    assert (len(base.components["unet"].files) > 1) == (shard == "300KB")
    assert {name: base.shape(name) for name in base.names()} == {
        f"unet.{key}": tuple(value.shape) for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize("shard", ["20KB", "10GB"])
@pytest.mark.parametrize("variant", ["fp16", None])
def test_what_transformers_writes_is_opened(tmp_path: Path, variant: str | None, shard: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=48, **sizes))
    model.save_pretrained(tmp_path, variant=variant, max_shard_size=shard)
    base = open_base(tmp_path, variant=variant)
    assert (len(base.components["model"].files) > 1) == (shard == "20KB")
    assert set(base.names()) == {f"model.{key}" for key in model.state_dict()}


def test_what_is_there_without_a_variant_is_what_is_opened(tmp_path: Path, model: diffusers.UNet2DModel) -> None:
    model.save_pretrained(tmp_path)
    copy.deepcopy(model).half().save_pretrained(tmp_path, variant="fp16")
    assert open_base(tmp_path).read("unet.conv_in.weight").dtype == torch.float32
    assert open_base(tmp_path, variant="fp16").read("unet.conv_in.weight").dtype == torch.float16


def test_components_that_lack_a_variant_are_opened_without(tmp_path: Path) -> None:
    shutil.copytree(base_path(), tmp_path / "tiny")
    unet = tmp_path / "tiny" / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    files = {name: part.files[0].name for name, part in open_base(tmp_path / "tiny", variant="fp16").components.items()}
    assert files == {
        "text_encoder": "model.safetensors",
        "unet": "diffusion_pytorch_model.fp16.safetensors",
        "vae": "diffusion_pytorch_model.safetensors",
    }


def test_where_there_are_only_variants_they_are_listed_with_the_argument(
    tmp_path: Path, model: diffusers.UNet2DModel
) -> None:
    for variant in ("fp16", "bf16"):
        model.save_pretrained(tmp_path, variant=variant, max_shard_size="300KB")
    message = refused(tmp_path)
    assert "the variants bf16, fp16" in message
    assert "variant='bf16'" in message


@pytest.mark.parametrize(
    "name",
    [
        "model.fp16.safetensors",
        "model.fp16-00001-of-00002.safetensors",
        "model-00001-of-00002.fp16.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.safetensors.fp16.index.json",
    ],
)
def test_a_variant_is_told_from_the_names_of_its_files(name: str) -> None:
    assert variants([name]) == ["fp16"]


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "model.fp16.bin",
        "config.json",
        "adapter_model.fp16.safetensors",
    ],
)
def test_other_files_have_no_variant(name: str) -> None:
    assert variants([name]) == []


@pytest.mark.parametrize(("variant", "said"), [("bf16", "only the variant fp16"), ("bf16", "nor any other")])
def test_a_variant_that_is_not_there_is_refused(tmp_path: Path, variant: str, said: str) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    name = "model.fp16.safetensors" if "fp16" in said else "model.safetensors"
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / name)
    with pytest.raises(BaseError, match=f"has no variant 'bf16'.*{said}"):
        open_base(tmp_path, variant=variant)


def refused(path: Path | str) -> str:
    with pytest.raises(BaseError) as caught:
        open_base(path)
    return str(caught.value)


@pytest.mark.parametrize("name", ["", "a" * 5000, "nothing", "~/nothing"])
def test_what_cannot_be_a_path_is_refused(name: str) -> None:
    assert refused(name)


def test_a_quantized_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    for path in (tmp_path, tmp_path / "model.gguf"):
        message = refused(path)
        assert "GGUF" in message
        assert "use the unquantized base" in message


@pytest.mark.parametrize(
    ("shard", "said"),
    [
        ("../other/model.safetensors", "it has a /"),
        ("..\\model.safetensors", "it has a \\"),
        ("C:model.safetensors", "it has a :"),
        ("a\0.safetensors", "it has control characters"),
        ("x" * 250 + ".safetensors", "it has more than 255 bytes"),
        ("/etc/passwd", "names no weight files"),
        ("", "names no weight files"),
    ],
)
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, shard: str, said: str) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": shard}}))
    assert said in refused(tmp_path)


def test_a_configuration_that_does_not_fit_its_class_is_refused(tmp_path: Path) -> None:
    shutil.copytree(base_path() / "unet", tmp_path / "unet")
    path = tmp_path / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [1]}))
    with pytest.raises(BaseError, match=r"UNet2DConditionModel cannot be built from .*config\.json"):
        base_kinds(open_base(tmp_path / "unet"))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(tmp_path / "nothing")


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    assert "model_index.json" in refused(tmp_path)


def test_a_pickle_is_refused_with_the_call_that_converts_it(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04.")
    message = refused(tmp_path / "model.ckpt")
    assert "pickle" in message
    assert "from_single_file(FILE).save_pretrained(FOLDER)" in message


def test_a_folder_with_only_a_pickle_is_refused_with_the_call_that_converts_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    message = refused(tmp_path)
    assert "diffusion_pytorch_model.bin" in message
    assert "from_pretrained(FOLDER).save_pretrained(NEW)" in message


def test_the_original_single_file_layout_is_refused_with_the_call_that_converts_it(tmp_path: Path) -> None:
    keys = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight")
    save_file({key: torch.ones(2, 2) for key in keys}, tmp_path / "sd.safetensors")
    message = refused(tmp_path / "sd.safetensors")
    assert "original layout" in message
    assert "StableDiffusionPipeline.from_single_file(FILE)" in message


def test_a_weight_file_cut_off_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.ones(64)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    assert "model.safetensors: the file is cut off" in refused(path)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    index = {"weight_map": {"a.weight": "part-2.safetensors"}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert "part-2.safetensors" in refused(tmp_path)


def test_a_component_that_the_base_lacks_is_named() -> None:
    with pytest.raises(BaseError, match="no component 'transformer'"):
        open_tiny().read("transformer.x.weight")


def test_a_parameter_that_the_base_lacks_is_named() -> None:
    with pytest.raises(BaseError, match=r"unet\.nothing\.weight.*no such parameter"):
        open_tiny().read("unet.nothing.weight")


def test_a_single_file_says_nothing_about_kinds() -> None:
    base = open_base(MINILM / "model.safetensors")
    with pytest.raises(BaseError, match=r"kinds come from the class.*config\.json"):
        base_kinds(base)


@pytest.mark.parametrize("name", ["NoSuchModel", "DDIMScheduler", "logging"])
def test_a_configuration_that_names_no_model_class_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(BaseError, match=f"no model class {name}"):
        base_kinds(open_base(tmp_path))


def test_a_zero_delta_covers_every_weight_that_can_be_shifted() -> None:
    base: Base = open_tiny()
    delta = zero_delta(base, "unet")
    assert set(delta) == {name for name in base_kinds(base) if name.startswith("unet.")}
    assert dict(delta.metadata.base.components) == {"unet": "UNet2DConditionModel"}
    assert not any(delta[name].any() for name in delta)


def test_a_text_encoder_that_the_pipeline_names_and_lacks_is_said(tmp_path: Path) -> None:
    shutil.copytree(base_path(), tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "text_encoder")
    base = open_base(tmp_path / "base")
    assert len(zero_delta(base, "unet.conv_norm_out.weight")) == 1
    with pytest.raises(SelectionError, match=r"no folder text_encoder, which .* names: fetch the base again"):
        zero_delta(base, "text")
    with pytest.raises(BaseError, match=r"no folder text_encoder, which .* names: fetch the base again"):
        base.read("text_encoder.final_layer_norm.weight")
    with pytest.raises(BaseError, match="has no component 'image_encoder', it has unet, vae"):
        base.read("image_encoder.a.weight")


def test_a_base_that_was_read_goes_to_other_processes() -> None:
    base = open_tiny()
    name = next(base.names())
    expected = base.read(name)
    for twin in (pickle.loads(pickle.dumps(base)), copy.deepcopy(base)):
        assert twin == base
        assert torch.equal(twin.read(name), expected)
        assert twin.info == base.info
