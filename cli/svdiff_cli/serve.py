"""The command that serves pictures over HTTP."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from . import options
from .devices import device, device_for
from .printing import echo
from .progress import ticker_of
from .references import TINY, is_path, needs, open_to_paint

if TYPE_CHECKING:
    from svdiff_delta import Base
    from svdiff_serve.http.app import ServerState
    from svdiff_serve.http.keys import Keys
    from svdiff_serve.store.sources import Source

MB: Final = 2**20
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
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=PORT, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--keys", type=click.Path(path_type=Path), help="A file of API keys, NAME KEY on each line.")
@click.option("--no-auth", is_flag=True, help="Take requests of anyone, from other machines too.")
@click.option("--public-url", default="", metavar="URL", help="How addresses of pictures begin, behind a proxy.")
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(1), help="Pictures painted at a time.")
@click.option("--queue", default=64, show_default=True, type=click.IntRange(1), help="Pictures that may wait.")
@click.option("--queue-of-key", type=click.IntRange(1), help="Pictures of one key that may wait [default: as --queue].")
@click.option("--rate", default=0.0, type=click.FloatRange(0), help="Pictures of a key in a minute [default: any].")
@click.option("--max-pixels", default=MB, show_default=True, type=click.IntRange(1), help="Of a picture.")
@click.option("--max-steps", default=100, show_default=True, type=click.IntRange(1), help="Of denoising.")
@click.option("--max-pictures", default=4, show_default=True, type=click.IntRange(1), help="Of one request.")
@click.option("--max-body", default=65536, show_default=True, type=click.IntRange(1), help="Bytes of a request.")
@click.option("--deadline", default=300.0, show_default=True, type=click.FloatRange(0.1), help="Seconds of a request.")
@click.option("--drain", default=60.0, show_default=True, type=click.FloatRange(1), help="Seconds to finish in.")
@click.option("--steps", default=30, show_default=True, type=click.IntRange(1), help="Where a request does not say.")
@options.own_guidance
@options.scheduler
@click.option("--gain-memory", default=1024, show_default=True, type=click.IntRange(0), help="MB of δ on the device.")
@click.option("--watch-every", default=5.0, show_default=True, type=click.FloatRange(0.1), help="Seconds.")
@click.option("--index", type=click.Path(path_type=Path), help="Where to keep the store's index [default: the cache].")
@click.option(
    "--dtype",
    default="F32",
    show_default=True,
    type=click.Choice(["F32", "F16", "BF16"], case_sensitive=False),
    help="Number format of the model.",
)
@click.option("--log-prompts", is_flag=True, help="Write prompts into the log, too.")
@device("serve")
def serve(base: str, sources: tuple[str, ...], **given: Any) -> None:
    """Serve pictures of BASE and many deltas by OpenAI's images API; each picture of a batch has its own.

    The `model` of a request is a mix such as dog:0.8+cat:0.5@unet-ca, of names in --deltas. SIGTERM finishes what was
    accepted. The log goes to standard error, a JSON object on each line.

    \b
        svdiff serve tiny --deltas deltas/
        svdiff serve sd15 --deltas deltas/ --deltas owner/repo --host 0.0.0.0 --keys keys.txt --rate 60
    """
    _Command(**given).run(base, sources)


@dataclass(frozen=True)
class _Command:
    """What was asked for, as the options say."""

    name: str | None
    host: str
    port: int
    keys: Path | None
    no_auth: bool
    public_url: str
    batch_size: int
    queue: int
    queue_of_key: int | None
    rate: float
    max_pixels: int
    max_steps: int
    max_pictures: int
    max_body: int
    deadline: float
    drain: float
    steps: int
    guidance: float | None
    scheduler: str | None
    gain_memory: int
    watch_every: float
    index: Path | None
    dtype: str
    log_prompts: bool
    device: str | None

    def run(self, base: str, sources: tuple[str, ...]) -> None:
        """Check, bind, load, and serve until a signal asks for the end."""
        for package in ("fastapi", "uvicorn", "prometheus_client"):
            needs(package, "serve")
        needs("diffusers", "train")
        from svdiff_serve.http.keys import read_keys
        from svdiff_serve.http.server import bind, check_open, serve
        from svdiff_serve.store.index import check_index
        from svdiff_serve.store.sources import source_of

        keys = None if self.keys is None else read_keys(self.keys)
        hosts = check_open(self.host, keys, no_auth=self.no_auth)
        if self.index is not None:
            check_index(self.index)
        listening = bind(self.host, self.port)
        with listening:
            found = [source_of(text) for text in sources]
            model = open_to_paint(base)
            state = self._state(model, self.name or _name(base, model), found, _index(sources), keys, hosts)
            state.service.store.refresh()
            state.service.store.watch(self.watch_every)
            host, port = listening.getsockname()[:2]
            _tick_no_more()
            echo(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}", err=True)
            serve(state, listening, seconds=self.drain)

    def _state(
        self,
        model: Base,
        name: str,
        sources: list[Source],
        index: Path,
        keys: Keys | None,
        hosts: frozenset[str] | None,
    ) -> ServerState:
        """Return what requests share, with the model loaded."""
        from svdiff_serve.http.app import ServerState
        from svdiff_serve.http.logs import Log
        from svdiff_serve.http.metrics import Metrics
        from svdiff_serve.http.settings import Defaults, Limits
        from svdiff_serve.service import Service, ServiceSettings
        from svdiff_train.sampling.pipelines import load_pipeline

        limits = Limits(
            pixels=self.max_pixels,
            steps=self.max_steps,
            pictures=self.max_pictures,
            body=self.max_body,
            rate=self.rate,
            seconds=self.deadline,
        )
        settings = ServiceSettings(
            batch_size=self.batch_size,
            queue_size=self.queue,
            queue_of_key=self.queue_of_key or self.queue,
            gain_bytes=self.gain_memory * MB,
            index=self.index or index,
        )
        log, metrics = Log(prompts=self.log_prompts), Metrics()
        pipeline = load_pipeline(model, device=device_for("serve", self.device), dtype=self.dtype.upper())
        service = Service(
            model, pipeline, name, sources, settings, watcher=metrics, say=lambda line: log.event("store", message=line)
        )
        defaults = Defaults(steps=self.steps, guidance=self.guidance, scheduler=self.scheduler)
        return ServerState(
            service=service,
            limits=limits,
            defaults=defaults,
            keys=keys,
            hosts=hosts,
            public=self.public_url,
            log=log,
            metrics=metrics,
        )


def _tick_no_more() -> None:
    """Let no line say how long it has been served: the log says what happens."""
    ticker = ticker_of(click.get_current_context())
    if ticker is not None:
        ticker.quiet = True


def _name(reference: str, model: Base) -> str:
    """Return what requests call a base: its repository, or the name of its folder."""
    return TINY if reference == TINY else model.info.repository or Path(reference).resolve().name


def _index(sources: tuple[str, ...]) -> Path:
    """Return where the index of some sources is kept between runs."""
    from svdiff_delta._util.home import home

    places = [str(Path(text).resolve()) if is_path(text) else text for text in sources]
    number = hashlib.sha256("\n".join(places).encode()).hexdigest()[:16]
    return home() / "serve" / f"{number}.sqlite"
