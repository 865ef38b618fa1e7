"""What the commands that serve have in common: check, bind, load, and serve until a signal asks for the end."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from svdiff_delta.errors import InputError
from svdiff_serve.settings import DRAIN, HOST, WATCH_EVERY, Defaults, Limits, ServiceSettings

from .devices import device_for
from .printing import echo
from .progress import ticker_of
from .references import TINY, is_path, needs, open_to_paint

if TYPE_CHECKING:
    from svdiff_delta import Base
    from svdiff_serve.http.app import ServerState
    from svdiff_serve.http.keys import Keys
    from svdiff_serve.store.sources import Source

MB: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class ServerCommand:
    """What was asked for, as options say.

    Attributes:
        command: the command's name.
        own: whether it is served to whoever started it alone: single files count, and recipes name paths.
        what: what stands before the address on standard error.
    """

    command: str = "serve"
    own: bool = False
    what: str = "serving on"
    name: str | None = None
    host: str = HOST
    port: int = 0
    keys: Path | None = None
    no_auth: bool = False
    public_url: str = ""
    batch_size: int = ServiceSettings.batch_size
    queue: int = ServiceSettings.queue_size
    queue_of_key: int | None = None
    rate: float = Limits.rate
    max_pixels: int = Limits.pixels
    max_steps: int = Limits.steps
    max_pictures: int = Limits.pictures
    max_body: int = Limits.body
    deadline: float = Limits.seconds
    drain: float = DRAIN
    steps: int = Defaults.steps
    guidance: float | None = None
    scheduler: str | None = None
    gain_memory: int = ServiceSettings.gain_bytes // MB
    watch_every: float = WATCH_EVERY
    index: Path | None = None
    dtype: str = "F32"
    log_prompts: bool = False
    board: bool = True
    device: str | None = None

    def run(self, base: str, sources: tuple[str, ...], ready: Callable[[str], None] = lambda _: None) -> None:
        """Check, bind, load, and serve until a signal asks for the end.

        Args:
            base: what was written for BASE.
            sources: what was written for deltas.
            ready: is told the address when it can be asked, on a thread of its own.
        """
        for package in ("fastapi", "uvicorn", "prometheus_client"):
            needs(package, "serve")
        needs("diffusers", "train")
        from svdiff_serve.http.keys import read_keys
        from svdiff_serve.http.server import bind, check_open, serve
        from svdiff_serve.store.index import check_index
        from svdiff_serve.store.sources import check_names, source_of

        keys = None if self.keys is None else read_keys(self.keys)
        hosts = check_open(self.host, keys, no_auth=self.no_auth)
        self.limits()  # before a model is loaded
        if self.index is not None:
            check_index(self.index)
        listening = bind(self.host, self.port)
        with listening:
            found = [source_of(text, own=self.own) for text in sources]
            check_names(found)
            model = open_to_paint(base)
            state = self._state(model, self.name or _name(base, model), found, _index(sources), keys, hosts)
            state.service.store.refresh()
            state.service.store.watch(self.watch_every)
            host, port = listening.getsockname()[:2]
            _tick_no_more()
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            echo(f"{self.what} {address}", err=True)
            threading.Thread(target=ready, args=(address,), daemon=True).start()
            serve(state, listening, seconds=self.drain)

    def limits(self) -> Limits:
        """Return what requests may ask for; whoever serves themselves may have as many steps as they say.

        Raises:
            InputError: a request that says nothing would ask for too much.
        """
        if self.steps > self.max_steps and not self.own:
            message = f"--steps {self.steps} is more than --max-steps {self.max_steps}"
            raise InputError(message, fix="give fewer steps, or allow more: requests that name none would be refused")
        return Limits(
            pixels=self.max_pixels,
            steps=max(self.max_steps, self.steps),
            pictures=self.max_pictures,
            body=self.max_body,
            rate=self.rate,
            seconds=self.deadline,
        )

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
        from svdiff_serve.service import Service
        from svdiff_train.sampling.pipelines import load_pipeline

        settings = ServiceSettings(
            batch_size=self.batch_size,
            queue_size=self.queue,
            queue_of_key=self.queue_of_key or self.queue,
            gain_bytes=self.gain_memory * MB,
            index=self.index or index,
        )
        log, metrics = Log(prompts=self.log_prompts, requests=not self.own), Metrics()
        pipeline = load_pipeline(model, device=device_for(self.command, self.device), dtype=self.dtype.upper())
        service = Service(
            model, pipeline, name, sources, settings, watcher=metrics, say=lambda line: log.event("store", message=line)
        )
        defaults = Defaults(steps=self.steps, guidance=self.guidance, scheduler=self.scheduler)
        return ServerState(
            service=service,
            board=self.board,
            limits=self.limits(),
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
