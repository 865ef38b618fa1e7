"""One board for the tests of this folder that change nothing: a service and a server of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.board import fill_board
from support.served import base, server, service

from svdiff_serve.http.server import check_open
from svdiff_serve.service import Service
from svdiff_serve.settings import Defaults, Limits
from svdiff_train.sampling.pipelines import load_pipeline


@pytest.fixture(scope="session")
def board_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_board(tmp_path_factory.mktemp("board") / "deltas")


@pytest.fixture(scope="session")
def board_service(board_folder: Path) -> Iterator[Service]:
    with service(board_folder, batch_size=4, live=load_pipeline(base())) as found:
        yield found


@pytest.fixture(scope="session")
def board_url(board_service: Service) -> Iterator[str]:
    """A server without keys, on loopback."""
    hosts = check_open("127.0.0.1", None, no_auth=False)
    limits, defaults = Limits(steps=400, seconds=60), Defaults(steps=4)
    with server(board_service, hosts=hosts, limits=limits, defaults=defaults) as (url, _, _):
        yield url


@pytest.fixture
def page(board_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=board_url, timeout=60) as found:
        yield found


@pytest.fixture
def mix() -> dict[str, Any]:
    """Dog, with half of its cross-attention and none of `down.1`, and cat."""
    dog = {"name": "dog", "weight": 0.8, "parts": [["unet-ca", 0.5], ["down.1", 0]]}
    return {"terms": [dog, {"name": "cat", "weight": 0.5}]}
