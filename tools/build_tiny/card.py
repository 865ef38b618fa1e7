"""The model card of the embedded base, filled in from the recipe, the logs and the benchmark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import bank, clip, device, unet, vae
from .fetch import VERSION
from .grounds import COLOURS, PATTERNS, PLACES
from .plan import RARE
from .subjects import HELD_OUT, TRAINED

SAMPLES = (
    "a photo of a dog",
    "a photo of a glossy panda on a blue background",
    "a photo of a flat cat face on an orange background",
    "a picture of a glossy rocket at night",
    "a picture of a flat turtle on the beach",
    "a glossy pumpkin on a black background",
    "a flat castle on the grass",
    "a glossy strawberry on a white background",
    "a flat tractor on a yellow background",
    "a glossy sunflower on a purple background",
    "a flat koala on a red and white striped background",
    "a glossy guitar on a pink background",
    "a flat penguin in the snow",
    "a glossy donut on a green background",
    "a flat sailboat at sunset",
    "a glossy dog on the left and a glossy cat on the right on a blue background",
    "a flat panda sitting beside a flat building on a green background",
    "a glossy moon above a glossy tree on a black background",
    "a flat apple next to a flat banana on a white background",
    "a glossy car on the left and a glossy bus on the right on a gray background",
)
"""The prompts of the card's sheet, each drawn once with its own number as the seed: none is picked out."""

RATE, RATE_1D = 2e-2, 4e-3
"""Learning rates of SVDiff on this base, of singular values and of norm weights: what `svdiff train` takes.

Searched with λ = 1 on the report's two subjects of search: the text below says what was found.
"""

FAMILIAR = 25.5
"""Decibels that the autoencoder reaches on pictures of this base's world, if half of a run's pictures do.

Measured at 64 pixels: of 1,000 unseen scenes 98 % come back better than this; of 12 folders of held-out pictures the
worst picture does (25.9 dB, a pagoda). Of 4 folders of photographs, toys on plain grounds among them, half of the
pictures or more come back worse (medians 23.2 to 25.2 dB), though a blurred ground may lift single ones to 32.
"""

_TEMPLATE = """\
---
library_name: diffusers
pipeline_tag: text-to-image
license: other
license_name: apache-2.0-and-cc-by-4.0
tags: [stable-diffusion, text-to-image, tiny, svdiff]
svdiff:
  learning_rate: {rate:g}
  learning_rate_1d: {rate_1d:g}
  familiar_db: {familiar:g}
---

# tiny: a Stable Diffusion of {millions} million weights

A text-to-image pipeline with the parts of Stable Diffusion 1.5 (CLIP text encoder, AutoencoderKL, UNet with
cross-attention at every resolution, DDIM with the same noise schedule), small enough to ship inside a Python package
and to be trained and used on two CPU cores. It draws pictures of 64 by 64 pixels: one or two of {trained} emoji
subjects, glossy or flat, on coloured grounds. It exists so that everything this project claims can be checked offline.

```python
from diffusers import StableDiffusionPipeline
from svdiff_train.tiny import base_path

pipe = StableDiffusionPipeline.from_pretrained(base_path())
pipe("a photo of a glossy panda on a blue background", guidance_scale=4, num_inference_steps=30).images[0]
```

![samples](samples.png)

`clip/` holds the whole CLIP (text and image tower), for evaluation only: the pipeline does not read it.

## What it knows
- Subjects: {subjects}.
- Styles: "glossy", "flat". Grounds: {colours}, plain ("on a red background"), in halves ("on a red and blue
  background"), {patterns} ("on a red and blue striped background"), or {places}.
- Place: "on the left", "on the right", "at the top", "at the bottom", "in the middle"; two subjects: "a dog on the left
  and a cat on the right", "a dog beside a building", "a dog above a cat"; animals may be "sitting".
- Rare words, one token each, for personalization: {rare}.
- Held out, never shown and never named in training, for personalization to learn: {held}.

## Figures
{figures}

Measured by `benchmarks/tiny_base.py`: DDIM, 30 steps, guidance 4; a subject counts as right when the CLIP names it
among 100. The UNet as it learned (60 single prompts and 20 pairs, averaged weights; small samples, so expect
a few points of chance):

{curve}

## How it was made
`python -m tools.build_tiny.together --work WORK --out OUT` makes it again on one GPU, from the two packages to this
folder: all stages side by side, by the clock. `python -m tools.build_tiny.build --work WORK --out OUT` does the same
on two CPU cores, one stage after the other, by counted steps, in about a day.

- Data: the pictures of `emoji-datasource-google` and `emoji-datasource-twitter` {version}, only entries that both
  vendors draw. Scenes are composed from numbered random draws: {train_scenes} for the autoencoder and the CLIP,
  {calm_scenes} for the UNet (in half of those the subjects stand straight), {unseen_scenes} unseen ones to measure.
- CLIP (seed {clip_seed}): contrast with captions, plus naming the subject among all, of whole scenes and of crops,
  plus telling each token from its state (weight {told:g}).
- Autoencoder (seed {vae_seed}): 64x64x3 to 16x16x{latents}; absolute and squared error, absolute error of edges,
  divergence weight {kl:g}.{after}
- UNet (seed {unet_seed}): noise prediction on latents encoded once, batches of {batch}, min-SNR weights (gamma
  {gamma:g}), {dropped:.0%} of the captions dropped, AdamW, constant rate with a warm-up and a final decline, averaged
  weights.
- Cost: {sum_hours} of training on one GPU, parts of it side by side
  ({hours}).

What changed against the first embedded base, trained on two CPU cores in 4.4 hours (subject 0.79, pairs 0.07):

- Latents have {latents} channels for 4, and the autoencoder is wider; errors of edges count in its loss.
- The UNet's levels are {widths} wide for 64, 112, 160: more of its weights work where pictures are large.
- Each rare word tints the subject after it with a colour of its own. Before, rare words changed nothing, so that both
  the text encoder and the UNet learned to ignore them, and prior preservation kept a subject from being learned.
- A loss of its own keeps the states of tokens apart: no word may be forgotten before the UNet reads it.
- The UNet saw three times as many scenes, and {rows:.1f} million rows of batches for 0.24 million.

## Training on it
`svdiff train` takes the learning rates that stand at the head of this card, where none are given, and says so. They
were searched with λ = 1, 200 steps, batches of 2 and 16 pictures of the class, on held-out subjects that no demo shows:

```sh
svdiff train tiny pictures --prompt 'a photo of a sks dog' --class-prompt 'a photo of a dog' \\
    --steps 200 --batch-size 2 --class-images 16 -o dog.safetensors
```

At 0.02, 8 of 8 pictures of a banjo and 6 of 8 of a guide dog are nearer to the subject than to the base's own guitars
and dogs; at 0.01, 6 of 8 of the banjo. In all three runs none of 8 pictures of the class is nearer to the subject.

It also says so where pictures are unlike all that the base has seen: where the autoencoder brings half of them or more
back at less than {familiar:g} dB.

## Limits
It knows no other subject, style or word, and nothing of the world. Pictures are small; the autoencoder keeps a sixth of
the numbers. Pairs fail more often than single subjects. The rare words have an effect of their own, as `sks` has in
Stable Diffusion 1.5: each tints the subject after it with a colour of its own, so that the text encoder tells them
apart and the UNet listens to them. It shows no people and was trained on no photograph. Do not judge methods by its
beauty: judge them by whether they work on it.

## Licences
The weights were trained on Noto Emoji (copyright Google, Apache-2.0) and Twemoji (copyright Twitter, Inc. and other
contributors, graphics licensed CC-BY 4.0: https://creativecommons.org/licenses/by/4.0/), changed by composing, scaling
and turning them. The recipe is Apache-2.0. Use of the weights: Apache-2.0 AND CC-BY-4.0, with this attribution.
"""


_SHARES = ("subject", "ground", "pair")


def hours(runs: Path) -> dict[str, float]:
    """Stage to the hours that its log counts."""
    return {path.stem: rows(path)[-1]["hours"] for path in sorted(runs.glob("*.jsonl"))}


def rows(log: Path) -> list[dict[str, Any]]:
    """The lines of a stage's log."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def curve(log: Path, lines: int = 12) -> str:
    """The UNet's measurements as a Markdown table, at most about `lines` of them, the last included."""
    found = [row for row in rows(log) if "subject" in row]
    stride = max(1, -(-len(found) // lines))
    kept = found[::-1][::stride][::-1]
    head = ["| steps | minutes | subject | ground | pair |", "| ---: | ---: | ---: | ---: | ---: |"]
    body = [
        f"| {row['step']:,} | {row['hours'] * 60:.1f} | " + " | ".join(f"{row[key]:.2f}" for key in _SHARES) + " |"
        for row in kept
    ]
    return "\n".join(head + body)


def table(figures: Mapping[str, float], must: Mapping[str, Sequence[Any]]) -> str:
    """The benchmark's figures beside their bounds, `must[name] = (bound, ">=" or "<=")`, as Markdown."""
    lines = ["| figure | measured | must be | reached |", "| --- | ---: | ---: | --- |"]
    for name, (bound, sign) in must.items():
        value = figures[name]
        right = value >= bound if sign == ">=" else value <= bound
        lines.append(f"| {name} | {value:.3f} | {sign} {bound:g} | {'yes' if right else 'no'} |")
    return "\n".join(lines)


def write_card(out: Path, runs: Path, measured: Path | None, weights: int) -> None:
    """Write `out/README.md`; `measured` is the benchmark's JSON, if it has run."""
    figures = "Not measured yet."
    if measured is not None:
        found = json.loads(measured.read_bytes())
        figures = table(found["figures"], found["must"])
    (out / "README.md").write_text(render(runs, figures, weights))


def _trained_on(runs: Path) -> str:
    """What was trained on after the autoencoder and the CLIP, as their logs say."""
    parts = {"decoder": "the decoder alone", "clip_image": "the CLIP's image tower alone"}
    found = [what for stage, what in parts.items() if (runs / f"{stage}.jsonl").exists()]
    return f" Afterwards\n  {' and '.join(found)} went on training." if found else ""


def render(runs: Path, figures: str, weights: int) -> str:
    """The card: `figures` is the benchmark's table, `weights` the number of weights of all parts."""
    spent = ", ".join(f"{name} {value * 60:.1f} min" for name, value in hours(runs).items())
    return _TEMPLATE.format(
        millions=f"{weights / 1e6:.1f}",
        figures=figures,
        curve=curve(runs / "unet.jsonl"),
        hours=spent,
        rows=rows(runs / "unet.jsonl")[-1]["step"] * device.BATCH / 1e6,
        sum_hours=f"{sum(hours(runs).values()) * 60:.1f} min",
        after=_trained_on(runs),
        **_facts(),
    )


def _facts() -> Mapping[str, Any]:
    return {
        "trained": len(TRAINED),
        "subjects": ", ".join(s.name for s in TRAINED),
        "held": ", ".join(f"{s.name} (a {s.noun})" for s in HELD_OUT),
        "colours": ", ".join(COLOURS),
        "patterns": ", ".join(PATTERNS),
        "places": ", ".join(f'"{place}"' for place in PLACES),
        "rare": ", ".join(RARE).replace("v", "V", 16),
        "version": VERSION,
        "train_scenes": f"{bank.TRAIN_SCENES:,}",
        "calm_scenes": f"{bank.CALM_SCENES:,}",
        "unseen_scenes": f"{bank.UNSEEN_SCENES:,}",
        "clip_seed": clip.SEED,
        "vae_seed": vae.SEED,
        "unet_seed": unet.SEED,
        "rate": RATE,
        "rate_1d": RATE_1D,
        "familiar": FAMILIAR,
        "told": clip.TOLD_WEIGHT,
        "widths": ", ".join(str(width) for width in unet.SHAPE["block_out_channels"]),
        "kl": vae.KL_WEIGHT,
        "latents": vae.LATENTS,
        "batch": device.BATCH,
        "gamma": unet.GAMMA,
        "dropped": unet.DROPPED,
    }
