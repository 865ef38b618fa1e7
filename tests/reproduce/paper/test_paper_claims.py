"""The 22 claims, the search before them, and that the plan's page says what the code does."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cells import searched_numbers

from reproduce.paper.choices import BEFORE, NEGATIVES, STYLES, Choices
from reproduce.paper.claims.claim import Claim
from reproduce.paper.claims.every import every_claim
from reproduce.paper.experiments.search import STAGES
from reproduce.paper.experiments.search_rates import LEARNED, RATES, lowest
from reproduce.paper.experiments.search_stitching import UNMIXINGS, least_stitched, unmixing_label
from reproduce.paper.experiments.shifts import count_sizes
from reproduce.paper.pages.plan import plan_lines
from reproduce.paper.planner import BUDGET, all_cells, paper_plan, trainings
from reproduce.paper.quick import quick_plan
from reproduce.paper.recipe import NONE, Recipe
from reproduce.paper.subjects import APART, SCENE, SEARCHED, SEARCHED_SCENES, SIMILAR, SUBJECTS

REPORTS = Path(__file__).parents[3] / "reports"
PLAN = paper_plan()
CLAIMS = every_claim(BEFORE)
CELLS = all_cells(PLAN)


def test_there_are_22_claims_of_eight_experiments() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS) == 22
    assert {claim.letter for claim in CLAIMS} == set("abcdefgh")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_a_claim_says_all_that_must_stand_before_its_run(claim: Claim) -> None:
    assert claim.says.endswith(".")
    assert claim.where
    assert claim.pairing
    assert list(claim.looks) == sorted(set(claim.looks))
    for part in claim.parts:
        assert part.says
        assert part.margin > 0
        assert part.kind == "exact" or part.grain > 0
    for count in claim.looks:  # the same number of units of each group, so that no subject counts twice
        assert count % len(claim.groups) == 0


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_both_sides_of_a_unit_have_the_same_seed(claim: Claim) -> None:
    for unit in claim.units(claim.looks[-1]):
        seeds = {recipe.seed for cell in unit.cells.values() for recipe in cell.recipes}
        assert seeds <= {unit.seed}


def test_the_committed_plan_is_what_the_code_does() -> None:
    assert (REPORTS / "plan.md").read_text("utf-8") == "\n".join(plan_lines(PLAN)).rstrip() + "\n"


def test_the_first_looks_of_all_claims_fit_the_budget() -> None:
    first: set[str] = set()
    for stage in PLAN.stages:
        first |= trainings(stage.cells(BEFORE).values())
    for claim in CLAIMS:
        first |= trainings(claim.cells(0).values())
    assert len(first) < BUDGET < len(trainings(CELLS.values()))


def test_every_cell_has_a_place_of_its_own_and_every_training_a_key() -> None:
    assert len({cell.path(Path(), "base") for cell in CELLS.values()}) == len(CELLS)
    recipes = {recipe for cell in CELLS.values() for recipe in cell.recipes}
    assert len({recipe.key() for recipe in recipes}) == len(recipes)


def test_every_cell_can_go_to_a_process_of_its_own() -> None:
    for cell in CELLS.values():
        assert pickle.loads(pickle.dumps(cell)).key("base") == cell.key("base")


def test_every_training_can_be_described() -> None:
    for recipe in {recipe for cell in CELLS.values() for recipe in cell.recipes}:
        config = recipe.config()
        assert (config.steps, config.method, config.learning_rate) == (recipe.steps, recipe.method, recipe.rate)


def test_lambda_is_the_papers() -> None:
    for cell in CELLS.values():
        for recipe in cell.recipes:
            assert recipe.prior == (0.0 if recipe.scene else 1.0)
            assert recipe.config().with_prior != bool(recipe.scene)


def test_the_search_has_subjects_of_its_own() -> None:
    searched = {cell.place for stage in STAGES for cell in stage.cells(BEFORE).values()}
    for place, cell in CELLS.items():
        names = {name for recipe in cell.recipes for name in recipe.subjects}
        scenes = {SCENE[recipe.scene] for recipe in cell.recipes if recipe.scene}
        if place in searched:
            assert names <= set(SEARCHED)
            assert scenes <= set(SEARCHED_SCENES)
        else:
            assert not names & set(SEARCHED)
            assert not scenes & set(SEARCHED_SCENES)


def test_separated_pairs_share_their_first_subject_with_similar_ones() -> None:
    assert [pair[0] for pair in APART] == [pair[0] for pair in SIMILAR]
    assert not set(APART) & set(SIMILAR)


@pytest.mark.parametrize("name", sorted(SUBJECTS))
def test_every_subject_has_five_pictures(name: str) -> None:
    assert len(list(SUBJECTS[name].folder.glob("*.png"))) == 5


def test_every_scene_has_its_picture() -> None:
    assert all(scene.path.is_file() for scene in SCENE.values())


# The search.


def test_the_lowest_rate_that_learns_is_taken() -> None:
    assert lowest({1.0: 0.5, 2.0: LEARNED, 4.0: 1.0}) == 2.0
    assert lowest({1.0: 0.5, 2.0: 0.7, 4.0: 0.6}) == 2.0
    assert lowest({1.0: 0.7, 2.0: 0.7}) == 1.0


def test_what_stitches_least_is_taken_of_what_keeps_the_score() -> None:
    score = {"a": 0.5, "b": 0.48, "c": 0.4}
    assert least_stitched(score, {"a": 0.3, "b": 0.2, "c": 0.0}, 0.5) == "b"
    assert least_stitched(score, {"a": 0.2, "b": 0.2, "c": 0.0}, 0.5) == "a"
    assert least_stitched(score, {"a": 0.3, "b": 0.2, "c": 0.0}, 0.9) == "a"


def searched() -> Choices:
    choices = BEFORE
    for stage in STAGES:
        choices = stage.choose(choices, {label: searched_numbers(cell) for label, cell in stage.cells(choices).items()})
    return choices


def test_every_stage_chooses_by_its_rule() -> None:
    found = searched()
    assert found.rates == {"svdiff": 4e-2, "full": 5e-5, "lora": 2e-4, "kv": 2e-4}
    assert found.picture_rates == {"svdiff": 2e-2, "full": 4e-4, "lora": 1e-2}
    assert found.pair_steps == 400  # 0.02 more for half as many steps again is not worth it
    assert (found.triple_steps, found.triple_mix) == (1000, 0.6)
    assert found.unmix == UNMIXINGS[3]
    assert found.negative == "as trained"
    assert found.style == "shared prompt, middle"


def test_later_recipes_are_made_of_what_was_chosen() -> None:
    found = replace(searched(), rates=BEFORE.rates | {"svdiff": 0.123})
    rates = {recipe.rate for claim in every_claim(found) for cell in claim.cells(0).values() for recipe in cell.recipes}
    assert 0.123 in rates
    assert BEFORE.rates["svdiff"] not in rates - {found.picture_rates["svdiff"]}


def test_what_is_chosen_before_the_search_is_tried_by_it() -> None:
    assert all(BEFORE.rates[method] in rates for method, rates in RATES.items())
    assert BEFORE.unmix in UNMIXINGS
    assert BEFORE.negative in NEGATIVES
    assert BEFORE.style in STYLES
    assert NONE in UNMIXINGS
    assert len({unmixing_label(unmix) for unmix in UNMIXINGS}) == len(UNMIXINGS)


def test_a_key_tells_trainings_apart() -> None:
    one = Recipe(rate=0.1, subjects=("banjo", "poodle"), mix=0.6)
    others: list[Mapping[str, Any]] = [
        {"rate": 0.2},
        {"seed": 1},
        {"unmix": UNMIXINGS[1]},
        {"token": "V1"},
        {"steps": 5},
    ]
    assert len({one.key(), *(replace(one, **other).key() for other in others)}) == 1 + len(others)


def test_sizes_are_counted_as_a_shift_has_them() -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.Linear(5, 4))
    # 8x27 has 8 singular values, a norm's weight counts as its 8 numbers, 4x5 has 4; biases are never shifted.
    assert count_sizes(layers) == {"weights": 216 + 8 + 8 + 8 + 20 + 4, "shift": 8 + 8 + 4}


def test_quick_is_a_few_trainings() -> None:
    plan = quick_plan()
    cells = all_cells(plan)
    assert {claim.name for claim in plan.claims(BEFORE)} >= {"like-full", "sizes", "inversion"}
    assert len(trainings(cells.values())) <= plan.budget <= 20
