"""Read what `svdiff train` is asked for, from options and a run file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import devices, options
from .known_pipelines import listed
from .references import needs
from .train_push import MINE
from .train_run import Training
from .train_settings import SETTINGS, settings

SINGLE = ("images", "prompt", "class_prompt", "token")
"""What describes the only concept of a run."""


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
    command = Training(output, **given)
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
