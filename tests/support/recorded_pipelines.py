"""Pipelines of the recorded families: their real classes, a few channels wide, with random weights."""

from __future__ import annotations

import string
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

import diffusers
import tokenizers
import torch
import transformers
from support.pipelines import _quiet
from support.weights import normal
from support.zoo.autoencoders import KL, WAN
from support.zoo.language import GROUPED, T5
from support.zoo.registry import DENOISERS, MEMBERS
from torch import nn

from .pipelines import _clip, _tokenizer

CHARACTERS: Final = ["<pad>", "</s>", "<unk>", *string.printable]
CHAT: Final = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}{% endfor %}"
)
FLOW: Final[dict[str, Any]] = {"shift": 3.0}
DYNAMIC: Final[dict[str, Any]] = {"use_dynamic_shifting": True}
WIDE: Final = 3.0
VOCABULARY: Final[dict[str, Any]] = {"vocab_size": len(CHARACTERS), "max_position_embeddings": 4096}


LONG_CLIP: Final[dict[str, Any]] = {**_clip().to_diff_dict(), "max_position_embeddings": 248}
DEEP: Final[dict[str, Any]] = {
    "latent_channels": 4,
    "attention_head_dim": 4,
    **{f"{half}_block_types": ("ResBlock",) * 5 + ("EfficientViTBlock",) for half in ("encoder", "decoder")},
    **{f"{half}_block_out_channels": (8,) * 6 for half in ("encoder", "decoder")},
    **{f"{half}_layers_per_block": (1,) * 6 for half in ("encoder", "decoder")},
    **{f"{half}_qkv_multiscales": ((),) * 5 + ((5,),) for half in ("encoder", "decoder")},
    "scaling_factor": 0.4,
}
"""An autoencoder of 32 pixels a side, which SANA's pipeline asks for."""


def letters(length: int = 64) -> Any:
    """Return a tokenizer to which every character is a token."""
    vocabulary = {character: index for index, character in enumerate(CHARACTERS)}
    whole = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=whole, **marks, model_max_length=length)
    found.chat_template = CHAT
    return found


def small(kind: type[nn.Module], seed: int = 0, /, **config: Any) -> Any:
    """Return a model of a class with random weights that float16 holds, as bases' vectors are kept; none is 0."""
    torch.manual_seed(seed)
    owned = getattr(kind, "config_class", None)
    model = kind(owned(**config)) if owned is not None else kind(**config)
    for index, parameter in enumerate(model.parameters()):
        parameter.data += 0.05 * normal(*parameter.shape, seed=index + 1000 * seed)
        parameter.data = parameter.data.half().float()
    return model


def denoiser(name: str, seed: int = 0, /, **config: Any) -> Any:
    """Return a transformer of the zoo, in another configuration where one is given."""
    return small(getattr(diffusers, name), seed, **{**DENOISERS[name].config, **config})


def kl(**config: Any) -> Any:
    """Return an autoencoder of 2 pixels a side."""
    return small(diffusers.AutoencoderKL, **{**KL, "scaling_factor": 0.5, "shift_factor": 0.1, **config})


def frames(kind: Any, **config: Any) -> Any:
    """Return an autoencoder of clips, 2 pixels a side and 2 frames."""
    spread = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.5, 2.0, 1.0]}
    return small(kind, **{**WAN, "base_dim": 4, "temperal_downsample": [True], **spread, **config})


def flow(**config: Any) -> Any:
    """Return the scheduler of most of them."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def text(kind: str, **config: Any) -> Any:
    """Return a text encoder 16 wide that knows the letters."""
    base = T5 if "T5" in kind else {**GROUPED, "pad_token_id": 0, **VOCABULARY}
    return small(getattr(transformers, kind), **{**base, "vocab_size": len(CHARACTERS), **config})


def vision_and_text(kind: str) -> Any:
    """Return a text encoder that could read pictures too."""
    config = dict(MEMBERS["Qwen2_5_VLForConditionalGeneration"].config)
    inner = {**config["text_config"], **VOCABULARY}
    seen = {**config["vision_config"], "deepstack_visual_indexes": [0]} if "Qwen3" in kind else config["vision_config"]
    return small(getattr(transformers, kind), text_config=inner, vision_config=seen)


def z_image() -> Any:
    return diffusers.ZImagePipeline(
        tokenizer=letters(),
        text_encoder=text("Qwen3Model"),
        transformer=denoiser("ZImageTransformer2DModel", axes_lens=[640, 64, 64]),
        vae=kl(),
        scheduler=flow(**FLOW),
    )


def qwen_image() -> Any:
    return diffusers.QwenImagePipeline(
        tokenizer=letters(),
        text_encoder=vision_and_text("Qwen2_5_VLForConditionalGeneration"),
        transformer=denoiser("QwenImageTransformer2DModel", in_channels=16, out_channels=4),
        vae=frames(diffusers.AutoencoderKLQwenImage),
        scheduler=flow(**DYNAMIC),
    )


def _flux2_vae() -> Any:
    vae = small(diffusers.AutoencoderKLFlux2, **{**KL, "layers_per_block": 1})
    vae.bn.running_mean.copy_(0.3 * normal(16, seed=5))
    vae.bn.running_var.copy_(normal(16, seed=6).abs() + 0.5)
    return vae


def flux2_klein() -> Any:
    return diffusers.Flux2KleinPipeline(
        tokenizer=letters(),
        text_encoder=text("Qwen3ForCausalLM", num_hidden_layers=27, hidden_size=8),
        transformer=denoiser(
            "Flux2Transformer2DModel", in_channels=16, out_channels=16, joint_attention_dim=24, guidance_embeds=False
        ),
        vae=_flux2_vae(),
        scheduler=flow(**DYNAMIC),
    )


def flux2_dev() -> Any:
    config = dict(MEMBERS["Mistral3ForConditionalGeneration"].config)
    inner = {**config["text_config"], **VOCABULARY, "num_hidden_layers": 30, "hidden_size": 8}
    return diffusers.Flux2Pipeline(
        tokenizer=letters(),
        text_encoder=small(transformers.Mistral3ForConditionalGeneration, **{**config, "text_config": inner}),
        transformer=denoiser("Flux2Transformer2DModel", in_channels=16, out_channels=16, joint_attention_dim=24),
        vae=_flux2_vae(),
        scheduler=flow(**DYNAMIC),
    )


def wan(*, experts: int = 1, boundary: float | None = None, scheduler: Any = None) -> Any:
    second = denoiser("WanTransformer3DModel", 1) if experts > 1 else None
    return diffusers.WanPipeline(
        tokenizer=letters(),
        text_encoder=text("UMT5EncoderModel"),
        transformer=denoiser("WanTransformer3DModel"),
        transformer_2=second,
        boundary_ratio=boundary,
        vae=frames(  # the pipeline takes multiples of 16 pixels, whatever its autoencoder
            diffusers.AutoencoderKLWan,
            dim_mult=[1, 1, 1, 1],
            temperal_downsample=[False, False, True],
            scale_factor_temporal=2,
            scale_factor_spatial=8,
        ),
        scheduler=scheduler or flow(**FLOW),
    )


def wan_unipc() -> Any:
    return wan(
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
    )


def krea2() -> Any:
    return diffusers.Krea2Pipeline(
        tokenizer=letters(),
        text_encoder=vision_and_text("Qwen3VLModel"),
        transformer=denoiser("Krea2Transformer2DModel", in_channels=16),
        vae=frames(diffusers.AutoencoderKLQwenImage),
        scheduler=flow(**DYNAMIC),
        text_encoder_select_layers=(1, 2),
    )


def chroma() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of diffusers, about a class that its own model uses
        transformer = denoiser("ChromaTransformer2DModel", in_channels=16)
    return diffusers.ChromaPipeline(
        tokenizer=letters(),
        text_encoder=text("T5EncoderModel"),
        transformer=transformer,
        vae=kl(),
        scheduler=flow(**DYNAMIC),
    )


def lumina2() -> Any:
    made = diffusers.Lumina2Pipeline(
        tokenizer=letters(),
        text_encoder=text("Gemma2Model"),
        transformer=denoiser("Lumina2Transformer2DModel", axes_lens=(512, 64, 64)),
        vae=small(
            diffusers.AutoencoderKL,
            **{
                **KL,
                "block_out_channels": (4,) * 4,
                "down_block_types": ("DownEncoderBlock2D",) * 4,
                "up_block_types": ("UpDecoderBlock2D",) * 4,
                "scaling_factor": 0.5,
                "shift_factor": 0.1,
            },
        ),
        scheduler=flow(shift=6.0),
    )
    made.system_prompt = "Paint."
    return made


def sana(scheduler: Any = None) -> Any:
    return diffusers.SanaPipeline(
        tokenizer=letters(),
        text_encoder=text("Gemma2Model"),
        transformer=denoiser("SanaTransformer2DModel", guidance_embeds=False, sample_size=16),
        vae=small(diffusers.AutoencoderDC, **DEEP),
        scheduler=scheduler
        or diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def ltx() -> Any:
    config = {
        "timestep_conditioning": False,
        "decoder_inject_noise": (False, False, False),
        "patch_size": 8,  # the pipeline takes multiples of 32 pixels, whatever its autoencoder
        "spatio_temporal_scaling": (True, True),
        "decoder_spatio_temporal_scaling": (True, True),
    }
    vae = small(diffusers.AutoencoderKLLTXVideo, **{**MEMBERS["AutoencoderKLLTXVideo"].config, **config})
    vae.latents_mean.copy_(0.3 * normal(4, seed=5))
    vae.latents_std.copy_(normal(4, seed=6).abs() + 0.5)
    return diffusers.LTXPipeline(
        tokenizer=letters(),
        text_encoder=text("T5EncoderModel"),
        transformer=denoiser("LTXVideoTransformer3DModel", caption_channels=16),
        vae=vae,
        scheduler=flow(**DYNAMIC),
    )


def aura_flow() -> Any:
    return diffusers.AuraFlowPipeline(
        tokenizer=letters(),
        text_encoder=text("UMT5EncoderModel"),
        transformer=denoiser("AuraFlowTransformer2DModel"),
        vae=kl(shift_factor=None),
        scheduler=flow(shift=1.73),
    )


def hidream() -> Any:
    made = diffusers.HiDreamImagePipeline(
        tokenizer=_tokenizer(),
        text_encoder=small(transformers.CLIPTextModelWithProjection, **LONG_CLIP),
        tokenizer_2=_tokenizer(),
        text_encoder_2=small(transformers.CLIPTextModelWithProjection, 1, **LONG_CLIP),
        tokenizer_3=letters(),
        text_encoder_3=text("T5EncoderModel"),
        tokenizer_4=letters(),
        text_encoder_4=text("LlamaForCausalLM"),
        transformer=denoiser(
            "HiDreamImageTransformer2DModel", caption_channels=[16, 16], text_emb_dim=16, max_resolution=(16, 16)
        ),
        vae=kl(),
        scheduler=flow(**FLOW),
    )
    made.default_sample_size = 8
    return made


BUILDERS: Final[Mapping[str, Callable[[], Any]]] = {
    "Z-Image": z_image,
    "Qwen-Image": qwen_image,
    "Flux.2 klein": flux2_klein,
    "Flux.2 dev": flux2_dev,
    "Wan 2.1": wan,
    "Wan with UniPC": wan_unipc,
    "Wan 2.2": lambda: wan(experts=2, boundary=0.875),
    "Krea 2": krea2,
    "Chroma": chroma,
    "Lumina 2": lumina2,
    "SANA": sana,
    "LTX": ltx,
    "AuraFlow": aura_flow,
    "HiDream": hidream,
}
"""How a tiny pipeline of each family is made."""

VIDEOS: Final = ("Wan 2.1", "Wan with UniPC", "Wan 2.2", "LTX")


@cache
def shared(name: str) -> Any:
    """Return a pipeline that tests share, and leave as it is."""
    return _quiet(BUILDERS[name]())
