"""Qwen-Image-Edit: the picture to change is read together with the prompt, and stands behind the noised latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from .family import Conditioning
from .qwen_image import QwenImage
from .recorded import text_key
from .recording import Recording
from .shown_picture import as_picture

SEEN: Final = "seen.latents"
"""What conditioning calls the latents of the picture to change."""

AREA: Final = 1024 * 1024
"""Pixels of the picture to change as the text encoder sees it, as in the pipeline."""


class QwenImageEdit(QwenImage):
    """The family of `QwenImageEditPipeline`.

    diffusers has no training example of it; the velocity is the target, as of Qwen-Image. The picture to change is cut
    to the size of the picture that it becomes.

    Args:
        pipeline: the live pipeline.
    """

    companion: str | None = "conditions"

    def arguments(self, height: int, width: int) -> dict[str, Any]:
        """Return a picture to change, so that the pipeline runs; nothing of it stays."""
        return {"image": Image.new("RGB", (width, height), (127, 127, 127))}

    def read_dims(self, found: Recording) -> None:
        """Note that samples are along the first dimension: prompts of a batch would need pictures of their own."""
        del found
        self.dims.update({0: 0, 1: 0})

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Return nothing: prompts are read together with pictures, by `see`."""
        del prompts
        return {}

    def see(self, pixels: Tensor, companion: Tensor, prompt: str) -> Conditioning:
        """Return the states of the prompt and the picture to change, read together, and its latents."""
        del pixels
        moments = self.encode_images(companion)
        latents = self.sample_latents(moments, torch.zeros_like(moments[:, 0]))
        asked = {**self.learned.asked, "prompt": [prompt], "image": self._as_seen(companion[0])}
        states, mask = self.pipeline.encode_prompt(**{**asked, "device": self.text_device})
        told = {text_key(0): states, SEEN: latents}
        return told if mask is None else {**told, text_key(1): mask}

    def _as_seen(self, pixels: Tensor) -> Image.Image:
        """Return a picture (3, height, width) in the size at which the pipeline shows it to the text encoder."""
        image = as_picture(pixels)
        ratio = image.width / image.height
        width, height = (round(side / 32) * 32 for side in ((AREA * ratio) ** 0.5, (AREA / ratio) ** 0.5))
        resized: Image.Image = self.pipeline.image_processor.resize(image, height, width)
        return resized

    def settled(self, fixed: dict[str, Any], noised: Tensor) -> dict[str, Any]:
        """Return the arguments with the true size of the picture to change, that of the latents."""
        size = (1, noised.shape[-2] // 2, noised.shape[-1] // 2)
        return {**fixed, "img_shapes": [[size, size]] * len(noised)}

    def latents_for(self, packed: Tensor, fixed: Mapping[str, Any], conditioning: Conditioning) -> Any:
        """Return patches of the noised latents, and behind them those of the picture to change."""
        del fixed
        seen = conditioning[SEEN].to(packed.device, packed.dtype)
        return torch.cat([packed, self.pack(seen)], dim=1)
