"""The sequential plan: rounds of cells, after each of which every claim is settled or goes on, within a budget.

In round k every open claim takes its look k. What a round asks for depends on the looks before it alone, never on
which cells happen to be there. So a run that was killed and goes on asks for the same cells in the same order as one
that was not, and the plan is replayed from its beginning each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from .cell import Cell
from .choices import BEFORE, Choices
from .claims.claim import Claim
from .claims.every import every_claim
from .claims.verdict import Find, Judged, judge
from .experiments import beside
from .experiments.detector import Checked, detector_cell
from .experiments.search import STAGES
from .experiments.stage import Stage

BUDGET: Final = 700
"""Trainings, those of the search and of what is only shown included: stated before the run, with the time they take."""

HALF: Final = 0.5
"""The share of a claim's groups that the judge must be able to tell apart; with fewer the claim is left out."""

Place = tuple[str, str]


@dataclass(frozen=True)
class Round:
    """What is measured before the next decision.

    Attributes:
        title: which part of the plan it is.
        cells: that it needs, known ones included, in order.
    """

    title: str
    cells: tuple[Cell, ...]

    def missing(self, find: Find) -> list[Cell]:
        """Return the cells that are not measured."""
        return [cell for cell in self.cells if find(cell) is None]


@dataclass
class Progress:
    """How far a plan has come; it is filled while its rounds are played.

    Attributes:
        choices: what the search chose, as far as it has come.
        chosen: the stages of the search that are over.
        claims: as they are judged: of groups that can be told apart.
        dropped: groups that cannot, by claim.
        looks: how many looks each claim has taken.
        refused: claims for whose next look the budget did not suffice.
        spent: the keys of trainings that the plan has asked for.
        waiting: the round that is not measured; None at the end.
    """

    choices: Choices = BEFORE
    chosen: list[str] = field(default_factory=list)
    claims: tuple[Claim, ...] = ()
    dropped: dict[str, list[str]] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    spent: set[str] = field(default_factory=set)
    waiting: Round | None = None

    def judged(self, find: Find) -> tuple[Judged, ...]:
        """Return every claim as it stands."""
        return tuple(self._judged(claim, find) for claim in self.claims)

    def _judged(self, claim: Claim, find: Find) -> Judged:
        if not claim.groups:
            return Judged(claim, 0, (), "left out")
        return judge(claim, self.looks.get(claim.name, 0), find)


@dataclass(frozen=True)
class Plan:
    """All that a report is made of.

    Attributes:
        stages: of the search.
        claims: made of what the search chose.
        beside: cells that decide nothing.
        check: measures what the judge can tell apart; None leaves that out.
        budget: in trainings.
    """

    stages: Sequence[Stage]
    claims: Callable[[Choices], tuple[Claim, ...]]
    beside: Callable[[Choices], Sequence[Cell]]
    check: Cell | None
    budget: int

    def rounds(self, find: Find, progress: Progress) -> Iterator[Round]:
        """Yield rounds in order; after each, its cells must be measured, or nothing more can be asked for."""
        if self.check is not None:
            yield Round("can the judge tell the subjects apart", (self.check,))
        checked = Checked(None if self.check is None else find(self.check))
        for stage in self.stages:
            cells = stage.cells(progress.choices)
            progress.spent |= trainings(cells.values())
            yield Round(f"search: {stage.title}", tuple(cells.values()))
            found = {label: numbers for label, cell in cells.items() if (numbers := find(cell)) is not None}
            progress.choices = stage.choose(progress.choices, found)
            progress.chosen.append(stage.title)
        self._begin(progress, checked)
        yield from self._looks(find, progress)
        yield self._last(progress)

    def _begin(self, progress: Progress, checked: Checked) -> None:
        usable = [_usable(claim, checked) for claim in self.claims(progress.choices)]
        progress.claims = tuple(claim for claim, _ in usable)
        progress.dropped = {claim.name: dropped for claim, dropped in usable if dropped}

    def _looks(self, find: Find, progress: Progress) -> Iterator[Round]:
        for number in range(max((len(claim.looks) for claim in progress.claims), default=0)):
            taken = self._share_out(number, find, progress)
            if not taken:
                return
            cells: dict[Place, Cell] = {}
            for claim in taken:
                cells |= claim.cells(number)
            yield Round(f"look {number + 1} of {len(taken)} open claims", tuple(cells.values()))
            progress.looks |= {claim.name: number + 1 for claim in taken}

    def _share_out(self, number: int, find: Find, progress: Progress) -> list[Claim]:
        """Return the claims that take a look: of all that are open the cheapest first, as far as the budget goes.

        What is only shown has its part of the budget: it is measured last.
        """
        shown = trainings(self.beside(progress.choices))
        open_claims = [
            one.claim
            for one in progress.judged(find)
            if one.verdict in ("undecided", "not measured")
            and number < len(one.claim.looks)
            and one.claim.name not in progress.refused
        ]
        needed = {claim.name: trainings(claim.cells(number).values()) for claim in open_claims}
        taken = []
        for claim in sorted(open_claims, key=lambda claim: (len(needed[claim.name] - progress.spent), claim.name)):
            if len(progress.spent | shown | needed[claim.name]) > self.budget:
                progress.refused.add(claim.name)
                continue
            progress.spent |= needed[claim.name]
            taken.append(claim)
        return sorted(taken, key=lambda claim: (claim.letter, claim.name))

    def _last(self, progress: Progress) -> Round:
        """Return what is only shown, as far as the budget goes."""
        cells = []
        for cell in self.beside(progress.choices):
            if len(progress.spent | trainings([cell])) <= self.budget:
                progress.spent |= trainings([cell])
                cells.append(cell)
        return Round("what is only shown", tuple(cells))


def play(plan: Plan, find: Find) -> Progress:
    """Play a plan with the cells that are there, and return how far it comes."""
    progress = Progress()
    for one in plan.rounds(find, progress):
        if one.missing(find):
            progress.waiting = one
            break
    if not progress.claims:
        progress.claims = plan.claims(progress.choices)
    return progress


def _usable(claim: Claim, checked: Checked) -> tuple[Claim, list[str]]:
    """Return a claim with the groups that the judge can tell apart, and the names of the others.

    With fewer than half of its groups it is left out: then it has none.
    """
    good = tuple(group for group in claim.groups if checked.tells(group, claim.detector))
    dropped = [" and ".join(group) for group in claim.groups if group not in good]
    if len(good) < HALF * len(claim.groups):
        good = ()
    return (replace(claim, groups=good) if dropped else claim), dropped


def trainings(cells: Iterable[Cell]) -> set[str]:
    """Return the keys of all trainings that cells need."""
    return {recipe.key() for cell in cells for recipe in cell.recipes}


def paper_plan() -> Plan:
    """Return the plan of `make paper`."""
    return Plan(STAGES, every_claim, beside.cells, detector_cell(), BUDGET)


def cells_in_sight(plan: Plan, progress: Progress) -> Mapping[Place, Cell]:
    """Return every cell that a plan could ask for, as far as the search has settled what they are.

    What is trained for claims, and for later stages of the search, is not known before: cells that lie there wait.
    """
    if len(progress.chosen) == len(plan.stages):
        return all_cells(plan, progress.choices)
    found: dict[Place, Cell] = {} if plan.check is None else {plan.check.place: plan.check}
    for stage in plan.stages[: len(progress.chosen) + 1]:
        found |= {cell.place: cell for cell in stage.cells(progress.choices).values()}
    return found


def all_cells(plan: Plan, choices: Choices = BEFORE) -> Mapping[Place, Cell]:
    """Return every cell that a plan could ask for, were every claim to take all of its looks."""
    found: dict[Place, Cell] = {} if plan.check is None else {plan.check.place: plan.check}
    for stage in plan.stages:
        found |= {cell.place: cell for cell in stage.cells(choices).values()}
    for claim in plan.claims(choices):
        found |= claim.cells(len(claim.looks) - 1)
    return found | {cell.place: cell for cell in plan.beside(choices)}
