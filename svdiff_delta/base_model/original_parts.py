"""The parts of a single file in an original layout: their keys, classes, and what of a library converts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from torch import Tensor, nn

from svdiff_delta.errors import BaseError, MissingExtraError

from .original_files import WHOLE, WRAPPED, original_family
from .slots import slot_of

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """One model in a single file.

    Attributes:
        slot: the component that it becomes.
        library: "diffusers" or "transformers".
        class_name: its class.
        front: what its keys begin with; "" if they begin with nothing of their own.
        text: how a text encoder is converted; "" for models of diffusers.
        family: what people call the models that have this layout.
        reader: the class of diffusers that reads the whole file.
    """

    slot: str
    library: str
    class_name: str
    front: str
    text: str = ""
    family: str = ""
    reader: str = ""

    def keys(self, keys: Iterable[str]) -> list[str]:
        """Return those of the file's keys that are this part's."""
        return [key for key in keys if key.startswith(self.front) and (self.front or not key.startswith(WHOLE))]

    @property
    def may_lack(self) -> frozenset[str]:
        """The keys of the class that its library fills by itself."""
        return frozenset({"text_projection.weight"}) if self.text == "clip_l" else frozenset()

    def convert(self, tensors: Tensors, model: nn.Module, settings: Mapping[str, Any]) -> Tensors:
        """Return the part's tensors as the library's own converter names and arranges them.

        Args:
            tensors: the part's tensors by the file's keys; the mapping is not changed.
            model: the class on the meta device.
            settings: the configuration that it was built from.

        Raises:
            MissingExtraError: diffusers is not installed.
        """
        if self.text:
            return _text_converters()[self.text](tensors, model, self.front)
        return dict(_converter(self.class_name)(checkpoint=dict(tensors), config=dict(settings)))


TEXTS: Final = (
    ("cond_stage_model.transformer.", "text_encoder", "CLIPTextModel", "clip"),
    ("cond_stage_model.model.", "text_encoder", "CLIPTextModel", "open_clip"),
    ("conditioner.embedders.0.transformer.", "text_encoder", "CLIPTextModel", "clip"),
    ("conditioner.embedders.1.model.", "text_encoder_2", "CLIPTextModelWithProjection", "open_clip"),
    ("conditioner.embedders.0.model.", "text_encoder_2", "CLIPTextModelWithProjection", "open_clip"),
    ("text_encoders.clip_l.transformer.", "text_encoder", "CLIPTextModelWithProjection", "clip_l"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2", "CLIPTextModelWithProjection", "clip"),
    ("text_encoders.t5xxl.transformer.", "text_encoder_3", "T5EncoderModel", "t5"),
)
"""Text encoders in whole files: front, component, class, and how they are converted."""

AUTOENCODERS: Final = ("first_stage_model.", "vae.")

WITH_IMAGES: Final = frozenset({"Stable Diffusion", "Stable Diffusion XL", "Stable Diffusion 3", "Flux.1"})
"""Families whose autoencoder is diffusers' AutoencoderKL."""


def find_parts(keys: Iterable[str]) -> list[Part]:
    """Return the models that a single file holds, as far as a library converts them; [] if it is in no such layout.

    Args:
        keys: the keys of the file.
    """
    given = [*keys]
    denoiser = [key for key in given if not key.startswith((*WHOLE, *AUTOENCODERS))]
    front = next((front for front in WRAPPED if any(key.startswith(front) for key in denoiser)), "")
    found = original_family([key for key in denoiser if key.startswith(front)]) if denoiser else None
    family, class_name = found or ("", "")
    parts = [Part(slot_of(class_name, "diffusers"), "diffusers", class_name, front)] if class_name else []
    if family in WITH_IMAGES or not denoiser:
        there = (front for front in AUTOENCODERS if any(key.startswith(front) for key in given))
        parts += [Part("vae", "diffusers", "AutoencoderKL", front) for front in there]
    if family in WITH_IMAGES:
        parts += [
            Part(slot, "transformers", class_name, front, how)
            for front, slot, class_name, how in TEXTS
            if any(key.startswith(front) for key in given)
        ]
    _, reader = original_family(given) or ("", class_name)
    return [replace(part, family=family or "Stable Diffusion", reader=reader) for part in parts]


def _converter(class_name: str) -> Callable[..., Tensors]:
    try:
        from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
    except ImportError:
        raise MissingExtraError("diffusers", "train") from None
    if class_name not in SINGLE_FILE_LOADABLE_CLASSES:
        raise BaseError(f"diffusers converts no single files of {class_name}", fix="install a newer diffusers")
    entry: Any = SINGLE_FILE_LOADABLE_CLASSES[class_name]
    return cast("Callable[..., Tensors]", entry["checkpoint_mapping_fn"])


def _text_converters() -> dict[str, Callable[[Tensors, nn.Module, str], Tensors]]:
    try:
        from diffusers.loaders import single_file_utils as diffusers
    except ImportError:
        raise MissingExtraError("diffusers", "train") from None
    clip: Callable[..., Tensors] = diffusers.convert_ldm_clip_checkpoint
    return {
        "clip": lambda tensors, _, front: clip(dict(tensors), front),
        "clip_l": lambda tensors, _, front: _without_projection(clip(dict(tensors), front)),
        "open_clip": lambda tensors, model, front: diffusers.convert_open_clip_checkpoint(
            model, dict(tensors), prefix=front
        ),
        "t5": lambda tensors, *_: diffusers.convert_sd3_t5_checkpoint_to_diffusers(dict(tensors)),
    }


def _without_projection(tensors: Tensors) -> Tensors:
    """Return the tensors without one that diffusers puts the identity in the place of, whatever the file holds."""
    return {key: tensor for key, tensor in tensors.items() if key != "text_projection.weight"}
