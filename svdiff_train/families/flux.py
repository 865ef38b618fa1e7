"""Flux: flow matching on packed latents, with a guidance that the distilled model is told."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from .family import Conditioning
from .latent import FlowMatching

GUIDANCE: Final = 3.5
"""What a model with a guidance embedding is told in training, as in diffusers' train_dreambooth_lora_flux.py."""


class Flux(FlowMatching):
    """The family of `FluxPipeline`.

    As in diffusers' train_dreambooth_lora_flux.py, timesteps are uniform and the target is the velocity.

    Args:
        pipeline: the live pipeline.
    """

    density = "none"
    readers = ("text_encoder", "text_encoder_2")
    guidance = GUIDANCE

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.resolution = pipeline.default_sample_size * self.factor
        self.unit = 2 * self.factor
        self.guided: bool = pipeline.transformer.config.guidance_embeds
        self._ids: dict[tuple[int, int, torch.device], Tensor] = {}

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Return T5's `states` (batch, tokens, width) and CLIP's `pooled` (batch, width)."""
        states, pooled, _ = self.pipeline.encode_prompt([*prompts], None, device=self.text_device)
        return {"states": states, "pooled": pooled}

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the predicted velocity, unpacked."""
        batch, _, height, width = noised.shape
        device, states = noised.device, self.on_denoiser(conditioning["states"], noised)
        patches = self.pack(noised.to(self.dtype))
        with warnings.catch_warnings():
            # That weights in float32 under autocast take the slower way is a hint, and nobody can act on it.
            warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)
            velocity = denoiser(
                hidden_states=self.beside(patches, conditioning),
                timestep=timesteps.to(device) / 1000,  # the transformer multiplies by 1000
                guidance=torch.full((batch,), self.guidance, device=device) if self.guided else None,
                pooled_projections=self.on_denoiser(conditioning["pooled"], noised),
                encoder_hidden_states=states,
                txt_ids=torch.zeros(states.shape[1], 3, device=device, dtype=self.dtype),
                img_ids=self.places(batch, height // 2, width // 2, device),
                return_dict=False,
            )[0]
        return self.unpack(velocity[:, : patches.shape[1]], height, width)

    def beside(self, patches: Tensor, conditioning: Conditioning) -> Tensor:
        """Return what the transformer sees: patches of the noised latents, here nothing beside them."""
        del conditioning
        return patches

    def places(self, batch: int, height: int, width: int, device: torch.device) -> Tensor:
        """Return the places of all patches that the transformer sees, (patches, 3)."""
        return self._image_ids(batch, height, width, device)

    def _image_ids(self, batch: int, height: int, width: int, device: torch.device) -> Tensor:
        """Return the places of patches (height · width, 3), made once for each size.

        They are made on the CPU and brought to the device, which no CUDA graph can do.
        """
        key = (height, width, device)
        if key not in self._ids:
            self._ids[key] = self.pipeline._prepare_latent_image_ids(batch, height, width, device, self.dtype)
        return self._ids[key]

    def pack(self, latents: Tensor) -> Tensor:
        """Return latents (batch, channels, height, width) as patches (batch, height · width / 4, 4 · channels)."""
        return cast("Tensor", self.pipeline._pack_latents(latents, *latents.shape))

    def unpack(self, patches: Tensor, height: int, width: int) -> Tensor:
        """Return patches as latents (batch, channels, height, width), `height` and `width` in latents."""
        pixels = (side * self.factor for side in (height, width))
        return cast("Tensor", self.pipeline._unpack_latents(patches, *pixels, self.factor))
