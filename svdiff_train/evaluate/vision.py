"""A model that turns pictures into unit vectors, each picture once."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from svdiff_delta.errors import InputError

Vectors = NDArray[np.float32]
Item = TypeVar("Item")

BATCH = 32
"""Pictures or texts that the model sees at once."""


class Vision(ABC):
    """Pictures as unit vectors.

    Attributes:
        name: what results call the model.
        size: side in pixels of the square that it looks at.
    """

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self.name = name
        self.size = _side(processor)
        self._model, self._processor = model, processor
        self._seen: dict[Hashable, Vectors] = {}

    @abstractmethod
    def _embed(self, pixels: Tensor) -> Tensor:
        """Return vectors (n, width) of any length for pixels (n, 3, size, size)."""

    def image_features(self, images: Sequence[Image.Image], *, fitted: bool = False) -> Vectors:
        """Return unit vectors (n, width), float32; a picture that was seen before is not computed again.

        Args:
            images: of any sizes.
            fitted: they are squares of `size` pixels already, to be taken as they are. Else each is scaled and cut as
                the model's preprocessor says.

        Raises:
            InputError: there are none.
        """

        def compute(batch: Sequence[Image.Image]) -> Vectors:
            steps = {"do_resize": False, "do_center_crop": False} if fitted else {}
            pixels = self._processor(images=[image.convert("RGB") for image in batch], return_tensors="pt", **steps)
            return self._unit(self._embed(pixels["pixel_values"].to(self._model.device)))

        return remember(self._seen, images, lambda image: ("image", fitted, digest(image)), compute)

    def alignment(self, images: Sequence[Image.Image], references: Sequence[Image.Image]) -> Vectors:
        """Return the cosine of every picture with every reference, (pictures, references), float32."""
        found: Vectors = self.image_features(images) @ self.image_features(references).T
        return found

    @staticmethod
    def _unit(vectors: Tensor) -> Vectors:
        found: Vectors = F.normalize(vectors.float(), dim=-1).cpu().numpy()
        return found


@torch.no_grad()
def remember(
    known: dict[Hashable, Vectors],
    items: Sequence[Item],
    key: Callable[[Item], Hashable],
    compute: Callable[[Sequence[Item]], Vectors],
) -> Vectors:
    """Return one row per item, computed in batches and only where it is not known yet.

    Raises:
        InputError: there are no items.
    """
    if not items:
        raise InputError("there is nothing to measure", fix="give at least one picture")
    keys = [key(item) for item in items]
    lacking = {here: item for here, item in zip(keys, items, strict=True) if here not in known}
    names, values = [*lacking], [*lacking.values()]
    for start in range(0, len(names), BATCH):
        chunk = slice(start, start + BATCH)
        known.update(zip(names[chunk], compute(values[chunk]), strict=True))
    return np.stack([known[here] for here in keys])


def digest(image: Image.Image) -> bytes:
    """Return a digest of a picture's pixels."""
    head = f"{image.mode} {image.size}".encode()
    return hashlib.blake2b(head + image.tobytes(), digest_size=16).digest()


def _side(processor: Any) -> int:
    """Return the side of the square that a preprocessor makes."""
    if getattr(processor, "do_center_crop", False):
        return int(processor.crop_size["height"])
    return int(processor.size["height"])
