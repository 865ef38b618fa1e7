"""The sets of pictures that a run draws from: a folder of the subject's, and painted ones of its class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from .config import TrainConfig
from .data import find_images, load_image, to_tensor
from .families import Family


def open_pictures(
    folder: Path, config: TrainConfig, family: Family, resolution: int, *, skip_bad: bool
) -> FolderPictures:
    """Find and check the subject's pictures."""
    return FolderPictures(find_images(folder), config, resolution)


class FolderPictures:
    """Pictures of the subject."""

    fixed = True

    def __init__(self, paths: Sequence[Path], config: TrainConfig, resolution: int) -> None:
        self.paths, self.config, self.resolution = paths, config, resolution
        for path in paths:
            load_image(path, 8)

    def __len__(self) -> int:
        return len(self.paths)

    def size(self, index: int) -> tuple[int, int]:
        return (self.resolution, self.resolution)

    def prompt(self, index: int) -> str:
        return self.config.prompt

    def open(
        self, index: int, size: tuple[int, int], *, flip: bool, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        picture = load_image(self.paths[index], size[0])
        return (picture.flip(-1) if flip else picture), torch.tensor([*size, 0, 0, *size])

    def remarks(self) -> list[str]:
        return [f"{len(self.paths)} pictures"]

    def digest(self) -> str:
        """Return a digest of the pictures' bytes, in order."""
        total = hashlib.sha256()
        for path in self.paths:
            total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()


class ClassPictures:
    """Pictures of the class, all with one prompt.

    Args:
        images: the pictures.
        prompt: what they show.
    """

    fixed = True

    def __init__(self, images: Sequence[Image.Image], prompt: str, resolution: int) -> None:
        self.images, self.text, self.resolution = list(images), prompt, resolution

    def __len__(self) -> int:
        return len(self.images)

    def size(self, index: int) -> tuple[int, int]:  # noqa: ARG002
        """Return the size they were made for; they are cut to any."""
        return (self.resolution, self.resolution)

    def prompt(self, index: int) -> str:  # noqa: ARG002
        """Return the prompt of the class."""
        return self.text

    def open(
        self,
        index: int,
        size: tuple[int, int],
        *,
        flip: bool,
        generator: torch.Generator,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Return a picture, resized to cover the size and cut at its centre."""
        height, width = size
        image = self.images[index]
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        picture = to_tensor(image)
        return (picture.flip(-1) if flip else picture), torch.tensor([height, width, 0, 0, height, width])
