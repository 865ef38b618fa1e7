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


def test_a_finger_that_scrolls_the_page_moves_no_slider(new_page: Callable[..., BoardPage]) -> None:
    board = new_page(phone=True, is_mobile=True).open("1;a=dog+wide:0.5", painted=False)
    board.term("wide").get_by_text("Blocks and subsets").click()
    hand = board.page.context.new_cdp_session(board.page)

    def touch(kind: str, *at: float) -> None:
        points = [{"x": at[0], "y": at[1]}] if at else []
        hand.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    for slider in (board.weight("wide"), board.page.get_by_label("factor of down.1 in wide")):
        slider.scroll_into_view_if_needed()
        top, box = board.page.evaluate("scrollY"), slider.bounding_box()
        assert box is not None
        x, y = box["x"] + 0.1 * box["width"], box["y"] + box["height"] / 2
        touch("touchStart", x, y)
        for step in range(1, 10):
            touch("touchMove", x, y - 12 * step)
        touch("touchEnd")
        board.page.wait_for_function("(top) => scrollY > top", arg=top)
        assert board.state == "1;a=dog+wide:0.5"
        expect(board.page.locator("#undo")).to_be_disabled()
    box = slider.bounding_box()
    assert box is not None
    touch("touchStart", box["x"] + 0.7 * box["width"], box["y"] + 10)
    touch("touchMove", box["x"] + 0.5 * box["width"], box["y"] + 10)
    touch("touchEnd")
    assert board.state.startswith("1;a=dog+wide:0.5~down.1:")


def test_nothing_is_wider_than_a_page_that_is_zoomed(new_page: Callable[..., BoardPage]) -> None:
    board = new_page().open("1;a=dog:0.8+wide~down.1:0;b=cat;s=0,1;v=ab")
    board.page.set_viewport_size({"width": 320, "height": 400})  # as 1280 by 1600 at 400 %
    width = board.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]
    name, caption = board.page.locator("#base"), board.page.locator(".frame figcaption").first
    assert name.evaluate("(each) => each.parentElement.scrollWidth <= each.parentElement.clientWidth")
    box, stage = caption.bounding_box(), board.page.locator("#frames").bounding_box()
    assert box is not None
    assert stage is not None
    assert box["y"] + box["height"] / 2 < stage["y"] + stage["height"]
