"""Ways out of the board, each by a click, and back in: what is saved is what the server makes of the same mix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect
from support.browser import BoardPage
from support.served import shifted

from svdiff_delta import load, save
from svdiff_delta.format.file import dumps
from svdiff_delta.ops.merge import merge
from svdiff_delta.ops.merge.recipe import read_recipe
from svdiff_delta.ops.weights import Weight

pytestmark = pytest.mark.chromium

MIX = "1;a=dog:0.8~ca:0.5~down.1:0+cat:0.5"
JSON = {
    "terms": [
        {"name": "dog", "weight": 0.8, "parts": [["ca", 0.5], ["down.1", 0]]},
        {"name": "cat", "weight": 0.5, "parts": []},
    ]
}


def exported(board: BoardPage, form: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{board.url}/board/export", json={"mix": JSON, "form": form, **fields}).raise_for_status()


def saved(board: BoardPage, name: str, folder: Path) -> Path:
    with board.page.expect_download() as coming:
        board.page.get_by_role("button", name=name).click()
    path = folder / coming.value.suggested_filename
    coming.value.save_as(path)
    return path


@pytest.fixture
def mixed(board: BoardPage) -> BoardPage:
    return board.open(MIX, painted=False)


def test_a_saved_delta_has_the_bytes_of_merge(mixed: BoardPage, board_folder: Path, tmp_path: Path) -> None:
    path = saved(mixed, "Save as δ", tmp_path)
    weights = [Weight(0.8, {"ca": 0.4, "down.1": 0.0}), Weight(0.5)]
    own = merge([load(board_folder / f"{name}.safetensors") for name in ("dog", "cat")], weights=weights)
    assert path.read_bytes() == dumps(own)
    mixed.page.get_by_text("Title, number format, rank").click()
    mixed.page.get_by_label("Title").fill("Both")
    mixed.page.get_by_label("Number format").select_option("F16")
    again = saved(mixed, "Save as δ", tmp_path)
    assert again.read_bytes() == exported(mixed, "delta", title="Both", dtype="F16").content != path.read_bytes()
    assert mixed.told() == f"Saved as {again.name}."


def test_a_saved_recipe_says_the_same_mix(mixed: BoardPage, tmp_path: Path) -> None:
    path = saved(mixed, "Save as recipe", tmp_path)
    assert path.read_bytes() == exported(mixed, "recipe").content
    assert [each.weight for each in read_recipe(path).inputs] == [Weight(0.8, {"ca": 0.4, "down.1": 0.0}), Weight(0.5)]


@pytest.mark.parametrize(("name", "form"), [("Copy as command", "command"), ("Copy as Python", "python")])
def test_command_and_python_are_copied_and_shown(mixed: BoardPage, name: str, form: str) -> None:
    mixed.page.get_by_role("button", name=name).click()
    expect(mixed.page.locator("#toast")).to_contain_text("Copied")
    own = exported(mixed, form).text
    assert mixed.page.evaluate("navigator.clipboard.readText()") == own
    assert mixed.page.locator("#copied").inner_text().rstrip() == own.rstrip()


def test_where_a_page_may_not_copy_the_text_is_selected(mixed: BoardPage) -> None:
    mixed.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')); }")
    mixed.page.get_by_role("button", name="Copy as command").click()
    expect(mixed.page.locator("#toast")).to_contain_text("press Ctrl+C")
    assert mixed.page.evaluate("getSelection().toString()").rstrip() == exported(mixed, "command").text.rstrip()


@pytest.mark.parametrize(("name", "form"), [("LoRA for AUTOMATIC1111", "kohya"), ("LoRA with ComfyUI", "comfyui")])
def test_a_lora_is_saved_with_what_it_keeps(mixed: BoardPage, tmp_path: Path, name: str, form: str) -> None:
    mixed.page.get_by_text("Title, number format, rank").click()
    mixed.page.get_by_label("Rank of LoRA").fill("4")
    path = saved(mixed, name, tmp_path)
    own = exported(mixed, form, rank=4)
    assert path.read_bytes() == own.content
    kept = 100 * float(own.headers["x-retained-energy"])
    assert mixed.told() == f"Saved as {path.name}: rank 4 keeps {kept:.1f} % of the change."


def test_what_a_lora_has_no_place_for_is_said(board: BoardPage, tmp_path: Path) -> None:
    board.open("1;a=wide", painted=False)
    board.page.get_by_role("button", name="LoRA for AUTOMATIC1111").click()
    expect(board.page.locator("#toast.warn")).to_contain_text("63 weights cannot be carried over")
    board.faults.clear()  # the browser notes the refusal
    board.page.get_by_text("Title, number format, rank").click()
    board.page.get_by_label("LoRA may leave out").check()
    saved(board, "LoRA for AUTOMATIC1111", tmp_path)
    expect(board.page.locator("#toast.warn")).to_contain_text("layers that LoRA has no place for were left out")


def test_a_saved_mix_opens_again_with_its_sliders(mixed: BoardPage, tmp_path: Path) -> None:
    path = saved(mixed, "Save as δ", tmp_path)
    mixed.page.locator("#clear").click()
    mixed.page.get_by_label("Open a saved mix").set_input_files(path)
    expect(mixed.weight("dog")).to_have_value("0.8")
    assert mixed.state == MIX
    mixed.term("dog").get_by_text("Blocks and subsets").click()
    expect(mixed.page.get_by_label("factor of down.1 in dog")).to_have_value("0")
    mixed.page.locator("#undo").click()
    assert mixed.state == "1"


def test_a_mix_of_the_store_opens_from_its_card(board: BoardPage) -> None:
    board.open(painted=False)
    board.look("both").get_by_role("button", name="Open its sliders").click()
    expect(board.weight("dog")).to_have_value("0.8")
    assert board.state == "1;a=dog:0.8~unet-ca:0.5~down.1:0+cat:0.5"
    assert "Both of them" in board.told()


def test_what_has_no_sliders_says_why(board: BoardPage, board_folder: Path, tmp_path: Path) -> None:
    board.open("1;a=dog", painted=False)
    file = board.page.get_by_label("Open a saved mix")
    file.set_input_files(board_folder / "wide.safetensors")
    expect(board.page.locator("#toast.warn")).to_contain_text("wide.safetensors: ")
    assert board.state == "1;a=dog"
    file.set_input_files(board_folder / "broken.safetensors")
    expect(board.page.locator("#toast.warn")).to_contain_text("broken.safetensors: ")
    assert board.state == "1;a=dog"
    save(merge([shifted(0.7), shifted(0.9)]), tmp_path / "strange.safetensors")
    file.set_input_files(tmp_path / "strange.safetensors")
    expect(board.page.locator("#toast.warn")).to_contain_text("2 deltas of the 2 that it was mixed of are not here")
    assert board.state == "1;a=dog"
    board.faults.clear()  # the browser notes the refusal


def test_the_base_alone_has_no_way_out(board: BoardPage) -> None:
    board.open(painted=False)
    for button in board.page.locator("[data-form]").all():
        expect(button).to_be_disabled()


def test_a_folder_that_is_dropped_is_no_server_that_is_gone(board: BoardPage, tmp_path: Path) -> None:
    board.open("1;a=dog", painted=False)
    board.page.evaluate("""() => {
      window.gone = 0;
      const count = () => window.gone++;
      new MutationObserver(count).observe(document.getElementById("gone"), { attributes: true });
    }""")
    hand = board.page.context.new_cdp_session(board.page)
    data = {"items": [], "files": [str(tmp_path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        hand.send("Input.dispatchDragEvent", {"type": kind, "x": 700, "y": 400, "data": data})
    expect(board.page.locator("#toast.warn")).to_contain_text("choose a file, not a folder")
    assert board.page.evaluate("window.gone") == 0


def test_a_rank_that_cannot_be_is_said(mixed: BoardPage) -> None:
    mixed.page.get_by_text("Title, number format, rank").click()
    rank = mixed.page.get_by_label("Rank of LoRA")
    for text in ("0", "", "2.5", "5000"):
        rank.fill(text)
        mixed.page.get_by_role("button", name="LoRA for AUTOMATIC1111").click()
        assert mixed.told() == "The rank of a LoRA is a whole number from 1 to 4096."
    expect(rank).to_have_attribute("aria-invalid", "true")
