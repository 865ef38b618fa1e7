"""All members of the zoo, and the classes of the installed libraries that it has not, each with its reason."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Final

import diffusers
import transformers

from .autoencoders import AUTOENCODERS
from .images import IMAGES
from .language import LANGUAGE
from .member import Member
from .unets import SOUNDS, UNETS
from .videos import VIDEOS

DENOISERS: Final[dict[str, Member]] = {**IMAGES, **VIDEOS, **UNETS, **SOUNDS}
MEMBERS: Final[dict[str, Member]] = {**DENOISERS, **AUTOENCODERS, **LANGUAGE}

PICTURES: Final = "reads pictures beside text; its text half is tried by its own name"
SPOKEN: Final = "reads or makes sounds, and encodes no prompt"
SEEN: Final = "sees pictures, and encodes no prompt"
ABSTRACT: Final = "an annotation; no pipeline holds this very class"
UNBUILT: Final[dict[str, str]] = {
    "AutoencoderKLAllegro": "encodes in tiles of 320 pixels and 24 frames only, whatever the configuration",
    "LTX2VideoDiffusionDecoderModel": "its attention, uncompiled, takes minutes whatever the configuration",
    "MotionAdapter": "holds layers for UNetMotionModel and has no forward",
    "Blip2QFormerModel": PICTURES,
    "BlipForConditionalGeneration": PICTURES,
    "ClapModel": SPOKEN,
    "DPTForDepthEstimation": SEEN,
    "Gemma2PreTrainedModel": ABSTRACT,
    "Gemma3ForConditionalGeneration": PICTURES,
    "Gemma4ForConditionalGeneration": PICTURES,
    "Gemma4UnifiedForConditionalGeneration": PICTURES,
    "GemmaPreTrainedModel": ABSTRACT,
    "GlmImageForConditionalGeneration": PICTURES,
    "LlavaForConditionalGeneration": PICTURES,
    "Mistral3Model": "Mistral3ForConditionalGeneration without its head",
    "PreTrainedModel": ABSTRACT,
    "Qwen2VLForConditionalGeneration": PICTURES,
    "Qwen2_5_VLTextModel": "the text half of Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration": PICTURES,
    "Qwen3VLModel": PICTURES,
    "Siglip2VisionModel": SEEN,
    "SiglipModel": "SiglipTextModel and SiglipVisionModel in one",
    "SpeechT5HifiGan": SPOKEN,
    "T5Gemma2Encoder": PICTURES,
    "T5GemmaEncoder": "what T5GemmaEncoderModel holds",
    "VitsModel": SPOKEN,
}

NORMALIZED: Final = (
    "weights are normalized by torch's `weight_norm`: a layer has a direction and a length, and no `weight`"
)
REFUSED: Final[dict[str, str]] = {
    "AutoencoderKLKVAEAudio": NORMALIZED,
    "AutoencoderKLMiniMaxH3Audio": NORMALIZED,
    "AutoencoderOobleck": NORMALIZED,
    "AutoencoderSAME": NORMALIZED,
    "Cosmos3AVAEAudioTokenizer": NORMALIZED,
    "LongCatAudioDiTVae": NORMALIZED,
    "MiniMaxMusic3Vocoder": NORMALIZED,
}
"""Classes of which some layers are refused, each by name; their other layers are right."""


def exported() -> Iterator[str]:
    """Yield the names of diffusers' denoisers and autoencoders: by their folder, and UNets wherever they are."""
    folders = ("diffusers.models.transformers.", "diffusers.models.unets.", "diffusers.models.autoencoders.")
    for name in dir(diffusers):
        found = getattr(diffusers, name, None) if not name.startswith("_") else None
        if inspect.isclass(found) and issubclass(found, diffusers.ModelMixin):
            where = found.__module__
            if where.startswith(folders) or "UNet" in name or name == "UniDiffuserModel":
                yield name


def encoders() -> Iterator[str]:
    """Yield the names of transformers' models that a pipeline of diffusers says it takes."""
    for name in dir(diffusers):
        if not name.endswith("Pipeline"):
            continue
        for parameter in inspect.signature(getattr(diffusers, name).__init__).parameters.values():
            for word in re.findall(r"\w+", str(parameter.annotation)):
                found = getattr(transformers, word, None)
                if inspect.isclass(found) and issubclass(found, transformers.PreTrainedModel):
                    yield word
