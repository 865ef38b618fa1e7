"""Pipelines that see a picture beside the noise: real classes, a few channels wide, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import diffusers
import torch
import transformers
from support import pipelines as p
from support import recorded_pipelines as r
from support.zoo.registry import MEMBERS

IMAGE: Final = "<|image_pad|>"
MARKS: Final = ["<|vision_start|>", "<|vision_end|>", IMAGE, "<|video_pad|>"]


def sd_inpainting() -> Any:
    torch.manual_seed(0)
    return p._quiet(
        diffusers.StableDiffusionInpaintPipeline(
            vae=p._vae(4),
            text_encoder=transformers.CLIPTextModel(p._clip()),
            tokenizer=p._tokenizer(),
            unet=diffusers.UNet2DConditionModel(**p._unet(p.WIDTH), in_channels=9),
            scheduler=diffusers.DDIMScheduler(**p.SCHEDULE),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def sdxl_inpainting() -> Any:
    parts = p.small_sdxl().components
    unet = diffusers.UNet2DConditionModel(
        **p._unet(2 * p.WIDTH),
        in_channels=9,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=p.WIDTH + 6 * 4,
    )
    return p._quiet(diffusers.StableDiffusionXLInpaintPipeline(**{**parts, "unet": unet}))


def kontext() -> Any:
    return p._quiet(diffusers.FluxKontextPipeline(**p.small_flux().components))


def fill() -> Any:
    parts = p.small_flux().components
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        **{**parts["transformer"].config, "in_channels": 48, "out_channels": 16}
    )
    names = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return p._quiet(diffusers.FluxFillPipeline(**{name: parts[name] for name in names}, transformer=transformer))


class Reader:
    """What a `Qwen2VLProcessor` does with text and pictures; that class needs torchvision, for videos.

    Args:
        tokenizer: of the text.
    """

    def __init__(self, tokenizer: Any) -> None:
        kind: Any = transformers.Qwen2VLImageProcessorPil
        self.tokenizer, self.images = tokenizer, kind(min_pixels=28 * 28, max_pixels=4 * 28 * 28)

    def __call__(self, text: list[str], images: Any, **given: Any) -> Any:
        seen = self.images(images=images, return_tensors="pt")
        tokens = [int(grid.prod()) // 4 for grid in seen["image_grid_thw"]]
        whole = [each.replace(IMAGE, IMAGE * count) for each, count in zip(text, tokens, strict=True)]
        return transformers.BatchFeature({**self.tokenizer(whole, padding=True, return_tensors="pt"), **seen})


def qwen_image_edit() -> Any:
    tokenizer = r.letters()
    tokenizer.add_tokens(MARKS, special_tokens=True)
    config = dict(MEMBERS["Qwen2_5_VLForConditionalGeneration"].config)
    text = {**config["text_config"], **r.VOCABULARY, "vocab_size": len(tokenizer)}
    ids = {
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE),
        "video_token_id": tokenizer.convert_tokens_to_ids(MARKS[3]),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids(MARKS[0]),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids(MARKS[1]),
    }
    return p._quiet(
        diffusers.QwenImageEditPipeline(
            tokenizer=tokenizer,
            processor=Reader(tokenizer),
            text_encoder=r.small(
                transformers.Qwen2_5_VLForConditionalGeneration, **{**config, "text_config": text, **ids}
            ),
            transformer=r.denoiser("QwenImageTransformer2DModel", in_channels=16, out_channels=4),
            vae=r.frames(diffusers.AutoencoderKLQwenImage),
            scheduler=r.flow(**r.DYNAMIC),
        )
    )


def wan_image(*, looks: bool = True, experts: int = 1) -> Any:
    """Return a pipeline that makes clips from their first frame; one that looks at it has an image encoder, as 2.1."""
    parts = r.wan().components
    channels = {"in_channels": 10, **({"image_dim": 8} if looks else {})}  # latents, a mask of 2 frames, latents
    encoder = r.small(
        transformers.CLIPVisionModel,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    kind: Any = transformers.CLIPImageProcessorPil
    denoisers = [r.denoiser("WanTransformer3DModel", seed, **channels) for seed in range(experts)]
    return p._quiet(
        diffusers.WanImageToVideoPipeline(
            **{name: parts[name] for name in ("tokenizer", "text_encoder", "vae", "scheduler")},
            image_encoder=encoder if looks else None,
            image_processor=kind(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}) if looks else None,
            transformer=denoisers[0],
            transformer_2=denoisers[1] if experts > 1 else None,
            boundary_ratio=0.9 if experts > 1 else None,
        )
    )


SEEING: Final[Mapping[str, Callable[[], Any]]] = {
    "SD 1 inpainting": sd_inpainting,
    "SDXL inpainting": sdxl_inpainting,
    "Flux.1 Kontext": kontext,
    "Flux.1 Fill": fill,
    "Qwen-Image-Edit": qwen_image_edit,
}
"""How a tiny pipeline of each family is made."""

MASKED: Final = ("SD 1 inpainting", "SDXL inpainting", "Flux.1 Fill")
