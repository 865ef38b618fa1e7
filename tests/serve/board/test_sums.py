"""Where δ act, how they meet, and what is said of a mix before it is painted."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
import torch
from support.board import varied
from support.served import base, shifted

from svdiff_delta.ops.merge import merge
from svdiff_serve.board.mix import Mix, Term
from svdiff_serve.board.shelf import Shelf
from svdiff_serve.board.sums import check_sum, summed
from svdiff_serve.service import Service


def test_a_profile_says_how_far_singular_values_are_stretched(page: httpx.Client) -> None:
    found = page.get("board/profile", params={"name": "wide"}).json()
    delta = varied("unet", 1)
    assert (found["range"], len(found["layers"])) == ("sigma", len(delta))
    for name, block, energy, low, high in found["layers"][::20]:
        assert energy == pytest.approx(float(np.square(delta[name].astype("f8")).sum()), rel=1e-8)
        assert found["blocks"][block]["component"] == "unet"
        if delta.metadata.parameters[name].kind == "spectral":
            assert 0 <= low < 1 < high
        else:
            assert low is high is None
    sizes = [subset["parameters"] for subset in found["subsets"]]
    assert sizes == sorted(sizes, reverse=True)


def test_the_stretching_is_that_of_the_basis(board_service: Service) -> None:
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    sigma = board_service.live.sigmas()[name]
    weight = base().read(name).double()
    exact = torch.linalg.svdvals(weight).numpy()
    assert np.abs(sigma - exact).max() <= 1e-3 * exact[0]  # the basis is that of the weight rounded to its own dtype


def test_a_delta_of_another_base_has_a_profile_of_its_shifts(page: httpx.Client) -> None:
    found = page.get("board/profile", params={"name": "sd15"}).json()
    assert (found["range"], len(found["layers"])) == ("delta", 391)
    assert [block["label"] for block in found["blocks"]][2:7] == ["down.0", "down.1", "down.2", "down.3", "mid"]
    assert {block["selector"] for block in found["blocks"]} >= {"down.0", "mid", "up.3", "unet.conv_in.*"}


def test_two_deltas_meet_as_far_as_both_act(page: httpx.Client) -> None:
    found = page.get("board/interference", params={"a": "dog", "b": "cat"}).json()
    assert (found["cosine"], found["conflicts"], found["shared"]) == (pytest.approx(-1.0), 1.0, pytest.approx(1.0))
    found = page.get("board/interference", params={"a": "dog", "b": "carded/svdiff"}).json()
    assert [block["label"] for block in found["blocks"]] == ["mid"]
    assert 0 < found["shared"] < 1


@pytest.mark.parametrize(
    ("path", "params", "said"),
    [
        ("profile", {"name": "bog"}, "the nearest are"),
        ("profile", {"name": "broken"}, "cannot be read"),
        ("profile", {}, "says no name"),
        ("interference", {"a": "dog", "b": "sd15"}, "cannot be used: unet.conv_in.weight"),
        ("interference", {"a": "dog"}, "says no b"),
        ("picture", {"name": "dog", "number": "0"}, "no such picture"),
    ],
)
def test_a_name_that_cannot_be_used_is_answered_with_why(
    page: httpx.Client, path: str, params: dict[str, str], said: str
) -> None:
    answer = page.get(f"board/{path}", params=params)
    assert answer.status_code == 404
    assert said in answer.json()["error"]["message"]


def check(page: httpx.Client, *terms: dict[str, Any]) -> dict[str, Any]:
    answer = page.post("board/check", json={"mixes": [{"terms": terms}]})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["checks"][0]
    return found


def test_a_mix_that_overflows_half_precision_is_told_before_it_is_painted(page: httpx.Client) -> None:
    assert check(page, {"name": "loud", "weight": 1})["state"] == "ok"
    found = check(page, {"name": "loud", "weight": 2})
    assert found["state"] == "warn"
    assert "half precision (F16) ends at 65,504" in found["message"]
    assert found["where"].startswith("unet.")
    assert check(page, {"name": "loud", "weight": 2}, {"name": "dog"})["state"] == "warn"


def test_a_model_in_half_precision_does_not_paint_what_overflows(board_service: Service) -> None:
    shelf, loud = Shelf(board_service), Mix(terms=(Term(name="loud", weight=2.0),))
    found = check_sum(shelf, loud, half=True)
    assert found.state == "refused"
    assert "in F32" in found.message


def test_weights_that_cancel_out_are_judged_by_what_is_left(page: httpx.Client) -> None:
    quiet = check(page, {"name": "loud", "weight": 2, "parts": [["unet", 0]]}, {"name": "dog", "weight": 0.5})
    assert (quiet["state"], quiet["largest"]) == ("ok", pytest.approx(0.15, rel=1e-6))


def test_singular_values_below_nought_are_counted(page: httpx.Client) -> None:
    assert check(page, {"name": "dog"})["clipped"] == 0
    assert check(page, {"name": "dog", "weight": -4})["clipped"] > 0
    assert page.post("board/check", json={"mixes": [{"terms": []}]}).json()["checks"][0]["state"] == "ok"


def test_what_is_painted_is_what_is_saved(board_service: Service) -> None:
    shelf = Shelf(board_service)
    parts = (("unet-ca", 0.5), ("down.1", -1.0))
    mix = Mix(terms=(Term(name="wide", weight=0.8, parts=parts), Term(name="cat", weight=0.5)))
    painted = summed(shelf, [(mix, 1.0)])
    weights = [term.weights() for term in mix.terms]
    saved = merge([varied("unet", 1), shifted(-0.3)], weights=weights)
    assert painted is not None
    assert all(painted.stored[name].owned() == saved.stored[name].owned() for name in saved)


def test_a_strip_goes_from_one_mix_to_the_other(board_service: Service) -> None:
    shelf = Shelf(board_service)
    dog, cat = (Mix(terms=(Term(name=name),)) for name in ("dog", "cat"))
    middle = summed(shelf, [(dog, 0.5), (cat, 0.5)])
    assert middle is not None
    assert max(float(np.abs(middle[name]).max()) for name in middle) == 0.0
    assert summed(shelf, [(Mix(), 1.0)]) is None
    assert summed(shelf, [(dog, 0.0), (Mix(), 1.0)]) is None


@pytest.mark.parametrize("selector", ["no-such", "down.7", "[", "(16,down,9)"])
def test_a_part_that_names_nothing_is_refused(page: httpx.Client, selector: str) -> None:
    mix = {"terms": [{"name": "dog", "parts": [[selector, 1]]}]}
    for path, body in (("check", {"mixes": [mix]}), ("export", {"mix": mix, "form": "recipe"})):
        answer = page.post(f"board/{path}", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "mix"), answer.text
