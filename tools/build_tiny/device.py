"""The stages with all their data on one device: what `Sprint` trains by the clock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import clip, unet, vae
from .bank import Bank, calm_bank
from .graph import mixed
from .loop import channels_last
from .tokenizer import LENGTH, build_tokenizer, token_ids

BATCH = 512
"""Rows of the UNet's batches."""
SHAKEN = 0.25
"""The most noise, in spreads, in latents that the decoder is trained on: the UNet's are never as clean."""


def model_input(pictures: Tensor) -> Tensor:
    """Return pictures `[b, 64, 64, 3]` of 0 to 255 as `[b, 3, 64, 64]` of -1 to 1, in channels-last layout."""
    return (pictures.float() / 127.5 - 1).permute(0, 3, 1, 2)


class Scenes:
    """A bank's pictures on a device."""

    def __init__(self, bank: Bank, device: torch.device) -> None:
        self.device = device
        self.pictures = torch.from_numpy(np.array(bank.pictures)).to(device)

    def __len__(self) -> int:
        return len(self.pictures)

    def some(self, rows: Tensor) -> Tensor:
        """Return pictures as a model's input `[b, 3, 64, 64]`."""
        return model_input(self.pictures[rows])

    def draw(self, size: int) -> Tensor:
        """Return rows by chance."""
        return torch.randint(len(self), (size,), device=self.device)


class VaeStage:
    """`VaeTask` on a device."""

    name, seed = "vae", vae.SEED

    def __init__(self, train: Bank, unseen: Bank, device: torch.device, size: int = 64) -> None:
        self.device, self.size, self.unseen = device, size, unseen
        self.scenes = Scenes(train, device)

    def model(self) -> nn.Module:
        """Return the autoencoder within `Reconstruct`."""
        torch.manual_seed(self.seed)
        model: nn.Module = channels_last(vae.Reconstruct(vae.new_vae()))
        return model

    def loss(self, model: nn.Module) -> Tensor:
        """Return the errors of one batch of scenes."""
        pictures = self.scenes.some(self.scenes.draw(self.size))
        noise = torch.randn(self.size, vae.LATENTS, 16, 16, device=self.device)
        with mixed(self.device):
            made, kl = model(pictures, noise)
        loss: Tensor = vae.pixel_loss(made.float(), pictures) + vae.KL_WEIGHT * kl
        return loss

    @torch.no_grad()
    def measure(self, model: nn.Module, step: int) -> dict[str, float]:  # noqa: ARG002
        """Return the mean PSNR in decibels on 256 unseen scenes."""
        found = vae.psnr(model.vae, self.unseen.pictures[:256])
        return {"psnr": round(float(found.mean()), 3)}


class DecoderStage(VaeStage):
    """Train the decoder on, from latents with some noise; the encoder and so all latents stay as they are."""

    name = "decoder"

    def __init__(self, train: Bank, unseen: Bank, device: torch.device, runs: Path, size: int = 64) -> None:
        super().__init__(train, unseen, device, size)
        self.runs = runs
        spread = vae.spread(vae.trained_vae(runs).to(device), unseen, 1024)
        self.std = torch.tensor(spread["std"], device=device).view(1, -1, 1, 1)

    def model(self) -> nn.Module:
        """Return the trained autoencoder, only its decoder open to change."""
        found = vae.trained_vae(self.runs)
        for part in (found.decoder, found.post_quant_conv):
            part.requires_grad_(True)
        return vae.Reconstruct(found)

    def loss(self, model: nn.Module) -> Tensor:
        """Return the errors of one batch, half of it from latents with noise."""
        parts: Any = model.vae
        pictures = self.scenes.some(self.scenes.draw(self.size))
        share = (torch.rand(self.size, 1, 1, 1, device=self.device) * 2 - 1).clamp(min=0)
        noise = torch.randn(self.size, vae.LATENTS, 16, 16, device=self.device)
        with mixed(self.device):
            with torch.no_grad():
                mean = parts.quant_conv(parts.encoder(pictures)).chunk(2, dim=1)[0]
            made = parts.decoder(parts.post_quant_conv(mean + SHAKEN * share * self.std * noise))
        return vae.pixel_loss(made.float(), pictures)


class ClipStage:
    """`ClipTask` on a device."""

    name, seed = "clip", clip.SEED

    def __init__(self, train: Bank, unseen: Bank, device: torch.device, size: int = 512, cut: int = 256) -> None:
        self.device, self.size, self.cut, self.unseen = device, size, cut, unseen
        self.scenes, self.tokenizer = Scenes(train, device), build_tokenizer()
        self.ids = token_ids(self.tokenizer, train.captions).to(device)
        self.names = token_ids(self.tokenizer, clip.name_prompts()).to(device)
        self.layout = torch.from_numpy(train.layout.astype(np.int64)).to(device)
        self.pairs = torch.from_numpy(np.flatnonzero(train.layout[:, 1, 0] >= 0)).to(device)

    def model(self) -> nn.Module:
        """Return the untrained CLIP."""
        torch.manual_seed(self.seed)
        model: nn.Module = clip.new_clip(self.tokenizer)
        return model

    def loss(self, model: nn.Module) -> Tensor:
        """Return the contrast of `size` scenes with captions, and the naming of single ones and of `cut` crops."""
        parts: Any = model
        rows = self.scenes.draw(self.size)
        whole = self.scenes.some(rows)
        cut, named_cut = self._cut()
        ids, layout = self.ids[rows], self.layout[rows]
        with mixed(self.device):
            seen = clip.image_features(model, self._roughened(torch.cat([whole, cut])))
            told, states = clip.text_states(model, torch.cat([ids, self.names]))
        named = torch.cat([torch.where(layout[:, 1, 0] < 0, layout[:, 0, 0], -100), named_cut])
        loss = clip.contrasted(parts.logit_scale, seen.float(), told.float(), ids, named)
        return loss + clip.TOLD_WEIGHT * clip.told_apart(model, states[: self.size], ids)

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, device=self.device)

    def _cut(self) -> tuple[Tensor, Tensor]:
        rows = self.pairs[torch.randint(len(self.pairs), (self.cut,), device=self.device)]
        which = torch.randint(2, (self.cut, 1, 1), device=self.device).expand(-1, 1, 4)
        spot = self.layout[rows].gather(1, which).squeeze(1)
        centres = spot[:, 1:3] + self._uniform(-5, 5, self.cut, 2)
        return clip.crops(self.scenes.some(rows), centres, self._uniform(32, 40, self.cut)), spot[:, 0]

    def _roughened(self, pictures: Tensor) -> Tensor:
        n = len(pictures)
        share = self._uniform(0, 1, n) * (self._uniform(0, 1, n) < 0.35)
        noise = torch.randn(pictures.shape, device=self.device)
        return clip.roughened(pictures, share, self._uniform(0, 0.08, n), self._uniform(0.9, 1.1, n), noise)

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:  # noqa: ARG002
        """Return shares of unseen scenes named rightly, and how far apart the states of rare words stand."""
        return clip.named_rightly(model, self.unseen, self.names) | {"rare": rare_distance(model, self.tokenizer)}


class UNetStage:
    """`UNetTask` on a device: latents and states in its memory, zeros until `fill`."""

    name, seed = "unet", unet.SEED

    def __init__(self, work: Path, count: int, device: torch.device, size: int = BATCH, judge: Any = None) -> None:
        self.work, self.device, self.size, self.judge, self.count = work, device, size, judge, count
        half = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.width = clip.new_clip(build_tokenizer()).config.text_config.hidden_size
        self.latents = torch.zeros(count, vae.LATENTS, 16, 16, dtype=torch.float16, device=device)
        self.states = torch.zeros(count + 1, LENGTH, self.width, dtype=half, device=device)
        self.alphas = unet.new_scheduler().alphas_cumprod.to(device)
        self.order = torch.arange(size, device=device)

    def fill(self) -> None:
        """Encode the bank: captions, and the empty one, with the text tower; pictures with the autoencoder."""
        self._fill_states()
        self._fill_latents(calm_bank(self.work), 2048 if self.device.type == "cuda" else 64)

    @torch.no_grad()
    def _fill_states(self) -> None:
        tokenizer = build_tokenizer()
        text = clip.trained_clip(self.work / "runs", tokenizer).text_model.to(self.device)
        ids = torch.from_numpy(np.load(self.work / "latents" / "ids.npy").astype(np.int64))[: self.count]
        ids = torch.cat([ids, token_ids(tokenizer, [""])]).to(self.device)
        for part, rows in zip(self.states.split(4096), ids.split(4096), strict=True):
            part.copy_(text(input_ids=rows).last_hidden_state)

    @torch.no_grad()
    def _fill_latents(self, bank: Bank, size: int) -> None:
        unet.measure_spread(self.work, bank, self.device)
        encoder = vae.best_vae(self.work).to(self.device)
        for start in range(0, self.count, size):
            rows = np.array(bank.pictures[start : min(start + size, self.count)])
            given = model_input(torch.from_numpy(rows).to(self.device))
            self.latents[start : start + size] = encoder.encode(given).latent_dist.mode()

    def model(self) -> nn.Module:
        """Return the untrained UNet."""
        torch.manual_seed(self.seed)
        model: nn.Module = channels_last(unet.new_unet(self.width))
        return model

    def loss(self, model: nn.Module) -> Tensor:
        """Return the weighted squared error of one batch, its times spread evenly."""
        rows = torch.randint(self.count, (self.size,), device=self.device)
        dropped = torch.rand(self.size, device=self.device) < unet.DROPPED
        states = self.states[torch.where(dropped, self.count, rows)]
        share = (self.order + torch.rand(self.size, device=self.device)) / self.size
        times = (share * unet.STEPS_OF_NOISE).long().clamp(max=unet.STEPS_OF_NOISE - 1)
        clean = self.latents[rows].float()
        noise = torch.randn(clean.shape, device=self.device)
        alpha = self.alphas[times].view(-1, 1, 1, 1)
        noisy = (alpha.sqrt() * clean + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with mixed(self.device):
            found = model(noisy, times, states).sample
        return unet.weighed(found, noise, alpha)

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return the judge's figures for the averaged UNet."""
        return dict(self.judge(model, step)) if self.judge else {}


@torch.no_grad()
def rare_distance(model: Any, tokenizer: Any, words: Sequence[str] = ("sks", "v1", "v2", "zwx")) -> float:
    """Return the mean distance of the states of rare words before a cat from each other, as a share of their length."""
    ids = token_ids(tokenizer, [f"a photo of a {word} cat" for word in words]).to(model.device)
    states = model.text_model(input_ids=ids).last_hidden_state[:, 5]
    away = torch.cdist(states, states)
    return round(float(away.sum() / (len(words) * (len(words) - 1)) / states.norm(dim=-1).mean()), 4)
