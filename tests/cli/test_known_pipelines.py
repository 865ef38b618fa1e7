"""The pipelines that can be trained are those that the registry of families has, and the help lists them."""

from __future__ import annotations

import inspect

from support.commands import svdiff

from svdiff_cli.known_pipelines import KNOWN, listed
from svdiff_train.families import FAMILIES


def test_every_family_of_the_registry_has_a_name_and_no_other() -> None:
    assert {*KNOWN} == {*FAMILIES}
    assert len({*KNOWN.values()}) == len(KNOWN)


def test_the_help_of_training_lists_the_families() -> None:
    said = "".join(svdiff("train", "--help").out.split())  # lines break at hyphens too
    assert "".join(listed().split()) in said


def test_every_family_says_what_it_is() -> None:
    assert [name for name, kind in FAMILIES.items() if not inspect.getdoc(kind)] == []
