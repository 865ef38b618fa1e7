"""Read and write ComfyUI's names, `diffusion_model.<path>.lora_A.weight`, as ai-toolkit does (spec, section 7.10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from svdiff_delta.format.parameter import Parameter

from .adapter_writer import adapter_writer
from .dialect import Dialect
from .energy_limits import LEAST
from .key_map import Names
from .lazy_tensors import OpenedAdapter
from .original_target import Layer, original_layer, sgm_of
from .spelled_reader import begins, read
from .write_target import Keys, Target, plain_layer, unknown_names

STARTS: Final = ("diffusion_model.", "model.diffusion_model.", "text_encoders.")

OWN: Final = ("ZImageTransformer2DModel",)
"""Transformers of which everybody takes diffusers' names, and not all take the original ones, which fuse q, k and v."""


def recognizes(source: OpenedAdapter) -> bool:
    """Tell whether a file has ComfyUI's keys."""
    return begins(source, *STARTS)


class ComfyTarget(Target):
    """The keys of ComfyUI: those of its own models, so of the original code. There is no alpha, all scales are 1."""

    name = "comfyui"
    grouped = "whole"

    def __init__(self, names: Names) -> None:
        super().__init__(names)
        self._sgm = sgm_of(names) if "unet" in names.base.components else None

    @property
    def remark(self) -> str:
        """A remark on a denoiser whose names in ComfyUI are not known."""
        return unknown_names(self.names, "ComfyUI's models")

    def place(self, name: str, parameter: Parameter) -> Keys | str:
        """Return where a parameter's update stands, or why it has no place."""
        if reason := plain_layer(parameter):
            return reason
        component, _, key = name.partition(".")
        layer = self._layer(component, key.removesuffix(".weight"))
        if layer is None:
            return self.second(component) or "ComfyUI has no name for it, or none that is known here"
        return Keys(f"{layer.name}.lora_B.weight", f"{layer.name}.lora_A.weight", rows=layer.rows)

    def _layer(self, component: str, path: str) -> Layer | None:
        """Return the layer that holds a weight, with its whole name; None if it has none."""
        names, kind = self.names, self.names.base.components[component].class_name
        if component == "unet" and self._sgm is not None:
            original = self._sgm.name(path)
            return None if original is None else Layer(f"diffusion_model.{original}")
        if component == self.denoiser and names.is_transformer:
            layer = Layer(path) if kind in OWN else original_layer(names, component, path)
            return Layer(f"diffusion_model.{layer.name}", layer.rows)
        encoder = self._encoder(component, kind)
        return Layer(f"text_encoders.{encoder}.transformer.{names.long(component, path)}") if encoder else None

    def _encoder(self, component: str, kind: str) -> str:
        """Return what ComfyUI calls a text encoder; empty where that is not known."""
        if kind == "T5EncoderModel":
            return "t5xxl"
        if kind == "CLIPTextModelWithProjection" and component == "text_encoder_2":
            return "clip_g"
        if component == "text_encoder" and kind.startswith("CLIPTextModel"):
            return "clip_h" if self.family is not None and self.family.second else "clip_l"
        return ""

    def strings(self, ranks: Mapping[str, int], alpha: int) -> dict[str, str]:  # noqa: ARG002 - others need them
        """Return by what programs know which models the file is for."""
        return self.family.strings() if self.family else {}


comfyui: Final = Dialect(
    "LoRA under ComfyUI's own names, as ai-toolkit has it",
    recognizes,
    read,
    adapter_writer(ComfyTarget),
    min_energy=LEAST,
    low_rank=True,
)
