"""Previews: the newest position of a hand wins, pages do not disturb one another, and pictures are the model's own."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from support.board import varied
from support.served import base as tiny
from support.served import levels, server, service, shifted, until

from svdiff_delta.ops.merge import merge
from svdiff_delta.ops.weights import Weight
from svdiff_delta.runtime import attach
from svdiff_serve.board.asking import Preview, check_preview, read
from svdiff_serve.board.previews import Previews
from svdiff_serve.board.shelf import Shelf
from svdiff_serve.engine.engine import Engine
from svdiff_serve.engine.job import Job
from svdiff_serve.http.rates import Rates
from svdiff_serve.service import Service
from svdiff_serve.settings import Defaults, Limits
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import Sampling, generate

LONG = 400
"""Steps of a preview that is still being painted when the next thing happens."""


def asked(*mixes: dict[str, Any], client: str = "", move: int = 1, **fields: Any) -> dict[str, Any]:
    """What a page asks for; each page is another one unless it has a name."""
    client = client or secrets.token_urlsafe(12)
    given = {"client": client, "move": move, "mixes": list(mixes), "pictures": [{}], "stages": [1]}
    return given | fields


def term(name: str, weight: float = 1.0, *parts: list[Any]) -> dict[str, Any]:
    return {"terms": [{"name": name, "weight": weight, "parts": list(parts)}]}


NONE: dict[str, Any] = {"terms": []}


def painted(page: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = page.post("board/preview", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def picture(line: dict[str, Any]) -> Any:
    with Image.open(io.BytesIO(base64.b64decode(line["png"]))) as image:
        return levels(image.convert("RGB"))


def test_few_steps_come_first_then_more(page: httpx.Client) -> None:
    lines = painted(page, asked(term("dog"), stages=[1, 2], pictures=[{"seed": 3}, {"seed": 4}], move=9))
    assert [line["kind"] for line in lines] == ["check", *["picture"] * 4, "done"]
    assert {line["move"] for line in lines} == {9}
    found = sorted((line["stage"], line["steps"], line["number"], line["seed"]) for line in lines[1:-1])
    assert found == [(0, 1, 0, 3), (0, 1, 1, 4), (1, 2, 0, 3), (1, 2, 1, 4)]
    assert [line["stage"] for line in lines[1:-1]] == [0, 0, 1, 1]


def test_a_preview_is_the_picture_of_the_mix(page: httpx.Client) -> None:
    mix = {"terms": [*term("wide", 0.8, ["unet-ca", 0.5], ["down.1", 0])["terms"], *term("cat", 0.5)["terms"]]}
    shown = picture(painted(page, asked(mix, stages=[2], prompt="a dog", pictures=[{"seed": 5}]))[1])
    weights = [Weight(0.8, {"unet-ca": 0.4, "down.1": 0.0}), Weight(0.5)]
    own = merge([varied("unet", 1), shifted(-0.3)], weights=weights)
    live = load_pipeline(tiny())
    with attach(live, own, base=tiny()):
        (expected,) = generate(live, [("a dog", 5)], Sampling(steps=2, guidance=None, batch_size=1))
    # Two ways of computing one picture, whose rounding may end on the other side of a grey level.
    assert (shown - levels(expected)).abs().max() <= 2


def test_the_same_seed_stands_side_by_side_and_a_strip_between(page: httpx.Client) -> None:
    shares = [[1, 0], [0.5, 0.5], [0, 1]]
    pictures = [{"share": share, "seed": 1} for share in shares]
    body = asked(term("wide", 2), term("wide", -2), pictures=pictures, stages=[2])
    strip = {line["number"]: picture(line) for line in painted(page, body)[1:-1]}
    plain = picture(painted(page, asked(NONE, pictures=[{"seed": 1}], stages=[2]))[1])
    alone = picture(painted(page, asked(term("wide", 2), pictures=[{"seed": 1}], stages=[2]))[1])
    # One is the other's negative: halfway is the base. Rows of a batch are rounded as the batch is.
    assert (strip[1] - plain).abs().max() <= 2
    assert (strip[0] - alone).abs().max() <= 2
    assert (strip[0] - strip[2]).abs().max() > 10


@pytest.fixture
def running(board_service: Service) -> Iterator[Engine]:
    """The engine, which has nothing left to paint at the end."""
    yield board_service.engine
    until(lambda: not board_service.engine.painting and not board_service.engine.waiting)


class Hand:
    """A page that asks in the background, and what it got."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        self.lines: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._run, args=(url, body))
        self._thread.start()

    def _run(self, url: str, body: dict[str, Any]) -> None:
        with httpx.stream("POST", f"{url}/board/preview", json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                self.lines.append(json.loads(line))

    def kinds(self) -> list[str]:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return [line["kind"] for line in self.lines]


def test_a_newer_position_replaces_the_former_at_the_next_step(board_url: str, running: Engine) -> None:
    slow = Hand(board_url, asked(term("dog"), client="one-page", stages=[LONG], move=1))
    until(lambda: running.painting == 1)
    fast = Hand(board_url, asked(term("cat"), client="one-page", stages=[1], move=2))
    assert fast.kinds() == ["check", "picture", "done"]
    assert slow.kinds() == ["check", "replaced"]


def test_of_many_positions_only_the_last_is_painted_to_its_end(board_url: str, running: Engine) -> None:
    hands = []
    for move in range(6):
        body = asked(term("dog", move / 10), client="fast-page", stages=[LONG if move < 5 else 1], move=move)
        hands.append(Hand(board_url, body))
        until(lambda: hands[-1].lines)
    *former, last = (hand.kinds() for hand in hands)
    assert all(kinds[-1] == "replaced" and "picture" not in kinds for kinds in former)
    assert last == ["check", "picture", "done"]


def test_a_position_that_comes_late_is_not_shown_after_a_newer_one(page: httpx.Client) -> None:
    newer, older = (painted(page, asked(NONE, client="late-page", move=move)) for move in (7, 6))
    assert [line["kind"] for line in newer] == ["check", "picture", "done"]
    assert [line["kind"] for line in older] == ["replaced"]
    again = painted(page, asked(NONE, client="late-page", move=7))
    assert again[-1]["kind"] == "done"


def test_two_people_do_not_end_each_others_previews(board_url: str, running: Engine) -> None:
    bodies = [asked(term(name), client=f"person-{name}", stages=[8]) for name in ("dog", "cat")]
    hands = [Hand(board_url, body) for body in bodies]
    assert [hand.kinds() for hand in hands] == [["check", "picture", "done"]] * 2
    shown = [picture(hand.lines[1]) for hand in hands]
    assert (shown[0] - shown[1]).abs().max() > 0


def test_a_page_that_goes_is_no_more_painted_for(board_url: str, running: Engine) -> None:
    with httpx.stream(
        "POST", f"{board_url}/board/preview", json=asked(term("dog"), stages=[LONG]), timeout=60
    ) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines))["kind"] == "check"
        until(lambda: running.painting == 1)
    until(lambda: running.painting == 0, 10)


def test_what_may_overflow_is_said_before_the_first_picture(page: httpx.Client) -> None:
    lines = painted(page, asked(term("loud", 2.0, ["unet", 0.9]), term("dog")))
    assert [check["state"] for check in lines[0]["checks"]] == ["warn", "ok"]
    assert [line["kind"] for line in lines] == ["check", "picture", "done"]


def test_what_no_number_holds_is_not_painted(page: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svdiff_serve.board.previews.dtype_of", lambda _: "float16")
    lines = painted(page, asked(term("loud", 2.0)))
    assert [line["kind"] for line in lines] == ["check", "error"]
    assert lines[0]["checks"][0]["state"] == "refused"
    assert "half precision" in lines[1]["error"]["message"]


def test_an_error_ends_the_lines_with_what_is_wrong(page: httpx.Client) -> None:
    for mix, code, said in (
        (term("other"), "model_not_found", "another base"),
        (term("dog", 1, ["x", 1]), "invalid_value", "x"),
    ):
        lines = painted(page, asked(mix))
        assert (lines[-1]["kind"], lines[-1]["error"]["code"]) == ("error", code)
        assert said in lines[-1]["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"client": "short"}, "client"),
        ({"client": "a space in it"}, "client"),
        ({"client": "page-one\n"}, "client"),
        ({"move": -1}, "move"),
        ({"mixes": []}, "mixes"),
        ({"mixes": [NONE] * 3}, "mixes"),
        ({"pictures": []}, "pictures"),
        ({"pictures": [{}] * 17}, "pictures"),
        ({"pictures": [{"seed": -1}]}, "seed"),
        ({"pictures": [{"share": [0, 1]}]}, "shares"),
        ({"stages": []}, "stages"),
        ({"stages": [4, 4]}, "rise"),
        ({"stages": [0]}, "stages"),
        ({"stages": [401]}, "401 steps"),
        ({"size": "64"}, "WIDTHxHEIGHT"),
        ({"size": "4096x4096"}, "pixels"),
        ({"prompt": "x" * 5000}, "characters"),
        ({"negative": "x", "guidance": 1.0}, "negative prompt"),
        ({"prompt": "\0"}, "NUL"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_cannot_be_painted_is_refused_before_the_lines_begin(
    page: httpx.Client, fields: dict[str, Any], said: str
) -> None:
    answer = page.post("board/preview", json=asked(term("dog")) | fields)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_a_size_that_the_model_cannot_paint_is_said(page: httpx.Client) -> None:
    assert "multiples of 8" in painted(page, asked(NONE, size="61x61"))[-1]["error"]["message"]


def test_more_than_the_queue_holds_is_said_and_rates_count(board_service: Service, tmp_path: Path) -> None:
    with server(board_service, limits=Limits(rate=2)) as (url, _, _), httpx.Client(base_url=url, timeout=60) as page:
        assert painted(page, asked(NONE, pictures=[{}, {}]))[-1]["kind"] == "done"
        last = painted(page, asked(NONE))[-1]
        assert (last["kind"], last["error"]["code"]) == ("error", "rate_limit_exceeded")
        assert 20 < last["retry_after"] <= 30


def test_a_server_that_ends_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "deltas"
    folder.mkdir()
    with service(folder) as found, server(found) as (url, state, _), httpx.Client(base_url=url, timeout=60) as page:
        state.backend.draining = True
        assert page.post("board/preview", json=asked(NONE)).status_code == 503
        state.backend.draining = False


def test_an_idle_engine_begins_at_once_where_it_is_asked_to(
    board_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are waited for, so long that the test would not end, unless a picture is to be begun at once."""
    monkeypatch.setattr("svdiff_serve.engine.engine.LINGER", 300.0)
    job = Job("a dog", 0, Sampling(steps=1, guidance=None, batch_size=1), None, "", float("inf"), at_once=True)
    (ticket,) = board_service.engine.submit([job])
    assert ticket.answer.result(60).size == (64, 64)


def test_lines_of_a_page_end_when_nobody_takes_them(board_service: Service) -> None:
    """Also where the reader goes between two lines: the engine gives the pictures up."""
    previews = Previews(Shelf(board_service), Limits(steps=LONG), Rates(0))
    body = read(Preview, json.dumps(asked(term("dog"), stages=[LONG])).encode())
    stages = check_preview(body, Limits(steps=LONG), Defaults())

    async def take_one() -> None:
        lines = previews.lines(body, stages, "anyone", run := previews.begin(body, "anyone"))
        await anext(lines)
        reading = asyncio.ensure_future(anext(lines))
        while not run.tickets:
            await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.wait([reading])
        await lines.aclose()
        assert not run.tickets

    asyncio.run(take_one())
    until(lambda: not board_service.engine.painting)
