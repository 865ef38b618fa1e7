"""LPIPS: how far two pictures are apart to the eye, by an AlexNet and weights fitted to people's judgements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from svdiff_delta.base_model.devices import find_device
from svdiff_delta.base_model.layout import PICKLE_SUFFIXES
from svdiff_delta.errors import InputError
from svdiff_train.data import to_tensor

from .vision import Vectors

CONVERT: Final = (
    "convert it once where you trust it, with `model = lpips.LPIPS(net='alex'); safetensors.torch.save_file("
    "{k: v for k, v in model.state_dict().items() if not k.startswith('lins.')}, 'lpips.safetensors')`"
)
LAYERS: Final = (
    ("net.slice1.0", (64, 3, 11, 11), 4, 2),
    ("net.slice2.3", (192, 64, 5, 5), 1, 2),
    ("net.slice3.6", (384, 192, 3, 3), 1, 1),
    ("net.slice4.8", (256, 384, 3, 3), 1, 1),
    ("net.slice5.10", (256, 256, 3, 3), 1, 1),
)
"""AlexNet's convolutions: key, shape of the weight, stride, padding. The second and the third follow a max pooling."""
POOLED: Final = (1, 2)
SHIFT: Final = (-0.030, -0.088, -0.188)
SCALE: Final = (0.458, 0.448, 0.450)
SMALLEST: Final = 31
"""Side in pixels below which nothing is left for the third convolution."""
BATCH: Final = 8


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the tensors of a file and their shapes: the keys of `lpips.LPIPS(net="alex").state_dict()`."""
    found: dict[str, tuple[int, ...]] = {}
    for number, (key, shape, _, _) in enumerate(LAYERS):
        found |= {f"{key}.weight": shape, f"{key}.bias": shape[:1]}
        found[f"lin{number}.model.1.weight"] = (1, shape[0], 1, 1)
    return found


class Lpips:
    """LPIPS 0.1 with AlexNet (Zhang et al., 2018).

    d(x, y) = Σ_l mean over places of Σ_c w_lc (x̂_lc − ŷ_lc)², where x̂_l are the activations of layer l, divided at
    each place by their norm over channels.

    Args:
        weights: float32 tensors, by key: `net.slice1.0`, `net.slice2.3`, `net.slice3.6`, `net.slice4.8` and
            `net.slice5.10`, each with `.weight` and `.bias`, and `lin0.model.1.weight` to `lin4.model.1.weight`.
        name: what results call it.
        device: where to run it.
    """

    def __init__(self, weights: Mapping[str, Tensor], name: str, *, device: str | torch.device = "cpu") -> None:
        self.name = name
        self._device = find_device(device)
        self._weights = {key: value.to(self._device, torch.float32) for key, value in weights.items()}

    @classmethod
    def load(cls, path: str | PathLike[str], *, device: str | torch.device = "cpu") -> Self:
        """Load weights from a safetensors file with the keys of `lpips.LPIPS(net="alex").state_dict()`.

        Raises:
            InputError: it is a pickle, no safetensors file, a tensor lacks or has another shape, or there is no such
                device.
        """
        path = Path(path)
        if path.suffix in PICKLE_SUFFIXES:
            raise InputError(f"{path}: is a pickle, which is never opened", fix=CONVERT)
        try:
            given = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: could not be read as safetensors ({error})", fix=CONVERT) from None
        for key, shape in shapes().items():
            if key not in given:
                raise InputError(f"{path}: has no {key}: these are not LPIPS's weights for AlexNet", fix=CONVERT)
            if (found := tuple(given[key].shape)) != shape:
                raise InputError(f"{path}: {key} has the shape {found}, not {shape}", fix=CONVERT)
        return cls({key: given[key] for key in shapes()}, path.name, device=device)

    @torch.no_grad()
    def distances(self, images: Sequence[Image.Image], references: Sequence[Image.Image]) -> Vectors:
        """Return the distance of every picture from every reference, (pictures, references), float32.

        References are scaled and cut to each picture's size.

        Raises:
            InputError: there are none, or a picture is smaller than 31 pixels.
        """
        if not images or not references:
            raise InputError("there is nothing to measure", fix="give at least one picture and one reference")
        found = np.empty((len(images), len(references)), np.float32)
        for size in dict.fromkeys(image.size for image in images):
            if min(size) < SMALLEST:
                raise InputError(
                    f"LPIPS cannot see pictures of {size[0]} x {size[1]} pixels", fix=f"use {SMALLEST} or more"
                )
            rows = [row for row, image in enumerate(images) if image.size == size]
            fitted = [ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS) for image in references]
            others = [self._activations(fitted[start : start + BATCH]) for start in range(0, len(fitted), BATCH)]
            maps = [torch.cat(layer) for layer in zip(*others, strict=True)]
            for start in range(0, len(rows), BATCH):
                chunk = rows[start : start + BATCH]
                found[chunk] = self._between(self._activations([images[row] for row in chunk]), maps)
        return found

    def alignment(self, images: Sequence[Image.Image], references: Sequence[Image.Image]) -> Vectors:
        """Return 1 − LPIPS of every picture with every reference (paper, Fig. 9b); as `distances`."""
        return np.float32(1) - self.distances(images, references)

    def _between(self, maps: Sequence[Tensor], others: Sequence[Tensor]) -> NDArray[np.float32]:
        heads = [self._weights[f"lin{number}.model.1.weight"][0] for number in range(len(LAYERS))]
        columns = []
        for other in range(len(others[0])):
            parts = [
                (head * (mine - layer[other]) ** 2).sum(1).mean((1, 2))
                for head, mine, layer in zip(heads, maps, others, strict=True)
            ]
            columns.append(torch.stack(parts).sum(0))
        found: NDArray[np.float32] = torch.stack(columns, 1).cpu().numpy()
        return found

    def _activations(self, images: Sequence[Image.Image]) -> list[Tensor]:
        pixels = torch.stack([to_tensor(image.convert("RGB")) for image in images]).to(self._device)
        shift, scale = (pixels.new_tensor(value).view(3, 1, 1) for value in (SHIFT, SCALE))
        return [layer / (layer.norm(dim=1, keepdim=True) + 1e-10) for layer in self._layers((pixels - shift) / scale)]

    def _layers(self, x: Tensor) -> Iterator[Tensor]:
        for number, (key, _, stride, padding) in enumerate(LAYERS):
            if number in POOLED:
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(F.conv2d(x, self._weights[f"{key}.weight"], self._weights[f"{key}.bias"], stride, padding))
            yield x
