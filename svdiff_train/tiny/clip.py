"""The CLIP's stage: a text tower (the pipeline's text encoder) and an image tower, contrasted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdiff_train.tiny.bank import Bank
from svdiff_train.tiny.grounds import SIDE
from svdiff_train.tiny.loop import noise_generator, step_generator
from svdiff_train.tiny.scenes import batch
from svdiff_train.tiny.subjects import TRAINED, article
from svdiff_train.tiny.tokenizer import LENGTH, token_ids

SEED = 21
CROP = 36
"""Side in pixels of the square that is cut around one of two subjects."""


def name_prompts() -> list[str]:
    """The texts that a picture's subject is named by, in the order of `TRAINED`."""
    return ["a photo of " + article(s.name, s.name) for s in TRAINED]


def new_clip(tokenizer: Any, width: int = 128, text_layers: int = 3, image_layers: int = 4) -> Any:
    """An untrained `CLIPModel`: patches of 8 pixels, captions of 26 tokens."""
    from transformers import CLIPConfig, CLIPModel

    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = shape | special | {"num_hidden_layers": text_layers, "vocab_size": len(tokenizer)}
    text |= {"max_position_embeddings": LENGTH, "projection_dim": width}
    vision = shape | {"num_hidden_layers": image_layers, "image_size": SIDE, "patch_size": 8}
    vision |= {"projection_dim": width}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))


def text_features(clip: Any, ids: Tensor) -> Tensor:
    """Unit vectors `[n, width]` of captions' token ids `[n, 26]`; the common padding is not computed."""
    end = clip.config.text_config.eos_token_id
    ids = ids[:, : int((ids != end).sum(1).max()) + 1]
    pooled = clip.text_model(input_ids=ids).pooler_output
    return F.normalize(clip.text_projection(pooled), dim=-1)


def image_features(clip: Any, pictures: Tensor) -> Tensor:
    """Unit vectors `[n, width]` of pictures `[n, 3, 64, 64]` of -1 to 1."""
    pooled = clip.vision_model(pixel_values=pictures).pooler_output
    return F.normalize(clip.visual_projection(pooled), dim=-1)


def crops(pictures: Tensor, centres: Tensor, sides: Tensor) -> Tensor:
    """Squares cut around `centres [n, 2]` (x, y) with `sides [n]`, in pixels, made 64 by 64."""
    scale = (sides / SIDE).float()
    shift = (centres.float() / SIDE) * 2 - 1
    zero = torch.zeros_like(scale)
    rows = [torch.stack([scale, zero, shift[:, 0]], 1), torch.stack([zero, scale, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, "bilinear", "border", align_corners=False)


class ClipTask:
    """Contrast scenes with captions; name single subjects, and each of two in a crop, among all."""

    name = "clip"

    def __init__(self, train: Bank, unseen: Bank, tokenizer: Any, size: int = 96, cut: int = 48, **shape: int) -> None:
        self.train, self.unseen, self.tokenizer = train, unseen, tokenizer
        self.size, self.cut, self.shape = size, cut, shape
        self.ids = token_ids(tokenizer, train.captions)
        self.names = token_ids(tokenizer, name_prompts())
        self.pairs = np.flatnonzero(train.layout[:, 1, 0] >= 0)

    def model(self) -> nn.Module:
        """The untrained CLIP."""
        torch.manual_seed(SEED)
        model: nn.Module = new_clip(self.tokenizer, **self.shape)
        return model

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """Caption contrast of `size` scenes plus naming of single scenes and of `cut` crops."""
        clip: Any = model
        rng = step_generator(SEED, step)
        rows = np.sort(rng.integers(0, len(self.train), self.size))
        whole = torch.from_numpy(batch(self.train.pictures[rows]))
        cut, named_cut = self._cut(rng)
        seen = image_features(clip, _roughened(torch.cat([whole, cut]), rng))
        told = text_features(clip, torch.cat([self.ids[rows], self.names]))
        scale = clip.logit_scale.exp().clamp(max=100)
        match = scale * seen[: self.size] @ told[: self.size].T
        target = _soft_target(self.ids[rows])
        contrast = (F.cross_entropy(match, target) + F.cross_entropy(match.T, target)) / 2
        layout = self.train.layout[rows]
        alone = torch.from_numpy(layout[:, 1, 0] < 0)
        numbers = torch.from_numpy(layout[:, 0, 0].astype(np.int64))
        named = torch.cat([torch.where(alone, numbers, -100), named_cut])
        return contrast + F.cross_entropy(scale * seen @ told[self.size :].T, named)

    def _cut(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        rows = np.sort(rng.choice(self.pairs, self.cut))
        which = rng.integers(0, 2, self.cut)
        number, x, y, _ = self.train.layout[rows, which].T.astype(np.int64)
        centres = np.stack([x, y], 1) + rng.uniform(-5, 5, (self.cut, 2))
        sides = torch.from_numpy(rng.uniform(32, 40, self.cut))
        pictures = torch.from_numpy(batch(self.train.pictures[rows]))
        return crops(pictures, torch.from_numpy(centres), sides), torch.from_numpy(number)

    @torch.no_grad()
    def measure(self, model: nn.Module, step: int) -> dict[str, float]:  # noqa: ARG002
        """Shares of unseen scenes whose subject is named rightly: alone, and in a crop of a pair."""
        alone = np.flatnonzero(self.unseen.layout[:, 1, 0] < 0)[:512]
        pairs = np.flatnonzero(self.unseen.layout[:, 1, 0] >= 0)[:256]
        whole = torch.from_numpy(batch(self.unseen.pictures[alone]))
        spots = torch.from_numpy(self.unseen.layout[pairs, 0, 1:3])
        cut = crops(torch.from_numpy(batch(self.unseen.pictures[pairs])), spots, torch.full((len(pairs),), CROP))
        names = text_features(model, self.names)
        right = {}
        for key, pictures, rows in (("named", whole, alone), ("named_crop", cut, pairs)):
            best = (image_features(model, pictures) @ names.T).argmax(1).numpy()
            right[key] = round(float((best == self.unseen.layout[rows, 0, 0]).mean()), 4)
        return right


def _soft_target(ids: Tensor) -> Tensor:
    """Equal captions of one batch share the target: `[n, n]`, rows add to 1."""
    same = (ids[:, None] == ids[None]).all(-1).float()
    return same / same.sum(1, keepdim=True)


def _roughened(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur a third of the pictures, add noise, vary contrast: a made picture is never as clean."""
    n = len(pictures)
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), "replicate"), 3, 1)
    share = torch.from_numpy(rng.uniform(0, 1, n) * (rng.random(n) < 0.35)).float().view(-1, 1, 1, 1)
    level = torch.from_numpy(rng.uniform(0, 0.08, n)).float().view(-1, 1, 1, 1)
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, n)).float().view(-1, 1, 1, 1)
    noise = torch.randn(pictures.shape, generator=noise_generator(rng))
    return (pictures + share * (blurred - pictures)) * gain + level * noise


class ClipImageTask(ClipTask):
    """Train the image tower on, the text tower and so the pipeline's conditioning staying as they are."""

    name = "clip_image"

    def __init__(self, train: Bank, unseen: Bank, tokenizer: Any, runs: Path, **shape: Any) -> None:
        super().__init__(train, unseen, tokenizer, **shape)
        self.runs = runs

    def model(self) -> nn.Module:
        """The trained CLIP, only its image tower open to change."""
        shape: Any = self.shape
        model = trained_clip(self.runs, self.tokenizer, **shape)
        for part in (model.vision_model, model.visual_projection):
            part.requires_grad_(True)
        frozen: nn.Module = model
        return frozen


def trained_clip(runs: Path, tokenizer: Any, name: str = "clip", **shape: Any) -> Any:
    """The averaged CLIP of the checkpoint `name`, frozen."""
    model = new_clip(tokenizer, **shape)
    model.load_state_dict(torch.load(runs / f"{name}.pt", weights_only=True)["average"])
    return model.eval().requires_grad_(False)


def best_clip(runs: Path, tokenizer: Any, **shape: Any) -> Any:
    """The CLIP with the image tower that was trained on, if there is one."""
    return trained_clip(runs, tokenizer, "clip_image" if (runs / "clip_image.pt").exists() else "clip", **shape)
