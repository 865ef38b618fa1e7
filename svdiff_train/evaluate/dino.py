"""DINO: pictures as unit vectors that tell one dog from another, where CLIP sees two dogs."""

from __future__ import annotations

from os import PathLike
from typing import Final, Self

import torch
from torch import Tensor

from svdiff_delta.base_model.layout import read_json

from .model import find_folder, load_model, load_part, short_name
from .vision import Vision

TYPES: Final = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
WHAT: Final = "DINO"


class Dino(Vision):
    """A vision transformer of transformers, read at its class token, as DreamBooth's DINO score does.

    Attributes:
        name: what results call it.
        size: side in pixels of the square that it looks at.
    """

    @classmethod
    def load(cls, reference: str | PathLike[str], *, device: str | torch.device = "cpu") -> Self:
        """Load a model such as facebook/dinov2-small in float32, from safetensors alone; as `Clip.load`."""
        folder = find_folder(reference, WHAT, TYPES)
        kind = read_json(folder / "config.json").get("model_type")
        # The first DINO was published without ViT's pooling layer, which is not read here.
        options = {"add_pooling_layer": False} if kind == "vit" else {}
        model = load_model("ViTModel" if kind == "vit" else "AutoModel", folder, WHAT, device, **options)
        return cls(model, load_part("AutoImageProcessor", folder, WHAT, backend="pil"), short_name(reference))

    def _embed(self, pixels: Tensor) -> Tensor:
        found: Tensor = self._model(pixel_values=pixels).last_hidden_state[:, 0]
        return found
