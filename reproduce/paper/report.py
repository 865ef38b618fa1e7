"""`paper.md`: every claim of the paper beside what was measured, then each experiment."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

from svdiff_delta._util.atomic import replace_file

from .cell import Cell
from .claim import Verdict, table
from .lab import base_digest
from .plan import trainings
from .sections.edits import edits
from .sections.pairs import pairs
from .sections.results import Results
from .sections.search import search
from .sections.shifts import combined, correlation, styles
from .sections.single import singles, subsets, sweeps

NAME: Final = "paper.md"
SECTIONS: Final = (singles, pairs, edits, subsets, combined, styles, correlation, sweeps, search)
INTRODUCTION: Final = """\
# The paper's claims on the embedded base

All cells below belong to one base, that with the fingerprint `{base}`: {which}.

SVDiff (Han et al., ICCV 2023) makes its claims on Stable Diffusion. This report trains and measures all of its
experiments on the embedded base, a Stable Diffusion of 10 million weights that knows 150 emoji, so that anyone can
repeat them on two CPU cores: `make paper`. What agrees here agrees at this scale; what differs here may hold at the
paper's. Measures were fixed before the runs. Learning rates were chosen on two other subjects, by the same rule for
every method (i). Pictures are judged by the base's own CLIP and by plain pixels, not by people.

A claim *agrees* where the 95 % interval of what was measured lies on its side, *differs* where it lies on the other,
and is *undecided* where it holds both.
"""

SHIPPED: Final = "the one that ships with this version"
FORMER: Final = (
    "a former embedded base, which this version no longer ships (its own: `{shipped}`). Verdicts and recipes hold for "
    "that one until `make paper` has run again"
)


def write_report(folder: Path, cells: Sequence[Cell], base: str, searched: Sequence[Cell] = ()) -> Path:
    """Write the report from the numbers of cells in a folder, and return its path; the same numbers give the same text.

    Args:
        folder: holds `cells` and `pictures`.
        cells: every cell that belongs to the report.
        base: the base's digest; numbers of another are not used.
        searched: the cells that recipes were chosen by.
    """
    known = {(cell.experiment, cell.name): cell.known(folder, base) for cell in (*cells, *searched)}
    results = Results({key: numbers for key, numbers in known.items() if numbers is not None}, folder / "pictures")
    measured = sum((cell.experiment, cell.name) in results.found for cell in cells)
    sections = [section(results) for section in SECTIONS]
    claims = [claim for section in sections for claim in section.claims]
    counted = Counter(claim.verdict for claim in claims)
    verdicts = ", ".join(f"{counted[verdict]} {verdict}" for verdict in get_args(Verdict) if counted[verdict])
    lines = [
        INTRODUCTION.format(base=base, which=_which(base)),
        f"{measured} of {len(cells)} cells are measured ({trainings(cells)} trainings in all).",
        f"Of {len(claims)} claims: {verdicts}.",
        "",
        *table(
            ["section", "the paper's claim", "measured here", "verdict"],
            [[claim.where, claim.claim, claim.measured, f"**{claim.verdict}**"] for claim in claims],
        ),
    ]
    for section in sections:
        lines += ["", f"## {section.title}", *section.body]
    path = folder / NAME
    with replace_file(path, overwrite=True) as stream:
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines).rstrip())  # one empty line after a text, whoever adds it
        stream.write(f"{text}\n".encode())
    return path


def _which(base: str) -> str:
    """Return what the report says of the base that its cells belong to."""
    shipped = base_digest()
    return SHIPPED if base == shipped else FORMER.format(shipped=shipped)
