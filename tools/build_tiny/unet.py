"""The UNet's stage: predict the noise in latents of scenes, given the frozen text tower's states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .bank import Bank
from .clip import trained_clip
from .loop import channels_last, noise_generator, step_generator
from .tokenizer import build_tokenizer, token_ids
from .vae import LATENTS, best_vae, encode_bank, spread, trained_vae

SEED = 31
STEPS_OF_NOISE = 1000
GAMMA = 5.0
"""Signal-to-noise ratios above this get no more weight (min-SNR, Hang et al. 2023, Eq. 6)."""
DROPPED = 0.1
"""Share of captions replaced by the empty one, for guidance."""

SHAPE: dict[str, Any] = {"block_out_channels": (96, 128, 128), "attention_head_dim": (3, 4, 4)}


def new_unet(width: int = 128, **shape: Any) -> Any:
    """An untrained `UNet2DConditionModel` on `[8, 16, 16]`: attention to the text at 16, 8 and 4."""
    from diffusers import UNet2DConditionModel

    shape = SHAPE | shape
    levels = len(shape["block_out_channels"])
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENTS,
        out_channels=LATENTS,
        layers_per_block=1,
        cross_attention_dim=width,
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        **shape,
    )


def new_scheduler() -> Any:
    """DDIM with the noise of Stable Diffusion 1.5."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=STEPS_OF_NOISE,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def number(work: Path, bank: Bank) -> None:
    """Write the ids of the bank's captions, unless they lie there."""
    path = work / "latents" / "ids.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer, size = build_tokenizer(), 1 << 14
        parts = [token_ids(tokenizer, bank.captions[i : i + size]) for i in range(0, len(bank), size)]
        np.save(path.with_suffix(".part.npy"), torch.cat(parts).numpy().astype(np.int16))
        path.with_suffix(".part.npy").replace(path)


def prepare(work: Path, bank: Bank) -> None:
    """Write what the stage reads: the captions' ids, the latents' spread, the latents; skips what is there."""
    folder = work / "latents"
    if (folder / "latents.npy").exists():
        return
    number(work, bank)
    measure_spread(work, bank)
    encode_bank(best_vae(work), bank, folder / "latents.npy")


def measure_spread(work: Path, bank: Bank, device: torch.device | None = None) -> None:
    """Write the latents' mean and spread over the bank, unless they lie there."""
    path = work / "latents" / "spread.json"
    if not path.exists():
        path.write_text(json.dumps(spread(trained_vae(work / "runs").to(device or "cpu"), bank)))


def weighed(found: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """The mean squared error of the noise found, weighed by min-SNR; `alpha [b, 1, 1, 1]` of each row's time."""
    snr = alpha.flatten() / (1 - alpha.flatten())
    weight = snr.clamp(max=GAMMA) / snr
    loss: Tensor = (weight * (found.float() - noise).square().mean((1, 2, 3))).mean()
    return loss


class UNetTask:
    """Noise prediction on the bank's latents, with captions dropped and min-SNR weights."""

    name = "unet"

    def __init__(self, work: Path, size: int = 32, judge: Any = None, **shape: Any) -> None:
        self.size, self.judge, self.shape = size, judge, shape
        self.latents = np.load(work / "latents" / "latents.npy", mmap_mode="r")
        self.ids = np.load(work / "latents" / "ids.npy")
        tokenizer = build_tokenizer()
        self.empty = token_ids(tokenizer, [""])
        self.text = trained_clip(work / "runs", tokenizer).text_model.eval().requires_grad_(False)
        self.alphas = new_scheduler().alphas_cumprod

    def model(self) -> nn.Module:
        """The untrained UNet, in channels-last layout (2.5 times as fast)."""
        torch.manual_seed(SEED)
        model: nn.Module = channels_last(new_unet(self.text.config.hidden_size, **self.shape))
        return model

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """The weighted squared error of the whole batch of `step`."""
        return self.part_loss(model, step, 0, 1)

    def part_loss(self, model: nn.Module, step: int, part: int, parts: int) -> Tensor:
        """The same over every `parts`-th row from `part`: the mean over parts is the loss."""
        clean, ids, times, noise = (x[part::parts] for x in self.draw(step))
        with torch.no_grad():
            states = self.text(input_ids=ids).last_hidden_state
        alpha = self.alphas[times].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        return weighed(model(noisy, times, states).sample, noise, alpha)

    def draw(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A step's latents `[b, 8, 16, 16]`, ids `[b, 26]`, times `[b]` (spread evenly) and noise."""
        rng = step_generator(SEED, step)
        rows = rng.integers(0, len(self.latents), self.size)
        clean = torch.from_numpy(self.latents[rows].astype(np.float32))
        ids = torch.from_numpy(self.ids[rows].astype(np.int64))
        dropped = torch.from_numpy(rng.random(self.size) < DROPPED)
        ids = torch.where(dropped[:, None], self.empty, ids)
        spread = (rng.permutation(self.size) + rng.random(self.size)) / self.size
        times = torch.from_numpy((spread * STEPS_OF_NOISE).astype(np.int64))
        noise = torch.randn(clean.shape, generator=noise_generator(rng))
        return clean, ids, times, noise

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        """The judge's figures for the averaged UNet."""
        return dict(self.judge(model, step)) if self.judge else {}
