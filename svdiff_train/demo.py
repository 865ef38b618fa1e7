"""The demo: two deltas trained on the embedded base, added, interpolated, baked, loaded again, and painted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
from PIL import Image

from svdiff_delta import ops
from svdiff_delta.bake import bake
from svdiff_delta.base import Base, open_base
from svdiff_delta.cache import BasisCache
from svdiff_delta.delta import Delta
from svdiff_delta.file import load, save
from svdiff_delta.runtime import attach

from .config import TrainConfig
from .loop import train
from .pipelines import load_pipeline
from .sample import Sampling, generate, sheet
from .tiny import open_tiny, pictures_path
from .watch import Watch

ALPHAS: Final = (0.25, 0.5, 0.75)
SEEDS: Final = (0, 1)
DTYPES: Final[tuple[Literal["F16", "F32"], ...]] = ("F16", "F32")
SAMPLING: Final = Sampling(steps=30, guidance=4.0, batch_size=6)


@dataclass(frozen=True)
class Subject:
    """One thing to learn: the folder of its pictures, and what to call it."""

    name: str
    noun: str

    @property
    def prompt(self) -> str:
        """The prompt of its pictures."""
        return f"a photo of a sks {self.noun}"


SUBJECTS: Final = (Subject("black_cat", "cat"), Subject("police_car", "car"))
PROMPTS: Final = (*(subject.prompt for subject in SUBJECTS), "a photo of a house")


@dataclass
class Report:
    """What the demo measured.

    Attributes:
        seconds: time of each step.
        sizes: bytes of each file it wrote, and of the base.
        difference: the largest difference of a colour value between attached and baked pictures, of 255, by the dtype
            of the baked weights.
        beyond_rounding: the same between pictures baked in F16, and pictures baked in F32 whose weights were rounded to
            F16 after loading: what baking in F16 does beside rounding.
        sheet: where the contact sheet is.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    difference: dict[str, int] = field(default_factory=dict)
    beyond_rounding: int = 0
    sheet: Path = Path()


def run_demo(
    folder: Path, *, steps: int, say: Callable[[str], None], watch: Callable[[str], Watch], seed: int = 0
) -> Report:
    """Run the demo and write everything to `folder`.

    Args:
        folder: an existing folder.
        steps: training steps per subject.
        say: called with a line after each step of the demo.
        watch: returns whom to tell about a training, by its label.
        seed: of training.
    """
    report, base, cache = Report(), open_tiny(), BasisCache(folder / "basis")
    report.sizes["base"] = sum(path.stat().st_size for part in base.components.values() for path in part.files)
    deltas = {}
    for subject in SUBJECTS:
        with _timed(report, say, f"svdiff train ({subject.prompt!r}, {steps} steps)"):
            deltas[subject.name] = _train(base, subject, folder, steps, seed, cache, watch(subject.name))
    with _timed(report, say, "svdiff add, interpolate"):
        deltas |= _combine(deltas, folder)
    for name in deltas:
        report.sizes[name] = _file(folder, name).stat().st_size
    with _timed(report, say, "svdiff generate (attached)"):
        rows = _paint_attached(base, deltas, cache)
    _compare_baked(report, say, base, deltas["both"], rows["A + B"], folder, cache)
    report.sheet = folder / "sheet.png"
    columns = [prompt for prompt in PROMPTS for _ in SEEDS]
    sheet(list(rows.items()), columns, zoom=2).save(report.sheet)
    return report


@contextmanager
def _timed(report: Report, say: Callable[[str], None], label: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    report.seconds[label] = time.perf_counter() - begun
    say(f"{report.seconds[label]:6.1f} s  {label}")


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _train(base: Base, subject: Subject, folder: Path, steps: int, seed: int, cache: BasisCache, watch: Watch) -> Delta:
    config = TrainConfig(
        prompt=subject.prompt,
        steps=steps,
        batch_size=4,
        # The embedded base is small and weakly trained: it takes larger steps than the paper's model.
        learning_rate=1e-2,
        learning_rate_1d=2e-3,
        seed=seed,
    )
    outcome = train(base, pictures_path(subject.name), config, cache=cache, watch=watch)
    if outcome.interrupted:
        raise KeyboardInterrupt
    save(outcome.delta.with_title(subject.name), _file(folder, subject.name))
    return load(_file(folder, subject.name))


def _combine(deltas: dict[str, Delta], folder: Path) -> dict[str, Delta]:
    """Return the sum and the interpolations, read back from the files they were written to."""
    a, b = deltas.values()
    results = {"both": ops.add(a, b)}
    for alpha in ALPHAS:
        results[f"mix-{alpha}"] = ops.interpolate(a, b, alpha)
    for name, delta in results.items():
        save(delta, _file(folder, name))
    return {name: load(_file(folder, name)) for name in results}


def _paint(pipeline: Any) -> list[Image.Image]:
    return generate(pipeline, [(prompt, seed) for prompt in PROMPTS for seed in SEEDS], SAMPLING)


def _paint_attached(base: Base, deltas: dict[str, Delta], cache: BasisCache) -> dict[str, list[Image.Image]]:
    """Paint every row of the sheet from one live model, swapping deltas."""
    pipeline = load_pipeline(base)
    rows = {"base": _paint(pipeline)}
    first, second = (subject.name for subject in SUBJECTS)
    labels = {f"A: {first}": first, f"B: {second}": second, "A + B": "both"}
    labels |= {f"{alpha} A + {1 - alpha} B": f"mix-{alpha}" for alpha in reversed(ALPHAS)}
    with attach(pipeline, deltas[first], base=base, cache=cache) as handle:
        for label, name in labels.items():
            handle.swap(deltas[name])
            rows[label] = _paint(pipeline)
    return rows


def _compare_baked(
    report: Report,
    say: Callable[[str], None],
    base: Base,
    delta: Delta,
    attached: list[Image.Image],
    folder: Path,
    cache: BasisCache,
) -> None:
    """Bake in both dtypes, paint from the written folders as anyone would load them, and compare."""
    baked, pipeline = {}, None
    for dtype in DTYPES:
        with _timed(report, say, f"svdiff bake --dtype {dtype}, reload, generate"):
            output = folder / f"baked-{dtype}"
            bake(base, [delta], output, dtype=dtype, cache=cache)
            pipeline = cast("Any", load_pipeline(open_base(output)))
            baked[dtype] = _paint(pipeline)
            report.difference[dtype] = _most(attached, baked[dtype])
    cast("Any", pipeline).unet.half().float()  # what was baked in F32, rounded
    report.beyond_rounding = _most(baked["F16"], _paint(pipeline))


def _most(pictures: list[Image.Image], others: list[Image.Image]) -> int:
    """Return the largest difference of a colour value."""
    pairs = zip(pictures, others, strict=True)
    return max(int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max()) for a, b in pairs)
