"""Other families: SDXL under its original block names, Flux and Stable Diffusion 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from support.adapters import kohya_changes, read_changes, save_tensors, taken, true_changes
from support.models import base_delta
from support.readers import change_of
from support.weights import normal, relative
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from svdiff_delta import convert, open_base, select
from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion.key_map import Names
from svdiff_delta.conversion.sgm_names import SgmNames
from svdiff_delta.errors import InputError, TensorError
from svdiff_delta.format.original_names import parts_of

# --- SDXL ---


def small_sdxl(folder: Path) -> Any:
    """Return a pipeline of SDXL's classes and layout, a few channels wide, as a folder and live."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 2, 2),
        cross_attention_dim=16,
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=24 + 8,
    )
    text: dict[str, Any] = {
        "vocab_size": 20,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    pipeline: Any = diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**text)),
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(),
    )
    folder.mkdir()
    parts = {}
    for name in ("unet", "text_encoder", "text_encoder_2"):
        getattr(pipeline, name).save_pretrained(folder / name)
        parts[name] = [
            type(getattr(pipeline, name)).__module__.partition(".")[0],
            type(getattr(pipeline, name)).__name__,
        ]
    import json

    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline", **parts}))
    return pipeline


@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
@pytest.mark.parametrize("how", [{"rank": 100}, pytest.param({"energy": 0.7}, marks=pytest.mark.slow)])
def test_diffusers_takes_every_layer_of_sdxl_and_changes_it_as_the_report_states(
    tmp_path: Path, dialect: str, how: dict[str, Any]
) -> None:
    pipeline = small_sdxl(tmp_path / "base")
    base = open_base(tmp_path / "base")
    delta = select(base_delta(base, "unet", "text_encoder.*", "text_encoder_2.*", size=0.2), "2d", "4d")
    found = convert(delta, to=dialect, base=base, output=tmp_path / "x.safetensors", allow_unmatched=True, **how)
    before = {
        part: {key: value.clone() for key, value in getattr(pipeline, part).state_dict().items()}
        for part in ("unet", "text_encoder", "text_encoder_2")
    }
    pipeline.load_lora_weights(str(tmp_path / "x.safetensors"))
    lost = [] if dialect == "diffusers" else ["text_encoder_2.text_projection.weight"]
    assert [*found.left_out] == lost
    assert taken(*(getattr(pipeline, part) for part in before)) == len(found.ranks) > 100
    pipeline.fuse_lora(components=[*before])
    pipeline.unload_lora_weights()
    for name, change in true_changes(base, select(delta, *found.layers)).items():
        part, _, key = name.partition(".")
        moved = getattr(pipeline, part).state_dict()[key].double() - before[part][key].double()
        assert relative(moved, change) == pytest.approx((1 - found.layers[name].captured) ** 0.5, abs=2e-4), name


def test_a_layer_of_sdxl_has_its_original_name() -> None:
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    paths = [path for path, module in unet.named_modules() if hasattr(module, "weight")]
    names = SgmNames(paths)
    # As in sgm's openaimodel.py, and in the checkpoint of SDXL.
    assert names.name("conv_in") == "input_blocks.0.0"
    assert names.name("down_blocks.0.resnets.1.conv2") == "input_blocks.2.0.out_layers.3"
    assert names.name("down_blocks.0.downsamplers.0.conv") == "input_blocks.3.0.op"
    assert names.name("down_blocks.1.resnets.0.conv_shortcut") == "input_blocks.4.0.skip_connection"
    attention = "transformer_blocks.9.attn2.to_k"
    assert names.name(f"down_blocks.2.attentions.1.{attention}") == f"input_blocks.8.1.{attention}"
    assert names.name(f"mid_block.attentions.0.{attention}") == f"middle_block.1.{attention}"
    assert names.name("mid_block.resnets.1.time_emb_proj") == "middle_block.2.emb_layers.1"
    assert names.name("up_blocks.0.resnets.2.conv1") == "output_blocks.2.0.in_layers.2"
    assert names.name("up_blocks.0.upsamplers.0.conv") == "output_blocks.2.2.conv"
    assert names.name("up_blocks.1.upsamplers.0.conv") == "output_blocks.5.2.conv"
    assert names.name("up_blocks.2.resnets.0.conv1") == "output_blocks.6.0.in_layers.2"
    assert names.name("conv_out") == "out.2"
    found = [names.name(path) for path in paths]
    assert None not in found
    assert len(set(found)) == len(paths)


def test_both_ways_of_naming_a_block_are_read(tmp_path: Path) -> None:
    small_sdxl(tmp_path / "base")
    names = Names(open_base(tmp_path / "base"))
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    assert names.underscored("unet", path.replace(".", "_")) == path
    assert names.underscored("unet", "input_blocks_4_1_transformer_blocks_0_attn1_to_q") == path
    assert names.underscored("unet", "input_blocks_9_1_transformer_blocks_0_attn1_to_q") is None


def test_modelspec_calls_the_architecture_by_its_name(tmp_path: Path) -> None:
    small_sdxl(tmp_path / "base")
    base = open_base(tmp_path / "base")
    delta = base_delta(base, "unet.add_embedding.linear_1.weight")
    convert(delta, to="kohya", base=base, rank=1, output=tmp_path / "x.safetensors")
    raw = (tmp_path / "x.safetensors").read_bytes()
    assert b'"modelspec.architecture":"stable-diffusion-xl-v1-base/lora"' in raw
    assert next(iter(load_file(tmp_path / "x.safetensors"))).startswith("lora_unet_label_emb_0_0.")


@pytest.mark.slow
def test_comfyui_has_its_own_names_for_sdxl(tmp_path: Path) -> None:
    small_sdxl(tmp_path / "base")
    base = open_base(tmp_path / "base")
    delta = select(base_delta(base, "unet", "text_encoder.*", "text_encoder_2.*", size=0.01), "2d", "4d")
    path = tmp_path / "x.safetensors"
    done = convert(delta, to="comfyui", base=base, output=path, rank=100)
    assert not done.left_out
    keys = load_file(path).keys()
    assert len(keys) == 2 * len(delta)
    for module in (
        "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        "diffusion_model.middle_block.0.in_layers.2",
        "diffusion_model.label_emb.0.2",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
        "text_encoders.clip_g.transformer.text_model.encoder.layers.1.self_attn.q_proj",
    ):
        assert {f"{module}.lora_A.weight", f"{module}.lora_B.weight"} <= keys
    assert convert(path, base=base, min_energy=0.0).delta.keys() == delta.keys()


# --- Flux ---

INNER = 16
STREAM = "transformer_blocks.0.attn"


def small_flux(folder: Path) -> Base:
    model = diffusers.FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        in_channels=4,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )
    model.save_pretrained(folder)
    return open_base(folder)


def pair(module: str, rows: int, columns: int, rank: int = 4, alpha: float | None = 2.0) -> dict[str, torch.Tensor]:
    found = {
        f"{module}.lora_up.weight": normal(rows, rank, seed=rows),
        f"{module}.lora_down.weight": normal(rank, columns, seed=columns + 1),
    }
    return found if alpha is None else {**found, f"{module}.alpha": torch.tensor(alpha)}


def product(tensors: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    up, down = (tensors[f"{module}.lora_{side}.weight"].double() for side in ("up", "down"))
    return up @ down * float(tensors.get(f"{module}.alpha", torch.tensor(4.0))) / 4


@pytest.mark.parametrize("prefix", ["lora_unet_{}", "diffusion_model.{}"])
def test_flux_s_fused_layers_are_taken_apart(tmp_path: Path, prefix: str) -> None:
    base = small_flux(tmp_path / "flux")
    dotted = prefix.startswith("diffusion")

    def spelled(path: str) -> str:
        return prefix.format(path if dotted else path.replace(".", "_"))

    fused, out, single = (
        spelled("double_blocks.0.img_attn.qkv"),
        spelled("double_blocks.0.txt_attn.proj"),
        spelled("single_blocks.0.linear2"),
    )
    tensors = (
        pair(fused, 3 * INNER, INNER) | pair(out, INNER, INNER, alpha=-4.0) | pair(single, INNER, 5 * INNER, alpha=1.0)
    )
    found = read_changes(save_tensors(tmp_path / "x.safetensors", tensors), "flux", base)
    assert found.left_out == {}
    for index, part in enumerate("qkv"):
        expected = product(tensors, fused)[index * INNER : (index + 1) * INNER]
        assert relative(change_of(found, f"transformer.{STREAM}.to_{part}.weight"), expected) < 1e-14
    assert relative(change_of(found, f"transformer.{STREAM}.to_add_out.weight"), product(tensors, out)) < 1e-14
    last = change_of(found, "transformer.single_transformer_blocks.0.proj_out.weight")
    assert relative(last, product(tensors, single)) < 1e-14
    assert len(found.kinds) == 5


def test_flux_s_single_stream_has_four_layers_in_one() -> None:
    # diffusers' converter knows the widths of the real model only, so there is no base: what it makes is compared.
    from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin

    tensors = pair("lora_unet_single_blocks_0_linear1", 3 * 3072 + 12288, 3072, rank=2, alpha=2.0)
    found = FluxLoraLoaderMixin.lora_state_dict({key: value.double() for key, value in tensors.items()})
    whole = tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"].double()
    layer = parts_of("FluxTransformer2DModel", "single_blocks.0.linear1")
    assert layer is not None
    assert torch.equal(torch.cat([found[f"transformer.{part}.lora_B.weight"] for part in layer.parts]), whole)


def test_what_diffusers_would_drop_is_listed(tmp_path: Path) -> None:
    base = small_flux(tmp_path / "flux")
    good = "lora_unet_double_blocks_0_img_attn_proj"
    lost = {
        "lora_unet_double_blocks_0_img_attn_proj.diff_b": normal(INNER),
        "lora_unet_double_blocks_0_img_norm1.diff": normal(INNER),
    }
    unknown = pair("lora_unet_double_blocks_0_nothing", INNER, INNER)
    path = save_tensors(tmp_path / "x.safetensors", pair(good, INNER, INNER) | lost | unknown)
    found = read_changes(path, "flux", base)
    assert [*found.kinds] == [f"transformer.{STREAM}.to_out.0.weight"]
    bias = f"transformer.{STREAM}.to_out.0.bias"
    assert found.left_out.keys() == {bias, "lora_unet_double_blocks_0_img_norm1.diff"} | unknown.keys()
    with pytest.raises(InputError, match="5 weights cannot be carried over"):
        convert(path, base=base)


def test_flux_without_alpha_says_what_was_assumed(tmp_path: Path) -> None:
    base = small_flux(tmp_path / "flux")
    tensors = pair("lora_unet_double_blocks_0_img_attn_proj", INNER, INNER, alpha=None)
    found = read_changes(save_tensors(tmp_path / "x.safetensors", tensors), "flux", base)
    assert (
        relative(change_of(found, f"transformer.{STREAM}.to_out.0.weight"), product(tensors, next(iter(tensors))[:-15]))
        < 1
    )
    assert found.remarks == (
        "no alpha in 1 module (lora_unet_double_blocks_0_img_attn_proj, …): taken to be the rank, a scale of 1",
    )


def test_ranks_of_flux_that_differ_are_refused(tmp_path: Path) -> None:
    base = small_flux(tmp_path / "flux")
    module = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = pair(module, INNER, INNER) | {f"{module}.lora_up.weight": normal(INNER, 3)}
    with pytest.raises(TensorError, match=rf"^{module}\.lora_up\.weight in .*: ranks differ"):
        convert(save_tensors(tmp_path / "x.safetensors", tensors), base=base)


def test_flux_is_written_for_diffusers(tmp_path: Path) -> None:
    base = small_flux(tmp_path / "flux")
    delta = select(base_delta(base, size=0.1), "2d")
    convert(delta, to="diffusers", base=base, rank=100, output=tmp_path / "x.safetensors")
    model: Any = diffusers.FluxTransformer2DModel.from_pretrained(base.path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_lora_adapter(str(tmp_path / "x.safetensors"), prefix="transformer", use_safetensors=True)
    assert taken(model) == len(delta)
    model.fuse_lora()
    model.unload_lora()
    for name, change in true_changes(base, delta).items():
        key = name.partition(".")[2]
        assert relative(model.state_dict()[key].double() - before[key].double(), change) < 1e-4, name


def test_a_layer_that_others_end_in_is_not_taken_for_them(tmp_path: Path) -> None:
    base = small_flux(tmp_path / "flux")
    delta = base_delta(base, "transformer.proj_out.weight", size=0.1)
    convert(delta, to="diffusers", base=base, rank=2, output=tmp_path / "x.safetensors")
    convert(delta, to="peft", base=base, rank=2, output=tmp_path / "peft")
    model: Any = diffusers.FluxTransformer2DModel.from_pretrained(base.path)
    model.load_lora_adapter(str(tmp_path / "x.safetensors"), prefix="transformer", use_safetensors=True)
    assert taken(model) == 1
    from peft import PeftModel

    fresh: Any = diffusers.FluxTransformer2DModel.from_pretrained(base.path)
    assert taken(PeftModel.from_pretrained(fresh, str(tmp_path / "peft"))) == 1


# --- Stable Diffusion 3 ---


def test_stable_diffusion_3_is_read_and_written_for_diffusers(tmp_path: Path) -> None:
    model: Any = diffusers.SD3Transformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=4,
    )
    model.save_pretrained(tmp_path / "sd3")
    base = open_base(tmp_path / "sd3")
    delta = select(base_delta(base, size=0.1), "2d")
    convert(delta, to="diffusers", base=base, rank=3, output=tmp_path / "x.safetensors")
    model.load_lora_adapter(str(tmp_path / "x.safetensors"), prefix="transformer", use_safetensors=True)
    assert taken(model) == len(delta)
    model.save_lora_adapter(tmp_path / "again", adapter_name="default_0")
    (written,) = (tmp_path / "again").glob("*.safetensors")
    first = convert(tmp_path / "x.safetensors", base=base).delta
    again = convert(written, base=base).delta
    assert list(first) == list(again)
    for name in first:
        assert abs(first[name] - again[name]).max() <= 1e-6 * abs(first[name]).max(), name


def test_kohya_changes_are_those_of_the_report(tmp_path: Path) -> None:
    """The helper that other tests compare with does what the name says."""
    tensors = pair("m", 3, 2)
    assert relative(kohya_changes(save_tensors(tmp_path / "x.safetensors", tensors))["m"], product(tensors, "m")) == 0
