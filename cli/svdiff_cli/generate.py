"""The command that paints pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svdiff_delta._text.printable import counted
from svdiff_delta.errors import OutputError

from . import options
from .devices import device, device_for
from .image_inputs import all_prompts, all_seeds, check_painting, open_given, say_cut
from .printing import echo, echo_json
from .progress import Bar
from .references import keep_apart, needs, open_to_paint, say

if TYPE_CHECKING:
    from svdiff_delta import Delta
    from svdiff_train.sampling.adapter_stack import Part
    from svdiff_train.sampling.gallery import Gallery
    from svdiff_train.sampling.image_to_image import Initial
    from svdiff_train.sampling.sample import Sampling


@click.command()
@click.argument("base", metavar="BASE")
@click.argument("deltas", metavar="[DELTA[:WEIGHT]]...", nargs=-1)
@click.option("--prompt", "given_prompts", multiple=True, help="What to paint; may be given several times.")
@click.option("--prompts", "prompt_file", type=click.Path(path_type=Path), help="A text file with a prompt per line.")
@options.negative_prompt
@click.option("--seed", "given_seeds", multiple=True, type=options.SEED, help="One picture per seed [default: 0].")
@click.option("--seeds", "seed_count", metavar="N", type=click.IntRange(1), help="Or the seeds 0 to N-1.")
@options.steps
@options.own_guidance
@click.option("--true-cfg-scale", type=float, help="Classifier-free guidance beside a distilled one, as of Flux.1.")
@options.scheduler
@options.eta
@options.size
@options.batch_size
@click.option("--init-image", type=click.Path(path_type=Path), help="Paint from this picture, or edit it.")
@click.option("--mask-image", type=click.Path(path_type=Path), help="Fill in where this is white; of --init-image.")
@click.option("--strength", type=click.FloatRange(0, 1, min_open=True), help="How much changes of it [default: 0.8].")
@click.option("--num-frames", type=click.IntRange(1), help="Frames of each clip [default: the pipeline's].")
@click.option("--fps", type=click.IntRange(1, 60), help="Frames in a second of a written clip [default: 16].")
@click.option("--each", is_flag=True, help="A row for the base, and one for every delta alone.")
@click.option("--geometry", metavar="DELTA", help="Style mixing: what gives --layers.")
@click.option("--appearance", metavar="DELTA", help="Style mixing: what gives all other layers.")
@click.option("--layers", metavar="SELECTOR", help="Of the geometry [default: (16,down,1)-(8,down,0), for SD 1.5].")
@click.option("--separate", type=click.Path(path_type=Path), help="A folder for one PNG per picture, too.")
@device("generate")
@options.no_cuda_graphs
@options.output("The PNG to write, a labelled sheet if there are several pictures; of clips, a GIF, MP4 or folder.")
@options.force
@options.as_json
@options.quiet
def generate(base: str, deltas: tuple[str, ...], **given: Any) -> None:
    """Paint pictures with BASE and a sum of deltas.

    A DELTA may also be a tuned model's folder (`svdiff train --method full` or `kv`), a file of full differences, or
    a LoRA: then the sum is one of weights. Each PNG says how it was painted. The same command writes the same bytes
    on the same device.

    \b
        svdiff generate tiny dog.safetensors --prompt 'a photo of a sks dog' --seed 0 --seed 1 -o dog.png
        svdiff generate sd15 dog.safetensors:0.8 cat.safetensors --each --prompts prompts.txt --seeds 4 -o sheet.png
        svdiff generate sd15 --geometry shape.safetensors --appearance look.safetensors --prompt 'a V1 cup' -o mixed.png
    """
    _Command(**given).run(base, deltas)


@dataclass(frozen=True)
class _Command:
    """What was asked for, as the options say."""

    given_prompts: tuple[str, ...]
    prompt_file: Path | None
    negative_prompt: str | None
    given_seeds: tuple[int, ...]
    seed_count: int | None
    steps: int
    guidance: float | None
    true_cfg_scale: float | None
    scheduler: str | None
    eta: float
    size: tuple[int, int] | None
    batch_size: int
    init_image: Path | None
    mask_image: Path | None
    strength: float | None
    num_frames: int | None
    fps: int | None
    each: bool
    geometry: str | None
    appearance: str | None
    layers: str | None
    separate: Path | None
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

    def run(self, base: str, references: Sequence[str]) -> None:
        """Check, paint, write, and say so."""
        from svdiff_delta._util.atomic import check_output

        check_painting(self.output, overwrite=self.force, also=(".gif",))
        if self.separate is not None:
            check_output(self.separate, overwrite=self.force, folder=True)
            self._check_places(self.separate)
        if (self.geometry is None) != (self.appearance is None) or (self.layers and self.geometry is None):
            raise click.UsageError("--geometry and --appearance go together, and --layers with them.")
        needs("diffusers", "train")
        prompts, seeds = all_prompts(self.given_prompts, self.prompt_file), all_seeds(self.given_seeds, self.seed_count)
        given, mixed = open_given(references), self._mixed()
        model = open_to_paint(base)
        read = (self.geometry, self.appearance, self.prompt_file, self.init_image, self.mask_image)
        keep_apart((self.output, self.separate), model, *references, *read)
        from svdiff_train.sampling.gallery import Plan
        from svdiff_train.sampling.pipelines import load_pipeline
        from svdiff_train.sampling.png import sampling_facts
        from svdiff_train.sampling.sample import check_sampling

        place = device_for("generate", self.device)
        sampling, pipeline = self._sampling(), load_pipeline(model, device=place)
        check_sampling(pipeline, sampling)
        self._check_clips(pipeline, len(prompts) * len(seeds), several=self.each and bool(references))
        start = self._initial(pipeline, sampling)
        facts = sampling_facts(pipeline, model, sampling, prompts, seeds, strength=self.strength)
        cut = say_cut(pipeline, [*prompts, *filter(None, [self.negative_prompt])], quiet=self.silent)
        parts: dict[str, tuple[Part, float]] = {}
        for each in given:
            parts[_free(each.label, parts)] = each.part(model, quiet=self.silent), each.weight
        if mixed is not None:
            parts[_free("mixed", parts)] = mixed, 1.0
        plan = Plan(parts, prompts, seeds, sampling, each=self.each, init=start)
        with Bar("painting", quiet=self.silent) as bar:
            graphs, tell = not self.no_cuda_graphs, None if self.silent else say
            gallery = plan.paint(pipeline, model, bar, cuda_graphs=graphs, say=tell)
        self._write(gallery, facts)
        self._tell(gallery, facts, cut)

    def _check_places(self, separate: Path) -> None:
        """Refuse a folder of pictures that holds the output: it is written and replaced as a whole."""
        from svdiff_delta._util.paths import contains

        if contains(separate, self.output):
            raise OutputError(f"{separate}: is, holds or lies in {self.output}", fix="choose places beside each other")

    def _mixed(self) -> Delta | None:
        """Return the style mix, if one was asked for."""
        if self.geometry is None or self.appearance is None:
            return None
        from svdiff_delta.io import load
        from svdiff_delta.ops.arithmetic import GEOMETRY, style_mix

        return style_mix(load(self.geometry), load(self.appearance), layers=self.layers or GEOMETRY)

    def _sampling(self) -> Sampling:
        from svdiff_train.sampling.sample import Sampling

        width, height = self.size or (None, None)
        return Sampling(
            steps=self.steps,
            guidance=self.guidance,
            negative_prompt=self.negative_prompt,
            batch_size=self.batch_size,
            scheduler=self.scheduler,
            eta=self.eta,
            height=height,
            width=width,
            true_cfg_scale=self.true_cfg_scale,
            num_frames=self.num_frames,
            strength=self.strength,
        )

    def _initial(self, pipeline: Any, sampling: Sampling) -> Initial | None:
        """Return what is painted from, if there is something that the pipeline can paint from."""
        from svdiff_train.sampling.image_to_image import check_needed

        if self.init_image is None:
            for value, name in ((self.strength, "--strength"), (self.mask_image, "--mask-image")):
                if value is not None:
                    raise click.UsageError(f"{name} is of an initial picture: name it with --init-image.")
            check_needed(pipeline)
            return None
        from svdiff_train.data.picture import open_image
        from svdiff_train.sampling.image_to_image import Initial, image_to_image, initial
        from svdiff_train.sampling.sample import size_unit

        mask = None if self.mask_image is None else open_image(self.mask_image)
        start = Initial(open_image(self.init_image), mask)
        initial(image_to_image(pipeline), start, sampling, size_unit(pipeline))
        return start

    def _check_clips(self, pipeline: Any, count: int, *, several: bool) -> None:
        """Refuse a name that cannot hold what the pipeline makes: clips, or pictures."""
        from svdiff_delta.errors import InputError
        from svdiff_train.sampling.clip_out import check_clip_path
        from svdiff_train.sampling.sample import is_video

        if not is_video(pipeline):
            if self.fps is not None:
                raise click.UsageError("--fps is of clips, and BASE paints pictures.")
            check_painting(self.output, overwrite=self.force)
            return
        check_clip_path(self.output)
        if self.separate is not None:
            raise InputError("clips are separate already", fix="leave out --separate")
        if (count > 1 or several) and self.output.suffix:
            raise InputError(
                f"{self.output}: several clips need a folder", fix=f"call it {self.output.with_suffix('')}"
            )

    def _write(self, gallery: Gallery, facts: Mapping[str, Any]) -> None:
        from svdiff_delta._util.atomic import replace_folder
        from svdiff_train.sampling.clip_out import FPS, gif_bytes, save_clip
        from svdiff_train.sampling.png import png_bytes, save_png

        if gallery.clips:
            fps, clips = self.fps or FPS, list(gallery.separate_clips(facts))
            if len(clips) == 1:
                save_clip(clips[0][1], self.output, clips[0][2], fps=fps, overwrite=self.force)
                return
            with replace_folder(self.output, overwrite=self.force) as folder:
                for name, frames, own in clips:
                    (folder / name).write_bytes(gif_bytes(frames, own, fps))
            return
        if self.separate is not None:
            with replace_folder(self.separate, overwrite=self.force) as folder:
                for name, image, own in gallery.separate(facts):
                    (folder / name).write_bytes(png_bytes(image, own))
        save_png(gallery.whole(), self.output, gallery.facts(facts), overwrite=self.force)

    def _tell(self, gallery: Gallery, facts: Mapping[str, Any], cut: Mapping[str, str]) -> None:
        count = len(gallery.images)
        noun = "clip" if gallery.clips else "picture"
        if self.as_json:
            found: dict[str, Any] = {"output": str(self.output), "pictures": count, "rows": list(gallery.plan.rows)}
            found |= {"separate": None if self.separate is None else str(self.separate), "cut": dict(cut)}
            echo_json({**found, **gallery.facts(facts)})
        elif not self.quiet:
            echo(f"wrote {self.output}: {counted(count, noun)}")
            if self.separate is not None:
                echo(f"wrote {self.separate}: each of them")


def _free(label: str, taken: Mapping[str, Any]) -> str:
    """Return a label that no other row has."""
    count, free = 1, label
    while free in taken or free == "base":
        count += 1
        free = f"{label} ({count})"
    return free
