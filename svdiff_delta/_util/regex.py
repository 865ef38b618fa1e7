"""Regular expressions of strangers, matched in linear time: no way of writing one makes a match take long.

Python's own matcher tries every way to match, one after the other; of `(a+)+b` there are 2ⁿ. Here all ways are followed
at once (Thompson's construction), so a match takes the length of the text times the steps of the expression.

Known are characters, `.`, `\\d \\w \\s` and their opposites, `[…]`, groups, `|`, `* + ? {m,n}`, `^` and `$`. What looks
ahead or back, or repeats what was found, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from .limits import PATTERN, STATES

Test = Callable[[str], bool]
"""Tells whether a character is taken."""

_CLASSES: Final[dict[str, Test]] = {
    "d": str.isdecimal,
    "D": lambda char: not char.isdecimal(),
    "w": lambda char: char.isalnum() or char == "_",
    "W": lambda char: not (char.isalnum() or char == "_"),
    "s": str.isspace,
    "S": lambda char: not char.isspace(),
}
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
MEMORY: Final = 1_000
"""Steps that a pattern remembers."""
_COUNT: Final = re.compile(r"\{(\d{0,4})(?:(,)(\d{0,4}))?\}")


@dataclass
class _State:
    """One step: a test with a step behind it, or a place that leads on to others."""

    test: Test | None = None
    edge: str = ""
    on: list[int] = field(default_factory=list)


Part = tuple[int, int]
"""The first step of a part of the expression, and the last, which leads nowhere yet."""


class Pattern:
    """A compiled expression.

    Raises:
        ValueError: it is too long, broken, or says what is not known here.
    """

    def __init__(self, text: str) -> None:
        if len(text) > PATTERN:
            raise ValueError(f"it has more than {PATTERN:,} characters")
        self._states: list[_State] = []
        self._text, self._at, self._depth = text, 0, 0
        self._steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._first, self._last = self._either()
        if self._at < len(text):
            raise ValueError("a ) has no (")
        del self._text

    def __len__(self) -> int:
        return len(self._states)

    def matches(self, text: str) -> bool:
        """Tell whether the expression matches the whole text."""
        current = self._closure({self._first}, text, 0)
        for place, char in enumerate(text, 1):
            current = self._closure(self._step(frozenset(current), char), text, place)
            if not current:
                return False
        return self._last in current

    def _step(self, current: frozenset[int], char: str) -> frozenset[int]:
        """Return the steps behind those that take a character; names begin alike, so what was found is kept."""
        if (found := self._steps.get((current, char))) is None:
            states = (self._states[index] for index in current)
            found = frozenset(state.on[0] for state in states if state.test is not None and state.test(char))
            if len(self._steps) < MEMORY:
                self._steps[current, char] = found
        return found

    def _closure(self, indices: Iterable[int], text: str, place: int) -> set[int]:
        """Return all steps that these lead to without taking a character."""
        found, waiting = set(indices), list(indices)
        while waiting:
            state = self._states[waiting.pop()]
            if state.test is not None or (state.edge and not _at_edge(state.edge, text, place)):
                continue
            new = [index for index in state.on if index not in found]
            found.update(new)
            waiting += new
        return found

    def _state(self, test: Test | None = None, edge: str = "") -> int:
        if len(self._states) >= STATES:
            raise ValueError(f"it has more than {STATES:,} steps when its repetitions are written out")
        self._states.append(_State(test, edge))
        return len(self._states) - 1

    def _single(self, test: Test | None, edge: str = "") -> Part:
        first, last = self._state(test, edge), self._state()
        self._states[first].on.append(last)
        return first, last

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else ""

    def _next(self) -> str:
        char = self._peek()
        self._at += 1
        return char

    def _either(self) -> Part:
        """Parse alternatives."""
        first, last = self._state(), self._state()
        while True:
            start, end = self._sequence()
            self._states[first].on.append(start)
            self._states[end].on.append(last)
            if self._peek() != "|":
                return first, last
            self._next()

    def _sequence(self) -> Part:
        first = last = self._state()
        while self._peek() not in ("", "|", ")"):
            start, end = self._repeated()
            self._states[last].on.append(start)
            last = end
        return first, last

    def _repeated(self) -> Part:
        """Parse one part and how often it stands; a part that stands several times is parsed as often."""
        begin = self._at
        part = self._atom()
        end, repeat = self._at, self._count()
        if repeat is None:
            return part
        least, most = repeat
        after = self._at
        first = last = self._state()
        for number in range(max(least, most or 0) if most is not None else least + 1):
            self._at = begin
            start, stop = part if number == 0 else self._atom()
            self._states[last].on.append(start)
            out = self._state()
            self._states[stop].on.append(out)
            if number >= least:
                self._states[last].on.append(out)
                if most is None:
                    self._states[stop].on.append(start)
            last = out
        if not end:
            raise ValueError("nothing is repeated")
        self._at = after
        return first, last

    def _count(self) -> tuple[int, int | None] | None:
        """Return how often the part before this place stands, from and to; None if once."""
        char = self._peek()
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if char in simple and char:
            self._next()
            found = simple[char]
        elif char == "{" and (match := _COUNT.match(self._text, self._at)) and match[0] not in ("{}", "{,}"):
            self._at = match.end()
            least = int(match[1] or 0)
            found = least, (int(match[3]) if match[3] else None) if match[2] else least
            if found[1] is not None and found[1] < least:
                raise ValueError("a repetition ends before it begins")
        else:
            return None
        if self._peek() == "?":  # whether more or less is taken first makes no difference to whether it matches
            self._next()
        if self._peek() in ("*", "+", "?") and self._peek():
            raise ValueError("a repetition is repeated")
        return found

    def _atom(self) -> Part:
        char = self._next()
        if char == "(":
            return self._group()
        if char == "[":
            return self._single(self._set())
        if char == ".":
            return self._single(lambda found: found != "\n")
        if char in ("^", "$"):
            return self._single(None, char)
        if char == "\\":
            return self._escaped()
        if char in ("*", "+", "?"):
            raise ValueError("nothing is repeated")
        return self._single(char.__eq__)

    def _group(self) -> Part:
        if self._text.startswith("?", self._at):
            if not self._text.startswith("?:", self._at):
                raise ValueError("of groups with a question mark, only (?:…) is known here")
            self._at += 2
        self._depth += 1
        if self._depth > 50:
            raise ValueError("its groups are nested too deeply")
        part = self._either()
        self._depth -= 1
        if self._next() != ")":
            raise ValueError("a ( has no )")
        return part

    def _escaped(self) -> Part:
        char = self._next()
        if char in ("A", "Z"):
            return self._single(None, "^" if char == "A" else "$")
        return self._single(self._test(char))

    def _test(self, char: str) -> Test:
        """Return what a character behind a backslash stands for."""
        if char in _CLASSES:
            return _CLASSES[char]
        if char in _ESCAPES:
            return _ESCAPES[char].__eq__
        if not char or (char.isascii() and char.isalnum()):
            raise ValueError(f"\\{char} is not known here" if char else "a backslash has nothing behind it")
        return char.__eq__

    def _set(self) -> Test:
        """Parse what stands behind a [."""
        negated = self._peek() == "^"
        if negated:
            self._next()
        tests = list(self._members())
        return lambda char: any(test(char) for test in tests) != negated

    def _members(self) -> Iterator[Test]:
        first = True
        while (char := self._next()) != "]" or first:
            first = False
            if not char:
                raise ValueError("a [ has no ]")
            if char == "\\":
                char = self._next()
                if char in _CLASSES:
                    yield _CLASSES[char]
                    continue
                self._test(char)
                char = _ESCAPES.get(char, char)
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("", "]"):
                self._next()
                yield _between(char, self._end_of_range())
            else:
                yield char.__eq__

    def _end_of_range(self) -> str:
        char = self._next()
        if char != "\\":
            return char
        char = self._next()
        if char in _CLASSES:
            raise ValueError("a range ends in a class")
        self._test(char)
        return _ESCAPES.get(char, char)


def _between(low: str, high: str) -> Test:
    if low > high:
        raise ValueError(f"the range {low}-{high} is empty")
    return lambda char: low <= char <= high


def _at_edge(edge: str, text: str, place: int) -> bool:
    return place == 0 if edge == "^" else place == len(text) or (place == len(text) - 1 and text.endswith("\n"))
