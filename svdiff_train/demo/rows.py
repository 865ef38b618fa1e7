"""The demo's page: what each of its files paints, and what a newcomer reads beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from PIL import Image

from svdiff_delta.base_model.base import Base
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.data import open_image
from svdiff_train.sampling.adapter_stack import AdapterStack, Part
from svdiff_train.sampling.edit import EditConfig, edit
from svdiff_train.sampling.sample import Sampling, generate

from .page import Section

SEEDS: Final = (100, 101)
"""Of the pictures on the page. At 0 and 1 the sum lacks a subject; `benchmarks/demo.py` says how often it does."""
SAMPLING: Final = Sampling(steps=30, guidance=4.0, batch_size=6)
GROUNDS: Final = ("red", "blue")
SHARE: Final = 0.8
"""The weight of each subject in their sum. With whole deltas, the second one is seen in both places more often."""

TITLE: Final = "What a few hundred kilobytes can teach a model"
INTRO: Final = (
    "A spectral shift (SVDiff) is one number for each singular value of a model's weights. Below, the small model that "
    "comes with this package learns two subjects from a few pictures each. Every command can be run by itself."
)

Pictures = list[tuple[str, Image.Image]]


@dataclass(frozen=True)
class Subject:
    """One thing to learn: the folder of its pictures, what to call it, and the rare word that will mean it."""

    name: str
    noun: str
    word: str

    @property
    def prompt(self) -> str:
        """The prompt of its pictures."""
        return f"a photo of a {self.word} {self.noun}"

    @property
    def class_prompt(self) -> str:
        """The prompt of what is to stay as it is."""
        return f"a photo of a {self.noun}"


SUBJECTS: Final = (Subject("black_cat", "cat", "V1"), Subject("police_car", "car", "V2"))
PROMPTS: Final = tuple(subject.prompt for subject in SUBJECTS)


def both_prompt(subjects: Sequence[Subject]) -> str:
    """Return the prompt for two subjects in one picture."""
    first, second = (f"a {subject.word} {subject.noun}" for subject in subjects)
    return f"a photo of {first} on the left and {second} on the right"


@dataclass(frozen=True)
class Painter:
    """Paints with the demo's files.

    Attributes:
        pipeline: the live base.
        base: where its weights are from.
        parts: what was written, by name.
        commands: what wrote it, by name.
        command: makes a line of a shell of words.
        folder: where the demo writes.
        cache: where bases are kept.
        painted: pictures that are there already, by file, prompt and seed; some are shown twice.
    """

    pipeline: Any
    base: Base
    parts: Mapping[str, Part]
    commands: Mapping[str, str]
    command: Callable[..., str]
    folder: Path
    cache: BasisCache
    painted: dict[tuple[str | None, str, int], Image.Image] = field(default_factory=dict)

    def paint(self, name: str | None, prompts: Sequence[str], seeds: Sequence[int] = SEEDS) -> list[Image.Image]:
        """Return a picture of every prompt with every seed, with one of the files on the base, or with none."""
        wanted = [(prompt, seed) for prompt in prompts for seed in seeds]
        missing = [each for each in wanted if (name, *each) not in self.painted]
        if missing:
            found = self._paint(name, missing)
            self.painted.update(((name, *each), image) for each, image in zip(missing, found, strict=True))
        return [self.painted[name, *each] for each in wanted]

    def _paint(self, name: str | None, wanted: Sequence[tuple[str, int]]) -> list[Image.Image]:
        parts = [] if name is None else [self.parts[name]]
        with (
            AdapterStack(self.pipeline, self.base, parts, cache=self.cache) as stage,
            stage.active([1.0 for _ in parts]),
        ):
            return generate(self.pipeline, wanted, SAMPLING)

    def row(self, name: str | None, prompts: Sequence[str]) -> Pictures:
        """Return the same with prompts as captions."""
        captions = [prompt for prompt in prompts for _ in SEEDS]
        return list(zip(captions, self.paint(name, prompts), strict=True))

    def generate(self, prompts: Sequence[str], name: str | None = None) -> str:
        """Return the command that paints so."""
        given = [] if name is None else [f"{name}.safetensors"]
        words = [word for prompt in prompts for word in ("--prompt", prompt)]
        seeds = [word for seed in SEEDS for word in ("--seed", seed)]
        how = ("--steps", SAMPLING.steps, "--guidance", SAMPLING.guidance)
        return self.command("generate", "tiny", *given, *words, *seeds, *how, "-o", f"{name or 'base'}-pictures.png")


def sections(painter: Painter, alphas: Sequence[float], part: str, rank: int) -> list[Section]:
    """Return the page's parts.

    Args:
        painter: what paints.
        alphas: of the interpolations, by which they are named.
        part: the selector of the slice.
        rank: of the LoRA.
    """
    first = SUBJECTS[0]
    return [
        Section(
            "The base",
            "What the model paints before it has learned anything: cats and cars of its own. `V1` and `V2` are rare "
            "words, that name nothing and only tint what follows them.",
            [painter.generate(PROMPTS)],
            painter.row(None, PROMPTS),
        ),
        *(_learned(painter, subject) for subject in SUBJECTS),
        Section(
            "Their sum",
            f"Deltas are vectors: added, here {SHARE:g} of each, they hold both subjects at once. No weight of the "
            "model was trained for that.",
            [painter.commands["both"], painter.generate([*PROMPTS, both_prompt(SUBJECTS)], "both")],
            painter.row("both", [*PROMPTS, both_prompt(SUBJECTS)]),
        ),
        _strip(painter, alphas),
        Section(
            "A slice",
            f"Only the shifts of the cross-attention layers (`{part}`): a part of the delta, and less of the subject.",
            [painter.commands["slice"], painter.generate([first.prompt], "slice")],
            painter.row("slice", [first.prompt]),
        ),
        _edited(painter),
        Section(
            "A LoRA copy",
            f"The delta, and the best LoRA of rank {rank} of it, which web UIs read. A shift has full rank by nature, "
            "so a LoRA keeps a part of it.",
            [painter.commands["lora"], painter.generate([first.prompt], "lora")],
            [
                *(("the delta", image) for image in painter.paint(first.name, [first.prompt])),
                *(("its LoRA", image) for image in painter.paint("lora", [first.prompt])),
            ],
        ),
    ]


def _learned(painter: Painter, subject: Subject) -> Section:
    pictures = sorted((painter.folder / "pictures" / subject.name).glob("*.png"))[:2]
    shown = [("what it learned from", open_image(path)) for path in pictures]
    prompts = [subject.prompt, f"{subject.prompt} on a {GROUNDS[0]} background", subject.class_prompt]
    return Section(
        f"A {subject.name.replace('_', ' ')}, learned",
        f"`{subject.word} {subject.noun}` now means this one. Other words still work, and any other {subject.noun} is "
        "what it was before: that is what the pictures of the class are for, which the command paints and learns too.",
        [painter.commands[subject.name], painter.generate(prompts, subject.name)],
        [*shown, *painter.row(subject.name, prompts)],
        across=4,
    )


def _strip(painter: Painter, alphas: Sequence[float]) -> Section:
    first, second = SUBJECTS
    names = {1.0: first.name, **{alpha: f"mix-{alpha}" for alpha in alphas}, 0.0: second.name}
    columns = {alpha: painter.paint(name, PROMPTS, SEEDS[:1]) for alpha, name in names.items()}
    captions = [f"{alpha:g} of the {first.noun}" for alpha in columns]
    rows = [list(zip(captions, [column[index] for column in columns.values()], strict=True)) for index in range(2)]
    return Section(
        "From one to the other",
        f"Between two deltas lie others. Above `{first.word} {first.noun}`, below `{second.word} {second.noun}`, from "
        f"all of the {first.noun}'s delta to all of the {second.noun}'s, with the same noise.",
        [painter.commands[f"mix-{alpha}"] for alpha in alphas],
        [*rows[0], *rows[1]],
        across=len(columns),
    )


def _edited(painter: Painter) -> Section:
    subject = SUBJECTS[0]
    picture = f"pictures/{subject.name}/00.png"
    targets = [f"{subject.prompt} on a {ground} background" for ground in GROUNDS]
    config = EditConfig(steps=SAMPLING.steps, guidance=SAMPLING.guidance, source_prompt=subject.prompt)
    part = painter.parts[subject.name]
    with AdapterStack(painter.pipeline, painter.base, [part], cache=painter.cache) as stage, stage.active([1.0]):
        found = edit(painter.pipeline, open_image(painter.folder / picture), targets, config)
    command = painter.command(
        *("edit", "tiny", f"{subject.name}.safetensors", picture),
        *(word for target in targets for word in ("--prompt", target)),
        *("--steps", config.steps, "--guidance", config.guidance, "-o", "edited.png"),
    )
    shown = [("the picture", found.source)]
    if found.reconstruction is not None:
        shown.append(("found again in the model", found.reconstruction))
    shown += [(target, row[0]) for target, row in zip(targets, found.pictures, strict=True)]
    text = "One picture is turned back into noise and painted again under another prompt, by the delta that knows it."
    return Section("An edit", text, [command], shown)
