"""Pipelines of every model family: their real classes, a few channels wide, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tools.build_tiny.tokenizer import build_tokenizer

WIDTH: Final = 8
"""Of a text encoder's states, pooled or not."""
CROSS: Final = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}

SCHEDULE: Final = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def small_sd2(**schedule: Any) -> Any:
    """Return a pipeline of Stable Diffusion 2.x, which predicts the velocity unless `schedule` says otherwise."""
    torch.manual_seed(0)
    return _quiet(
        diffusers.StableDiffusionPipeline(
            vae=_vae(4),
            text_encoder=CLIPTextModel(_clip()),
            tokenizer=_tokenizer(),
            unet=diffusers.UNet2DConditionModel(**_unet(WIDTH)),
            scheduler=diffusers.DDIMScheduler(**{**SCHEDULE, "prediction_type": "v_prediction", **schedule}),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def small_sdxl() -> Any:
    """Return a pipeline of SDXL."""
    torch.manual_seed(0)
    return _quiet(
        diffusers.StableDiffusionXLPipeline(
            vae=_vae(4),
            text_encoder=CLIPTextModel(_clip()),
            text_encoder_2=CLIPTextModelWithProjection(_clip()),
            tokenizer=_tokenizer(),
            tokenizer_2=_tokenizer(),
            unet=diffusers.UNet2DConditionModel(
                **_unet(2 * WIDTH),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=4,
                projection_class_embeddings_input_dim=WIDTH + 6 * 4,
            ),
            scheduler=diffusers.DDIMScheduler(**SCHEDULE),
        )
    )


def small_sd3(*, t5: bool = True, **transformer: Any) -> Any:
    """Return a pipeline of Stable Diffusion 3 with the real one's shift, with or without its third text encoder."""
    torch.manual_seed(0)
    return _quiet(
        diffusers.StableDiffusion3Pipeline(
            vae=_vae(16, shift_factor=0.06),
            text_encoder=CLIPTextModelWithProjection(_clip()),
            text_encoder_2=CLIPTextModelWithProjection(_clip()),
            text_encoder_3=_t5() if t5 else None,
            tokenizer=_tokenizer(),
            tokenizer_2=_tokenizer(),
            tokenizer_3=_t5_tokenizer() if t5 else None,
            transformer=diffusers.SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=16,
                out_channels=16,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=2 * WIDTH,
                caption_projection_dim=16,
                pooled_projection_dim=2 * WIDTH,
                pos_embed_max_size=16,
                **transformer,
            ),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    )


def small_flux(*, guided: bool = True) -> Any:
    """Return a pipeline of Flux, distilled with guidance or not."""
    torch.manual_seed(0)
    return _quiet(
        diffusers.FluxPipeline(
            vae=_vae(4, shift_factor=0.1),
            text_encoder=CLIPTextModel(_clip()),
            text_encoder_2=_t5(),
            tokenizer=_tokenizer(),
            tokenizer_2=_t5_tokenizer(),
            transformer=diffusers.FluxTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=2 * WIDTH,
                pooled_projection_dim=WIDTH,
                axes_dims_rope=(2, 2, 4),
                guidance_embeds=guided,
            ),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        )
    )


PIPELINES: Final[dict[str, Callable[[], Any]]] = {
    "sd2": small_sd2,
    "sdxl": small_sdxl,
    "sd3": small_sd3,
    "sd3.5 without t5": lambda: small_sd3(t5=False, qk_norm="rms_norm", dual_attention_layers=(0,)),
    "flux": small_flux,
    "flux without guidance": lambda: small_flux(guided=False),
}

WHOLE: Final[dict[str, Callable[[], Any]]] = {
    **{name: make for name, make in PIPELINES.items() if name != "sd3.5 without t5"},
    "sd3.5": lambda: small_sd3(qk_norm="rms_norm", dual_attention_layers=(0,)),
}
"""Those that can be saved and loaded as they are: diffusers asks for every part."""


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return pipeline


def _vae(channels: int, **config: Any) -> Any:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8), norm_num_groups=2, latent_channels=channels, scaling_factor=0.5, **blocks, **config
    )


def _unet(text_width: int) -> dict[str, Any]:
    shape = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "attention_head_dim": 2}
    return {**shape, **CROSS, "cross_attention_dim": text_width, "norm_num_groups": 4}


def _clip() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(_tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=WIDTH,
        bos_token_id=_tokenizer().bos_token_id,
        eos_token_id=_tokenizer().eos_token_id,
    )


_tokenizer = cache(build_tokenizer)


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(_t5_tokenizer()), d_model=2 * WIDTH, d_kv=8, d_ff=12, num_layers=1, num_heads=2)
    )


@cache
def _t5_tokenizer() -> Any:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5TokenizerFast(vocab=[*special, *((letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz")], extra_ids=0)
