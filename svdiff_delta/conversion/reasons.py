"""Reasons for which keys of an adapter are left out, and assumptions about them, in the words of reports."""

from __future__ import annotations

from typing import Final

NO_ALPHA: Final = "no alpha"
NO_RULE: Final = "no rule explains this key"
NO_MODULE: Final = "the base has no such layer"
NO_LAYOUT: Final = "this layout of names is not known"
BIAS: Final = "is a bias"
NO_HALF: Final = "lacks its other half"
NO_MAGNITUDE: Final = "lacks the magnitudes that its configuration speaks of"
NO_KIND: Final = "changes, and is of no kind that can be shifted"
