"""The plan of `make paper QUICK=1`: the same machinery on a few small claims, for a look within minutes."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from .choices import Choices
from .claims.claim import Claim
from .claims.every import every_claim
from .planner import Plan

QUICK: Final = {"like-full": (2, 3), "ranks": (2, 3), "scales": (2, 3), "inversion": (2, 3), "sizes": (1,)}
"""The claims, and their looks: too few units to decide much."""


def quick_plan() -> Plan:
    """Return a plan of three subjects and three pictures, without a search."""
    return Plan((), _claims, lambda choices: (), None, 20)  # noqa: ARG005


def _claims(choices: Choices) -> tuple[Claim, ...]:
    return tuple(
        replace(claim, looks=QUICK[claim.name], detector=None) for claim in every_claim(choices) if claim.name in QUICK
    )
