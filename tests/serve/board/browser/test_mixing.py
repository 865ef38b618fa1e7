"""Mixing by clicks and by keys: cards, sliders for weight, blocks and subsets, two mixes, undo and redo."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect
from support.browser import BoardPage

pytestmark = pytest.mark.chromium


def test_cards_are_added_and_taken_out_by_clicks(board: BoardPage) -> None:
    board.open()
    expect(board.page.locator("#base")).to_have_text("tiny")
    expect(board.page.locator("#count")).to_have_text("10 deltas")
    expect(board.page.locator("#empty")).to_contain_text("Mix A is empty: the base alone is painted")
    board.add("dog")
    board.add("pets/bird")
    assert board.state == "1;a=dog+pets%2Fbird"
    expect(board.weight("pets/bird")).to_be_focused()
    expect(board.card("dog")).to_contain_text("in the mix")
    expect(board.page.locator("#empty")).to_be_hidden()
    board.page.get_by_role("button", name="Take dog out of the mix").click()
    assert board.state == "1;a=pets%2Fbird"
    board.look("pets/bird").get_by_role("button", name="Take out of mix A").click()
    assert board.state == "1"


def test_a_slider_is_dragged_and_its_number_typed(board: BoardPage) -> None:
    board.open("1;a=dog", painted=False)
    board.drag(board.weight("dog"), to=0.25)
    assert float(board.weight("dog").input_value()) == pytest.approx(-1, abs=0.05)
    number = board.page.get_by_label("weight of dog, as a number")
    assert number.input_value() == board.weight("dog").input_value()
    number.fill("3.5")
    number.press("Enter")
    assert board.state == "1;a=dog:3.5"  # beyond the slider's end, which is nothing but a place for a hand
    number.fill("1e9")
    number.press("Enter")
    expect(number).to_have_attribute("aria-invalid", "true")
    assert board.state == "1;a=dog:3.5"


def test_subsets_and_blocks_have_sliders_of_their_own(board: BoardPage) -> None:
    board.open("1;a=wide:0.5", painted=False)
    board.term("wide").get_by_text("Blocks and subsets").click()
    board.page.get_by_label("factor of down.1 in wide").fill("0")
    board.page.get_by_label("factor of ca in wide", exact=True).fill("-0.5")
    assert board.state == "1;a=wide:0.5~ca:-0.5~down.1:0"  # blocks count last, whichever was moved first
    expect(board.term("wide")).to_contain_text("2 set")
    board.page.get_by_role("button", name="ca in wide: as the rest", exact=True).click()
    assert board.state == "1;a=wide:0.5~down.1:0"
    expect(board.page.get_by_label("factor of ca in wide", exact=True)).to_have_value("1")


def test_a_part_of_a_link_that_is_no_slider_here_gets_one(board: BoardPage) -> None:
    board.open("1;a=dog~unet.*attn2.to_k*:0.5", painted=False)
    board.term("dog").get_by_text("Blocks and subsets").click()
    expect(board.page.get_by_label("factor of unet.*attn2.to_k* in dog")).to_have_value("0.5")


def test_undo_and_redo_take_whole_moves_back(board: BoardPage) -> None:
    board.open("1;a=dog", painted=False)
    undo, redo = board.page.locator("#undo"), board.page.locator("#redo")
    expect(undo).to_be_disabled()
    board.drag(board.weight("dog"), to=0.9)
    moved = board.state
    board.add("cat")
    added = board.state
    undo.click()
    assert board.state == moved
    board.page.keyboard.press("Control+z")
    assert board.state == "1;a=dog"
    expect(board.weight("dog")).to_have_value("1")
    expect(undo).to_be_disabled()
    board.page.keyboard.press("Control+y")
    redo.click()
    assert board.state == added
    expect(redo).to_be_disabled()


def test_all_of_it_is_done_by_keys_alone(board: BoardPage) -> None:
    board.open()
    keys = board.page.keyboard
    keys.press("Tab")
    keys.press("Tab")
    expect(board.page.get_by_role("link", name="Skip to the deltas")).to_be_focused()
    keys.press("Enter")
    keys.press("Tab")
    keys.type("cat")
    keys.press("Tab")
    keys.press("Tab")
    expect(board.card("cat")).to_be_focused()
    keys.press("Enter")
    expect(board.page.locator("#look-actions .primary")).to_be_focused()
    keys.press("Enter")
    expect(board.weight("cat")).to_be_focused()
    for _ in range(3):
        keys.press("ArrowLeft")
    assert board.state == "1;a=cat:0.97"
    board.painted()
    keys.press("Control+z")
    assert board.state == "1;a=cat:0.98"
    keys.press("Tab")
    keys.press("Tab")
    keys.press("Enter")  # opens the sliders of its parts
    part = board.page.get_by_label("factor of down.1 in cat")
    part.wait_for()
    part.focus()
    keys.press("Home")
    assert board.state == "1;a=cat:0.98~down.1:-1"
    board.page.locator("#view-one").focus()
    keys.press("ArrowRight")
    assert board.state.endswith(";v=ab")


def test_two_mixes_stand_beside_each_other(board: BoardPage) -> None:
    board.open("1;a=dog:0.5", painted=False)
    board.page.locator("#copy-across").click()
    board.page.get_by_role("radio", name="B", exact=True).check()
    board.page.get_by_label("weight of dog, as a number").fill("-1")
    board.page.get_by_label("weight of dog, as a number").press("Enter")
    assert board.state == "1;a=dog:0.5;b=dog:-1;e=b"
    board.page.locator("#swap").click()
    assert board.state == "1;a=dog:-1;b=dog:0.5;e=b"
    board.page.locator("#clear").click()
    assert board.state == "1;a=dog:-1;e=b"
    expect(board.page.locator("#empty")).to_contain_text("Mix B is empty")


def test_the_search_finds_names_titles_and_prompts(board: BoardPage) -> None:
    board.open(painted=False)
    search, cards = board.page.get_by_label("Search deltas"), board.page.locator(".card-name")
    search.fill("both of")
    expect(cards).to_have_text(["both"])
    search.fill("a photo bird")
    expect(cards).to_have_text(["carded/svdiff"])
    search.fill("nobody")
    expect(board.page.locator("#none")).to_have_text("None of them is called so.")
    search.fill("")
    board.page.get_by_label("usable here").check()
    expect(board.page.locator("#count")).to_have_text("7 of 10 deltas")
    expect(board.page.locator(".card.grey")).to_have_count(0)


def test_pictures_of_a_card_are_shown_with_their_captions_as_text(board: BoardPage) -> None:
    board.open(painted=False)
    expect(board.card("carded/svdiff").locator("img")).to_be_visible()
    look = board.look("carded/svdiff")
    expect(look.get_by_role("img", name="a sks bird in <b>snow</b>")).to_be_visible()
    expect(look.locator("b")).to_have_count(0)
    look.get_by_role("button", name="Use its prompt").click()
    assert board.state == "1;p=a%20photo%20of%20a%20sks%20bird"


def test_settings_that_cannot_be_are_said_and_not_taken(board: BoardPage) -> None:
    board.open(painted=False)
    seeds, wrong = board.page.get_by_label("Seeds"), board.page.locator("#wrong")
    seeds.fill("1, two")
    seeds.press("Enter")
    expect(wrong).to_contain_text("whole numbers")
    expect(seeds).to_have_attribute("aria-invalid", "true")
    assert board.state == ""
    seeds.fill("7 8")
    seeds.press("Enter")
    expect(wrong).to_be_hidden()
    board.page.get_by_text("Steps, guidance, size").click()
    for label, text in (("Then steps", "3"), ("First steps", "2"), ("Guidance", "5.5")):
        board.page.get_by_label(label).fill(text)
        board.page.get_by_label(label).press("Enter")
    board.page.get_by_label("Width").fill("100000000")
    board.page.get_by_label("Width").press("Enter")
    expect(wrong).to_contain_text("Width: a whole number")
    assert board.state == "1;s=7,8;t=2,3;g=5.5"
    board.page.locator("#more-seeds").click()
    assert board.state == "1;s=7,8,9;t=2,3;g=5.5"
    board.page.locator("#dice").click()
    assert ";s=7,8,9" not in board.state
    expect(board.page.locator(".frame img")).to_have_count(3)
    seeds.fill("9007199254740991")  # the largest that a page can count
    seeds.press("Enter")
    board.page.locator("#more-seeds").click()
    assert ";s=9007199254740991,0;" in board.state


def test_a_weight_that_cannot_be_is_said(board: BoardPage) -> None:
    board.open("1;a=dog:0.4", painted=False)
    number = board.page.get_by_label("weight of dog, as a number")
    number.fill("")
    number.press("Enter")
    expect(number).to_have_attribute("aria-invalid", "true")
    assert board.told() == "The weight of dog is a number from −1,000,000 to 1,000,000: 0.4 stays."
    assert board.state == "1;a=dog:0.4"


def test_what_stands_for_a_delta_without_a_picture_is_its_first_letter(board: BoardPage) -> None:
    board.open(painted=False)
    script = "async (name) => (await import('/page/shelf.js')).thumb({ name }).textContent"
    found = [board.page.evaluate(script, name) for name in ("pets/dog", "pets/🐶", "é")]
    assert found == ["D", "🐶", "É"]
