"""The CLIP's stage: a text tower (the pipeline's text encoder) and an image tower, contrasted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdiff_train.evaluate.article import article

from .bank import Bank
from .grounds import SIDE
from .loop import noise_generator, step_generator
from .scenes import batch
from .subjects import TRAINED
from .tokenizer import LENGTH, token_ids

SEED = 21
CROP = 36
"""Side in pixels of the square that is cut around one of two subjects."""
TOLD_WEIGHT = 0.1
"""Weight of telling each caption's tokens from their states."""


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
    return text_states(clip, ids[:, : int((ids != end).sum(1).max()) + 1])[0]


def text_states(clip: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors `[n, width]` of token ids, and the states `[n, tokens, width]` that the UNet is given."""
    found = clip.text_model(input_ids=ids)
    return F.normalize(clip.text_projection(found.pooler_output), dim=-1), found.last_hidden_state


def told_apart(clip: Any, states: Tensor, ids: Tensor) -> Tensor:
    """How badly each state tells which token stands there, among all: no word, however rare, may be forgotten."""
    words = clip.text_model.get_input_embeddings().weight
    return F.cross_entropy((states.float() @ words.T).flatten(0, 1), ids.flatten())


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


def contrasted(logit_scale: Tensor, seen: Tensor, told: Tensor, ids: Tensor, named: Tensor) -> Tensor:
    """Contrast of the first scenes `seen` with captions `told`, and naming of all among the names after those.

    `ids [n, 26]` are the captions' tokens, `named` each picture's subject, or -100 where it has several.
    """
    size, scale = len(ids), logit_scale.exp().clamp(max=100)
    match = scale * seen[:size] @ told[:size].T
    target = _soft_target(ids)
    contrast = (F.cross_entropy(match, target) + F.cross_entropy(match.T, target)) / 2
    return contrast + F.cross_entropy(scale * seen @ told[size:].T, named)


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
        told, states = text_states(clip, torch.cat([self.ids[rows], self.names]))
        layout = self.train.layout[rows]
        alone = torch.from_numpy(layout[:, 1, 0] < 0)
        numbers = torch.from_numpy(layout[:, 0, 0].astype(np.int64))
        named = torch.cat([torch.where(alone, numbers, -100), named_cut])
        loss = contrasted(clip.logit_scale, seen, told, self.ids[rows], named)
        return loss + TOLD_WEIGHT * told_apart(clip, states[: self.size], self.ids[rows])

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
        return named_rightly(model, self.unseen, self.names)


@torch.no_grad()
def named_rightly(clip: Any, unseen: Bank, names: Tensor) -> dict[str, float]:
    """Shares of unseen scenes whose subject is named rightly: alone, and in a crop of a pair."""
    alone = np.flatnonzero(unseen.layout[:, 1, 0] < 0)[:512]
    pairs = np.flatnonzero(unseen.layout[:, 1, 0] >= 0)[:256]
    whole = torch.from_numpy(batch(unseen.pictures[alone]))
    spots = torch.from_numpy(unseen.layout[pairs, 0, 1:3])
    cut = crops(torch.from_numpy(batch(unseen.pictures[pairs])), spots, torch.full((len(pairs),), CROP))
    told = text_features(clip, names.to(clip.device))
    right = {}
    for key, pictures, rows in (("named", whole, alone), ("named_crop", cut, pairs)):
        best = (image_features(clip, pictures.to(clip.device)) @ told.T).argmax(1).cpu().numpy()
        right[key] = round(float((best == unseen.layout[rows, 0, 0]).mean()), 4)
    return right


def _soft_target(ids: Tensor) -> Tensor:
    """Equal captions of one batch share the target: `[n, n]`, rows add to 1."""
    same = (ids[:, None] == ids[None]).all(-1).float()
    return same / same.sum(1, keepdim=True)


def _roughened(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur a third of the pictures, add noise, vary contrast: a made picture is never as clean."""
    n = len(pictures)
    drawn = (rng.uniform(0, 1, n) * (rng.random(n) < 0.35), rng.uniform(0, 0.08, n), rng.uniform(0.9, 1.1, n))
    share, level, gain = (torch.from_numpy(numbers).float() for numbers in drawn)
    noise = torch.randn(pictures.shape, generator=noise_generator(rng))
    return roughened(pictures, share, level, gain, noise)


def roughened(pictures: Tensor, share: Tensor, level: Tensor, gain: Tensor, noise: Tensor) -> Tensor:
    """Pictures blurred by `share [n]`, with contrast times `gain [n]` and `noise` times `level [n]`."""
    share, level, gain = (numbers.view(-1, 1, 1, 1) for numbers in (share, level, gain))
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), "replicate"), 3, 1)
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
