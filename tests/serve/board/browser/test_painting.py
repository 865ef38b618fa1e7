"""Live previews: few steps first, then more, of the newest position of the hand; the same seeds; the strip."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect
from support.browser import STEPS, WATCH, BoardPage, decoded

pytestmark = pytest.mark.chromium

ALIKE = 1.0
"""Grey levels by which two pictures of one mix differ in the mean at most: rounding moves single ones by one. Two mixes
that these tests compare differ by more than three times as much."""


def seen(board: BoardPage) -> list[dict[str, Any]]:
    return board.page.evaluate("window.seen")


def served(board: BoardPage, mixes: list[Any], share: list[float], seed: int, steps: int = STEPS) -> np.ndarray:
    """What the server paints for a mix, asked without the page."""
    body = {"client": "no-page-but-a-test", "move": 0, "mixes": mixes, "pictures": [{"share": share, "seed": seed}]}
    answer = httpx.post(f"{board.url}/board/preview", json={**body, "stages": [steps], "prompt": ""}, timeout=60)
    (line,) = [each for each in map(json.loads, answer.text.splitlines()) if each["kind"] == "picture"]
    return decoded(f"data:image/png;base64,{line['png']}")


def mix(name: str, weight: float) -> dict[str, Any]:
    return {"terms": [{"name": name, "weight": weight, "parts": []}]}


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def test_few_steps_come_first_then_more(board: BoardPage) -> None:
    board.open("1;a=dog:2;t=1,2")
    board.page.evaluate(WATCH)
    board.weight("dog").fill("-1")
    board.painted()
    assert [(each["stage"], each["steps"]) for each in seen(board)] == [(0, 1), (1, 2)]
    assert len({each["move"] for each in seen(board)}) == 1
    shown = board.page.locator(".frame img")
    expect(shown).to_have_attribute("alt", f"Picture painted with dog −1: no prompt, seed 0, {STEPS} steps")
    assert apart(board.pictures()[0], served(board, [mix("dog", -1)], [1.0], 0)) < ALIKE
    assert apart(board.pictures()[0], served(board, [mix("dog", 2)], [1.0], 0)) > 3 * ALIKE


def test_no_picture_is_older_than_one_before_it_however_the_hand_moves(board: BoardPage) -> None:
    board.open("1;a=dog+cat:0.5", painted=False)
    board.page.evaluate(WATCH)
    for to in (0.9, 0.1, 0.6, 0.2):
        board.drag(board.weight("dog"), to=to, moves=25)
    last = float(board.weight("dog").input_value())
    board.painted()
    moves = [(each["move"], each["stage"]) for each in seen(board)]
    assert moves == sorted(moves)
    expected = {"terms": [*mix("dog", last)["terms"], *mix("cat", 0.5)["terms"]]}
    assert apart(board.pictures()[0], served(board, [expected], [1.0], 0)) < ALIKE


def test_pictures_follow_the_hand_while_it_moves(board: BoardPage) -> None:
    board.open("1;a=dog")
    board.page.evaluate(WATCH)
    slider = board.weight("dog")
    box = slider.bounding_box()
    assert box is not None
    board.page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    board.page.mouse.down()
    for count in range(1, 1000):  # until three were shown, with the button held all the time
        board.page.mouse.move(box["x"] + (0.2 + 0.3 * (count % 2)) * box["width"], box["y"] + box["height"] / 2)
        if len({each["move"] for each in seen(board)}) >= 3:
            break
    assert len({each["move"] for each in seen(board)}) >= 3
    assert board.page.locator("#undo").is_enabled()
    board.page.mouse.up()
    board.painted()
    board.page.locator("#undo").click()
    assert board.state == "1;a=dog"  # one move, however many pictures
    board.painted()


def test_keys_that_are_held_are_one_move(board: BoardPage) -> None:
    board.open("1;a=dog", painted=False)
    board.weight("dog").focus()
    for _ in range(12):
        board.page.keyboard.down("ArrowLeft")
    board.page.keyboard.up("ArrowLeft")
    assert board.state == "1;a=dog:0.88"
    board.page.keyboard.press("Control+z")
    board.page.keyboard.press("Control+z")
    assert board.state == "1;a=dog"  # the first press, and all that came of holding it
    board.painted()


def test_the_same_seeds_lie_side_by_side(board: BoardPage) -> None:
    board.open("1;a=dog:2;s=3,8;t=1,2;v=ab")
    names = [each.get_attribute("alt") or "" for each in board.page.locator(".frame img").all()]
    assert [("dog 2" in name, f"seed {seed}," in name) for name, seed in zip(names, (3, 3, 8, 8), strict=True)] == [
        (True, True),
        (False, True),
        (True, True),
        (False, True),
    ]
    pictures, mixes = board.pictures(), [mix("dog", 2), {"terms": []}]
    for number, (share, seed) in enumerate([([1, 0], 3), ([0, 1], 3), ([1, 0], 8), ([0, 1], 8)]):
        assert apart(pictures[number], served(board, mixes, share, seed, 2)) < ALIKE
    assert apart(pictures[0], pictures[1]) > 3 * ALIKE
    expect(board.page.locator(".frame").nth(1)).to_contain_text("B: the base alone, seed 3")


def test_what_is_painted_already_is_shown_at_once(board: BoardPage) -> None:
    board.open("1;a=dog;b=cat;t=1,2;v=ab")
    asked: list[int] = []
    board.page.on("request", lambda each: asked.append(len(json.loads(each.post_data or "{}").get("pictures", []))))
    board.page.get_by_role("radio", name="B", exact=True).check()
    board.weight("cat").fill("-0.5")
    board.painted()
    assert [each for each in asked if each] == [1]  # A stands as it is
    board.page.locator("#undo").click()
    board.painted()
    assert [each for each in asked if each] == [1]


def test_the_strip_leads_from_one_mix_to_the_other(board: BoardPage) -> None:
    board.open("1;a=dog:2;b=cat:2;t=1,2;v=strip")
    pictures, mixes = board.pictures(), [mix("dog", 2), mix("cat", 2)]
    assert len(pictures) == 5
    for number, share in enumerate([[1, 0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0, 1]]):
        assert apart(pictures[number], served(board, mixes, share, 0, 2)) < ALIKE
    assert apart(pictures[0], pictures[4]) > 3 * ALIKE
    third = board.page.locator(".frame img").nth(1).get_attribute("alt") or ""
    assert third.startswith("Picture painted with 75 % of A (dog 2) and 25 % of B (cat 2): no prompt, seed 0")
    board.page.get_by_label("Seeds").fill("0,1,2,3")
    board.page.get_by_label("Seeds").press("Enter")
    expect(board.page.locator("#seeds-note")).to_have_text("This view shows the first 3 seeds.")
    expect(board.page.locator(".frame")).to_have_count(15)


def test_a_prompt_is_painted_when_typing_rests(board: BoardPage) -> None:
    board.open("1;a=dog")
    board.page.get_by_label("Prompt", exact=True).fill("a blue car")
    words = f"Picture painted with dog 1: “a blue car”, seed 0, {STEPS} steps"
    expect(board.page.locator(".frame img")).to_have_attribute("alt", words)
    board.page.get_by_label("Seeds").focus()
    assert board.state == "1;a=dog;p=a%20blue%20car"
    board.painted()


def test_a_picture_on_its_way_comes_into_another_view(board: BoardPage) -> None:
    board.open()  # the base alone is painted, and kept
    board.add("dog")
    board.page.locator("#view-ab").check(force=True)  # what lacks there is what is being painted
    board.painted()
    assert len(board.pictures()) == 2


def test_what_is_said_of_a_mix_is_said_again_where_its_picture_is_kept(board: BoardPage) -> None:
    board.open("1;a=loud:0.1")
    board.page.get_by_label("weight of loud, as a number").fill("4")
    board.page.get_by_label("weight of loud, as a number").press("Enter")
    board.painted()
    expect(board.page.locator("#check")).to_contain_text("half precision (F16) ends")
    board.page.locator("#undo").click()  # nothing is asked for: its picture is there
    board.painted()
    expect(board.page.locator("#check")).to_be_hidden()
    board.page.locator("#redo").click()
    board.painted()
    expect(board.page.locator("#check")).to_contain_text("half precision (F16) ends")
