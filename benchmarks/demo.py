"""What the demo's subjects are learned to: how often they appear, alone and in the sum, and what their class becomes.

    python benchmarks/demo.py [--work FOLDER] [--seeds 20] [--words V1 V2] [--share 0.8] [--rate R] [--prior 1 0]
        [--threads 1] [--json FILE]

First the detector is tried on the reference pictures: each is compared with the mean of every held-out subject's
pictures, its own subject's without itself, by the embedded base's CLIP, and the confusion matrix is printed. If it
cannot tell the demo's subjects from the others, the script says so and judges nothing.

Then both subjects are learned as the demo learns them (λ = 1), and once more with λ = 0. Judged are 30 steps with
guidance 4, at the seeds that the demo's page shows and at others from 102 on:

- alone: "a photo of a V1 cat", whole pictures; right if the learned subject is the nearest of ten;
- in the sum, with the demo's weights: the demo's prompt for both. Each half is looked at through the square that the
  base's CLIP knows for one of two, and compared with reference pictures at that size. Right if both halves show one
  each, in either order;
- the class: "a photo of a cat", whole pictures; wrong if nearer to the learned subject's pictures than to the base's
  own (of that prompt, at other seeds still).

Trainings are kept in the work folder and found again by their settings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import save
from svdiff_delta.io import load
from svdiff_delta.ops.arithmetic import add
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.demo.rows import SAMPLING, SEEDS, SHARE, SUBJECTS, Subject, both_prompt
from svdiff_train.demo.run import settings
from svdiff_train.evaluate import Clip, Detector
from svdiff_train.evaluate.region import REGIONS, crop
from svdiff_train.sampling.adapter_stack import AdapterStack
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import generate
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import base_path, open_tiny, pictures_path
from svdiff_train.training.loop import train

AMONG = (
    "black_cat", "police_car", "banjo", "fire_engine", "guide_dog", "hibiscus", "pagoda", "polar_bear", "poodle",
    "white_rabbit",
)  # fmt: skip
"""Held-out subjects; the demo's are the first two."""
FIRST_OTHER, FIRST_OWN = 102, 200
"""Seeds of the other pictures, and of the base's own pictures of a class."""
ALONE, BOTH, CLASS = 0.9, 0.6, 0.1
Pictures = list[Image.Image]


def references(name: str, *, small: bool = False) -> Pictures:
    """Return a subject's pictures, or as they look in one half of a picture of two."""
    opened = [Image.open(path).convert("RGB") for path in sorted(pictures_path(name).glob("*.png"))]
    return [_in_half(picture) for picture in opened] if small else opened


def _in_half(picture: Image.Image) -> Image.Image:
    """Return a picture at half its size in the left half of one of its size, cut out as the detector does."""
    side = picture.width
    wide = Image.fromarray(np.asarray(picture)[:1, :1]).resize(picture.size)
    wide.paste(picture.resize((side // 2, side // 2), Image.Resampling.LANCZOS), (0, side // 4))
    return crop(wide, REGIONS["left"], side)


def confusion(clip: Clip, *, small: bool) -> NDArray[np.int64]:
    """Return how many reference pictures of each subject (rows) are nearest to each (columns)."""
    vectors = [np.asarray(clip.image_features(references(name, small=small)), np.float64) for name in AMONG]
    found = np.zeros((len(AMONG), len(AMONG)), np.int64)
    for row, own in enumerate(vectors):
        for index, vector in enumerate(own):
            means = [other.mean(0) for other in vectors]
            means[row] = np.delete(own, index, 0).mean(0)
            found[row, np.argmax([vector @ mean / np.linalg.norm(mean) for mean in means])] += 1
    return found


class Lab:
    """The live base, the detectors, and a folder of what was trained."""

    def __init__(self, work: Path) -> None:
        self.work, self.base, self.cache = work, open_tiny(), BasisCache(work / "basis")
        self.pipeline = load_pipeline(self.base)
        self.clip = Clip.load(base_path() / "clip")
        self.whole = Detector.from_pictures(self.clip, {name: references(name) for name in AMONG})
        self.halves = Detector.from_pictures(self.clip, {name: references(name, small=True) for name in AMONG})

    def trained(self, subject: Subject, config: TrainConfig) -> Delta:
        """Return a subject's delta, trained now if it was not before."""
        key = hashlib.sha256(json.dumps([subject.name, config.facts()], sort_keys=True).encode()).hexdigest()[:16]
        place = self.work / f"{subject.name}-{key}.safetensors"
        if not place.exists():
            save(train(self.base, pictures_path(subject.name), config, cache=self.cache).delta, place)
        return load(place)

    def painted(self, delta: Delta | None, prompt: str, seeds: Sequence[int]) -> Pictures:
        """Return pictures of a prompt, on the base or with a delta on it."""
        parts = [] if delta is None else [delta]
        with (
            AdapterStack(self.pipeline, self.base, parts, cache=self.cache) as stage,
            stage.active([1.0 for _ in parts]),
        ):
            return generate(self.pipeline, [(prompt, seed) for seed in seeds], SAMPLING)


def alone(lab: Lab, subject: Subject, delta: Delta, seeds: Sequence[int]) -> list[str]:
    """Return what each picture of a learned subject is nearest to."""
    found = lab.whole.regions(lab.painted(delta, subject.prompt, seeds), [REGIONS["whole"]])
    return [str(label) for label in found.labels[:, 0]]


def together(lab: Lab, delta: Delta, prompt: str, seeds: Sequence[int]) -> tuple[list[list[str]], list[bool]]:
    """Return what both halves of each picture of the sum are nearest to, and whether both subjects appear."""
    found = lab.halves.regions(lab.painted(delta, prompt, seeds))
    appear = found.appear([subject.name for subject in SUBJECTS], any_order=True)
    return found.labels.tolist(), appear.tolist()


def leaned(lab: Lab, subject: Subject, delta: Delta, own: Pictures, seeds: Sequence[int]) -> list[bool]:
    """Return whether each picture of the class is nearer to the learned subject than to the base's own pictures."""
    judge = Detector.from_pictures(lab.clip, {"learned": references(subject.name), "own": own})
    found = judge.regions(lab.painted(delta, subject.class_prompt, seeds), [REGIONS["whole"]])
    return [bool(label == "learned") for label in found.labels[:, 0]]


def measure(
    lab: Lab,
    subjects: Sequence[Subject],
    share: float,
    rate: float | None,
    weights: Sequence[float],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Return what is seen with each λ."""
    found: dict[str, Any] = {"seeds": list(seeds)}
    for weight in weights:
        deltas = [lab.trained(each, _settings(each, weight, rate)) for each in subjects]
        results: dict[str, Any] = {}
        for subject, delta in zip(subjects, deltas, strict=True):
            own = lab.painted(None, subject.class_prompt, range(FIRST_OWN, FIRST_OWN + len(seeds)))
            results[subject.name] = {
                "nearest": alone(lab, subject, delta, seeds),
                "class leans": leaned(lab, subject, delta, own, seeds),
            }
        labels, appear = together(lab, add(*deltas, weights=(share, share)), both_prompt(subjects), seeds)
        found[f"{weight:g}"] = {**results, "both": {"nearest": labels, "appear": appear}}
    return found


def _settings(subject: Subject, weight: float, rate: float | None) -> TrainConfig:
    config = settings(subject, prior_weight=weight)
    return config if rate is None else replace(config, learning_rate=rate, learning_rate_1d=rate / 5)


def tell(clip: Clip) -> bool:
    """Print the confusion matrices of the reference pictures; return whether the demo's subjects are told apart."""
    told = True
    for small in (False, True):
        matrix = confusion(clip, small=small)
        print(f"reference pictures{' at the size of one of two' if small else ''}, by what each is nearest to:")
        for name, row in zip(AMONG, matrix, strict=True):
            print(f"  {name:>13} {' '.join(f'{count:3d}' for count in row)}")
        told &= bool(
            (matrix[:2].argmax(1) == np.arange(2)).all() and (np.diag(matrix)[:2] >= 0.8 * matrix[:2].sum(1)).all()
        )
    return told


def shares(found: dict[str, Any], subjects: Sequence[Subject], shown: int) -> list[tuple[str, float, str]]:
    """Print a line for each figure, and return those that have a limit, with what the limit says."""
    limited = []
    for weight, results in ((key, found[key]) for key in ("1", "0") if key in found):
        for subject in subjects:
            one = results[subject.name]
            right = [name == subject.name for name in one["nearest"]]
            lines = [("learned", right, f">= {ALONE}"), ("class leans", one["class leans"], f"<= {CLASS}")]
            for what, values, limit in lines:
                limited += _line(weight, f"{subject.name} {what}", values, shown, limit)
        limited += _line(weight, "both in the sum", results["both"]["appear"], shown, f">= {BOTH}")
    return limited


def _line(weight: str, what: str, values: list[bool], shown: int, limit: str) -> list[tuple[str, float, str]]:
    parts = {"at the seeds shown": values[:shown], "at others": values[shown:]}
    told = ", ".join(f"{sum(part)} of {len(part)} {where}" for where, part in parts.items())
    bound = f"  ({limit})" if weight == "1" else ""
    print(f"λ = {weight}: {what:<24} {np.mean(values):.2f}{bound}: {told}")
    return [(what, float(np.mean(part)), limit) for part in parts.values()] if weight == "1" else []


def reached(value: float, limit: str) -> bool:
    """Return whether a figure keeps its limit."""
    sign, bound = limit.split()
    return value >= float(bound) if sign == ">=" else value <= float(bound)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keeps trainings (default: a folder that is removed)")
    parser.add_argument("--seeds", type=int, default=20, help="pictures beside those that the demo shows")
    parser.add_argument("--words", nargs=2, help="the subjects' rare words (default: the demo's)")
    parser.add_argument("--share", type=float, default=SHARE, help="the weight of each in the sum")
    parser.add_argument("--rate", type=float, help="learning rate; of norm weights a fifth (default: the base card's)")
    parser.add_argument("--prior", nargs="+", type=float, choices=(1.0, 0.0), default=(1.0, 0.0), help="values of λ")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    words = arguments.words or [subject.word for subject in SUBJECTS]
    subjects = [replace(subject, word=word) for subject, word in zip(SUBJECTS, words, strict=True)]
    with nullcontext(arguments.work) if arguments.work else tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        if not tell(lab.clip):
            sys.exit("the detector does not tell the demo's subjects from the others: nothing is judged")
        seeds = [*SEEDS, *range(FIRST_OTHER, FIRST_OTHER + arguments.seeds)]
        found = measure(lab, subjects, arguments.share, arguments.rate, arguments.prior, seeds)
    print(f"words {', '.join(words)}; the sum has {arguments.share:g} of each")
    print(f"{len(seeds)} pictures each, {arguments.threads} threads")
    limited = shares(found, subjects, len(SEEDS))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(not all(reached(value, limit) for _, value, limit in limited))


if __name__ == "__main__":
    main()
