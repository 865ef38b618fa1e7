"""The report, made of numbers alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.cells import searched_numbers

from reproduce.paper.__main__ import main
from reproduce.paper.cell import Cell, packed
from reproduce.paper.choices import BEFORE
from reproduce.paper.experiments.shifts import SCALES
from reproduce.paper.found import Found
from reproduce.paper.lab import base_digest
from reproduce.paper.pages.search import chosen
from reproduce.paper.planner import Plan, Progress, all_cells, paper_plan
from reproduce.paper.report import write_report
from reproduce.paper.subjects import SUBJECTS

BASE = "0" * 16
REPORTS = Path(__file__).parents[3] / "reports"
PLAN = paper_plan()
WITHOUT = Plan((), PLAN.claims, PLAN.beside, PLAN.check, 10_000)
"""The plan with what is chosen before the search, so that cells can be made up."""


def numbers_of(cell: Cell) -> dict[str, Any]:
    """Numbers as a cell of its experiment has them, SVDiff's better than the others'."""
    if cell.name == "sizes":
        return {"paper": {"weights": 10_000, "shift": 5}, "here": {"weights": 10_000, "shift": 50}}
    if cell.experiment == "s":
        names = list(SUBJECTS)
        own = [[5 * (row == column) for column in range(len(names))] for row in range(len(names))]
        return {"subjects": names, "whole": own, "half": own, "class": dict.fromkeys(names, 1.0)}
    recipe = cell.recipes[0]
    ours, jitter = (
        recipe.method == "svdiff",
        (recipe.seed % 3) * 0.001 + len(recipe.subjects[:1] and recipe.subjects[0]) / 1e4,
    )
    if "-scales-" in cell.name:
        return {
            "scales": [{"scale": s, "text": 0.5 - s / 9 - jitter * s, "image": 0.5, "identity": 1.0} for s in SCALES]
        }
    if cell.experiment == "b":
        mixed = int(recipe.mix > 0)
        judged = {"both": [mixed] * 12, "crossed": [1 - mixed] * 12, "seam": [9.0] * 12, "score": [0.5 + ours] * 12}
        return {"seconds": 40.0, "positive": judged, "negative": judged}
    if cell.experiment == "c":
        edit = {"check": "ground", "succeeded": [1, 0, 1], "survived": [1, 1, 0], "like": [0.5, 0.6, 0.7 + jitter]}
        closer = edit | {"like": [0.9]}
        return {"seconds": 20.0, "faithful": 0.9 if ours else 0.5, "plain": [edit] * 3, "inverted": [closer] * 3}
    if cell.name.startswith("sum"):
        judged = {"both": [1, 0], "crossed": [0, 0], "seam": [1.0, 1.0], "score": [0.5, 0.5]}
        return {"alone": [0.9, 0.9], "together": [0.7, 0.8 + jitter], "class": [0.1, 0.1], "pair": judged}
    if cell.experiment == "e":
        return {"alphas": [0, 0.25, 0.5, 0.75, 1], "like": [[0.1 * i, 1 - 0.1 * i] for i in range(5)]}
    if cell.experiment == "f":
        colour = {"appearance": 0.7, "geometry": 0.4}
        return {"shape": {"geometry": 0.9, "appearance": 0.5 + jitter}, "colour": colour, "parents": 0.1}
    if cell.experiment == "g":
        return {"own": 0.9 + jitter, "other": 0.1}
    weaker = 0.2 * (recipe.selectors not in (None, ("unet-2d",)) or recipe.rank is not None)
    return {
        "text": 0.3 + jitter, "image": (0.8 if ours else 0.6) + jitter - weaker, "identity": 0.9,
        "seconds": 20.0, "size": 40_000 if ours else 33_000_000,
    }  # fmt: skip


def fill(folder: Path, base: str = BASE, share: int = 1) -> None:
    for index, cell in enumerate(all_cells(WITHOUT, BEFORE).values()):
        if index % share == 0:
            kept = {"key": cell.key(base), "numbers": numbers_of(cell), "device": "cpu", "seconds": float(index)}
            path = cell.path(folder, base)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(packed(kept))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    fill(folder)
    write_report(folder, WITHOUT, BASE)
    return folder


def row(folder: Path, name: str) -> str:
    text = (folder / "paper.md").read_text("utf-8")
    return next(line for line in text.splitlines() if line.endswith(f"#{name}) |"))


def test_a_full_report_judges_every_claim(full: Path) -> None:
    text = (full / "paper.md").read_text("utf-8")
    assert "not measured" not in text.partition("## How far it is")[0]
    assert text.count("| **") == 22
    assert "| **agrees** |" in row(full, "cut-mix-svdiff")
    assert "| **agrees** |" in row(full, "preferred")
    assert "| **differs** |" in row(full, "like-full")  # 0.2 beyond the margin
    assert "2,000" in row(full, "sizes")
    assert "- The plan is at its end." in text


def test_the_table_comes_first_and_a_row_has_all_that_a_claim_is(full: Path) -> None:
    text = (full / "paper.md").read_text("utf-8")
    assert text.index("| section | the paper's claim |") < text.index("## How far it is")
    cells = row(full, "ranks").strip("| ").split(" | ")
    assert cells[0] == "appendix, ranks"
    assert cells[1] == "Lower ranks capture less of the subject."
    assert re.search(r"image alignment, .*: 0\.200 \[0\.\d+, 0\.\d+\]", cells[2])
    assert cells[4] == "[(h)](pages/h.md#ranks)"


def test_every_claim_has_its_section_and_plot_where_its_row_says(full: Path) -> None:
    for letter, name in re.findall(r"\(pages/(\w)\.md#([\w-]+)\)", (full / "paper.md").read_text("utf-8")):
        page = (full / "pages" / f"{letter}.md").read_text("utf-8")
        assert f"\n## {name}\n" in page
        assert name == "sizes" or f"![{name}](../plots/{name}.png)" in page


def test_a_table_counts_each_run_where_it_belongs(full: Path) -> None:
    page = (full / "pages" / "d.md").read_text("utf-8")
    runs = dict(re.findall(r"^\| `([\w-]+)` \|.* \| (\d+) \|$", page, re.MULTILINE))
    assert runs["unet"] == "32"  # SVDiff's of (a)
    assert {runs[name] for name in ("unet-ca", "unet-1d", "unet-2d", "up", "down", "mid")} == {"24"}
    assert {runs[name] for name in ("up-ca", "down-ca", "mid-ca")} == {"3"}


def test_mixes_correlations_and_sums_have_their_tables(full: Path) -> None:
    pages = {letter: (full / "pages" / f"{letter}.md").read_text("utf-8") for letter in "efg"}
    assert re.search(r"\n\| SVDiff \| 0\.900 \[.*\] \| 0\.75\d \[.*\] \| 0\.100 .* \| 0\.50 .* \| 16 \|\n", pages["e"])
    assert re.search(r"\n\| colours in common with the appearance's parent \| 0\.70 \[.*\] \|\n", pages["f"])
    assert re.search(r"\n\| black cat beside fire engine \| 0\.90\d \| 0\.100 \|\n", pages["g"])


def test_every_link_and_picture_of_the_report_is_there(full: Path) -> None:
    for page in [*full.glob("*.md"), *full.glob("pages/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.slow
def test_the_same_cells_give_the_same_bytes(full: Path, tmp_path: Path) -> None:
    few = replace(WITHOUT, claims=lambda choices: tuple(one for one in PLAN.claims(choices) if one.letter in "ae"))
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cells").symlink_to(full / "cells")
        write_report(tmp_path / name, few, BASE)
    paths = [path for path in (tmp_path / "one").rglob("*") if path.suffix in (".md", ".png")]
    assert len(paths) > 10
    for path in paths:
        assert (tmp_path / "other" / path.relative_to(tmp_path / "one")).read_bytes() == path.read_bytes()


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    text = write_report(tmp_path, PLAN, BASE).read_text("utf-8")
    assert "Of 22 claims: 22 not measured." in text
    assert "- 0 cells are measured" in text
    assert "- It goes on with: can the judge tell the subjects apart." in text
    assert "**agrees**" not in text


def test_the_search_is_a_page_of_all_that_was_tried_and_what_was_chosen(tmp_path: Path) -> None:
    plan = replace(PLAN, check=None, claims=lambda choices: ())
    progress = Progress()
    for one in plan.rounds(Found(tmp_path, BASE), progress):
        for cell in one.cells if one.title.startswith("search") else ():
            path = cell.path(tmp_path, BASE)
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = {"key": cell.key(BASE), "numbers": searched_numbers(cell), "device": "cpu", "seconds": 1.0}
            path.write_bytes(packed(kept))
    text = write_report(tmp_path, plan, BASE).read_text("utf-8")
    assert "- It goes on with: what is only shown." in text
    assert len(chosen(progress.choices)) == len(plan.stages)
    page = (tmp_path / "pages" / "i.md").read_text("utf-8")
    for stage in plan.stages:
        assert f"\n## {stage.title}\n" in page
    rates = "svdiff 0.04 (the highest tried), full 5e-05 (the lowest tried), lora 0.0002 (the lowest tried), kv 0.0002 "
    assert f"| learning rates, λ = 1 | {rates}(the lowest tried) |" in page
    assert (
        "| mean | text | image | identity |\n| --- | --- | --- | --- |\n| svdiff 0.005 | 0.500 | 0.500 | 0.100 |"
        in page
    )
    assert "| share 0.01 | 0.540 | 1.000 | 0.000 | 0.111 |" in page
    assert "| svdiff 0.04 banjo | text 0.500, image 0.500, identity 0.800 | – |" in page
    assert "| unmix regularization | share 0.01 |" in page


def test_cells_of_claims_wait_for_a_search_that_lacks_a_cell(tmp_path: Path) -> None:
    fill(tmp_path)
    stage = PLAN.stages[0]
    first = next(iter(stage.cells(BEFORE).values()))
    kept = {"key": first.key(BASE), "numbers": searched_numbers(first), "device": "cpu", "seconds": 1.0}
    first.path(tmp_path, BASE).parent.mkdir(exist_ok=True)
    first.path(tmp_path, BASE).write_bytes(packed(kept)[:-20])
    text = write_report(tmp_path, PLAN, BASE).read_text("utf-8")
    assert f"- It goes on with: search: {stage.title}." in text
    assert "- Among the cells: 1 cut off in the middle: they are measured anew." in text
    assert re.search(r"- Among the cells: \d{3} that wait for the search to be over\.", text)
    assert "another recipe" not in text
    assert "| chosen |" not in (tmp_path / "pages" / "i.md").read_text("utf-8")


def test_cells_of_another_base_are_named_and_not_mixed_in(tmp_path: Path) -> None:
    fill(tmp_path, "1" * 16, share=10)
    text = write_report(tmp_path, WITHOUT, BASE).read_text("utf-8")
    count = sum(1 for _ in tmp_path.rglob("*.json"))
    assert count > 50
    assert f"- Among the cells: {count} of another base, `{'1' * 16}`: they are left out." in text
    assert "Of 22 claims: 22 not measured." in text


def test_a_report_of_a_part_judges_whole_looks_alone(tmp_path: Path) -> None:
    fill(tmp_path, share=2)
    text = write_report(tmp_path, WITHOUT, BASE).read_text("utf-8")
    assert "Of 22 claims: 22 not measured." in text


def test_minutes_0_only_writes_the_report(tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--work", str(tmp_path / "work"), "--minutes", "0", "--quick"])
    assert f"- Base: `{base_digest()}`" in (tmp_path / "paper.md").read_text("utf-8")
    assert not (tmp_path / "work").exists()


# What is committed.


def test_the_committed_report_is_what_its_cells_give(tmp_path: Path) -> None:
    for name in ("cells", "pictures", "former"):
        if (REPORTS / name).exists():
            (tmp_path / name).symlink_to(REPORTS / name)
    write_report(tmp_path, PLAN, base_digest())
    for path in [*REPORTS.glob("*.md"), *REPORTS.glob("pages/*.md")]:
        assert (tmp_path / path.relative_to(REPORTS)).read_bytes() == path.read_bytes(), path.name


def test_cells_of_the_former_base_lie_apart() -> None:
    former = [path for path in (REPORTS / "former").iterdir() if path.is_dir()]
    assert former
    for folder in former:
        bases = {json.loads(path.read_bytes())["key"][0] for path in (folder / "cells").rglob("*.json")}
        assert bases == {folder.name}
        assert folder.name != base_digest()
