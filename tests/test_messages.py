"""What the libraries say names arguments of functions, never options of the command line."""

from __future__ import annotations

import re

import pytest
from support.sources import texts, texts_of

FLAG = re.compile(r"(?<![\w<-])--[A-Za-z…]|\s--$")

COMMANDS = {
    "svdiff_serve/board/ways_out.py",  # the command that makes the mix again
    "svdiff_delta/publish/card_snippet.py",  # the shell line of a model card
    "svdiff_train/demo/rows.py",  # the commands that the demo shows beside what it does
    "svdiff_train/demo/run.py",
}
"""Files that build command lines for people to run, as lists of words."""


def test_no_string_names_an_option_of_the_command_line() -> None:
    named = [text for text in texts("svdiff_delta", "svdiff_train", "svdiff_serve") if FLAG.search(text.text)]
    assert [text for text in named if text.file not in COMMANDS] == []
    assert {text.file for text in named} == COMMANDS
    assert not [text for text in named if " " in text.text]  # words of command lines, no sentences


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("raise E('use --force')", True),
        ("raise E(f'use --{name}')", True),
        ("raise E('use --' + name)", True),
        ("raise E(f'{name}: ' 'use ' f'it, or --dtype {dtype}')", True),
        ("raise E(f'{names([\"--force\"])}')", True),
        ("def f():\n    'Like --force.'", False),
        ("A = 1\n'''Like --force.'''", False),
        ("f'models--{name}'", False),
        ("'-----BEGIN KEY-----'", False),
        ("raise E('use `overwrite=True`') # --force", False),
    ],
)
def test_options_are_found_in_all_strings_but_docstrings(source: str, found: bool) -> None:
    assert any(FLAG.search(text) for _, text in texts_of(source)) is found
