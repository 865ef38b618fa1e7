"""The server on a socket of this machine: OpenAI's client as it is, and clients that do everything wrong."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image
from support.deltas import of_another_base
from support.served import Lines, fill, levels, server, service, shifted, until

from svdiff_delta.errors import BaseError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps, save
from svdiff_serve.http.logs import Log
from svdiff_serve.http.metrics import Metrics
from svdiff_serve.http.server import check_open
from svdiff_serve.mixes import unknown
from svdiff_serve.service import Service
from svdiff_serve.settings import Limits

KEY = "alice-secret-0123456789"
PATH = "/v1/images/generations"


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, metrics: Metrics) -> Iterator[Service]:
    """A service that takes three waiting pictures beside two that are painted."""
    folder = fill(tmp_path_factory.mktemp("served") / "deltas")
    with service(folder, batch_size=2, queue_size=3, watcher=metrics) as found:
        yield found


@pytest.fixture(scope="module")
def open_server(served: Service, metrics: Metrics) -> Iterator[tuple[str, Any]]:
    """A server without keys, on loopback."""
    log = Log(Lines())  # type: ignore[arg-type]
    limits = Limits(steps=60, body=4096, seconds=30)
    hosts = check_open("127.0.0.1", None, no_auth=False)
    with server(served, metrics=metrics, log=log, limits=limits, hosts=hosts) as (url, state, _):
        yield url, state


@pytest.fixture
def url(open_server: tuple[str, Any]) -> str:
    return open_server[0]


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as found:
        yield found


@pytest.fixture
def ai(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found


def ask(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post(PATH, json={"prompt": "a dog", "seed": 1, **fields})


def error(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def test_openais_client_paints_mixes_by_name(ai: openai.OpenAI) -> None:
    answer = ai.images.generate(
        model="dog:0.8+cat:0.5@unet-ca",
        prompt="a dog",
        n=2,
        size="64x64",  # type: ignore[arg-type]
        response_format="b64_json",
        extra_body={"seed": 4, "steps": 2, "guidance": 3.0, "negative_prompt": "blue"},
    )
    assert answer.data is not None
    pictures = [Image.open(io.BytesIO(base64.b64decode(each.b64_json or ""))) for each in answer.data]
    assert [picture.size for picture in pictures] == [(64, 64)] * 2
    assert json.loads(pictures[0].info["deltas"])[0]["name"] == "dog"
    assert (pictures[0].info["prompt"], pictures[1].info["seed"]) == ("a dog", "5")


def test_a_picture_of_no_numbers_is_refused_and_the_next_is_painted(client: httpx.Client) -> None:
    said = error(refused := ask(client, steps=1, guidance=1e300))
    assert (refused.status_code, said["code"]) == (400, "invalid_value")
    assert said["message"].startswith("the picture is black: a number on its way was too large")
    assert "a dog" not in said["message"]
    assert ask(client, steps=1).status_code == 200


def test_openais_client_lists_models(ai: openai.OpenAI) -> None:
    assert [model.id for model in ai.models.list()] == ["tiny", "cat", "dog", "pets/bird"]
    assert ai.models.retrieve("pets/bird").id == "pets/bird"
    with pytest.raises(openai.NotFoundError, match="'dog'"):
        ai.models.retrieve("dgo")


def test_each_name_that_is_listed_is_one_that_paints(served: Service, ai: openai.OpenAI) -> None:
    folder = Path(served.store.entry("dog").path).parent
    names = ["a+b", "50%@home:1", "hündin", "tiny"]
    for name in names:
        save(shifted(0.1), folder / f"{name}.safetensors")
    served.store.refresh()
    try:
        listed = [model.id for model in ai.models.list()]
        assert sorted(listed) == sorted({*listed, "a%2Bb", "50%25%40home%3A1", "hündin"})
        for name in listed:
            assert ai.models.retrieve(name).id == name
        for name in ("a%2Bb", "50%25%40home%3A1", "hündin"):
            assert ai.images.generate(model=name, prompt="a", extra_body={"steps": 1}).data
    finally:
        for name in names:
            (folder / f"{name}.safetensors").unlink()
        served.store.refresh()


def test_a_store_that_changes_while_it_is_listed_spoils_no_list(
    served: Service, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str) -> None:
        raise unknown(name, [])

    monkeypatch.setattr(served.store, "entry", gone)
    assert len(client.get("/v1/models").json()["data"]) == 4


def test_an_address_leads_to_the_same_picture(ai: openai.OpenAI, client: httpx.Client) -> None:
    given: dict[str, Any] = {"prompt": "a dog", "model": "dog", "extra_body": {"seed": 9}}
    there = ai.images.generate(**given, response_format="url").data
    here = ai.images.generate(**given).data
    assert there is not None
    assert here is not None
    found = client.get(there[0].url or "")
    assert (found.status_code, found.headers["content-type"]) == (200, "image/png")
    one, other = Image.open(io.BytesIO(found.content)), Image.open(io.BytesIO(base64.b64decode(here[0].b64_json or "")))
    assert int((levels(one) - levels(other)).abs().max()) <= 1  # batches differ in their last bits
    assert client.get("/v1/files/guess.png").status_code == 404


def test_a_mix_may_stand_beside_a_model_that_a_client_insists_on(client: httpx.Client) -> None:
    assert ask(client, model="tiny", mix="cat").status_code == 200


@pytest.mark.parametrize(
    ("fields", "status", "said", "param"),
    [
        ({"model": "dgo"}, 404, "'dog'", "model"),
        ({"model": "dog:many"}, 400, "no weight", "model"),
        ({"model": "dog@nose"}, 400, "nose", "model"),
        ({"model": "dog:1e39+pets/bird:1e39"}, 400, "too large", "model"),
        ({"size": "60x60"}, 400, "multiples of 8", None),
        ({"size": "8192x8192"}, 400, "pixels", "size"),
        ({"steps": 61}, 400, "60", "steps"),
        ({"scheduler": "Magic"}, 400, "Magic", None),
        ({"prompt": 5}, 400, "prompt", "prompt"),
        ({"prompt": "x" * 5000}, 413, "4,096", None),
    ],
)
def test_what_cannot_be_painted_is_refused_as_openai_does(
    client: httpx.Client, fields: dict[str, Any], status: int, said: str, param: str | None
) -> None:
    answer = ask(client, **fields)
    assert (answer.status_code, error(answer)["param"]) == (status, param)
    assert said in error(answer)["message"]


def test_bodies_that_are_no_json_are_refused(client: httpx.Client) -> None:
    kind = {"content-type": "application/json"}
    assert client.post(PATH, content=b"{", headers=kind).status_code == 400
    assert client.post(PATH, content=b'{"prompt": "a"}', headers={"content-type": "text/plain"}).status_code == 415
    assert client.post(PATH, content=(b"x" * 1000 for _ in range(9)), headers=kind).status_code == 413
    wrong = client.get(PATH)
    assert (wrong.status_code, error(wrong)["code"], wrong.headers["allow"]) == (405, "method_not_allowed", "POST")
    assert client.get("/nothing").status_code == 404
    assert error(client.get("/nothing"))["code"] == "not_found"


def test_a_page_in_a_browser_does_not_reach_it_under_a_name_of_its_own(client: httpx.Client) -> None:
    answer = client.get("/v1/models", headers={"host": "evil.example"})
    assert (answer.status_code, error(answer)["code"]) == (421, "wrong_host")


def test_who_operates_it_sees_how_it_is(client: httpx.Client) -> None:
    ask(client)
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"ready": True}
    text = client.get("/metrics").text
    assert 'svdiff_pictures_total{outcome="done"}' in text
    assert "svdiff_deltas 3.0" in text
    assert 'svdiff_forward_pictures_count{component="unet"}' in text
    assert f'svdiff_requests_total{{route="{PATH}",status="200"}}' in text


@contextmanager
def asking(url: str, **fields: Any) -> Iterator[socket.socket]:
    """Send a request, and hang up at the end without reading the answer."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "a", "steps": 60, **fields}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(head.encode() + body)
        yield raw


def test_a_full_queue_says_when_to_come_again(served: Service, client: httpx.Client, url: str) -> None:
    with asking(url, n=2):
        until(lambda: served.engine.painting == 2)
        with asking(url, n=2):
            until(lambda: served.engine.waiting == 2)
            answer = ask(client, n=2)
            assert (answer.status_code, error(answer)["type"]) == (429, "rate_limit_error")
            assert int(answer.headers["retry-after"]) >= 1
    until(lambda: served.engine.painting == served.engine.waiting == 0)
    answer = ask(client, n=4)
    assert (answer.status_code, error(answer)["param"]) == (400, "n")


def test_a_client_that_goes_is_no_more_worked_for(served: Service, url: str, metrics: Metrics) -> None:
    def cancelled() -> float:
        return metrics.pictures.labels("cancelled")._value.get()  # type: ignore[no-any-return]

    before = cancelled()
    with asking(url, n=2):
        until(lambda: served.engine.painting == 2)
    until(lambda: cancelled() == before + 2)
    assert served.engine.painting == 0


def test_a_store_changes_while_it_is_served(served: Service, client: httpx.Client) -> None:
    folder = Path(served.store.entry("dog").path).parent
    raw = dumps(shifted(0.1))
    (folder / "half.safetensors").write_bytes(raw[:-10])
    (folder / "endless.safetensors").write_bytes(raw[:-4] + b"\0\0\xc0\x7f")
    save(_of_another_base(), folder / "stranger.safetensors")
    save(shifted(0.1), folder / "new.safetensors")
    served.store.refresh()
    try:
        assert ask(client, model="new").status_code == 200
        for name, said in (("half", ""), ("endless", "NaN"), ("stranger", "fingerprint")):
            answer = ask(client, model=name)
            assert (answer.status_code, error(answer)["code"]) == (404, "model_not_found")
            assert said in error(answer)["message"]
        assert ask(client, model="dog").status_code == 200
    finally:
        for name in ("half", "endless", "stranger", "new"):
            (folder / f"{name}.safetensors").unlink()
        served.store.refresh()


def _of_another_base() -> Delta:
    found = shifted(0.1)
    return Delta(dict(found), of_another_base(found.metadata))


@pytest.mark.parametrize("kind", [ZeroDivisionError, BaseError])
def test_an_error_that_nobody_foresaw_is_an_answer_without_its_text(
    served: Service,
    client: httpx.Client,
    open_server: tuple[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Exception],
) -> None:
    def fail(*_: object) -> None:
        raise kind("a dog")

    monkeypatch.setattr(served.live, "compute", fail)
    answer = ask(client)
    assert (answer.status_code, "a dog" in answer.text) == (500, False)
    lines = open_server[1].log._logger.handlers[0].stream.lines
    assert any(json.loads(line).get("error") == kind.__name__ for line in lines)
    assert "a dog" not in "".join(lines)


@pytest.mark.slow
def test_health_is_told_within_a_moment_while_it_paints(served: Service, client: httpx.Client, url: str) -> None:
    with ThreadPoolExecutor(1) as threads:
        painted = threads.submit(httpx.post, f"{url}{PATH}", json={"prompt": "a", "steps": 5}, timeout=60)
        until(lambda: served.engine.painting == 1)
        begun = time.monotonic()
        assert client.get("/healthz").status_code == 200
        assert time.monotonic() - begun < 5
        assert painted.result().status_code == 200
