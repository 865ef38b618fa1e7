"""A server of two replicas on Ray: the same API, deltas where they are held, and no request lost with a replica."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from support.ray_processes import REPLICA, free_port, kill, listening, ours
from support.served import fill, levels, service, until

from svdiff_serve.mixes import parse_mix
from svdiff_serve.ray_app import RaySettings, serving
from svdiff_train.sampling.sample import Sampling

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray warns of what it calls itself
]

PATH = "/v1/images/generations"
KEY = "k" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("deltas"))


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"alice {KEY}\n")
    keys.chmod(0o600)
    settings = RaySettings(
        base="tiny",
        deltas=(str(folder),),
        keys=str(keys),
        min_replicas=2,
        max_replicas=2,
        batch_size=4,
        steps=2,
        queue=16,
    )
    with serving(settings, port=free_port(), cpus=2, memory=80 << 20) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=120, headers={"authorization": f"Bearer {KEY}"}) as found:
        yield found


def ask(client: httpx.Client, model: str, seed: int = 0, **more: Any) -> httpx.Response:
    return client.post(PATH, json={"model": model, "prompt": "a photo of a dog", "seed": seed, **more})


def picture(answer: httpx.Response) -> Any:
    raw = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return levels(Image.open(io.BytesIO(raw)))


def figures(client: httpx.Client, name: str) -> dict[str, float]:
    """A figure of each replica."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {sample.labels["replica"]: sample.value for sample in samples}


def test_a_picture_is_the_same_as_a_server_of_one_process_paints(client: httpx.Client, folder: Path) -> None:
    with service(folder) as alone:
        for text in ("dog", "tiny", "dog:0.5+cat:0.5@unet-ca"):
            expected = alone.paint("a photo of a dog", 3, Sampling(steps=2, batch_size=1), parse_mix(text, "tiny"))
            assert (picture(ask(client, text, 3)) - levels(expected)).abs().max() <= 1


def test_the_api_is_that_of_one_server(url: str, client: httpx.Client) -> None:
    speaking = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY)
    assert [model.id for model in speaking.models.list()] == ["tiny", "cat", "dog", "pets/bird"]
    found = speaking.images.generate(model="pets/bird", prompt="a bird", n=2, response_format="url")
    assert found.data is not None
    for each in found.data:
        assert each.url is not None
        assert httpx.get(each.url).content.startswith(b"\x89PNG")
    with pytest.raises(openai.NotFoundError, match="the nearest are 'dog'"):
        speaking.images.generate(model="dogs", prompt="a dog")
    with pytest.raises(openai.BadRequestError, match="steps"):
        speaking.images.generate(model="dog", prompt="a dog", extra_body={"steps": 1000})
    with pytest.raises(openai.BadRequestError, match="is neither a subset nor a parameter here"):
        speaking.images.generate(model="dog@nothing-like-it", prompt="a dog")
    assert httpx.post(url + PATH, json={"prompt": "a dog"}).status_code == 401
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"ready": True}
    assert client.get("/v1/models/none").status_code == 404
    assert client.get("/elsewhere").status_code == 404


def test_requests_of_a_mix_go_to_the_replica_that_holds_it(client: httpx.Client) -> None:
    mixes = [f"dog:0.{number}" for number in range(1, 7)]
    for mix in mixes:
        assert ask(client, mix).status_code == 200
    time.sleep(2)  # replicas say every second what they hold
    before = figures(client, "replica_svdiff_gain_misses")
    assert len(before) == 2
    for _ in range(4):
        for mix in mixes:
            assert ask(client, mix).status_code == 200
    assert figures(client, "replica_svdiff_gain_misses") == before  # by chance, with probability 2⁻⁶
    assert min(before.values()) > 0


def test_a_client_that_goes_stops_its_pictures(client: httpx.Client) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post(PATH, json={"model": "dog", "prompt": "a dog", "steps": 100, "n": 4}, timeout=1.0)
    until(lambda: sum(figures(client, "replica_svdiff_painting_pictures").values()) == 0)
    families = text_string_to_metric_families(client.get("/metrics").text)
    ended = [each for family in families for each in family.samples if each.name == "replica_svdiff_pictures_total"]
    assert sum(each.value for each in ended if each.labels["outcome"] == "cancelled") == 4


def test_more_than_may_wait_are_told_when_to_come_again(client: httpx.Client) -> None:
    with ThreadPoolExecutor(60) as threads:
        found = list(threads.map(lambda seed: ask(client, "dog", seed, steps=10), range(60)))
    assert {answer.status_code for answer in found} == {200, 429}
    assert sum(answer.status_code == 200 for answer in found) >= 16
    busy = next(answer for answer in found if answer.status_code == 429)
    assert busy.json()["error"]["type"] == "rate_limit_error"
    assert int(busy.headers["retry-after"]) > 0


def test_no_accepted_request_is_lost_when_a_replica_is_killed(client: httpx.Client) -> None:
    assert len(ours(REPLICA)) == 2
    expected = {name: picture(ask(client, name)) for name in ("dog", "cat", "pets/bird", "tiny")}
    found, lock = [], threading.Lock()

    def one(number: int) -> None:
        for turn in range(10):
            name = [*expected][(number + turn) % 4]
            answer = ask(client, name)
            with lock:
                found.append((name, answer))

    with ThreadPoolExecutor(8) as threads:
        asking = [threads.submit(one, number) for number in range(8)]
        until(lambda: len(found) >= 10)
        kill(ours(REPLICA)[0])
        for each in asking:
            each.result()
    assert [answer.status_code for _, answer in found] == [200] * 80
    assert all((picture(answer) - expected[name]).abs().max() <= 1 for name, answer in found)
    until(lambda: len(ours(REPLICA)) == 2, 60)  # another one comes in its place
    assert ask(client, "dog").status_code == 200


def test_nothing_listens_to_other_machines(url: str) -> None:
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    found = listening()
    assert len(found) > 2
    assert [each for each in found if each[1] not in loopback] == []
