"""All claims, in the order of the report's table."""

from __future__ import annotations

from reproduce.paper.choices import Choices

from . import combined, edits, pairs, singles, subsets
from .claim import Claim


def every_claim(choices: Choices) -> tuple[Claim, ...]:
    """Return all 22 claims, for recipes as they were chosen."""
    found = [claim for part in (singles, pairs, edits, subsets, combined) for claim in part.claims(choices)]
    return tuple(sorted(found, key=lambda claim: claim.letter))
