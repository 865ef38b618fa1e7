"""The command that opens the board: a page that mixes deltas with sliders, in the browser of this machine."""

from __future__ import annotations

import webbrowser
from typing import Any

import click

from . import options
from .devices import device
from .printing import echo
from .server_command import ServerCommand


@click.command()
@click.argument("base", metavar="BASE")
@click.argument("deltas", metavar="[DELTA|FOLDER|owner/repo]...", nargs=-1)
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Where to listen [default: a free port].")
@click.option("--no-browser", is_flag=True, help="Open no browser; say the address only.")
@click.option("--steps", default=20, show_default=True, type=click.IntRange(1), help="Of the last preview.")
@options.own_guidance
@options.scheduler
@click.option("--watch-every", default=2.0, type=click.FloatRange(0.1), help="Seconds between looks at the folders.")
@click.option(
    "--dtype",
    default="F32",
    show_default=True,
    type=click.Choice(["F32", "F16", "BF16"], case_sensitive=False),
    help="Number format of the model.",
)
@device("board")
def board(base: str, deltas: tuple[str, ...], no_browser: bool, **given: Any) -> None:
    """Mix deltas of BASE with sliders and look, in a browser.

    It serves a page to this machine alone and opens it. Deltas are files, folders that are watched, or repositories on
    the Hub. A mix is saved as a delta, a recipe, a command, Python, or LoRA. Ctrl-C ends it.

    \b
        svdiff board tiny deltas/
        svdiff board sd15 dog.safetensors cat.safetensors owner/repo --dtype F16
    """
    command = ServerCommand(command="board", own=True, what="board on", drain=1.0, **given)
    command.run(base, deltas, (lambda _: None) if no_browser else _open)


def _open(address: str) -> None:
    """Open a browser, where there is one."""
    try:
        opened = webbrowser.open(address)
    except webbrowser.Error:
        opened = False
    if not opened:
        echo(f"no browser could be opened: open {address} yourself", err=True)
