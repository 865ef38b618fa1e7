"""The server as the page meets it: gone and back, asking for keys, with new δ in its store, and two people at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import expect
from support.board import varied
from support.browser import STEPS, WATCH, BoardPage
from support.served import fill, server, service, shifted

from svdiff_delta import save
from svdiff_serve.http.keys import ANYONE, read_keys
from svdiff_serve.http.server import check_open
from svdiff_serve.service import Service
from svdiff_serve.settings import Defaults, Limits

pytestmark = pytest.mark.chromium

HOSTS = check_open("127.0.0.1", None, no_auth=False)
DEFAULTS = Defaults(steps=STEPS)


def test_the_mix_is_kept_while_the_server_is_gone(board_service: Service, new_page: Callable[..., BoardPage]) -> None:
    with server(board_service, hosts=HOSTS, defaults=DEFAULTS) as (url, _, _):
        board = new_page(url).open("1;a=dog")
    gone = board.page.locator("#gone")
    board.weight("dog").fill("-0.5")
    expect(gone).to_be_visible()
    expect(gone).to_contain_text("Your mix is kept")
    board.add("cat")
    board.page.get_by_role("button", name="Save as recipe").click()
    expect(board.page.locator("#toast.warn")).to_contain_text("the mix is kept")
    assert board.state == "1;a=dog:-0.5+cat"
    with server(board_service, hosts=HOSTS, defaults=DEFAULTS, port=urlsplit(url).port):
        expect(gone).to_be_hidden()
        board.painted()  # of the mix as it is now
        alt = board.page.locator(".frame img").get_attribute("alt") or ""
        assert alt.startswith("Picture painted with dog −0.5 + cat 1")
        assert board.state == "1;a=dog:-0.5+cat"
    board.faults.clear()  # the browser notes each request that nobody answered
    board.page.close()


def test_a_key_is_asked_for_and_kept_in_the_tab(
    board_service: Service, new_page: Callable[..., BoardPage], tmp_path: Path
) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("ann a-key-of-some-length\n")
    with server(board_service, keys=read_keys(path), defaults=DEFAULTS) as (url, _, _):
        board = new_page(url)
        board.page.goto(f"{url}/#1;a=carded%2Fsvdiff")
        field = board.page.get_by_label("Key", exact=True)
        expect(field).to_be_focused()
        expect(board.page.locator("#key-wrong")).to_be_hidden()
        field.fill("not-the-right-key")
        field.press("Enter")
        expect(board.page.locator("#key-wrong")).to_be_visible()
        field.fill("“a-key-of-some-length”")  # as a text program writes quotes: no header can hold them
        field.press("Enter")
        expect(field).to_have_value("")
        expect(board.page.locator("#key-wrong")).to_be_visible()
        expect(board.page.locator("#gone")).to_be_hidden()
        field.fill("a-key-of-some-length")
        field.press("Enter")
        board.painted()
        expect(board.card("carded/svdiff").locator("img")).to_be_visible()  # pictures need the key, too
        board.page.reload()
        board.painted()
        expect(board.page.locator("#key")).to_be_hidden()
        assert "key" not in board.page.url
        assert board.page.evaluate("localStorage.length") == 0
        board.faults.clear()  # the browser notes the two refusals
        board.page.close()


def test_two_people_on_one_board_have_a_mix_each(new_page: Callable[..., BoardPage]) -> None:
    first, second = new_page().open("1;a=dog;t=1,2"), new_page().open("1;a=cat;t=1,2")
    for each in (first, second):
        each.page.evaluate(WATCH)
    first.weight("dog").fill("-1")
    second.weight("cat").fill("1.5")
    first.painted()
    second.painted()
    assert (first.state, second.state) == ("1;a=dog:-1;t=1,2", "1;a=cat:1.5;t=1,2")
    for each in (first, second):  # neither took the other's place
        assert each.page.evaluate("window.seen.map(({ stage }) => stage)") == [0, 1]
    assert (first.pictures()[0] != second.pictures()[0]).any()


def test_what_comes_into_the_store_comes_onto_the_shelf(new_page: Callable[..., BoardPage], tmp_path: Path) -> None:
    folder = fill(tmp_path / "deltas")
    with service(folder) as found, server(found, hosts=HOSTS, defaults=DEFAULTS) as (url, _, _):
        found.store.watch(0.2)
        board = new_page(url).open("1;a=dog")
        board.look_often()
        before = board.page.locator(".frame img").get_attribute("src")
        save(varied("mid", 5), folder / "new.safetensors")
        save(shifted(-1.5), folder / "dog.safetensors", overwrite=True)
        expect(board.card("new")).to_be_visible()
        # of the file that took the other's place
        board.page.wait_for_function("(text) => document.querySelector('.frame img').src !== text", arg=before)
        board.painted()
        (folder / "dog.safetensors").unlink()
        expect(board.term("dog")).to_contain_text("It is not in the store here")
        expect(board.card("dog")).to_have_count(0)
        board.page.close()
        board.faults.clear()  # the browser notes the refusal


def test_only_cards_that_can_be_seen_are_built(new_page: Callable[..., BoardPage], tmp_path: Path) -> None:
    folder = tmp_path / "deltas"
    folder.mkdir()
    save(shifted(0.3), folder / "d000.safetensors")
    for number in range(1, 200):
        (folder / f"d{number:03d}.safetensors").hardlink_to(folder / "d000.safetensors")
    with service(folder) as found, server(found, hosts=HOSTS, defaults=DEFAULTS) as (url, _, _):
        board = new_page(url).open()
        expect(board.page.locator("#count")).to_have_text("200 deltas")
        cards = board.page.locator(".card")
        assert cards.count() <= 96
        board.page.get_by_label("Search deltas").fill("d199")
        expect(cards).to_have_count(1)
        board.page.get_by_label("Search deltas").fill("")
        for _ in range(4):
            cards.last.scroll_into_view_if_needed()
            board.page.wait_for_timeout(50)
        expect(cards).to_have_count(200)
        board.page.close()


def test_what_is_typed_stays_when_the_store_changes(new_page: Callable[..., BoardPage], tmp_path: Path) -> None:
    folder = fill(tmp_path / "deltas")
    with service(folder) as found, server(found, hosts=HOSTS, defaults=DEFAULTS) as (url, _, _):
        found.store.watch(0.2)
        board = new_page(url).open("1;a=dog")
        board.look_often()
        seeds = board.page.get_by_label("Seeds")
        seeds.fill("3, 4")
        save(varied("mid", 5), folder / "new.safetensors")
        expect(board.card("new")).to_be_visible()
        expect(seeds).to_have_value("3, 4")
        seeds.press("Enter")
        number = board.page.get_by_label("weight of dog, as a number")
        number.fill("0.25")
        (folder / "new.safetensors").unlink()
        expect(board.card("new")).to_have_count(0)
        expect(number).to_have_value("0.25")
        number.press("Enter")
        assert board.state == "1;a=dog:0.25;s=3,4"
        board.page.locator("#undo").click()
        expect(number).to_have_value("1")
        board.page.close()


def test_a_file_that_takes_the_place_of_another_has_its_own_sliders_and_card(
    new_page: Callable[..., BoardPage], tmp_path: Path
) -> None:
    folder = fill(tmp_path / "deltas")
    save(varied("unet", 1), folder / "wide.safetensors")
    with service(folder) as found, server(found, hosts=HOSTS, defaults=DEFAULTS) as (url, _, _):
        found.store.watch(0.2)
        board = new_page(url).open("1;a=wide", painted=False)
        board.look_often()
        board.term("wide").get_by_text("Blocks and subsets").click()
        expect(board.page.get_by_label("factor of down.1 in wide")).to_be_visible()
        save(varied("mid", 4), folder / "wide.safetensors", overwrite=True)
        expect(board.page.get_by_label("factor of mid in wide")).to_be_visible()
        expect(board.page.get_by_label("factor of down.1 in wide")).to_have_count(0)
        Image.new("RGB", (64, 64), (200, 10, 30)).save(folder / "wide.png")
        expect(board.card("wide").locator("img")).to_be_visible()
        expect(board.term("wide").locator(".term-head img")).to_be_visible()
        board.page.close()


def test_more_pictures_than_a_minute_has_are_painted_later(
    board_service: Service, new_page: Callable[..., BoardPage], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    with server(board_service, hosts=HOSTS, defaults=DEFAULTS, limits=Limits(rate=60)) as (url, state, _):
        monkeypatch.setattr(state.rates, "_clock", lambda: now[0])
        board = new_page(url).open("1;a=dog;t=1,2")
        asked: list[list[int]] = []
        board.page.on(
            "request", lambda each: asked.extend(json.loads(text)["stages"] for text in [each.post_data] if text)
        )
        state.rates.take(ANYONE, 57)  # of 60, beside the two that are shown: one is left, of few steps
        board.weight("dog").fill("0.5")
        problem = board.page.locator("#problem")
        expect(problem).to_contain_text("60 pictures in a minute, and has: try again in 1 s")
        now[0] = 10.0
        board.painted()
        expect(problem).to_be_hidden()
        assert asked[0] == [1, 2]
        assert {*map(tuple, asked[1:])} == {(2,)}  # pictures of few steps are not paid for twice
        board.page.close()


def test_another_server_at_the_same_place_has_its_own_limits(
    board_service: Service, new_page: Callable[..., BoardPage]
) -> None:
    with server(board_service, hosts=HOSTS, defaults=DEFAULTS) as (url, _, _):
        board = new_page(url).open("1;a=dog")
    board.weight("dog").fill("-0.5")
    expect(board.page.locator("#gone")).to_be_visible()
    other = {"defaults": Defaults(steps=1), "limits": Limits(steps=10, prompt=50)}
    with server(board_service, hosts=HOSTS, port=urlsplit(url).port, **other):
        expect(board.page.locator("#gone")).to_be_hidden()
        assert board.page.locator("#steps").get_attribute("placeholder") == "1"
        assert board.page.locator("#prompt").get_attribute("maxlength") == "50"
        board.painted()
    board.faults.clear()  # the browser notes each request that nobody answered
    board.page.close()


def test_another_server_is_seen_though_nobody_saw_the_one_before_go(
    board_service: Service, new_page: Callable[..., BoardPage]
) -> None:
    with server(board_service, hosts=HOSTS, defaults=DEFAULTS) as (url, _, _):
        board = new_page(url).open("1;a=dog")
    with server(board_service, hosts=HOSTS, port=urlsplit(url).port, defaults=Defaults(steps=1)):
        board.look_often()
        expect(board.page.locator("#steps")).to_have_attribute("placeholder", "1")
        board.painted()
        board.page.close()
    board.faults.clear()  # the browser may note a request that nobody answered


def test_a_server_that_comes_and_goes_is_said_to_be_gone(new_page: Callable[..., BoardPage]) -> None:
    board = new_page().open("1;a=dog")
    board.page.route("**/board/*", lambda route: route.abort())
    board.weight("dog").fill("-0.5")
    board.page.wait_for_function("() => !document.querySelector('#gone').hidden")
    with board.page.expect_response("**/readyz"):
        pass
    with board.page.expect_request_finished(lambda each: each.url.endswith("/readyz")):
        pass
    expect(board.page.locator("#gone")).to_be_visible()
    board.page.unroute_all()
    expect(board.page.locator("#gone")).to_be_hidden()
    board.painted()
    board.faults.clear()  # the browser notes each request that was ended


def test_a_server_that_ends_while_it_paints_is_said_to_be_gone(
    new_page: Callable[..., BoardPage], tmp_path: Path
) -> None:
    with service(fill(tmp_path / "deltas")) as found, server(found, hosts=HOSTS, defaults=DEFAULTS) as (url, state, _):
        board = new_page(url).open("1;a=dog;t=1,100", painted=False)
        expect(board.page.locator(".frame .note")).to_have_text("1 step")
        state.backend.draining = True
        found.engine.drain(0)  # what is being painted ends with an error, and the next picture is another server's
        expect(board.page.locator("#gone")).to_be_visible()
        board.page.close()
    board.faults.clear()  # the browser notes each look whether it is back


def test_a_browser_that_keeps_nothing_for_pages_has_the_board(new_page: Callable[..., BoardPage]) -> None:
    board = new_page()
    script = (
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    board.page.add_init_script(script)
    board.open("1;a=dog")
