"""Wan from a picture: the first frame's latents and a mask of frames stand behind the noised latents as channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from svdiff_delta.errors import TrainError

from .family import Conditioning
from .shown_picture import as_picture
from .videos import Wan

SEEN: Final = "seen.latents"
"""What conditioning calls the mask and the latents of the first frame, side by side."""

LOOKED: Final = "seen.states"
"""What it calls the image encoder's states of the first frame, of Wan 2.1."""


class WanImage(Wan):
    """The family of `WanImageToVideoPipeline` whose denoiser sees the first frame of a clip: Wan 2.1, and 2.2 of 14B.

    diffusers has no training example of it; the velocity of all frames is the target, as where Wan was trained.

    Args:
        pipeline: the live pipeline.

    Raises:
        TrainError: it tells each token a timestep of its own, as Wan 2.2 of 5B.
    """

    companion: str | None = "first frames"

    def __init__(self, pipeline: Any) -> None:
        if pipeline.config.get("expand_timesteps"):
            raise TrainError(
                f"{type(pipeline).__name__}: its denoiser is told the first frame as one without noise, and nothing "
                "says how that is trained",
                fix="train it as WanPipeline, which paints from text alone, and paint from a picture with the delta",
            )
        super().__init__(pipeline)

    def arguments(self, height: int, width: int) -> dict[str, Any]:
        """Return a first frame, so that the pipeline runs; nothing of it stays."""
        return {"image": Image.new("RGB", (width, height), (127, 127, 127))}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Let the autoencoder give zeros: it may have been let go, and nothing of the first frame stays."""
        vae = self.pipeline.vae

        def encode(clip: Tensor) -> Any:
            frames = (clip.shape[2] - 1) // self.frame_unit + 1
            sides = (side // self.factor for side in clip.shape[3:])
            shape = (clip.shape[0], self.autoencoder.channels, frames, *sides)
            return SimpleNamespace(latents=torch.zeros(shape, dtype=clip.dtype))

        vae.encode = encode
        try:
            yield
        finally:
            del vae.encode

    def see(self, pixels: Tensor, companion: Tensor, prompt: str) -> Conditioning:
        """Return the mask of frames and the latents of a clip that has only its first frame, all others grey.

        Args:
            pixels: of the clip; nothing but its first frame is seen.
            companion: that frame, (1, 3, height, width) in [−1, 1].
            prompt: nothing of it is seen.
        """
        del pixels, prompt
        clip = torch.zeros(1, 3, self.frames, *companion.shape[-2:])
        clip[:, :, 0] = companion
        mean = self.encode_images(clip)[:, 0]
        latents = self.autoencoder.normalize(mean)
        mask = torch.zeros(1, self.frame_unit, *latents.shape[2:]).to(latents)
        mask[:, :, 0] = 1
        told = {SEEN: torch.cat([mask, latents], dim=1)}
        if self.denoiser.config.get("image_dim") is None:
            return told
        return {**told, LOOKED: self.pipeline.encode_image(as_picture(companion[0]), self.text_device)}

    def latents_for(self, packed: Tensor, fixed: Mapping[str, Any], conditioning: Conditioning) -> Any:
        """Return the noised latents, and behind them what is seen of the first frame."""
        del fixed
        return torch.cat([packed, conditioning[SEEN].to(packed.device, packed.dtype)], dim=1)

    def beside(self, noised: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """Return the image encoder's states of the first frame, where the denoiser takes them."""
        states = conditioning.get(LOOKED)
        return {} if states is None else {"encoder_hidden_states_image": states.to(noised.device, self.dtype)}
