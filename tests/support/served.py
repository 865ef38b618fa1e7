"""A service on the embedded base, with deltas in a folder, and a server of it on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import save
from svdiff_delta.svd.build import zero_delta
from svdiff_serve.http.app import ServerState
from svdiff_serve.http.logs import Log
from svdiff_serve.http.metrics import Metrics
from svdiff_serve.http.server import Server, bind
from svdiff_serve.service import Service
from svdiff_serve.settings import Defaults, ServiceSettings
from svdiff_serve.store.sources import FolderSource
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.tiny import open_tiny


@cache
def base() -> Any:
    """The embedded base."""
    return open_tiny()


@cache
def pipeline() -> Any:
    """Its pipeline, which no test changes for others."""
    return load_pipeline(base())


@cache
def zero(selector: str = "unet-ca-kv") -> Delta:
    """δ = 0 on some layers."""
    return zero_delta(base(), selector)


def shifted(amount: float, selector: str = "unet-ca-kv") -> Delta:
    """A δ that shifts all singular values of some layers by one number, as far as it may."""
    start = zero(selector)
    values = {name: start[name] + np.float32(amount) for name in start}
    for name, parameter in start.metadata.parameters.items():
        if parameter.null:
            values[name][parameter.size - parameter.null :] = 0
    return Delta(values, start.metadata)


def fill(folder: Path) -> Path:
    """Write the deltas `dog`, `cat` and `pets/bird` into a folder, and return it."""
    (folder / "pets").mkdir(parents=True)
    for name, amount in (("dog", 0.3), ("cat", -0.3), ("pets/bird", 0.15)):
        save(shifted(amount), folder / f"{name}.safetensors")
    return folder


@contextmanager
def service(folder: Path, **settings: Any) -> Iterator[Service]:
    """A service of a folder's deltas, or of other sources; on a pipeline of its own if one is given as `live`."""
    live = settings.pop("live", None) or pipeline()
    metrics, sources = settings.pop("watcher", None), settings.pop("sources", None) or [FolderSource(folder)]
    found = Service(base(), live, "tiny", sources, ServiceSettings(**settings), watcher=metrics)
    try:
        found.store.refresh()
        yield found
    finally:
        assert found.close(30)


class Lines:
    """Keeps what a log writes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        self.lines += text.splitlines()

    def flush(self) -> None:
        pass


@contextmanager
def server(served: Service, **state: Any) -> Iterator[tuple[str, ServerState, Server]]:
    """A server on a free port of this machine, or on `port`: its address, what its requests share, and itself."""
    port = state.pop("port", 0)
    state.setdefault("log", Log(Lines()))  # type: ignore[arg-type]
    state.setdefault("defaults", Defaults(steps=2))
    seconds = state.pop("seconds", 20)
    shared = ServerState(service=served, metrics=state.pop("metrics", None) or Metrics(), **state)
    with bind("127.0.0.1", port) as listening:
        running = Server(shared, seconds)
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        try:
            until(lambda: running.started)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", shared, running
        finally:
            running.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.01)


def levels(picture: Any) -> torch.Tensor:
    """Return a picture's grey levels, 0 to 255."""
    return torch.from_numpy(np.asarray(picture).astype(np.int64))
