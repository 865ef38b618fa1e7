"""Commands that say what files are, and find them: what, find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from shlex import quote
from typing import TYPE_CHECKING, Final

import click

from svdiff_delta._text.printable import counted, printable

from . import options
from .printing import echo, echo_json
from .references import say

if TYPE_CHECKING:
    from svdiff_delta.adapters.description import Description

SPELLED: Final = ("peft", "diffusers", "kohya", "comfyui", "lycoris")
"""Dialects that an adapter can be spelled in without a delta in between."""

METHODS: Final = frozenset({"LoRA", "DoRA", "LoHa", "LoKr", "full difference"})
"""Methods that it is done with."""

WIDEST: Final = 60
"""Characters of a name in a table; what is longer is cut in the middle."""


@click.command(cls=options.LightCommand)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@options.as_json
def what(files: tuple[str, ...], as_json: bool) -> None:
    """Say what files are: which method, which dialect, for which models, and what takes them on.

    FILE is a file, a folder, in which every file and folder of a model or adapter is looked at, or owner/repo[/file] on
    the Hub, of which only headers are fetched. Nothing but headers is read: no weights, and no pickle is opened.

    A single file gets a line for each thing that it says, several get one line each; --json prints one object per
    line. A broken file gets a line on standard error, does not stop the rest, and the command exits with 1.

    \b
        svdiff what download.safetensors
        svdiff what downloads/ --json
        svdiff what alice/my-lora
    """
    from svdiff_delta.adapters.places import look

    found = (described for file in files for described in look(file))
    broken = _print_lines(found) if as_json else _print(list(found))
    if broken:
        click.get_current_context().exit(1)


@click.command(cls=options.LightCommand)
@click.argument("base", metavar="BASE")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many at most.")
@click.option("--deltas", is_flag=True, help="Only deltas.")
@options.as_json
def find(base: str, limit: int, deltas: bool, as_json: bool) -> None:
    """List what the Hub has for a base: deltas, LoRA and other adapters whose cards say that they are for it.

    BASE is owner/repo. Deltas come first, then what was changed last. Nothing is fetched but the list.

    \b
        svdiff find stable-diffusion-v1-5/stable-diffusion-v1-5
        svdiff find Tongyi-MAI/Z-Image-Turbo --limit 20 --json
    """
    from svdiff_delta.hub_client.listing import list_adapters

    found = [row for row in list_adapters(base, limit) if not deltas or row.kind == "δ"]
    if as_json:
        for row in found:
            echo_json(asdict(row))
        return
    width = max((len(printable(row.repository)) for row in found), default=0)
    for row in found:
        size = "" if row.size is None else f"{row.size:,}"
        downloads = "" if row.downloads is None else f"{row.downloads:,}"
        name = f"{printable(row.repository):<{width}}"
        echo(f"{row.kind:<7}  {name}  {row.changed:<10}  {size:>16} bytes  {downloads:>10} downloads".rstrip())
    full = ", the list may go on: --limit" if len(found) == limit else ""
    echo(f"{counted(len(found), 'repository', 'repositories')} for {base}{full}")


def _print_lines(found: Iterator[Description]) -> int:
    broken = 0
    for described in found:
        broken += bool(described.error)
        commands = _commands(described)
        echo_json({**described.record(), **({"commands": commands} if commands else {})})
    return broken


def _print(found: Sequence[Description]) -> int:
    """Print one thing in lines, or a table of several; return how many are broken."""
    whole = [described for described in found if not described.error]
    if len(found) == 1 and whole:
        _print_one(whole[0])
    elif whole:
        _print_table(whole)
    for described in found:
        if described.error:
            say(f"error: {described.error}")
    if len(found) > 1:
        wrong = len(found) - len(whole)
        echo(f"\n{counted(len(found), 'file')}" + (f", {wrong:,} broken" if wrong else ""))
    return len(found) - len(whole)


def _print_one(described: Description) -> None:
    lines = {
        "file": described.path,
        "kind": described.kind,
        "method": described.method,
        "dialect": described.dialect,
        "family": described.family,
        "base": described.base,
        "program": described.program,
        "rank": _ranks(described, most=8),
        "alpha": described.alpha,
        "dtype": ", ".join(described.dtypes),
        "layers": f"{described.layers:,}" if described.layers else "",
        "size": f"{described.size:,} bytes" if described.size else "",
        "note": described.note,
    }
    for key, value in lines.items():
        if value:
            echo(f"{key:<11} {printable(value)}")
    for command in _commands(described):
        echo(f"{'next':<11} {printable(command)}")


def _commands(described: Description) -> list[str]:
    """Return the commands that turn a file into a delta, or into another dialect; those that look at a delta."""
    name = quote(described.path)
    to_delta = f"svdiff convert {name} --base BASE -o DELTA.safetensors"
    if described.kind == "delta":
        to_lora = f"svdiff convert {name} --to kohya --rank 32 --base BASE -o LORA.safetensors"
        return [f"svdiff info {name}", to_lora]
    if described.kind == "model" and described.method != "GGUF":
        return [to_delta.replace("--base", "--from full --base")]
    if described.kind not in ("adapter", "shifts"):
        return []
    methods = {*described.method.split(" + ")}
    if described.kind == "shifts" or described.dialect not in SPELLED or not methods <= METHODS:
        return [to_delta]
    other = "kohya" if described.dialect == "comfyui" else "comfyui"
    return [to_delta, f"svdiff convert {name} --to {other} -o NEW.safetensors"]


def _ranks(described: Description, most: int) -> str:
    """Return the ranks, those that most modules have first."""
    if len(described.ranks) == 1:
        return str(described.ranks[0][0])
    found = [f"{rank} ({count:,}×)" for rank, count in described.ranks[:most]]
    return ", ".join(found) + (" …" if len(described.ranks) > most else "")


def _print_table(found: Sequence[Description]) -> None:
    rows = [("file", "what", "dialect", "family", "rank", "dtype", "layers", "bytes")]
    for described in found:
        ranks = "" if not described.ranks else f"{described.ranks[0][0]}{'+' if len(described.ranks) > 1 else ''}"
        rows.append(
            (
                _shortened(printable(described.path)),
                described.method or described.kind,
                described.dialect,
                described.family,
                ranks,
                described.dtypes[0] if described.dtypes else "",
                f"{described.layers:,}" if described.layers else "",
                f"{described.size:,}" if described.size else "",
            )
        )
    cells = [tuple(map(printable, row)) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(rows[0]))]
    for row in cells:
        left = "  ".join(f"{text:<{width}}" for text, width in zip(row[:4], widths[:4], strict=True))
        right = "  ".join(f"{text:>{width}}" for text, width in zip(row[4:], widths[4:], strict=True))
        echo(f"{left}  {right}".rstrip())


def _shortened(text: str) -> str:
    half = WIDEST // 2
    return text if len(text) <= WIDEST else f"{text[: half - 1]}…{text[-half:]}"
