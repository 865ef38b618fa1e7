"""The state in the address: a link opens the same mix elsewhere, and a damaged one is said and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect
from support.browser import BoardPage

pytestmark = pytest.mark.chromium

FULL = (
    "1;a=dog:0.8~ca:0.5~(16%2Cdown%2C1):-1e-7+pets%2Fbird:-0.25;b=cat;p=a%20%E2%80%9Cred%E2%80%9D%20car%3B%20100%25"
    ";n=it%27s%20blue;s=3,9;t=2,3;g=5.5;z=32x64;v=ab;e=b"
)


def parsed(board: BoardPage, fragment: str) -> Any:
    """What the page's own module makes of a fragment: its state, or why there is none."""
    script = """async (text) => {
      const { parse } = await import("/page/state.js");
      try { return parse(text); } catch (error) { return error.message; }
    }"""
    return board.page.evaluate(script, fragment)


def printed(board: BoardPage, state: Any) -> str:
    script = """async (state) => (await import("/page/state.js")).print(state)"""
    return str(board.page.evaluate(script, state))


def test_a_link_opens_the_same_mix_for_somebody_else(new_page: Callable[..., BoardPage]) -> None:
    sender = new_page().open("1;a=dog", painted=False)
    sender.add("carded/svdiff")
    sender.page.get_by_label("weight of dog, as a number").fill("0.4")
    sender.page.get_by_label("weight of dog, as a number").press("Enter")
    sender.page.get_by_role("radio", name="A beside B").check()
    sender.page.locator("#copy-link").click()
    expect(sender.page.locator("#toast")).to_contain_text("Copied the link")
    link = sender.page.evaluate("navigator.clipboard.readText()")
    assert link == sender.page.url
    receiver = new_page(phone=True)
    receiver.page.goto(link)
    receiver.painted()
    assert receiver.state == sender.state == "1;a=dog:0.4+carded%2Fsvdiff;p=a%20photo%20of%20a%20sks%20bird;v=ab"
    expect(receiver.weight("dog")).to_have_value("0.4")
    expect(receiver.page.locator("#undo")).to_be_disabled()


def test_all_of_a_state_comes_back(board: BoardPage) -> None:
    board.open(painted=False)
    found = parsed(board, FULL)
    assert found["ignored"] == []
    assert found["state"] == {
        "a": {
            "terms": [
                {"name": "dog", "weight": 0.8, "parts": [["ca", 0.5], ["(16,down,1)", -1e-7]]},
                {"name": "pets/bird", "weight": -0.25, "parts": []},
            ]
        },
        "b": {"terms": [{"name": "cat", "weight": 1, "parts": []}]},
        "prompt": "a “red” car; 100%",
        "negative": "it's blue",
        "seeds": [3, 9],
        "stages": [2, 3],
        "guidance": 5.5,
        "size": "32x64",
        "view": "ab",
        "edit": "b",
    }
    assert printed(board, found["state"]) == FULL.replace("(16%2Cdown%2C1)", "%2816%2Cdown%2C1%29")
    assert printed(board, parsed(board, "")["state"]) == "1"


DAMAGED = [
    ("2;a=dog", "another version"),
    ("a=dog", "another version"),
    ("1;a=dog:", "not a number"),
    ("1;a=dog:1e999", "not a number"),
    ("1;a=dog:NaN", "not a number"),
    ("1;a=dog:0x", "not a number"),
    ("1;a=dog:2000000", "not a number"),
    ("1;a=dog+dog", "twice"),
    ("1;a=+dog", "no part of a mix"),
    ("1;a=dog~ca", "no part of a mix"),
    ("1;a=dog:1:2", "no part of a mix"),
    ("1;a=dog~ca:1~ca:2", "a part of dog twice"),
    ("1;a=dog;v=ab;a=cat", 'it says "a" twice'),
    ("1;a=%E2%28", "not readable"),
    ("1;s=0.5", "whole numbers"),
    ("1;s=-1", "whole numbers"),
    ("1;s=" + ",".join(map(str, range(17))), "whole numbers"),
    ("1;t=5,4", "do not rise"),
    ("1;z=0x64", "no size"),
    ("1;v=three", "unknown"),
    ("1;a=" + "+".join(f"d{number}" for number in range(17)), "more than 16"),
    ("1;a=dog" + "~ca:1" * 65, "more than 64"),
    ("1;p=" + "x" * 8200, "more than 8192"),
]


def test_damaged_links_say_what_is_wrong(board: BoardPage) -> None:
    board.open(painted=False)
    for fragment, said in DAMAGED:
        assert said in parsed(board, fragment), fragment[:40]


def test_a_damaged_link_changes_nothing(board: BoardPage) -> None:
    board.open("1;a=dog", painted=False)
    board.page.evaluate("location.hash = '#1;a=cat:NaN'")
    expect(board.page.locator("#toast.warn")).to_contain_text("It was not opened")
    expect(board.weight("dog")).to_be_visible()
    assert board.state == "1;a=dog"  # what is shown, also when the page is loaded again
    board.page.evaluate("location.hash = '#1;a=cat;q=1'")
    expect(board.page.locator("#toast.warn")).to_contain_text("unknown here and were ignored: q=1")
    expect(board.weight("cat")).to_be_visible()
    board.page.locator("#undo").click()
    assert board.state == "1;a=dog"


def test_a_state_too_long_for_an_address_says_so(board: BoardPage) -> None:
    board.open("1;a=dog", painted=False)
    board.page.get_by_label("Prompt", exact=True).fill("ü" * 1400)  # six characters each in an address
    board.page.get_by_label("Seeds").focus()
    expect(board.page.locator("#long")).to_be_visible()
    assert board.state == "1;a=dog"
    board.page.locator("#undo").click()
    expect(board.page.locator("#long")).to_be_hidden()


def test_names_with_marks_go_through_an_address(board: BoardPage) -> None:
    board.open(painted=False)
    name = "a+b:c~d;e=f,@#%/ü'(*)!"
    state = parsed(board, "1;a=x")["state"]
    state["a"]["terms"][0]["name"] = name
    text = printed(board, state)
    assert parsed(board, text)["state"] == state
    assert not set(text.removeprefix("1;a=")) & set("+:~;=,@#'(*)!"), json.dumps(text)


def test_what_is_typed_is_there_when_the_page_is_loaded_again(board: BoardPage) -> None:
    board.open("1;a=dog", painted=False)
    board.page.get_by_label("Prompt", exact=True).press_sequentially("a red car")
    board.page.wait_for_function("() => location.hash.includes('p=')")
    board.page.reload()
    expect(board.page.get_by_label("Prompt", exact=True)).to_have_value("a red car")
