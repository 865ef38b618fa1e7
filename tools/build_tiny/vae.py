"""The autoencoder's stage: 64 by 64 pixels to a 16 by 16 grid of 8 numbers, and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .bank import Bank
from .loop import channels_last, noise_generator, step_generator
from .scenes import batch

SEED = 11
LATENTS = 8
"""Numbers for each spot of the latents' grid: a sixth of the pixels' numbers in all."""
KL_WEIGHT = 5e-4
"""Weight of the latents' mean divergence from a normal, beside the mean error per pixel."""

EDGE_WEIGHT = 0.5
"""Weight of the errors of the differences between neighbouring pixels, across and down: sharp edges."""


def new_vae(channels: tuple[int, ...] = (32, 64, 64)) -> Any:
    """An untrained `AutoencoderKL`: three levels, factor 4, 8 latent channels, no attention."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


class Reconstruct(nn.Module):
    """The autoencoder as one function: pictures and noise to pictures and the divergence."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """`pictures [b, 3, 64, 64]`, `noise [b, 8, 16, 16]` to the same shape and a number."""
        vae: Any = self.vae
        mean, log_var = vae.quant_conv(vae.encoder(pictures)).chunk(2, dim=1)
        log_var = log_var.clamp(-20, 10)
        latents = mean + (0.5 * log_var).exp() * noise
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
        return vae.decoder(vae.post_quant_conv(latents)), kl


def pixel_loss(made: Tensor, pictures: Tensor) -> Tensor:
    """Mean absolute and squared error of the pixels, and mean absolute error of their differences: edges."""
    loss: Tensor = F.l1_loss(made, pictures) + F.mse_loss(made, pictures)
    for axis in (2, 3):
        loss = loss + EDGE_WEIGHT * F.l1_loss(made.diff(dim=axis), pictures.diff(dim=axis))
    return loss


class VaeTask:
    """Train the autoencoder on the bank: mean absolute and squared error, and a little divergence."""

    name = "vae"

    def __init__(self, train: Bank, unseen: Bank, size: int = 16, **shape: Any) -> None:
        self.train, self.unseen, self.size, self.shape = train, unseen, size, shape

    def model(self) -> nn.Module:
        """The autoencoder within `Reconstruct`, in channels-last layout."""
        torch.manual_seed(SEED)
        model: nn.Module = channels_last(Reconstruct(new_vae(**self.shape)))
        return model

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """Errors of one batch of scenes drawn by `step`."""
        rng = step_generator(SEED, step)
        rows = np.sort(rng.choice(len(self.train), self.size, replace=False))
        pictures = _tensor(self.train.pictures[rows])
        noise = torch.randn(self.size, LATENTS, 16, 16, generator=noise_generator(rng))
        made, kl = model(pictures, noise)
        loss: Tensor = pixel_loss(made, pictures) + KL_WEIGHT * kl
        return loss

    @torch.no_grad()
    def measure(self, model: nn.Module, step: int) -> dict[str, float]:  # noqa: ARG002
        """Mean PSNR in decibels on 256 unseen scenes."""
        found = psnr(model.vae, self.unseen.pictures[:256])
        return {"psnr": round(float(found.mean()), 3)}


def _tensor(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(batch(pictures)).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def psnr(vae: Any, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in decibels of each picture `[n, 64, 64, 3]`, there and back."""
    found = []
    for start in range(0, len(pictures), 32):
        given = _tensor(pictures[start : start + 32]).to(vae.device)
        made = vae.decode(vae.encode(given).latent_dist.mode()).sample.clamp(-1, 1)
        error = ((made - given) / 2).square().mean((1, 2, 3))
        found.append((-10 * error.log10()).double().cpu().numpy())
    return np.concatenate(found)


def encode_bank(vae: Any, bank: Bank, path: Path) -> None:
    """Write the bank's latents `[n, 8, 16, 16]` as float16."""
    part = path.with_suffix(".part.npy")
    out = np.lib.format.open_memmap(part, "w+", np.float16, (len(bank), LATENTS, 16, 16))
    for start in range(0, len(bank), 512):
        rows = slice(start, start + 512)
        out[rows] = _means(vae, bank.pictures[rows]).numpy()
    out.flush()
    part.replace(path)


def spread(vae: Any, bank: Bank, count: int = 4096) -> dict[str, list[float]]:
    """Each latent channel's mean and standard deviation over the bank's first `count` scenes."""
    latents = _means(vae, bank.pictures[:count])
    return {"mean": latents.mean((0, 2, 3)).tolist(), "std": latents.std((0, 2, 3)).tolist()}


@torch.no_grad()
def standardize(vae: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """Make every latent channel's mean 0 and spread 1, by folding both into the 1 by 1 filters."""
    m, s = (torch.tensor(numbers, dtype=torch.float32, device=vae.device) for numbers in (mean, std))
    into, back = vae.quant_conv, vae.post_quant_conv
    both = torch.cat([s, torch.ones_like(s)])
    into.weight.div_(both.view(-1, 1, 1, 1))
    into.bias.sub_(torch.cat([m, 2 * s.log()])).div_(both)
    back.bias.add_(back.weight[:, :, 0, 0] @ m)
    back.weight.mul_(s.view(1, -1, 1, 1))
    vae.register_to_config(scaling_factor=1.0)
    return vae


@torch.no_grad()
def _means(vae: Any, pictures: NDArray[np.uint8]) -> Tensor:
    parts = [
        vae.encode(_tensor(pictures[i : i + 64]).to(vae.device)).latent_dist.mode() for i in range(0, len(pictures), 64)
    ]
    return torch.cat(parts).cpu()


class DecoderTask(VaeTask):
    """Train the decoder on, the encoder and so all latents staying as they are."""

    name = "decoder"

    def __init__(self, train: Bank, unseen: Bank, runs: Path, size: int = 16, **shape: Any) -> None:
        super().__init__(train, unseen, size, **shape)
        self.runs = runs

    def model(self) -> nn.Module:
        """The trained autoencoder, only its decoder open to change."""
        vae = trained_vae(self.runs, **self.shape)
        for part in (vae.decoder, vae.post_quant_conv):
            part.requires_grad_(True)
        return Reconstruct(vae)


def trained_vae(runs: Path, name: str = "vae", **shape: Any) -> Any:
    """The averaged autoencoder of the checkpoint `name`, frozen, in channels-last layout."""
    model = Reconstruct(new_vae(**shape))
    model.load_state_dict(torch.load(runs / f"{name}.pt", weights_only=True)["average"])
    return channels_last(model.vae.eval().requires_grad_(False))


def best_vae(work: Path, **shape: Any) -> Any:
    """The autoencoder with standardized latents, and with the decoder that was trained on, if there is one."""
    name = "decoder" if (work / "runs" / "decoder.pt").exists() else "vae"
    numbers = json.loads((work / "latents" / "spread.json").read_bytes())
    return standardize(trained_vae(work / "runs", name, **shape), **numbers)
