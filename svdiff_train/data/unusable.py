"""Files of a folder that cannot be used: refused by name, or left out where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from svdiff_delta.errors import InputError

SHOWN: Final = 3
"""Unusable files that an error names before it counts the others."""

T = TypeVar("T")


def usable(
    folder: Path, paths: Iterable[Path], inspect: Callable[[Path], T], noun: str, *, skip_bad: bool | None
) -> tuple[dict[Path, T], dict[str, str]]:
    """Return what is known of each file that can be used, and why the others cannot, by name.

    Args:
        folder: where they are.
        paths: of the files, in order.
        inspect: raises InputError if one cannot be used.
        noun: what they are, in the plural.
        skip_bad: whether to go on without those; None where nobody can ask for that.

    Raises:
        InputError: one cannot be used, and it is not left out; or none can.
    """
    found, bad = dict[Path, T](), dict[str, InputError]()
    for path in paths:
        try:
            found[path] = inspect(path)
        except InputError as error:
            bad[path.name] = error
    if bad and (not skip_bad or not found):
        raise _refusal(folder, bad, noun, every=not found, optional=skip_bad is not None)
    return found, {name: error.message for name, error in bad.items()}


def _refusal(folder: Path, bad: Mapping[str, InputError], noun: str, *, every: bool, optional: bool) -> InputError:
    first = next(iter(bad.values()))
    if every and len(bad) > 1:
        return InputError(f"{folder}: none of its {len(bad)} {noun} can be used; {first.message}", fix=first.fix)
    if every:
        return InputError(first.message, fix=first.fix)
    others = [*bad][1:]
    also = f" (and {', '.join(others[: SHOWN - 1])}{', …' if len(others) >= SHOWN else ''})" if others else ""
    without = ", or go on without (`skip_bad=True`)" if optional else ""
    return InputError(f"{first.message}{also}", fix=f"{first.fix}{without}")
