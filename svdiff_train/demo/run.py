"""The demo: two subjects learned on the embedded base, and what can be done with their deltas, on one page."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
from PIL import Image

from svdiff_delta.baking.bake import bake
from svdiff_delta.base_model.base import open_base
from svdiff_delta.conversion import convert
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import save
from svdiff_delta.io import load
from svdiff_delta.ops import arithmetic
from svdiff_delta.ops.select import select
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.sampling.adapter_stack import Part
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import generate
from svdiff_train.sampling.weight_difference import open_difference
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training.callbacks import Watch
from svdiff_train.training.loop import train

from .page import Section, html_page, png_page
from .rows import INTRO, PROMPTS, SAMPLING, SEEDS, SHARE, SUBJECTS, TITLE, Painter, Subject, sections

ALPHAS: Final = (0.75, 0.5, 0.25)
DTYPES: Final[tuple[Literal["F16", "F32"], ...]] = ("F16", "F32")
PART: Final = "unet-ca"
RANK: Final = 8
CLASS_IMAGES: Final = 16
FILES: Final = (".safetensors", f".safetensors:{SHARE:g}", ".png", "/")
"""What words of a command end with that stand for files of the demo."""


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
        page: where the page is.
        sheet: where the same page is as a picture.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    difference: dict[str, int] = field(default_factory=dict)
    beyond_rounding: int = 0
    page: Path = Path()
    sheet: Path = Path()


def settings(subject: Subject, *, steps: int = 200, seed: int = 0, prior_weight: float = 1.0) -> TrainConfig:
    """Return how a subject is learned: by the defaults for the embedded base, with prior preservation (λ = 1)."""
    return TrainConfig(
        prompt=subject.prompt,
        class_prompt=subject.class_prompt,
        class_images=CLASS_IMAGES,
        prior_weight=prior_weight,
        steps=steps,
        seed=seed,
    )


def run_demo(
    folder: Path,
    *,
    steps: int,
    say: Callable[[str], None],
    watch: Callable[[str], Watch],
    stage: Callable[[str], None] = lambda _: None,
    seed: int = 0,
    shown: str = ".",
) -> Report:
    """Run the demo and write everything to `folder`.

    Args:
        folder: an existing folder.
        steps: training steps per subject.
        say: called with each command before it is done, and with its time after it.
        watch: returns whom to tell about a training, by its label.
        stage: called with the name of what begins.
        seed: of training.
        shown: what commands call the folder.
    """
    demo = _Demo(folder, say, stage, shown)
    for subject in SUBJECTS:
        demo.train(subject, settings(subject, steps=steps, seed=seed), watch(subject.name))
    demo.combine()
    demo.copy_as_lora()
    parts = demo.paint()
    demo.compare_baked()
    demo.write([*parts, demo.weigh()])
    return demo.report


class _Demo:
    """The demo while it runs."""

    def __init__(self, folder: Path, say: Callable[[str], None], stage: Callable[[str], None], shown: str) -> None:
        self.folder, self.say, self.stage, self.shown = folder, say, stage, shown
        self.report, self.base, self.cache = Report(), open_tiny(), BasisCache(folder / "basis")
        files = (path for part in self.base.components.values() for path in part.files)
        self.report.sizes["base"] = sum(path.stat().st_size for path in files)
        self.commands: dict[str, str] = {}
        self.parts: dict[str, Part] = {}
        self.attached: list[Image.Image] = []

    def train(self, subject: Subject, config: TrainConfig, watch: Watch) -> None:
        """Learn a subject, and show a first picture of it."""
        pictures = self.folder / "pictures" / subject.name
        shutil.copytree(pictures_path(subject.name), pictures)
        command = self.command(
            *("train", "tiny", f"pictures/{subject.name}/", "--prompt", subject.prompt),
            *("--class-prompt", subject.class_prompt, "--class-images", config.class_images),
            *("--steps", config.steps, "--seed", config.seed, "-o", _file(subject.name)),
        )
        with self._step(subject.name, command):
            outcome = train(self.base, pictures, config, cache=self.cache, watch=watch)
            if outcome.interrupted:
                raise KeyboardInterrupt
            self._keep(subject.name, outcome.delta.with_title(subject.name))
        first = self.folder / f"{subject.name}.png"
        self._painter().paint(subject.name, [subject.prompt], SEEDS[:1])[0].save(first)
        later = f", and {Path(self.shown) / first.name} once all is done" if self.shown != str(self.folder) else ""
        self.say(f"          a first picture of it: {first}{later}")

    def combine(self) -> None:
        """Add, interpolate and cut deltas."""
        first, second = (subject.name for subject in SUBJECTS)
        a, b = (cast("Delta", self.parts[name]) for name in (first, second))
        weighed = [f"{_file(name)}:{SHARE:g}" for name in (first, second)]
        with self._step("both", self.command("add", *weighed, "-o", _file("both"))):
            self._keep("both", arithmetic.add(a, b, weights=(SHARE, SHARE)))
        for alpha in ALPHAS:
            name = f"mix-{alpha}"
            words = ("interpolate", _file(first), _file(second), "--alpha", alpha, "-o", _file(name))
            with self._step(name, self.command(*words)):
                self._keep(name, arithmetic.interpolate(a, b, alpha))
        with self._step("slice", self.command("slice", _file(first), PART, "-o", _file("slice"))):
            self._keep("slice", select(a, PART))

    def copy_as_lora(self) -> None:
        """Make a LoRA of the first delta."""
        first, place = SUBJECTS[0].name, self.folder / _file("lora")
        words = ("convert", _file(first), "--base", "tiny", "--to", "kohya", "--rank", RANK, "-o", place.name)
        with self._step("lora", self.command(*words, "--min-energy", 0, "--allow-unmatched")):
            delta = cast("Delta", self.parts[first])
            options: dict[str, Any] = {"rank": RANK, "min_energy": 0.0, "allow_unmatched": True}
            convert(delta, to="kohya", base=self.base, output=place, cache=self.cache, **options)
            self.report.sizes["lora"] = place.stat().st_size
            self.parts["lora"] = open_difference(place, self.base, cache=self.cache)

    def paint(self) -> list[Section]:
        """Paint all parts of the page but the last."""
        with self._timed("the page's pictures"):
            painter = self._painter()
            self.attached = painter.paint("both", PROMPTS)
            return sections(painter, ALPHAS, PART, RANK)

    def compare_baked(self) -> None:
        """Bake in both dtypes, paint from the written folders as anyone would load them, and compare."""
        baked, pipeline = {}, None
        for dtype in DTYPES:
            output = self.folder / f"baked-{dtype}"
            words = ("bake", "tiny", _file("both"), "--dtype", dtype, "-o", output.name)
            with self._step(output.name, self.command(*words)):
                bake(self.base, [cast("Delta", self.parts["both"])], output, dtype=dtype, cache=self.cache)
                pipeline = cast("Any", load_pipeline(open_base(output)))
                baked[dtype] = _paint(pipeline)
                self.report.difference[dtype] = _most(self.attached, baked[dtype])
        cast("Any", pipeline).unet.half().float()  # what was baked in F32, rounded
        self.report.beyond_rounding = _most(baked["F16"], _paint(pipeline))

    def weigh(self) -> Section:
        """Return the part of the page with the sizes of all files."""
        base, sizes = self.report.sizes["base"], self.report.sizes
        rows = [(name, f"{size:,} bytes, 1/{base / size:.0f}") for name, size in sizes.items() if name != "base"]
        text = "All these files beside the model's own. A delta is a safetensors file, the same to the byte every time."
        return Section("What it weighs", text, table=[("the base", f"{base:,} bytes"), *rows])

    def write(self, parts: list[Section]) -> None:
        """Write the page, as HTML and as a picture."""
        self.report.page, self.report.sheet = self.folder / "page.html", self.folder / "sheet.png"
        self.report.page.write_text(html_page(TITLE, INTRO, parts), "utf-8")
        png_page(TITLE, INTRO, parts).save(self.report.sheet)

    def command(self, *words: object) -> str:
        """Return a line of a shell; the files in it are in the demo's folder."""
        told = [str(word) for word in words]
        placed = [word.endswith(FILES) or told[i - 1] == "-o" for i, word in enumerate(told)]
        return shlex.join(
            ["svdiff", *(f"{self.shown}/{word}" if here else word for word, here in zip(told, placed, strict=True))]
        )

    def _painter(self) -> Painter:
        pipeline = load_pipeline(self.base)
        return Painter(pipeline, self.base, self.parts, self.commands, self.command, self.folder, self.cache)

    def _keep(self, name: str, delta: Delta) -> None:
        """Write a delta, and go on with what is read back."""
        place = self.folder / _file(name)
        save(delta, place)
        self.report.sizes[name] = place.stat().st_size
        self.parts[name] = load(place)

    @contextmanager
    def _step(self, name: str, command: str) -> Iterator[None]:
        self.commands[name] = command
        self.say(f"$ {command}")
        with self._timed(name):
            yield

    @contextmanager
    def _timed(self, label: str) -> Iterator[None]:
        begun = time.perf_counter()
        self.stage(label)
        yield
        self.report.seconds[label] = time.perf_counter() - begun
        self.say(f"{self.report.seconds[label]:6.1f} s  {label}")


def _file(name: str) -> str:
    return f"{name}.safetensors"


def _paint(pipeline: Any) -> list[Image.Image]:
    return generate(pipeline, [(prompt, seed) for prompt in PROMPTS for seed in SEEDS], SAMPLING)


def _most(pictures: list[Image.Image], others: list[Image.Image]) -> int:
    """Return the largest difference of a colour value."""
    pairs = zip(pictures, others, strict=True)
    return max(int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max()) for a, b in pairs)
