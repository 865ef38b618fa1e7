"""A server under load that does not behave: clients that go, wrong keys and δ, large bodies, files that change."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from support.served import fill, server, service, shifted

from svdiff_delta import save
from svdiff_delta.format.file import dumps
from svdiff_serve.http.keys import read_keys
from svdiff_serve.settings import Limits

from .process import resident

PATH = "/v1/images/generations"
KEY = "load-secret-0123456789"
EVERY = 1.0
"""Seconds between two looks at the memory."""

LATEST = 60.0
"""Seconds after which a request counts as unanswered."""


def run_load(folder: Path, minutes: float, graph: Path | None) -> dict[str, Any]:
    """Load a server for some minutes, and return what was answered, and how its memory went."""
    fill(folder / "deltas")
    (folder / "keys").write_text(f"load {KEY}\n")
    keys, end = read_keys(folder / "keys"), time.monotonic() + 60 * minutes
    memory: list[tuple[float, int]] = []
    limits = Limits(body=8192, body_seconds=2, seconds=30, steps=20)
    settings = {"batch_size": 4, "queue_size": 8, "gain_bytes": 300_000, "index": folder / "index.sqlite"}
    with (
        service(folder / "deltas", **settings) as served,
        server(served, keys=keys, limits=limits) as (url, state, _),
    ):
        served.store.watch(0.5)
        clients = [_Client(url, number, end) for number in range(6)]
        threads = [threading.Thread(target=client.run) for client in clients]
        threads.append(threading.Thread(target=_change, args=(folder, served, end)))
        for thread in threads:
            thread.start()
        begun = time.monotonic()
        while time.monotonic() < end:
            memory.append((time.monotonic() - begun, resident("RssAnon")))
            state.log._logger.handlers[0].stream.lines.clear()  # type: ignore[attr-defined]
            time.sleep(EVERY)
        for thread in threads:
            thread.join(2 * LATEST)
        alive = served.engine.alive and not any(thread.is_alive() for thread in threads)
        left = served.engine.waiting + served.engine.painting
    if graph is not None:
        _draw(memory, graph)
    answers = sum((client.answers for client in clients), Counter())
    quarter = len(memory) // 4
    early = max(size for _, size in memory[quarter : 2 * quarter])
    late = max(size for _, size in memory[-quarter:])
    return {
        "minutes": minutes,
        "answers": dict(sorted(answers.items())),
        "unanswered": answers["unanswered"] + left + (not alive),
        "bytes in the second quarter": early,
        "bytes in the last quarter": late,
        "growth after the first quarter": late / early - 1,
    }


class _Client:
    """A client that now asks as it should, and now does one thing wrong."""

    def __init__(self, url: str, number: int, end: float) -> None:
        self._url, self._draw, self._end = url, random.Random(number), end
        self.answers: Counter[str] = Counter()

    def run(self) -> None:
        """Ask until the time is over."""
        ways = (self._good, self._good, self._good, self._many, self._gone, self._key, self._delta, self._large)
        with httpx.Client(base_url=self._url, timeout=LATEST, headers={"authorization": f"Bearer {KEY}"}) as client:
            while time.monotonic() < self._end:
                try:
                    self._draw.choice(ways)(client)
                except httpx.HTTPError as error:
                    self.answers["unanswered"] += 1
                    print(f"unanswered: {error!r}", flush=True)

    def _ask(self, client: httpx.Client, way: str, wanted: set[int], **fields: Any) -> None:
        headers = fields.pop("headers", None)
        body = {"prompt": "a dog", "steps": self._draw.randint(1, 8), **fields}
        status = client.post(PATH, json=body, headers=headers).status_code
        self.answers[f"{way} {status}"] += 1
        if status not in wanted:
            self.answers["unexpected"] += 1

    def _good(self, client: httpx.Client) -> None:
        weight = round(self._draw.uniform(-1, 1), 2)  # so many mixes that gains come and go
        name = self._draw.choice(["dog", "cat", "pets/bird", f"dog:{weight}", f"cat:{weight}+dog", "tiny", "changing"])
        self._ask(client, "good", {200, 404, 429}, model=name, n=self._draw.randint(1, 2))

    def _many(self, client: httpx.Client) -> None:
        self._ask(client, "many", {200, 429}, n=4)

    def _key(self, client: httpx.Client) -> None:
        self._ask(client, "wrong key", {401}, headers={"authorization": "Bearer nobody"})

    def _delta(self, client: httpx.Client) -> None:
        self._ask(client, "wrong delta", {404, 400}, model=self._draw.choice(["dgo", "dog:x", "dog@nose", "half"]))

    def _large(self, client: httpx.Client) -> None:
        self._ask(client, "large", {413, 400}, prompt="x" * self._draw.choice([5000, 10_000, 300_000]))

    def _gone(self, client: httpx.Client) -> None:
        """Hang up before the answer: within the body, or while it is painted."""
        del client
        host, port = self._url.removeprefix("http://").split(":")
        body = json.dumps({"prompt": "a dog", "steps": 20, "model": "dog"}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer {KEY}\r\n"
        sent = self._draw.choice([len(body) // 2, len(body)])
        with socket.create_connection((host, int(port)), timeout=LATEST) as raw:
            raw.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:sent])
            time.sleep(self._draw.uniform(0, 0.3))
        self.answers["gone"] += 1


def _change(folder: Path, served: Any, end: float) -> None:
    """Replace, damage and remove deltas, and let the index's disk be full."""
    path, half = folder / "deltas" / "changing.safetensors", folder / "deltas" / "half.safetensors"
    number = 0
    while time.monotonic() < end:
        number += 1
        save(shifted(0.01 * (number % 30)), path, overwrite=True)
        if number % 5 == 0:
            raw = dumps(shifted(0.1))
            half.write_bytes(raw[: len(raw) // (2 + number % 3)])
        if number % 7 == 0:
            path.unlink()
        if number == 10:  # from here on no page more is written
            served.store._index._connection.execute("PRAGMA max_page_count = 1")
        time.sleep(1)


def _draw(memory: list[tuple[float, int]], graph: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    axes.plot([seconds / 60 for seconds, _ in memory], [size / 2**20 for _, size in memory])
    axes.set(xlabel="minutes under load", ylabel="MB of the process's own memory", ylim=(0, None))
    figure.savefig(graph)
