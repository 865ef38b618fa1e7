"""Replicas of a server on Ray come with the load."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support.ray_processes import REPLICA, free_port, ours
from support.served import fill, until

from svdiff_serve.ray_app import RaySettings, serving

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray warns of what it calls itself
]


def test_a_second_replica_comes_with_more_requests_than_one_paints_at_a_time(tmp_path: Path) -> None:
    settings = RaySettings(
        base="tiny", deltas=(str(fill(tmp_path / "deltas")),), max_replicas=2, batch_size=2, steps=2, upscale_after=0
    )
    over = threading.Event()
    with (
        serving(settings, port=free_port(), cpus=2, memory=80 << 20) as url,
        httpx.Client(base_url=url, timeout=120) as client,
        ThreadPoolExecutor(8) as threads,
    ):

        def ask(number: int) -> set[int]:
            found = set()
            while not over.is_set():
                body = {"model": ("dog", "cat")[number % 2], "prompt": "a dog"}
                found.add(client.post("/v1/images/generations", json=body).status_code)
            return found

        assert client.get("/readyz").json() == {"ready": True}
        assert len(ours(REPLICA)) == 1
        asking = [threads.submit(ask, number) for number in range(8)]
        try:
            until(lambda: len(ours(REPLICA)) == 2, 90)
        finally:
            over.set()
        assert [each.result() for each in asking] == [{200}] * 8
