"""The command that edits one picture by prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svdiff_delta._text.printable import counted

from . import options
from .devices import device, device_for
from .image_inputs import WeightedInput, all_seeds, check_painting, open_given, say_cut
from .printing import echo, echo_json
from .progress import Bar
from .references import keep_apart, needs, open_to_paint, say

if TYPE_CHECKING:
    from PIL.Image import Image

    from svdiff_train.sampling.edit import EditConfig, Edited
    from svdiff_train.sampling.graphed_denoiser import GraphedDenoiser

LEGIBLE = 100
"""Pixels that the longest label needs."""
WAYS = {True: "inverted", False: "from noise"}


@click.command()
@click.argument("base", metavar="BASE")
@click.argument("references", metavar="[DELTA[:WEIGHT]]... IMAGE", nargs=-1, required=True)
@click.option("--prompt", "edits", multiple=True, required=True, help="What to make of it; may be given several times.")
@click.option("--no-invert", is_flag=True, help="Start from noise, for changes of structure such as another pose.")
@click.option("--both", is_flag=True, help="Paint with inversion and without.")
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="How far inverted latents go towards noise (Eq. 7).",
)
@options.eta
@options.guidance
@options.steps
@click.option("--seed", "given_seeds", multiple=True, type=options.SEED, help="A row per seed [default: 0].")
@options.negative_prompt
@click.option("--source-prompt", help="Describes IMAGE, for its reconstruction [default: what DELTA was trained on].")
@options.size
@options.batch_size
@device("edit")
@options.no_cuda_graphs
@options.output("The PNG to write: IMAGE, its reconstruction, and every edit, side by side.")
@options.force
@options.as_json
@options.quiet
def edit(base: str, references: tuple[str, ...], **given: Any) -> None:
    """Edit one picture by prompts (section 3.4 of the paper).

    Train a delta on IMAGE and its description first, without a class prompt. Each edit starts from IMAGE by DDIM
    inversion on its own prompt (Eq. 6), or from noise.

    \b
        svdiff train sd15 picture/ --prompt 'photo of a crown with a diamond and an eagle on it' -o crown.safetensors
        svdiff edit sd15 crown.safetensors crown.png --prompt 'photo of a crown with a diamond on it' -o edits.png
    """
    _Command(**given).run(base, references)


@dataclass(frozen=True)
class _Command:
    """What was asked for, as the options say."""

    edits: tuple[str, ...]
    no_invert: bool
    both: bool
    alpha: float
    eta: float
    guidance: float
    steps: int
    given_seeds: tuple[int, ...]
    negative_prompt: str | None
    source_prompt: str | None
    size: tuple[int, int] | None
    batch_size: int
    device: str | None
    no_cuda_graphs: bool
    output: Path
    force: bool
    as_json: bool
    quiet: bool

    @property
    def silent(self) -> bool:
        """Whether remarks would be in the way."""
        return self.quiet or self.as_json

    @property
    def ways(self) -> tuple[bool, ...]:
        """Whether to invert, for each time that all edits are painted."""
        return (True, False) if self.both else (not self.no_invert,)

    def run(self, base: str, references: Sequence[str]) -> None:
        """Check, paint, write, and say so."""
        from svdiff_delta._util.limits import PICTURE
        from svdiff_delta._util.reading import read_bytes

        if self.both and self.no_invert:
            raise click.UsageError("--both and --no-invert exclude each other.")
        check_painting(self.output, overwrite=self.force)
        needs("diffusers", "train")
        from svdiff_train.data import open_image

        *deltas, picture = references
        image, given = open_image(Path(picture)), open_given(deltas)
        configs = [self._config(given, invert=invert) for invert in self.ways]
        model = open_to_paint(base)
        keep_apart(self.output, model, *deltas, Path(picture))
        from svdiff_train.sampling.adapter_stack import AdapterStack, part_facts
        from svdiff_train.sampling.ddim_inversion import diffusion_family
        from svdiff_train.sampling.graphed_denoiser import GraphedDenoiser
        from svdiff_train.sampling.pipelines import load_pipeline
        from svdiff_train.sampling.png import sampling_facts, save_png

        pipeline = load_pipeline(model, device=device_for("edit", self.device))
        diffusion_family(pipeline)
        facts = sampling_facts(pipeline, model, configs[0].sampling(8, 8), self.edits, configs[0].seeds)
        cut = say_cut(pipeline, [*self.edits, *filter(None, [self.negative_prompt])], quiet=self.silent)
        parts, weights = [each.part(model, quiet=self.silent) for each in given], [each.weight for each in given]
        graphs = None if self.no_cuda_graphs else GraphedDenoiser(pipeline, say=None if self.silent else say)
        with AdapterStack(pipeline, model, parts) as stage, stage.active(weights):
            found = [self._paint(pipeline, image, config, graphs, first=config is configs[0]) for config in configs]
        facts |= {
            "deltas": [part_facts(part, weight) for part, weight in zip(parts, weights, strict=True)],
            "image": hashlib.sha256(read_bytes(Path(picture), PICTURE)).hexdigest(),
            "inverted": list(self.ways),
            "alpha": self.alpha,
            "source_prompt": configs[0].source_prompt,
            "size": f"{found[0].source.width}x{found[0].source.height}",
        }
        save_png(_sheet(self.edits, configs, found), self.output, facts, overwrite=self.force)
        count = sum(len(row) for edited in found for row in edited.pictures)
        if self.as_json:
            echo_json({"output": str(self.output), "pictures": count, "cut": cut, **facts})
        elif not self.quiet:
            echo(f"wrote {self.output}: {counted(count, 'edited picture')}")

    def _config(self, given: Sequence[WeightedInput], *, invert: bool) -> EditConfig:
        from svdiff_train.sampling.edit import EditConfig

        return EditConfig(
            steps=self.steps,
            guidance=self.guidance,
            eta=self.eta,
            alpha=self.alpha,
            invert=invert,
            negative_prompt=self.negative_prompt,
            seeds=tuple(all_seeds(self.given_seeds, None)),
            source_prompt=_trained_on(given) if self.source_prompt is None else self.source_prompt,
            batch_size=self.batch_size,
        )

    def _paint(
        self, pipeline: Any, image: Image, config: EditConfig, graphs: GraphedDenoiser | None, *, first: bool
    ) -> Edited:
        from svdiff_train.sampling.edit import edit as paint

        size = None if self.size is None else (self.size[1], self.size[0])
        with Bar(f"painting, {WAYS[config.invert]}", quiet=self.silent) as bar:
            return paint(pipeline, image, self.edits, config, size=size, reconstruct=first, progress=bar, graphs=graphs)


def _trained_on(given: Sequence[WeightedInput]) -> str:
    """Return the prompt that the first delta which says so was trained on; else nothing."""
    for each in given:
        training = (each.delta.metadata.training if each.delta is not None else None) or {}
        if isinstance(prompt := training.get("prompt"), str):
            return prompt
    return ""


def _sheet(edits: Sequence[str], configs: Sequence[EditConfig], found: Sequence[Edited]) -> Image:
    """Return a row per way and seed: the picture, its reconstruction, and every edit."""
    from svdiff_train.sampling.sample import sheet

    source, back = found[0].source, found[0].reconstruction or found[0].source
    rows = []
    for config, edited in zip(configs, found, strict=True):
        for index, seed in enumerate(config.seeds):
            label = f"{WAYS[config.invert]}, seed {seed}"
            rows.append((label, [source, back, *(pictures[index] for pictures in edited.pictures)]))
    zoom = 1 if source.width >= LEGIBLE else 2  # so that labels do not run into each other
    return sheet(rows, ["source", "reconstruction", *edits], zoom=zoom)
