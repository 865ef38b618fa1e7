"""The cells of the report: how many, and that every training they name can be."""

from __future__ import annotations

import pytest

from reproduce.paper.cell import Cell
from reproduce.paper.experiments.pairs import FASTER, UNMIX
from reproduce.paper.experiments.search import factor_name, prior_name, rate_name, unmix_name
from reproduce.paper.plan import all_cells, quick_cells, search_cells, trainings
from reproduce.paper.recipe import PRIOR, RATES, Recipe
from reproduce.paper.subjects import SCENES, SEARCHED, SUBJECTS

CELLS = all_cells()


def test_there_are_at_most_220_trainings() -> None:
    assert 180 < trainings(CELLS) <= 220


def test_no_two_cells_share_a_name() -> None:
    names = [(cell.experiment, cell.name) for cell in CELLS]
    assert len(set(names)) == len(names)


def test_every_experiment_of_the_issue_has_cells() -> None:
    assert {cell.experiment for cell in CELLS} == set("abcdefgh")


def test_cells_are_counted_as_asked_for() -> None:
    def count(letter: str) -> int:
        return sum(cell.experiment == letter for cell in CELLS)

    assert count("a") == 5 * 3 * 4  # subjects, seeds, methods
    assert count("b") == 4 * 2 * 3 * 2 + 2 * 2  # pairs, seeds, variants, methods; three subjects once, without unmix
    assert count("c") == 5 * 2 * 3  # pictures, seeds, methods
    assert count("d") == 3 * 12  # subjects, subsets


@pytest.mark.parametrize("cell", [*CELLS, *search_cells()], ids=lambda cell: f"{cell.experiment}-{cell.name}")
def test_every_training_can_be_described(cell: Cell) -> None:
    assert cell.recipes
    for recipe in cell.recipes:
        config = recipe.config()
        assert config.steps == recipe.steps
        assert config.method == recipe.method


def test_a_key_tells_trainings_apart() -> None:
    recipes = {recipe for cell in CELLS for recipe in cell.recipes}
    assert len({recipe.key() for recipe in recipes}) == len(recipes)
    faster = Recipe(subjects=("banjo",), faster=2.0)
    assert faster.key() != Recipe(subjects=("banjo",)).key()


def test_of_the_subjects_of_the_search_one_is_in_no_experiment_and_one_in_an_interpolation() -> None:
    first, second = SEARCHED
    used = {(cell.name, subject) for cell in CELLS for recipe in cell.recipes for subject in recipe.subjects}
    assert first not in {subject for _, subject in used}
    assert {name for name, subject in used if subject == second} == {"within-svdiff", "within-full"}
    assert all(set(recipe.subjects) <= set(SEARCHED) for cell in search_cells() for recipe in cell.recipes)


def test_the_search_holds_what_was_chosen() -> None:
    names = {cell.name for cell in search_cells()}
    chosen = {rate_name(subject, method, rate) for subject in SEARCHED for method, rate in RATES.items()}
    chosen |= {prior_name(subject, PRIOR) for subject in SEARCHED}
    assert chosen | {factor_name(FASTER), unmix_name(UNMIX)} <= names


def test_seed_0_of_every_experiment_comes_first() -> None:
    seeds = [max(recipe.seed for recipe in cell.recipes) for cell in CELLS]
    assert seeds.index(1) == seeds.count(0)
    assert {cell.experiment for cell in CELLS[:16]} == set("abcdefgh")


def test_quick_is_one_subject_and_one_seed() -> None:
    cells = quick_cells()
    assert {"a", "b", "c", "d", "h"} <= {cell.experiment for cell in cells}
    assert all(recipe.seed == 0 for cell in cells for recipe in cell.recipes)
    assert trainings(cells) <= 12


@pytest.mark.parametrize("name", sorted(SUBJECTS))
def test_every_subject_has_five_pictures(name: str) -> None:
    assert len(list(SUBJECTS[name].folder.glob("*.png"))) == 5


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_every_scene_has_its_picture_and_three_edits(scene: object) -> None:
    assert scene.path.is_file()  # type: ignore[attr-defined]
    assert len(scene.edits) == 3  # type: ignore[attr-defined]
