"""Arguments that the library names become options of the command line, wherever something is printed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

import click
import pytest
from support.sources import texts

from svdiff_cli.main import main
from svdiff_cli.printing import telling_warnings
from svdiff_cli.references import say
from svdiff_cli.wording import OPTIONS, PHRASES, spelled
from svdiff_delta._util.warned import DeltaWarning

NO_OPTIONS = {
    "base",  # of `attach`; commands that attach have a base
    "select",  # the function, in messages about live models
}
"""Names in backticks that are called like an option and are something else."""


def options_of(command: click.Command, context: click.Context) -> Iterator[str]:
    """Return the options of a command and of those below it."""
    for parameter in command.params:
        yield from parameter.opts
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            yield from options_of(command.get_command(context, name), context)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def known() -> set[str]:
    from svdiff_cli.convert_manifest import convert_many

    context = click.Context(main)
    return {*options_of(main, context), *options_of(convert_many, context)}


@pytest.mark.parametrize(
    ("said", "printed"),
    [
        ("overwrite it with `overwrite=True`", "overwrite it with --force"),
        ('use `dtype="BF16"` or `dtype="F32"`', "use --dtype BF16 or --dtype F32"),
        ("give a higher `rank`, or `energy=0.9`", "give a higher --rank, or --energy 0.9"),
        ('name what `convert(..., to="full", rank=4)` wrote', "name what `svdiff convert --to full --rank 4` wrote"),
        ("make one with `convert(..., from_=...)`", "make one with `svdiff convert --from`"),
        ("see `list(delta)`", "see `svdiff info --layers`"),
        ('attach with `mode="live"`', 'attach with `mode="live"`'),
        ("as in `attach(model, delta, base=open_base(...))`", "as in `attach(model, delta, base=open_base(...))`"),
        ("fetch the file with `git lfs pull`", "fetch the file with `git lfs pull`"),
        ("`__metadata__` is no object; rank", "`__metadata__` is no object; rank"),
    ],
)
def test_arguments_become_options(said: str, printed: str) -> None:
    assert spelled(said) == printed


def test_every_option_of_the_table_is_one_of_a_command(known: set[str]) -> None:
    assert {*OPTIONS.values()} <= known


def test_every_argument_that_the_library_names_and_a_command_has_is_in_the_table(known: set[str]) -> None:
    said = " ".join(text.text for text in texts("svdiff_delta", "svdiff_train", "svdiff_serve"))
    named = {name for name in re.findall(r"`([a-z_]+)(?:=[^`]*)?`", said) if f"--{name.replace('_', '-')}" in known}
    assert named - NO_OPTIONS == {*OPTIONS} & named
    assert {*OPTIONS} - named <= {"from_", "overwrite", "to", "unchanged"}  # the last two of another name, or in a call


def test_every_phrase_of_the_table_is_said() -> None:
    said = [text.text for text in texts("svdiff_delta", "svdiff_train", "svdiff_serve")]
    assert all(any(phrase in text for text in said) for phrase in PHRASES)


def test_remarks_and_warnings_are_spelled_too(capsys: pytest.CaptureFixture[str]) -> None:
    say('note: use `to="kohya"`')
    with telling_warnings(), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn('use `device="cpu"`', DeltaWarning, stacklevel=1)
    assert capsys.readouterr().err == "note: use --to kohya\nwarning: use --device cpu\n"
