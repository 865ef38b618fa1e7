"""When a claim agrees, differs, or is undecided, and what would decide it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.cells import NEAR, UP, WIDE, claim

from reproduce.paper.cell import Cell
from reproduce.paper.claims.claim import Claim, Numbers, Part
from reproduce.paper.claims.verdict import judge, units_to_decide


def find(cell: Cell) -> Numbers:
    """Every cell is measured."""
    return cell.measure(None, None).numbers  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("own", "looks", "verdict"),
    [
        (claim("up", UP), 1, "agrees"),
        (claim("down", [-value for value in UP]), 1, "differs"),
        (claim("small", NEAR, margin=0.1), 1, "differs"),  # too small to count
        (claim("near", NEAR, margin=0.1, kind="similar"), 1, "agrees"),
        (claim("far", UP, margin=0.1, kind="similar"), 1, "differs"),
        (claim("wide", WIDE), 2, "undecided"),
        (claim("wide", WIDE, kind="similar"), 2, "undecided"),
        (claim("up", UP), 0, "not measured"),
    ],
)
def test_a_claim_is_judged_by_its_interval_and_margin(own: Claim, looks: int, verdict: str) -> None:
    assert judge(own, looks, find).verdict == verdict


def test_looks_after_the_decision_are_not_taken() -> None:
    # Four units agree; eight would not.
    turning = claim("turning", [0.5, 0.5, 0.51, 0.49, -3.0, -3.0, -3.0, -3.0])
    assert judge(turning, 2, find).verdict == "agrees"
    assert judge(turning, 2, find).looks == 1


def with_parts(*values: list[float]) -> Claim:
    own = [claim(f"part{index}", some) for index, some in enumerate(values)]
    parts = tuple(
        Part(str(index), lambda found, index=index: float(found[str(index)]["value"]), 0.1)  # type: ignore[misc]
        for index in range(len(own))
    )
    return replace(
        own[0],
        parts=parts,
        unit=lambda group, seed: {str(index): one.unit(group, seed)["own"] for index, one in enumerate(own)},
    )


def test_a_claim_of_parts_needs_all_to_agree_and_one_to_differ() -> None:
    down = [-value for value in UP]
    assert judge(with_parts(UP, UP), 2, find).verdict == "agrees"
    assert judge(with_parts(UP, WIDE), 2, find).verdict == "undecided"
    assert judge(with_parts(UP, down), 2, find).verdict == "differs"
    assert judge(with_parts(WIDE, down), 2, find).verdict == "differs"


def test_a_part_that_was_decided_stays_so() -> None:
    turning = [0.5, 0.5, 0.51, 0.49, -3.0, 3.0, -3.0, 3.0]
    judged = judge(with_parts(turning, WIDE), 2, find)
    assert [part.verdict for part in judged.parts] == ["agrees", "undecided"]
    assert [part.interval.count for part in judged.parts] == [4, 8]


def test_a_chance_to_differ_is_shared_out_among_parts() -> None:
    # With one part this is below its margin; as one of five it is not yet.
    values = [0.02, -0.05, 0.08, -0.02, 0.03, 0.0, 0.06, -0.04]
    one = claim("one", values, looks=(8,), margin=0.04)
    assert judge(one, 1, find).verdict == "differs"
    five = with_parts(values, WIDE, WIDE, WIDE, WIDE)
    five = replace(five, looks=(8,), parts=tuple(replace(part, margin=0.04) for part in five.parts))
    assert judge(five, 1, find).parts[0].verdict == "undecided"


def test_a_count_agrees_from_its_bound_on() -> None:
    for bound, verdict in ((3.0, "agrees"), (3.1, "differs")):
        own = claim("count", [3.0], looks=(1,), margin=bound, kind="exact", groups=((),))
        assert judge(own, 1, find).verdict == verdict


def test_what_would_decide_is_told_of_undecided_claims_alone() -> None:
    wide = judge(claim("wide", WIDE), 2, find)
    units = units_to_decide(wide)
    assert units is not None
    assert units > 8
    assert units_to_decide(judge(claim("up", UP), 2, find)) is None


def test_as_many_units_as_are_told_do_decide() -> None:
    values = [0.5, 0.3, -0.1, -0.2, 0.4, 0.5, 0.0, -0.3]
    own = claim("own", values, margin=0.05)
    units = units_to_decide(judge(own, 2, find))
    assert units is not None
    more = replace(own, looks=(4, 8, units + 2))
    assert judge(own, 2, find).verdict == "undecided"
    assert judge(more, 3, find).verdict != "undecided"
