"""The command that trains: every setting of a run as an option, or from a run file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svdiff_delta._text.printable import counted
from svdiff_delta.errors import InputError, OutputError

from . import devices, options
from .known_pipelines import listed
from .printing import echo, echo_json
from .progress import Bar, first_process
from .references import keep_apart, needs, open_to_paint, say
from .signals import SIGNALLED
from .train_push import MINE, PushAfter, painted

if TYPE_CHECKING:
    from svdiff_delta.base_model.base import Base
    from svdiff_train.sampling.image_to_image import Initial
    from svdiff_train.settings.config import TrainConfig
    from svdiff_train.training.callbacks import Report, Watch
    from svdiff_train.training.loop import Keeping, Outcome
    from svdiff_train.training.validation import Validation

"""Exit code of a run that a signal ended, less the signal's number, as shells have it."""


@dataclass(frozen=True)
class Setting:
    """One field of `TrainConfig` as an option; what is not given is left to the run file, then to the config.

    Attributes:
        name: of the field.
        kind: the option's type; bool makes a flag.
        help: what it says in the help text.
        default: what the help text names as default.
        many: whether it may be given several times.
        flag: what the option is called, if not as the field.
        metavar: names of its values, if it takes several at once.
    """

    name: str
    kind: Any
    help: str
    default: str = ""
    many: bool = False
    flag: str = ""
    metavar: tuple[str, ...] = ()

    def __call__(self, command: Callable[..., Any]) -> Callable[..., Any]:
        """Add the option to a command."""
        flag = self.flag or f"--{self.name.replace('_', '-')}"
        more: dict[str, Any] = {"is_flag": True} if self.kind is bool else {"type": self.kind, "multiple": self.many}
        if self.metavar:
            more |= {"nargs": len(self.metavar), "metavar": " ".join(self.metavar)}
        text = f"{self.help} [default: {self.default}]" if self.default else self.help
        return click.option(flag, self.name, default=None, help=text, **more)(command)


SETTINGS = (
    Setting("prompt", str, "Describes the pictures, with a rare token: 'a photo of a V1 dog'."),
    Setting("class_prompt", str, "Describes the class, 'a photo of a dog'; turns prior preservation on."),
    Setting("token", str, "The rare token that prompt and captions must have.", "what the class prompt lacks"),
    Setting(
        "method",
        click.Choice(["svdiff", "full", "lora", "kv"]),
        "Shifts, or a baseline: all weights, LoRA, Custom Diffusion's K and V.",
        "svdiff",
    ),
    Setting(
        "selectors",
        str,
        "What is trained; may be given several times.",
        "all layers of the denoiser",
        many=True,
        flag="--select",
    ),
    Setting("allow_missing", bool, "Leave out weights that BASE's files name otherwise than its model's class."),
    Setting("steps", click.IntRange(1), "Optimizer steps.", "500"),
    Setting("batch_size", click.IntRange(1), "Pictures of the subject per batch and process.", "1; of kv 2"),
    Setting("accumulate", click.IntRange(1), "Batches that make one step.", "1"),
    Setting(
        "processes",
        click.IntRange(1),
        "How many share out a step. Fewer, whose number divides it, do the work of all.",
        "as many as torchrun started",
    ),
    Setting(
        "learning_rate",
        float,
        "Of shifts of singular values, or of what the method trains.",
        "0.001; of full 5e-06, of lora 0.0001, of kv 1e-05; on tiny 0.02, as its card names",
    ),
    Setting("learning_rate_1d", float, "Of shifts of norm weights.", "1e-06; on tiny 0.004"),
    Setting("schedule", str, "How the rate goes: constant, linear, cosine, …", "constant"),
    Setting(
        "schedule_steps",
        click.IntRange(1),
        "Steps that it is planned for: give more than --steps if the run may become longer.",
        "--steps",
    ),
    Setting("warmup", click.IntRange(0), "Steps in which the rate rises.", "0"),
    Setting("weight_decay", float, "Of AdamW.", "0.01"),
    Setting("max_grad_norm", float, "Gradients are clipped to it.", "1.0"),
    Setting("prior_weight", float, "λ of Eq. 3.", "1.0"),
    Setting("class_images", click.IntRange(1), "Pictures of the class to paint.", "200"),
    Setting("snr_gamma", float, "γ of min-SNR weighting, of diffusion; 5 is usual.", "none"),
    Setting(
        "weighting_scheme",
        click.Choice(["none", "sigma_sqrt", "logit_normal", "mode", "cosmap"]),
        "How flow matching draws timesteps and weights the loss, by diffusers' names.",
        "the family's own: none, of SD 3 logit_normal",
    ),
    Setting("logit_mean", float, "Of logit_normal.", "0"),
    Setting("logit_std", float, "Of logit_normal.", "1"),
    Setting("mode_scale", float, "Of mode.", "1.29"),
    Setting("num_frames", click.IntRange(1), "Frames of each clip, for video models.", "the pipeline's"),
    Setting("seed", click.IntRange(0, 2**53 - 1), "Of all draws.", "0"),
    Setting("resolution", click.IntRange(8), "Side of the pictures in pixels.", "the model's"),
    Setting("crop", click.Choice(["center", "random"]), "Where pictures are cut to size.", "center"),
    Setting("flip", bool, "Mirror half of the pictures."),
    Setting("buckets", bool, "Let pictures keep about their own shape."),
    Setting("mixed_precision", click.Choice(["no", "fp16", "bf16"]), "What the model computes in.", "no"),
    Setting("gradient_checkpointing", bool, "Save memory, and compute twice."),
    Setting(
        "quantization",
        click.Choice(["no", "nf4", "int8", "float8", "qint8", "qint4", "qfloat8"]),
        "What the denoiser's frozen weights are stored in: by bitsandbytes, torchao (int8, float8) or quanto.",
        "no",
    ),
    Setting("cache_latents", bool, "Encode all pictures first, keep that on disk, and let the autoencoder go."),
    Setting("pre_compute_text_embeddings", bool, "The same for prompts and the text encoders."),
    Setting("compile", bool, "Run the denoiser through torch.compile."),
    Setting("train_rank", click.IntRange(1), "Shift only so many largest singular values of each weight.", "all"),
    Setting("revive", bool, "Let shifts below −σ come back (projected gradient)."),
    Setting("lora_rank", click.IntRange(1), "Rank of LoRA.", "4"),
    Setting("use_ema", bool, "Give the running mean of the steps, not what the last one left."),
    Setting("ema_decay", float, "What that mean keeps of itself at a step, at most.", "0.9999"),
    Setting(
        "concepts",
        str,
        "One of several concepts, in place of IMAGES and --prompt; '' for no class prompt. Once for each concept.",
        many=True,
        flag="--concept",
        metavar=("IMAGES", "PROMPT", "CLASS_PROMPT"),
    ),
    Setting(
        "mix_probability",
        click.FloatRange(0, 1),
        "Of Cut-Mix: that a sample shows two concepts, cut and pasted.",
        "0.6 with several concepts",
    ),
    Setting(
        "mix_beside",
        str,
        "Describes mixed samples with {first} left of {second}; may be given several times.",
        "the paper's two wordings",
        many=True,
    ),
    Setting(
        "mix_above",
        str,
        "Describes mixed samples with {first} above {second}; may be given several times.",
        "as for beside",
        many=True,
    ),
    Setting(
        "unmix_weight",
        float,
        "Of the attention of each concept's token on the other's half. 0 goes on without, as models without "
        "cross-attention (SD 3, Flux) need; 10 did best of 1, 10 and 100 on the embedded base, and worse than 0.",
        "0",
    ),
    Setting(
        "unmix_maps",
        click.Choice(["attention", "share"]),
        "What is kept small: that attention itself, or its share of all that the token gets.",
        "attention",
    ),
    Setting(
        "unmix_layers",
        str,
        "Which cross-attention that is, by glob or part of the name; may be given several times.",
        "all",
        many=True,
        flag="--unmix-layer",
    ),
    Setting(
        "unmix_resolutions",
        click.IntRange(1),
        "Which maps those are, by the side they have in square pictures; may be given several times.",
        "all",
        many=True,
        flag="--unmix-resolution",
    ),
)
"""Every setting of a run."""


SINGLE = ("images", "prompt", "class_prompt", "token")
"""What describes the only concept of a run."""


def settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for every setting."""
    for setting in reversed(SETTINGS):
        command = setting(command)
    return command


@click.command(epilog=f"BASE is a pipeline of one of these families: {listed()}.")
@click.argument("base", metavar="BASE", required=False)
@click.argument("images", metavar="[IMAGES]", required=False)
@click.option("--config", "run_file", type=click.Path(path_type=Path), help="A run file; options given here win.")
@settings
@click.option("--run-folder", type=click.Path(path_type=Path), help="Folder of states and so on [default: OUTPUT.run].")
@click.option("--resume", is_flag=True, help="Go on from the newest state in the run folder.")
@click.option("--save-every", default=100, show_default=True, type=click.IntRange(1), help="Steps between states.")
@click.option("--keep", default=2, show_default=True, type=click.IntRange(1), help="How many states stay.")
@click.option("--keep-every", type=click.IntRange(1), help="Steps between results that all stay, to choose from.")
@click.option("--class-folder", type=click.Path(path_type=Path), help="Pictures of the class [default: in RUN-FOLDER].")
@click.option("--validate", "validation_prompts", multiple=True, help="Paint this on the way; may be repeated.")
@click.option("--validate-image", type=click.Path(path_type=Path), help="Paint that from this picture, or edit it.")
@click.option("--validate-mask", type=click.Path(path_type=Path), help="Fill in where this is white.")
@click.option("--validate-every", default=100, show_default=True, type=click.IntRange(1), help="Steps between.")
@click.option(
    "--push-to-hub",
    "push",
    is_flag=False,
    flag_value=MINE,
    metavar="[OWNER/REPO]",
    help="Push the delta in the end, with a card and pictures. Without a name, as your repository called like OUTPUT; "
    "write it last then.",
)
@click.option("--license", "licence", metavar="ID", help="Of what is pushed [default: that of the base's card].")
@click.option("--tracker", "trackers", multiple=True, help="Such as tensorboard; may be repeated.")
@click.option(
    "--output-cache",
    type=click.Path(path_type=Path),
    help="Where what encoders gave is kept [default: outputs in SVDIFF_HOME].",
)
@click.option(
    "--output-cache-size",
    default=20.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Gigabytes of that; what was not used for longest goes first.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out pictures, clips and pairs that cannot be used.")
@devices.device("train")
@click.option("--no-cuda-graphs", is_flag=True, help="Launch every operation by itself on a GPU.")
@click.option("--fsdp", is_flag=True, help="Share out the denoiser's frozen weights over the processes (FSDP).")
@options.output("The delta file to write; a folder for the other methods.")
@options.title
@options.dry_run
@options.force
@options.as_json
@options.quiet
def train(base: str | None, images: str | None, run_file: Path | None, output: Path, **given: Any) -> None:
    """Train a delta from a few pictures in a folder, or from several folders of one concept each.

    This is DreamBooth on spectral shifts (Eq. 1 and 3 of the paper). Ctrl-C, SIGTERM and SIGHUP end the run after the
    current step; its state is kept, and --resume goes on from it. Next to the result stands OUTPUT.toml, which
    repeats the run.

    With --concept in place of IMAGES, several concepts are learned together: samples show one of them, or by Cut-Mix
    two (section 3.3 of the paper). In a run file each is a table [[concepts]], which may have a token and a phrase too.

    \b
        svdiff train tiny pictures --prompt 'a photo of a sks dog' --class-prompt 'a photo of a dog' -o dog.safetensors
        svdiff train --config dog.toml -o again.safetensors
        svdiff train tiny --concept dogs 'a photo of a V1 dog' 'a photo of a dog' \\
                          --concept cats 'a photo of a V2 cat' 'a photo of a cat' -o both.safetensors
    """
    own = {setting.name: given.pop(setting.name) for setting in SETTINGS}
    command = _Command(output, **given)
    command.check()
    needs("diffusers", "train")
    described = _described(run_file, base, images, own)
    base, images = described.pop("base"), described.pop("images", None)
    from svdiff_train.settings.config import TrainConfig

    command.run(base, None if images is None else Path(images), TrainConfig.from_facts(described))


def _described(run_file: Path | None, base: str | None, images: str | None, own: dict[str, Any]) -> dict[str, Any]:
    """Return the whole run: what the file says, overruled by what was given."""
    from svdiff_train.settings.runfile import read_run

    found = {} if run_file is None else read_run(run_file)
    places = {"base": base, "images": images}
    said = {key: value for key, value in {**own, **places}.items() if value not in (None, ()) and value is not False}
    if "concepts" in said:
        said["concepts"] = [_concept(*concept) for concept in said["concepts"]]
    if ("concepts" in said or "concepts" in found) and (single := [key for key in SINGLE if key in said]):
        name = "IMAGES" if single[0] == "images" else f"--{single[0].replace('_', '-')}"
        raise click.UsageError(f"{name} is for one concept; several say it by --concept or in the run file.")
    if "concepts" in said:  # of the file's description of what is learned, nothing holds
        found = {key: value for key, value in found.items() if key not in SINGLE}
    found |= said
    for key in ("base",) if "concepts" in found else ("base", "images", "prompt"):
        if key not in found:
            raise click.UsageError(f"Missing {'option --prompt' if key == 'prompt' else f'argument {key.upper()}'}.")
    return found


def _concept(images: str, prompt: str, class_prompt: str) -> dict[str, Any]:
    """Return a concept as a run file has it."""
    return {"images": images, "prompt": prompt} | ({"class_prompt": class_prompt} if class_prompt else {})


@dataclass(frozen=True)
class _Command:
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
        from svdiff_train.training.loop import Keeping

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


def watch_with(bar: Bar, tell: Callable[[str], None] | None = None) -> Watch:
    """Let a bar show bases, then pictures of the class, then steps with what is known of them."""
    from svdiff_train.training.callbacks import Watch

    begun: list[tuple[int, float]] = []

    def step(report: Report) -> None:
        begun.append((report.step, time.monotonic()))
        (first, start), (last, now) = begun[0], begun[-1]
        seconds = (now - start) / max(1, last - first)
        parts = [f"step {report.step} of {report.steps}", f"loss {report.loss:.4f}"]
        parts += [f"{seconds:.2f} s/step"] + ([f"{report.memory / 1e9:.1f} GB"] if report.memory else [])
        if report.dead:
            parts.append(f"{report.dead} dead")
        bar(report.step, report.steps, ", ".join(parts), label="training")

    return Watch(
        basis=lambda done, total: bar(done, total, label="computing bases"),
        class_images=lambda done, total: bar(done, total, label="painting the class"),
        encoded=lambda done, total: bar(done, total, label="encoding pictures"),
        step=step,
        say=tell,
    )
