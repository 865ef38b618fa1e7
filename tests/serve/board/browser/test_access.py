"""The board for everybody: axe finds nothing in either scheme at either width, and nothing is wider than a phone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect
from support.browser import BoardPage

pytestmark = pytest.mark.chromium


def whole(board: BoardPage) -> None:
    board.open("1;a=dog:0.8~ca:0.5+cat:-0.5;b=wide;s=0,1;t=1,2;v=ab", painted=False)
    board.term("dog").get_by_text("Blocks and subsets").click()
    board.page.get_by_text("Steps, guidance, size").click()
    board.page.get_by_text("Title, number format, rank").click()
    board.page.get_by_label("factor of down.1 in dog").wait_for()


def strip(board: BoardPage) -> None:
    board.open("1;a=nobody+loud:2;b=dog;t=1,2;v=strip", painted=False)
    board.page.locator("#problem").wait_for()
    board.page.get_by_role("button", name="Take nobody").click()
    board.painted()
    board.page.get_by_role("button", name="Copy as Python").click()
    board.page.locator("#toast").wait_for()


def card(board: BoardPage) -> None:
    board.open("1;a=dog", painted=False)
    board.painted()
    look = board.look("wide")
    look.get_by_text("Blocks as a table").click()
    look.get_by_role("img", name="Interference").wait_for()


def grey(board: BoardPage) -> None:
    board.open(painted=False)
    board.painted()
    board.look("other").get_by_role("img", name="Where other acts").wait_for()


STATES = {each.__name__: each for each in (whole, strip, card, grey)}


@pytest.mark.parametrize("phone", [False, True], ids=["wide", "phone"])
@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing(new_page: Callable[..., BoardPage], state: str, phone: bool) -> None:
    board = new_page(phone=phone)
    STATES[state](board)
    assert [problem for scheme in ("light", "dark") for problem in board.problems(scheme=scheme)] == []
    width = board.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]
    assert untold(board.page) == []
    if state == "strip":
        board.faults.clear()  # the browser notes the refusal


def untold(page: Page) -> list[str]:
    """Pictures that are shown without words for them: neither their own nor as part of a button that has some."""
    script = """() => [...document.querySelectorAll("img, svg, canvas")]
      .filter((each) => each.checkVisibility() && !each.alt && !each.getAttribute("aria-label"))
      .filter((each) => !each.closest("[aria-hidden=true]"))
      .map((each) => each.outerHTML.slice(0, 80))"""
    found: list[str] = page.evaluate(script)
    return found


def test_the_dialogs_and_lines_of_a_server_that_is_not_there(new_page: Callable[..., BoardPage]) -> None:
    board = new_page().open(painted=False)
    board.painted()
    board.page.evaluate("for (const id of ['gone', 'long', 'key-wrong']) document.getElementById(id).hidden = false")
    board.page.evaluate("document.getElementById('key').showModal()")
    assert [problem for scheme in ("light", "dark") for problem in board.problems(scheme=scheme)] == []


def test_on_a_phone_the_picture_stays_in_sight_of_the_sliders(new_page: Callable[..., BoardPage]) -> None:
    board = new_page(phone=True).open("1;a=dog+cat+wide")
    board.weight("wide").scroll_into_view_if_needed()
    board.page.wait_for_timeout(100)
    picture, slider = board.page.locator(".picture").bounding_box(), board.weight("wide").bounding_box()
    assert picture is not None
    assert slider is not None
    assert picture["y"] >= 0
    assert picture["y"] + picture["height"] <= slider["y"]
    board.weight("wide").focus()
    board.page.keyboard.press("Shift+Tab")  # what gets the focus is not hidden behind the picture
    focused = board.page.locator(":focus").bounding_box()
    assert focused is not None
    assert focused["y"] >= picture["y"] + picture["height"]


def test_a_dialog_gives_the_focus_back(board: BoardPage) -> None:
    board.open(painted=False)
    board.look("dog")
    board.page.keyboard.press("Escape")
    expect(board.card("dog")).to_be_focused()


def test_the_policy_lets_nothing_in_from_elsewhere(board: BoardPage) -> None:
    answer = board.page.goto(f"{board.url}/")
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    board.painted()
    blocked = board.page.evaluate(
        """() => new Promise((found) => {
      document.addEventListener("securitypolicyviolation", (event) => found(event.effectiveDirective));
      const script = document.createElement("script");
      script.textContent = "window.inside = true";
      document.body.append(script);
    })"""
    )
    assert blocked.startswith("script-src")
    assert board.page.evaluate("window.inside ?? null") is None
    board.faults.clear()  # the browser notes what it did not run
