"""Carry out what `svdiff train` was asked for: check, train, write, push."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svdiff_delta._text.printable import counted
from svdiff_delta.errors import InputError, OutputError

from . import devices
from .printing import echo, echo_json
from .progress import Bar, first_process
from .references import keep_apart, open_to_paint, say
from .signals import SIGNALLED
from .train_push import PushAfter, painted
from .train_watch import watch_with

if TYPE_CHECKING:
    from svdiff_delta.base_model.base import Base
    from svdiff_train.sampling.image_to_image import Initial
    from svdiff_train.settings.config import TrainConfig
    from svdiff_train.training.keeping import Keeping
    from svdiff_train.training.outcome import Outcome
    from svdiff_train.training.validation import Validation


@dataclass(frozen=True)
class Training:
    """Everything but the settings of the run itself."""

    output: Path
    run_folder: Path | None
    resume: bool
    save_every: int
    keep: int
    keep_every: int | None
    class_folder: Path | None
    validation_prompts: tuple[str, ...]
    validate_image: Path | None
    validate_mask: Path | None
    validate_every: int
    push: str | None
    licence: str | None
    trackers: tuple[str, ...]
    output_cache: Path | None
    output_cache_size: float
    skip_bad: bool
    device: str | None
    no_cuda_graphs: bool
    fsdp: bool
    title: str | None
    dry_run: bool
    force: bool
    as_json: bool
    quiet: bool

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run_folder or self.output.with_suffix(".run")

    @property
    def run_file(self) -> Path:
        """The run file next to the result."""
        return self.output.with_suffix(".toml")

    def check(self) -> None:
        """Refuse what would fail after hours, or has no meaning."""
        from svdiff_delta._util.atomic import check_output

        if self.licence is not None and self.push is None:
            raise InputError("--license is of what is pushed", fix="give --push-to-hub too, or leave it out")
        overwrite = self.force or self.resume
        check_output(self.output, overwrite=overwrite)
        check_output(self.run_file, overwrite=overwrite)
        if not overwrite and any((self.folder / "state").glob("step-*")):
            raise OutputError(
                f"{self.folder}: holds states of a run", fix="go on from them with --resume, or start anew with --force"
            )

    def keep_apart(self, model: Base, images: Path | None, config: TrainConfig) -> None:
        """Refuse to write into the pictures or the base, and a result in whose place the run itself would lie."""
        from svdiff_delta._util.atomic import check_output

        check_output(self.output, overwrite=self.force or self.resume, folder=config.method != "svdiff")
        kept = (self.folder, self.class_folder)
        subjects = [images] if images is not None else [concept.images for concept in config.subjects()]
        keep_apart((self.output, self.run_file, *kept), model, *subjects)
        for place in filter(None, kept):
            for written in (self.output, self.run_file):
                if written.resolve() in (place.resolve(), *place.resolve().parents):
                    raise OutputError(
                        f"{place}: would lie in {written}, which is written in the end",
                        fix="choose another folder",
                    )

    @property
    def pushing(self) -> PushAfter | None:
        """The push in the end, if one was asked for."""
        return None if self.push is None else PushAfter(self.push, self.output, self.licence)

    def keeping(self) -> Keeping:
        """Return what is kept on the way."""
        from svdiff_train.training.keeping import Keeping

        return Keeping(
            folder=self.folder,
            every=self.save_every,
            newest=self.keep,
            results_every=self.keep_every,
            resume=self.resume,
        )

    def shown(self, config: TrainConfig) -> tuple[str, ...]:
        """Return the prompts that are painted: those that were given, or what a card is to show."""
        learned = tuple(concept.prompt for concept in config.subjects())
        return self.validation_prompts or (learned if self.push is not None else ())

    def validation(self, config: TrainConfig) -> Validation | None:
        """Return what is painted on the way, for a card alone only in the end.

        Pictures have the model's own size, clips that which is trained.
        """
        from svdiff_train.sampling.sample import Sampling
        from svdiff_train.training.validation import Validation

        if not (prompts := self.shown(config)):
            return None
        side = config.resolution if config.num_frames is not None else None
        sampling = Sampling(steps=30, guidance=None, num_frames=config.num_frames, height=side, width=side)
        every = self.validate_every if self.validation_prompts else config.steps
        return Validation(prompts=prompts, every=every, sampling=sampling, init=self._initial())

    def _initial(self) -> Initial | None:
        """Return what is painted from on the way."""
        if self.validate_image is None:
            if self.validate_mask is not None:
                raise click.UsageError("--validate-mask is of a picture: name it with --validate-image.")
            return None
        from svdiff_train.data.picture import open_image
        from svdiff_train.sampling.image_to_image import Initial

        mask = None if self.validate_mask is None else open_image(self.validate_mask)
        return Initial(open_image(self.validate_image), mask)

    def run(self, base: str, images: Path | None, config: TrainConfig) -> None:
        """Train, write the result and its run file, and say so."""
        from svdiff_train.memory.output_cache import OutputCache
        from svdiff_train.settings.base_advice import settle
        from svdiff_train.training.loop import plan, train

        model = open_to_paint(base)
        config = settle(config, model)
        self.keep_apart(model, images, config)
        if self.pushing is not None:
            self.pushing.check(model, config)
        if self.dry_run:
            if self.device is not None:
                devices.device_for("train", self.device)
            if first_process():
                self.tell(plan(model, images, config, skip_bad=self.skip_bad, device=self.device))
            return
        silent = self.quiet or self.as_json or not first_process()
        with Bar("loading", quiet=silent) as bar:
            outcome = train(
                model,
                images,
                config,
                watch=watch_with(bar, None if silent else say),
                keeping=self.keeping(),
                validation=self.validation(config),
                class_folder=self.class_folder or self.folder / "class",
                trackers=self.trackers,
                skip_bad=self.skip_bad,
                device=self.device,
                cuda_graphs=not self.no_cuda_graphs,
                outputs=OutputCache(self.output_cache, output_cache_size=self.output_cache_size),
                fsdp=self.fsdp,
            )
        if outcome.main_process:
            self.write(outcome, base, images, config)
        if outcome.signal is not None:
            sys.exit(SIGNALLED + outcome.signal)

    def write(self, outcome: Outcome, base: str, images: Path | None, config: TrainConfig) -> None:
        """Write the result and its run file, and say so."""
        from svdiff_train.settings.runfile import write_run

        overwrite = self.force or self.resume
        outcome.result.titled(self.title).save(self.output, overwrite=overwrite)
        places = images or [concept.images for concept in config.subjects()]
        write_run(self.run_file, outcome.config.facts(), base, places, overwrite=overwrite)
        files = [self.output] if self.output.is_file() else [path for path in self.output.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        if self.as_json:
            facts = {"output": str(self.output), "steps": outcome.steps, "bytes": size, "loss": outcome.loss}
            pushed = self.send(outcome, config)
            echo_json({**facts, "interrupted": outcome.interrupted, "run": str(self.folder), **pushed})
            return
        if outcome.interrupted:
            say(
                f"interrupted: saved the state after {counted(outcome.steps, 'step')} to {self.output}; "
                f"the same command with --resume goes on"
            )
        elif not self.quiet:
            echo(f"wrote {self.output}: {counted(outcome.steps, 'step')}, {size:,} bytes")
        found = self.send(outcome, config)
        if found and not self.quiet:
            echo(f"pushed to {found['repository']}: see {found['url']}")

    def send(self, outcome: Outcome, config: TrainConfig) -> dict[str, Any]:
        """Push the result if that was asked for and the run went to its end; return where to."""
        if self.pushing is None or outcome.interrupted:
            return {}
        done = self.pushing.push(
            painted(self.folder, self.shown(config), outcome.steps), quiet=self.quiet or self.as_json
        )
        return {"repository": done.repository, "revision": done.revision, "url": done.url}

    def tell(self, facts: dict[str, Any]) -> None:
        """Print what a run would do."""
        if self.as_json:
            echo_json(facts)
        elif not self.quiet:
            for key, value in facts.items():
                for line in value["lines"] if key == "memory" else [f"{key.replace('_', ' ')}: {value}"]:
                    echo(line)
