"""What is known before a δ is added: where it acts, what it shares with the mix, whether the sum is too large."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import expect
from support.browser import BoardPage

pytestmark = pytest.mark.chromium


def test_where_a_delta_acts_is_a_picture_with_words_and_tables(board: BoardPage) -> None:
    board.open(painted=False)
    profile = httpx.get(f"{board.url}/board/profile", params={"name": "wide"}).json()
    look = board.look("wide")
    picture = look.get_by_role("img", name="Where wide acts, over 231 layers")
    expect(picture).to_be_visible()
    largest = max(profile["blocks"], key=lambda block: block["energy"])
    share = round(100 * largest["energy"] / profile["energy"])
    assert f"most of its energy in {largest['label']} {share} %" in (picture.get_attribute("aria-label") or "")
    expect(picture.locator("path.bar")).to_have_count(len(profile["blocks"]))
    drawn = "".join(each.get_attribute("d") or "" for each in picture.locator("path.bar").all())
    assert drawn.count("M") == sum(energy > 0 for _, _, energy, _, _ in profile["layers"])
    look.get_by_text("Blocks as a table").click()
    expect(look.get_by_role("row")).to_have_count(1 + len(profile["blocks"]))
    look.get_by_text("All 231 layers as a table").click()
    expect(look.get_by_role("row", name=profile["layers"][7][0])).to_be_visible()
    board.page.keyboard.press("Escape")


def test_the_layout_of_stable_diffusion_is_drawn_layer_by_layer(board: BoardPage) -> None:
    board.open(painted=False)
    look = board.look("sd15")
    expect(look).to_contain_text("It cannot be used here")
    picture = look.get_by_role("img", name="Where sd15 acts, over 391 layers")  # 282 matrices and 109 norms
    expect(picture).to_be_visible()
    drawn = "".join(each.get_attribute("d") or "" for each in picture.locator("path.bar").all())
    assert drawn.count("M") == 391
    assert (picture.locator("path.span").get_attribute("d") or "").count("M") == 391
    board.page.keyboard.press("Escape")


def test_interference_is_shown_before_the_add(board: BoardPage) -> None:
    board.open("1;a=dog", painted=False)
    found = httpx.get(f"{board.url}/board/interference", params={"a": "cat", "b": "dog"}).json()
    look = board.look("cat")
    expect(look.locator(".pair")).to_contain_text("they pull against each other")
    expect(look.locator(".pair")).to_contain_text("cosine −1 · 100 % of the numbers pull apart")
    picture = look.get_by_role("img", name="Interference of cat and dog: cosine −1")
    expect(picture.locator("rect.against")).to_have_count(len(found["blocks"]))
    assert board.state == "1;a=dog"
    look.get_by_role("button", name="Add to mix A").click()
    expect(board.page.locator("#pairs")).to_contain_text("dog × cat")
    expect(board.page.locator("#pairs")).to_contain_text("cosine −1")
    board.page.get_by_label("weight of cat, as a number").fill("-1")
    board.page.get_by_label("weight of cat, as a number").press("Enter")
    expect(board.page.locator("#pairs")).to_contain_text("cosine 1 · 0 % of the numbers pull apart")


def test_a_sum_too_large_for_half_precision_is_said_before_it_is_painted(board: BoardPage) -> None:
    board.open("1;a=loud", painted=False)
    board.painted()
    expect(board.page.locator("#check")).to_be_hidden()
    board.page.evaluate(
        """() => {
      window.order = [];
      document.addEventListener("board:shown", () => window.order.push("picture"));
      const watcher = new MutationObserver(() => window.order.push("said"));
      watcher.observe(document.querySelector("#check"), { childList: true });
    }"""
    )
    board.page.get_by_label("weight of loud, as a number").fill("2")
    board.page.get_by_label("weight of loud, as a number").press("Enter")
    board.painted()
    expect(board.page.locator("#check")).to_contain_text("65,504")
    assert board.page.evaluate("window.order")[0] == "said"
    look = board.look("dog")
    expect(look.locator(".notice.warn")).to_contain_text("65,504")  # and before the add
    board.page.keyboard.press("Escape")


def test_a_delta_of_another_base_is_grey_with_the_reason(board: BoardPage) -> None:
    board.open(painted=False)
    card = board.page.locator('.card[data-name="other"]')
    expect(card).to_have_class("card grey")
    expect(card).to_contain_text("was made for another base")
    look = board.look("other")
    expect(look.locator(".notice.refused")).to_contain_text("It cannot be used here")
    expect(look.locator("#look-actions .primary")).to_be_disabled()
    expect(look.get_by_role("img", name="Where other acts")).to_be_visible()
    board.page.keyboard.press("Escape")


def test_a_file_that_is_no_delta_is_grey_with_the_reason(board: BoardPage) -> None:
    board.open(painted=False)
    look = board.look("broken")
    expect(look).to_contain_text("not a safetensors file")
    expect(look.locator("#look-actions .primary")).to_be_disabled()
    board.page.keyboard.press("Escape")
    board.faults.clear()  # the browser notes that there is no profile of it


def test_a_mix_that_names_what_is_not_here_says_so(board: BoardPage) -> None:
    board.open("1;a=nobody+dog", painted=False)
    expect(board.term("nobody")).to_contain_text("It is not in the store here")
    expect(board.page.locator("#problem")).to_contain_text("there is no delta 'nobody' here")
    board.page.get_by_role("button", name="Take nobody out of the mix").click()
    board.painted()
    expect(board.page.locator("#problem")).to_be_hidden()
    board.faults.clear()  # the browser notes the refusal


def test_what_is_not_known_of_a_pair_is_said_and_asked_for_again(board: BoardPage) -> None:
    board.open("1;a=dog+cat")
    words = board.page.locator("#pairs .pair-words")
    expect(words).to_contain_text("pull against each other")
    refusal = {"error": {"message": "not now"}}
    board.page.route("**/board/interference?*", lambda route: route.fulfill(status=500, json=refusal))
    board.add("wide")
    expect(board.page.locator("#pairs .pair")).to_have_count(3)
    expect(words.filter(has_text="not now")).to_have_count(2)
    board.page.unroute_all()
    board.weight("dog").press("ArrowLeft")
    expect(words.filter(has_text="not now")).to_have_count(0)
    expect(board.page.locator("#pairs .pair")).to_have_count(3)
    board.faults.clear()  # the browser notes the refusals
