"""The server as the page meets it: gone and back, asking for keys, with new δ in its store, and two people at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect
from support.board import varied
from support.browser import STEPS, WATCH, BoardPage
from support.served import fill, server, service, shifted

from svdiff_delta import save
from svdiff_serve.http.keys import read_keys
from svdiff_serve.http.server import check_open
from svdiff_serve.service import Service
from svdiff_serve.settings import Defaults

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
