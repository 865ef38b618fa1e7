"""Commands that exchange deltas on the Hub: push, pull."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from svdiff_delta._text.printable import counted
from svdiff_delta._text.tokens import strike
from svdiff_delta.errors import InputError

from . import options
from .printing import echo, echo_json
from .progress import Bar
from .references import is_path, open_reference, say, sole_component

if TYPE_CHECKING:
    from svdiff_delta import Delta
    from svdiff_delta.publish.push import Pushed


@click.command(cls=options.LightCommand)
@click.argument("delta", metavar="DELTA")
@click.argument("repository", metavar="REPO")
@click.option("--license", "licence", metavar="ID", help="Such as apache-2.0 [default: that of the base's card].")
@click.option("--prompt", help="What calls the subject, for the card [default: the training's].")
@click.option(
    "--sample",
    "samples",
    metavar="FILE[:PROMPT]",
    multiple=True,
    help="A picture for the card, PNG or JPEG; may be given several times. Text and EXIF in it are not sent.",
)
@click.option("--base-model", metavar="OWNER/REPO", help="The base's repository, if DELTA does not name it.")
@click.option("--lora", metavar="FILE", help="A LoRA copy to send along, as `svdiff convert --to diffusers` wrote it.")
@click.option("--lora-rank", type=click.IntRange(1), help="Or make one of this rank; needs --base.")
@click.option("--base", metavar="BASE", help="The base that --lora-rank computes with.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--revision", metavar="BRANCH", help="The branch to push to; made if there is none.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--message", default="Push a delta with svdiff", show_default=True, help="Of the commit.")
@click.option("--force", is_flag=True, help="Push even into a repository of something else, such as a model.")
@click.option("--dry-run", is_flag=True, help="Check everything and print what would be sent.")
@options.as_json
@options.quiet
def push(
    delta: str,
    repository: str,
    licence: str | None,
    prompt: str | None,
    samples: tuple[str, ...],
    base_model: str | None,
    lora: str | None,
    lora_rank: int | None,
    base: str | None,
    private: bool,
    revision: str | None,
    create_pr: bool,
    message: str,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Publish a delta on the Hub, with a card.

    REPO is owner/repo or owner/repo@branch; it is made if there is none. One commit holds svdiff.safetensors,
    config.json, README.md and pictures. The card says what DELTA says of itself. On a next push it keeps what you
    wrote in it, its licence, its tags, and its pictures unless new ones come.

    A token comes from `hf auth login` or HF_TOKEN. DELTA's own metadata are published with it; what names a path of
    somebody's machine, or holds an access token, is refused.

    \b
        svdiff push dog.safetensors me/dog --sample dog.png
        svdiff push dog.safetensors me/dog --sample 'beach.png:a photo of a sks dog on the beach' --dry-run
        svdiff push dog.safetensors me/dog@v2 --lora-rank 32 --base sd15
    """
    from svdiff_delta.io import load
    from svdiff_delta.publish.push import push as run

    silent = quiet or as_json
    opened = load(delta)
    pictures = [_split_sample(sample, prompt or _trained(opened)) for sample in samples]
    with _lora_copy(opened, lora, lora_rank, base, quiet=silent) as copy, hub_client(quiet=silent):
        done = run(
            opened,
            repository,
            instance_prompt=prompt,
            license=licence,
            base_model=base_model,
            samples=pictures,
            lora=copy,
            private=private,
            revision=revision,
            create_pr=create_pr,
            message=message,
            overwrite=force,
            dry_run=dry_run,
        )
    if as_json:
        echo_json({**asdict(done), "sent": not dry_run})
        return
    for remark in done.remarks:
        say(f"note: {remark}", quiet=quiet)
    if not quiet:
        _tell(done, dry_run=dry_run)


@click.command(cls=options.LightCommand)
@click.argument("reference", metavar="REPO")
@options.output("Also write a copy of the file here.", required=False)
@options.force
@click.option("--dry-run", is_flag=True, help="Only say what would be fetched.")
@options.as_json
@options.quiet
def pull(reference: str, output: Path | None, force: bool, dry_run: bool, as_json: bool, quiet: bool) -> None:
    """Fetch a delta from the Hub, and check every byte of it.

    REPO is owner/repo[@revision][/file]. The delta goes into the local Hub cache; from then on owner/repo works
    without network wherever a DELTA does. Only that file is fetched, and nothing is run.

    A server that sends less than 1000 bytes a second over 30 s is given up; SVDIFF_HUB_SPEED and SVDIFF_HUB_PATIENCE
    set both.

    \b
        svdiff pull alice/cat
        svdiff pull alice/cat@v1 -o cat.safetensors
    """
    from svdiff_delta._util.atomic import check_output
    from svdiff_delta.hub_client.download import find_delta
    from svdiff_delta.hub_client.reference import read_reference
    from svdiff_delta.io import take

    with hub_client(quiet=quiet or as_json):
        found = find_delta(read_reference(reference))
        if output is not None:
            check_output(output, overwrite=force)
        delta = None if dry_run else take(found, output, overwrite=force)
    facts = {
        "reference": str(found.reference),
        "bytes": found.size,
        "fetched": found.path is None and not dry_run,
        "output": None if output is None else str(output),
    }
    if as_json:
        about = {} if delta is None else {"parameters": len(delta), "numbers": delta.metadata.numbers}
        echo_json({**facts, **about, "written": not dry_run and output is not None})
    elif not quiet:
        state = "is in the cache" if found.path is not None else "would be fetched" if dry_run else "fetched"
        echo(f"{found.reference}: {state}, {found.size:,} bytes")
        if delta is not None:
            echo(f"valid: {counted(len(delta), 'parameter')}, {counted(delta.metadata.numbers, 'number')}")
        if output is not None:
            echo(f"{'would write' if dry_run else 'wrote'} {output}")


def _tell(done: Pushed, *, dry_run: bool) -> None:
    if done.changed is False:
        echo(f"{done.repository}: nothing has changed")
        return
    new = ", a new repository" if done.created else ""
    echo(f"{'would send' if dry_run else 'sent'} to {done.repository}{new}:")
    for name, size in done.files.items():
        echo(f"  {size:>12,}  {name}")
    for name in done.deleted:
        echo(f"  {'taken away':>12}  {name}")
    echo(f"\n{strike(done.card)}" if dry_run else f"see {done.url}")  # what is there of a card came from a server


def _split_sample(text: str, prompt: str | None) -> tuple[str, str]:
    """Return file and prompt of `FILE[:PROMPT]`; a path that exists as it is has the subject's prompt."""
    path, _, said = text.partition(":")
    if is_path(text) or not said.strip():
        path, said = (text if is_path(text) else path), prompt or ""
    if not said:
        raise InputError(f"--sample {text}: has no prompt", fix="write it as FILE:PROMPT, or give --prompt")
    return path, said


def _trained(delta: Delta) -> str | None:
    prompt = (delta.metadata.training or {}).get("prompt")
    return prompt if isinstance(prompt, str) else None


@contextmanager
def _lora_copy(
    delta: Delta, given: str | None, rank: int | None, base: str | None, *, quiet: bool
) -> Iterator[str | None]:
    """Yield the path of a LoRA copy: the one that was given, or one that is made now and removed in the end."""
    if rank is None:
        if base is not None:
            raise InputError("--base is there to make a LoRA copy with", fix="give --lora-rank too")
        yield given
        return
    if given is not None or base is None:
        raise InputError("--lora-rank makes a LoRA copy of a base", fix="give --base too, and no --lora")
    import tempfile

    model = open_reference(base, sole_component([delta]))
    from svdiff_delta.conversion import convert

    with tempfile.TemporaryDirectory() as folder, Bar("making LoRA", quiet=quiet) as bar:
        output = Path(folder) / "lora.safetensors"
        made = convert(delta, to="diffusers", base=model, output=output, rank=rank, allow_unmatched=True, progress=bar)
        say(f"note: the LoRA copy of rank {rank} retains {made.captured:.2%} of the change", quiet=quiet)
        for remark in [*made.remarks, *_left_out(made.left_out)]:
            say(f"note: {remark}", quiet=quiet)
        yield str(output)


def _left_out(names: Collection[str]) -> list[str]:
    return [f"the LoRA copy lacks {counted(len(names), 'weight')}, such as {next(iter(names))}"] if names else []


@contextmanager
def hub_client(*, quiet: bool) -> Iterator[None]:
    """Let the Hub's own library show progress on a terminal only, and its warnings unless nothing is to be printed."""
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    if quiet:
        logging.set_verbosity_error()
    if quiet or not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            enable_progress_bars()
