"""Putting the trained parts together: a diffusers pipeline, and its files in float16."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .adopt import keep_logs
from .clip import best_clip
from .judge import Judge, Prompt, border_colour, pair_prompts, single_prompts
from .loop import channels_last
from .tokenizer import build_tokenizer
from .unet import new_scheduler, new_unet
from .vae import best_vae


def text_encoder(clip: Any) -> Any:
    """The CLIP's text tower as the pipeline's `CLIPTextModel`: the same weights."""
    from transformers import CLIPTextModel

    model = CLIPTextModel(clip.config.text_config)
    model.load_state_dict(clip.text_model.state_dict())
    return model.eval()


def pipeline(work: Path, unet: Any) -> Any:
    """A `StableDiffusionPipeline` of the work folder's autoencoder and text tower, and `unet`."""
    from diffusers import StableDiffusionPipeline

    tokenizer = build_tokenizer()
    pipe: Any = StableDiffusionPipeline(
        vae=best_vae(work),
        text_encoder=text_encoder(best_clip(work / "runs", tokenizer)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(unet.device)


def trained_unet(runs: Path, width: int = 128, **shape: Any) -> Any:
    """The averaged UNet of the run's checkpoint, in channels-last layout."""
    unet = new_unet(width, **shape)
    state = torch.load(runs / "unet.pt", weights_only=True)["average"]
    unet.load_state_dict(state)
    return channels_last(unet.eval().requires_grad_(False))


def draw(
    pipe: Any, prompts: Sequence[str], seed: int = 0, steps: int = 30, guidance: float = 4.0, size: int | None = None
) -> NDArray[np.uint8]:
    """Pictures `[n, 64, 64, 3]` of `prompts`, `size` at once; picture i starts from noise seeded `seed + i`."""
    made, size = [], size or (20 if pipe.device.type == "cpu" else 150)
    for start in range(0, len(prompts), size):
        texts = list(prompts[start : start + size])
        seeds = [torch.Generator().manual_seed(seed + start + i) for i in range(len(texts))]
        with torch.no_grad():
            out = pipe(
                texts,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=seeds,
                output_type="np",
            )
        made.append((out.images * 255).round().astype(np.uint8))
    return np.concatenate(made)


def figures(
    pipe: Any, judge: Judge, singles: Sequence[Prompt], pairs: Sequence[Prompt], seed: int = 0
) -> tuple[dict[str, float], NDArray[np.uint8]]:
    """Shares of prompts obeyed (subject, ground colour, both of a pair), and all the pictures."""
    made = draw(pipe, [p.text for p in (*singles, *pairs)], seed)
    one, two = made[: len(singles)], made[len(singles) :]
    named = judge.named(one, [p.subjects[0] for p in singles])
    colour = [border_colour(picture) == p.colour for picture, p in zip(one, singles, strict=True)]
    found = {"subject": named.mean(), "ground": np.mean(colour)}
    if len(pairs):
        found["pair"] = judge.both_named(two, [p.subjects for p in pairs]).mean()
    return {key: round(float(value), 4) for key, value in found.items()}, made


class Watch:
    """What the UNet's stage measures as it trains: a small benchmark, and a sheet of its pictures."""

    def __init__(self, work: Path, singles: int = 60, pairs: int = 20) -> None:
        self.work = work
        self.judge = Judge(best_clip(work / "runs", build_tokenizer()), build_tokenizer())
        self.singles, self.pairs = single_prompts(singles, seed=9), pair_prompts(pairs, seed=9)

    def __call__(self, unet: Any, step: int) -> dict[str, float]:
        """Figures of `unet`; its pictures go to `runs/sheet-<step>.png`."""
        found, made = figures(pipeline(self.work, unet), self.judge, self.singles, self.pairs)
        sheet(made).save(self.work / "runs" / f"sheet-{step:06d}.png")
        return found


def sheet(pictures: NDArray[np.uint8], across: int = 10, zoom: int = 2) -> Any:
    """Pictures `[n, 64, 64, 3]` side by side, `across` in a row, as one image."""
    from PIL import Image

    blank = np.full((-len(pictures) % across, *pictures.shape[1:]), 255, np.uint8)
    rows = np.concatenate([pictures, blank])
    n, high, wide, _ = rows.shape
    grid = rows.reshape(n // across, across, high, wide, 3).swapaxes(1, 2)
    whole = Image.fromarray(grid.reshape(n // across * high, across * wide, 3))
    return whole.resize((whole.width * zoom, whole.height * zoom), Image.Resampling.NEAREST)


def save_halved(model: Any, folder: Path) -> None:
    """Write a model's weights in float16, leaving the model as it is.

    transformers' configurations say float32, so that a pipeline is loaded in one dtype.
    """
    import copy

    copy.deepcopy(model).half().save_pretrained(str(folder))
    path = folder / "config.json"
    config = json.loads(path.read_bytes())
    if "dtype" in config:
        path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")


def export(work: Path, out: Path) -> Any:
    """Write the whole base to `out`: the pipeline's layout, the whole CLIP in `out/clip`, and the stages' logs."""
    from transformers import CLIPImageProcessorPil

    pipe = pipeline(work, trained_unet(work / "runs"))
    pipe.save_pretrained(str(out))
    for name in ("vae", "text_encoder", "unet"):
        save_halved(getattr(pipe, name), out / name)
    tokenizer = pipe.tokenizer
    save_halved(best_clip(work / "runs", tokenizer), out / "clip")
    tokenizer.save_pretrained(str(out / "clip"))
    half = [0.5, 0.5, 0.5]
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=half, image_std=half
    )
    images.save_pretrained(str(out / "clip"))
    keep_logs(work / "runs", out)
    return pipe
