"""CLIP: pictures and texts as unit vectors of one space."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor

from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import InputError

from .model import find_folder, load_model, load_part, short_name
from .vision import Vectors, Vision, remember

DEFAULT: Final = "openai/clip-vit-large-patch14"
"""What bases without a CLIP of their own are measured with."""
WHAT: Final = "CLIP"
TOKENIZERS: Final = ("tokenizer.json", "vocab.json")


def find_clip(base: Base) -> tuple[str | Path, str]:
    """Return which CLIP a base is measured with, and what results call it.

    That is the folder `clip` of the base, which the embedded one has, or `DEFAULT`.
    """
    own = base.path / "clip"
    if base.pipeline and (own / "config.json").is_file():
        return own, f"{base.repository or base.path.resolve().name}/clip"
    return DEFAULT, DEFAULT


class Clip(Vision):
    """A CLIP of transformers (`CLIPModel`) with its tokenizer and its preprocessor.

    Attributes:
        name: what results call it.
        size: side in pixels of the square that it looks at.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any, name: str) -> None:
        super().__init__(model, processor, name)
        self._tokenizer = tokenizer
        self._read: dict[Hashable, Vectors] = {}
        self._longest = min(int(model.config.text_config.max_position_embeddings), int(tokenizer.model_max_length))

    @classmethod
    def load(
        cls, reference: str | PathLike[str], *, device: str | torch.device = "cpu", name: str | None = None
    ) -> Self:
        """Load a CLIP in float32, from safetensors alone.

        Args:
            reference: a path, or `owner/repo[@revision][/folder]` on the Hub.
            device: where to run it.
            name: what results call it; by itself the reference, or the folder's name.

        Raises:
            InputError: there is none, it is another model, its weights are pickles or incomplete, or there is no such
                device.
            HubError: the reference names nothing on the Hub.
            MissingExtraError: transformers is not installed.
        """
        folder = find_folder(reference, WHAT, ("clip",))
        if not any((folder / name).is_file() for name in TOKENIZERS):
            # transformers would make an empty tokenizer, which reads every word as the same.
            raise InputError(f"{folder}: is no whole CLIP, it has no tokenizer", fix="fetch it again, or name another")
        model = load_model("CLIPModel", folder, WHAT, device)
        tokenizer = load_part("AutoTokenizer", folder, WHAT)
        processor = load_part("AutoImageProcessor", folder, WHAT, backend="pil")
        return cls(model, tokenizer, processor, name or short_name(reference))

    def text_features(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors (n, width), float32; what is longer than the model reads is cut (see `too_long`)."""

        def compute(batch: Sequence[str]) -> Vectors:
            found = self._tokenizer(
                list(batch), padding="max_length", max_length=self._longest, truncation=True, return_tensors="pt"
            )
            # Attention is causal and the vector is read at the first end token: padding does not count.
            pooled = self._model.text_model(input_ids=found["input_ids"].to(self._model.device)).pooler_output
            return self._unit(self._model.text_projection(pooled))

        return remember(self._read, texts, lambda text: text, compute)

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """Return those texts of which the model reads only a beginning."""
        return [text for text in texts if len(self._tokenizer(text)["input_ids"]) > self._longest]

    def _embed(self, pixels: Tensor) -> Tensor:
        found: Tensor = self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output)
        return found
