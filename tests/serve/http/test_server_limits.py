"""Limits, keys, logs and the end of a server, each on a server of its own."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.served import Lines, base, fill, server, service, shifted, until

from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import save
from svdiff_delta.format.parameter import Table
from svdiff_serve.http.keys import read_keys
from svdiff_serve.http.logs import Log
from svdiff_serve.service import Service
from svdiff_serve.settings import Limits

KEY = "alice-secret-0123456789"
PATH = "/v1/images/generations"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of three deltas."""
    with service(fill(tmp_path_factory.mktemp("served") / "deltas"), batch_size=2) as found:
        yield found


def ask(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post(PATH, json={"prompt": "a dog", "seed": 1, **fields})


def error(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    return found


def test_a_body_that_does_not_come_is_not_waited_for(served: Service) -> None:
    with server(served, limits=Limits(body_seconds=0.2)) as (url, _, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{{"
            raw.sendall(head.encode())
            assert raw.recv(100).startswith(b"HTTP/1.1 408")


def test_a_request_that_takes_too_long_is_given_up(served: Service) -> None:
    with server(served, limits=Limits(seconds=0.2)) as (url, _, _), httpx.Client(base_url=url, timeout=30) as client:
        answer = ask(client, steps=100)
        assert (answer.status_code, error(answer)["code"]) == (504, "deadline_exceeded")


def test_keys_are_asked_for_and_each_has_its_rate(served: Service, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"alice {KEY}\n")
    keys = read_keys(tmp_path / "keys")
    lines = Lines()
    limits = Limits(rate=2)
    with (
        server(served, keys=keys, limits=limits, log=Log(lines)) as (url, _, _),  # type: ignore[arg-type]
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        for headers in ({}, {"authorization": "Bearer wrong"}):
            answer = client.post(PATH, json={"prompt": "secret words"}, headers=headers)
            assert (answer.status_code, error(answer)["code"]) == (401, "invalid_api_key")
            assert client.get("/metrics", headers=headers).status_code == 401
        assert client.get("/readyz").status_code == 200
        client.headers["authorization"] = f"Bearer {KEY}"
        assert client.post(PATH, json={"prompt": "secret words", "n": 2}).status_code == 200
        answer = client.post(PATH, json={"prompt": "secret words"})
        assert (answer.status_code, "2 pictures in a minute" in error(answer)["message"]) == (429, True)
    until(lambda: len(lines.lines) == 6)  # a line is written once its answer was sent; /readyz has none
    events = [json.loads(line) for line in lines.lines]
    assert [event["status"] for event in events] == [401, 401, 401, 401, 200, 429]
    assert {event.get("key") for event in events if event["status"] == 200} == {"alice"}
    assert "secret" not in "".join(lines.lines)


def test_prompts_are_logged_where_that_was_asked_for(served: Service) -> None:
    lines = Lines()
    log = Log(lines, prompts=True)  # type: ignore[arg-type]
    with server(served, log=log) as (url, _, _), httpx.Client(base_url=url, timeout=60) as client:
        assert ask(client).status_code == 200
        until(lambda: lines.lines)
    assert json.loads(lines.lines[-1])["prompt"] == "a dog"


def test_no_client_makes_lines_of_the_log_long(served: Service) -> None:
    lines = Lines()
    with server(served, log=Log(lines)) as (url, _, _), httpx.Client(base_url=url, timeout=60) as client:  # type: ignore[arg-type]
        assert ask(client, model="x" * 50_000).status_code == 400
        until(lambda: lines.lines)
    assert len(lines.lines[-1]) < 1000


def test_a_delta_of_other_layers_is_refused_without_the_folder_of_the_base(served: Service) -> None:
    own = shifted(0.1)
    names = {name: name.replace("unet.", "unet.other.", 1) for name in own}
    table = Table({names[name]: item for name, item in own.metadata.parameters.items()})
    other = Delta({names[name]: shift for name, shift in own.items()}, replace(own.metadata, parameters=table))
    path = Path(served.store.entry("dog").path).parent / "other.safetensors"
    save(other, path)
    served.store.refresh()
    try:
        with server(served) as (url, _, _), httpx.Client(base_url=url, timeout=60) as client:
            message = error(ask(client, model="other"))["message"]
    finally:
        path.unlink()
        served.store.refresh()
    assert "no such parameter" in message
    assert str(base().path) not in message


def test_it_finishes_what_it_took_when_it_is_asked_to_end(served: Service) -> None:
    with server(served) as (url, state, running), ThreadPoolExecutor(2) as threads:

        def paint() -> int:
            with httpx.Client(base_url=url, timeout=60) as client:
                return ask(client, steps=4).status_code

        answers = [threads.submit(paint) for _ in range(2)]
        until(lambda: served.engine.painting == 2)
        running.handle_exit(15, None)
        assert not state.ready
        assert [answer.result(60) for answer in answers] == [200, 200]
        until(lambda: _refused(url))


@pytest.mark.parametrize(("seconds", "signals"), [(0.3, 1), pytest.param(20, 2, marks=pytest.mark.slow)])
def test_what_is_not_finished_when_it_ends_is_answered_too(served: Service, seconds: float, signals: int) -> None:
    with service(Path(served.store.entry("dog").path).parent, batch_size=1) as ending, ThreadPoolExecutor(2) as threads:
        with server(ending, seconds=seconds) as (url, _, running):

            def paint() -> httpx.Response:
                with httpx.Client(base_url=url, timeout=60) as client:
                    return ask(client, steps=100)

            answers = [threads.submit(paint) for _ in range(2)]
            until(lambda: ending.engine.painting + ending.engine.waiting == 2)
            for _ in range(signals):
                running.handle_exit(15, None)
            found = [answer.result(60) for answer in answers]
        assert [(answer.status_code, error(answer)["code"]) for answer in found] == [(503, "shutting_down")] * 2
        assert not running.finished


def test_what_is_refused_costs_nothing_of_a_rate_and_what_never_fits_it_is_said(served: Service) -> None:
    limits = Limits(rate=2)
    with server(served, limits=limits) as (url, _, _), httpx.Client(base_url=url, timeout=60) as client:
        answer = ask(client, n=3)
        assert (answer.status_code, error(answer)["param"]) == (400, "n")
        assert [ask(client, model="none", n=2).status_code for _ in range(2)] == [404, 404]
        assert ask(client, n=2).status_code == 200
        assert ask(client, model="none").status_code == 429


def _refused(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz", timeout=5)
    except httpx.TransportError:
        return True
    return False
