"""The command that serves pictures over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from svdiff_serve.settings import DRAIN, HOST, WATCH_EVERY, Defaults, Limits, ServiceSettings

from . import options
from .devices import device
from .server_command import MB, ServerCommand

PORT: Final = 8000


@click.command()
@click.argument("base", metavar="BASE")
@click.option(
    "--deltas",
    "sources",
    metavar="FOLDER|owner/repo",
    multiple=True,
    required=True,
    help="A folder that is watched, or a δ on the Hub; may be given several times.",
)
@click.option("--name", help="What requests call BASE alone [default: its repository, or the folder's name].")
@click.option("--host", default=HOST, show_default=True, help="The address to listen on.")
@click.option("--port", default=PORT, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--keys", type=click.Path(path_type=Path), help="A file of API keys, NAME KEY on each line.")
@click.option("--no-auth", is_flag=True, help="Take requests of anyone, from other machines too.")
@click.option("--public-url", default="", metavar="URL", help="How addresses of pictures begin, behind a proxy.")
@click.option(
    "--batch-size",
    default=ServiceSettings.batch_size,
    show_default=True,
    type=click.IntRange(1),
    help="Pictures painted at a time.",
)
@click.option(
    "--queue",
    default=ServiceSettings.queue_size,
    show_default=True,
    type=click.IntRange(1),
    help="Pictures that may wait.",
)
@click.option("--queue-of-key", type=click.IntRange(1), help="Pictures of one key that may wait [default: as --queue].")
@click.option(
    "--rate", default=Limits.rate, type=click.FloatRange(0), help="Pictures of a key in a minute [default: any]."
)
@click.option("--max-pixels", default=Limits.pixels, show_default=True, type=click.IntRange(1), help="Of a picture.")
@click.option("--max-steps", default=Limits.steps, show_default=True, type=click.IntRange(1), help="Of denoising.")
@click.option(
    "--max-pictures", default=Limits.pictures, show_default=True, type=click.IntRange(1), help="Of one request."
)
@click.option("--max-body", default=Limits.body, show_default=True, type=click.IntRange(1), help="Bytes of a request.")
@click.option(
    "--deadline", default=Limits.seconds, show_default=True, type=click.FloatRange(0.1), help="Seconds of a request."
)
@click.option("--drain", default=DRAIN, show_default=True, type=click.FloatRange(1), help="Seconds to finish in.")
@click.option(
    "--steps", default=Defaults.steps, show_default=True, type=click.IntRange(1), help="Where a request does not say."
)
@options.own_guidance
@options.scheduler
@click.option(
    "--gain-memory",
    default=ServiceSettings.gain_bytes // MB,
    show_default=True,
    type=click.IntRange(0),
    help="MB of δ on the device.",
)
@click.option("--watch-every", default=WATCH_EVERY, show_default=True, type=click.FloatRange(0.1), help="Seconds.")
@click.option("--index", type=click.Path(path_type=Path), help="Where to keep the store's index [default: the cache].")
@click.option(
    "--dtype",
    default="F32",
    show_default=True,
    type=click.Choice(["F32", "F16", "BF16"], case_sensitive=False),
    help="Number format of the model.",
)
@click.option("--no-board", is_flag=True, help="Serve no page for mixing at /.")
@click.option("--log-prompts", is_flag=True, help="Write prompts into the log, too.")
@device("serve")
def serve(base: str, sources: tuple[str, ...], **given: Any) -> None:
    """Serve pictures of BASE and many deltas by OpenAI's images API; each picture of a batch has its own.

    The `model` of a request is a mix such as dog:0.8+cat:0.5@unet-ca, of names in --deltas. SIGTERM finishes what was
    accepted. The log goes to standard error, a JSON object on each line. At / is the board, a page that mixes them
    with sliders; svdiff board serves it to yourself alone.

    \b
        svdiff serve tiny --deltas deltas/
        svdiff serve sd15 --deltas deltas/ --deltas owner/repo --host 0.0.0.0 --keys keys.txt --rate 60
    """
    ServerCommand(board=not given.pop("no_board"), **given).run(base, sources)
