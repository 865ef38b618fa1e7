"""Broken delta files: each depends on a seed and a number alone, and is valid now and then."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from support.deltas import random_delta

from svdiff_delta import add, quantize
from svdiff_delta.format.file import dumps

VECTORS = Path(__file__).parents[2] / "spec" / "v1" / "vectors"

Tree = Any
"""JSON in which an object is a `Pairs`, so that a key may stand twice, and `Raw` stands for itself."""


class Pairs(list[tuple[str, Tree]]):
    """An object's members in order."""


class Raw(str):
    """A piece of text that goes into the JSON as it is."""

    __slots__ = ()


@cache
def originals() -> Sequence[bytes]:
    """Valid files: those of the conformance vectors, and some with everything a file can hold."""
    dog, cat = random_delta(1, title="Dog"), random_delta(2)
    built = [dog, quantize(dog, max_error=1.0), add(dog, cat, weights=[{"unet": 2.0}, -1])]
    files = [path.read_bytes() for path in sorted((VECTORS / "valid").glob("*.safetensors"))]
    return [*files, *map(dumps, built)]


def mutant(seed: int, number: int) -> tuple[str, bytes]:
    """Return the name of the mutation, and the file."""
    draw = random.Random(f"{seed} {number}")
    name = [*MUTATIONS][number % len(MUTATIONS)]
    return name, MUTATIONS[name](draw, draw.choice(originals()))


# --- Bytes ---


def flip(draw: random.Random, raw: bytes) -> bytes:
    """Change some bytes anywhere."""
    changed = bytearray(raw)
    for _ in range(draw.choice([1, 1, 1, 2, 8, 64])):
        changed[draw.randrange(len(raw))] = draw.choice([0, 0x20, 0x22, 0x7B, 0x80, 0xFF, draw.randrange(256)])
    return bytes(changed)


def cut(draw: random.Random, raw: bytes) -> bytes:
    """Take a piece away, or all behind a place."""
    first = draw.randrange(len(raw))
    return raw[:first] if draw.random() < 0.5 else raw[:first] + raw[first + draw.randrange(1, 64) :]


def grow(draw: random.Random, raw: bytes) -> bytes:
    """Put something in between, or at the end."""
    place = draw.choice([len(raw), draw.randrange(len(raw))])
    return raw[:place] + draw.randbytes(draw.choice([1, 4, 8, 200])) + raw[place:]


def splice(draw: random.Random, raw: bytes) -> bytes:
    """Go on with another file."""
    other = draw.choice(originals())
    return raw[: draw.randrange(len(raw))] + other[draw.randrange(len(other)) :]


def length(draw: random.Random, raw: bytes) -> bytes:
    """Give another length of the header."""
    real = int.from_bytes(raw[:8], "little")
    given = draw.choice([0, 1, 2, real - 8, real + 8, len(raw), len(raw) - 8, 10**8, 10**8 + 1, 2**63, 2**64 - 1])
    return max(0, given).to_bytes(8, "little") + raw[8:]


def values(draw: random.Random, raw: bytes) -> bytes:
    """Write numbers into the data section that no writer writes."""
    start = 8 + int.from_bytes(raw[:8], "little")
    changed = bytearray(raw)
    odd = ["0000c07f", "0000807f", "000080ff", "00000080", "007c", "00fc", "007e", "0080", "80", "ffffff7f", "01000000"]
    for _ in range(draw.choice([1, 1, 3])):
        piece = bytes.fromhex(draw.choice(odd))
        if len(raw) - start >= len(piece):
            place = start + (draw.randrange(len(raw) - start - len(piece) + 1) // len(piece)) * len(piece)
            changed[place : place + len(piece)] = piece
    return bytes(changed)


# --- JSON ---

ODD: Sequence[Tree] = [
    None, True, False, 0, -1, 1, 2, 64, 2**31, 2**53 - 1, 2**53, 2**63, 2**64, 10**400, 0.5, "", "F32", "I8", "F8_E4M3",
    "svdiff", "é\0\n", "a" * 3000, "unet.a.weight", "0-1", "0-1 2-3", "1x1", "9x9999999", "x" * 40, [], Pairs(), [[]],
    [0, 0], [0, 8], [8, 0], [-8, 0], [1] * 9, [2**40] * 8, [999_999_999_999] * 3, [10**300] * 4, [1] * 5000,
    Raw("NaN"), Raw("Infinity"), Raw("-0"), Raw("1.0"), Raw("1e999"), Raw("1e2"), Raw("9" * 5000), Raw("01"), Raw("+1"),
    Raw('"\\ud800"'), Raw('"\\u0000"'), Raw("'a'"), Raw("{"), Raw("]"), Raw(""), Raw("// x\n1"), Raw("\x00"),
    Raw("\t1 "), Raw("[" * 9 + "]" * 9), Raw("[" * 50_000), Raw('{"a":' * 20_000), Raw("[" * 3_000 + "]" * 3_000),
]  # fmt: skip


def parsed(text: str) -> Tree:
    """Return a tree."""
    return json.loads(text, object_pairs_hook=Pairs)


def written(node: Tree) -> str:
    """Return the JSON of a tree."""
    if isinstance(node, Raw):
        return str(node)
    if isinstance(node, Pairs):
        return "{" + ",".join(f"{written(key)}:{written(value)}" for key, value in node) + "}"
    if isinstance(node, list):
        return "[" + ",".join(map(written, node)) + "]"
    return json.dumps(node, ensure_ascii=False)


def change(draw: random.Random, node: Tree) -> Tree:
    """Return a tree that differs in one place."""
    if isinstance(node, list) and node and draw.random() < 0.8:
        index, copy = draw.randrange(len(node)), type(node)(node)
        action = draw.random()
        if action < 0.08:
            del copy[index]
        elif action < 0.16:
            copy.insert(draw.randrange(len(node) + 1), copy[index])
        elif action < 0.22:
            copy[index], copy[-1] = copy[-1], copy[index]
        elif not isinstance(copy, Pairs):
            copy[index] = change(draw, copy[index])
        elif action < 0.3:
            copy[index] = altered(draw, copy[index][0]), copy[index][1]
        else:
            copy[index] = copy[index][0], change(draw, copy[index][1])
        return copy
    if isinstance(node, str) and draw.random() < 0.6:
        return altered(draw, node)
    if isinstance(node, int) and draw.random() < 0.5:
        return node + draw.choice([-8, -4, -1, 1, 4, 8])
    return draw.choice(ODD)


def altered(draw: random.Random, text: str) -> str:
    """Return a text with another character, word or piece."""
    if " " in text and draw.random() < 0.5:
        words = text.split(" ")
        words[draw.randrange(len(words))] = draw.choice([*words, "", "1x0", "0x1", "999999999999x9", "5-3", "0-999999"])
        return " ".join(words)
    place = draw.randrange(len(text) + 1)
    piece = draw.choice([*string.ascii_letters, *string.digits, "", "", " ", ".", "-", "_", "é", "\0", "\n", '"', "\\"])
    return text[:place] + piece + text[place + draw.randrange(2) :]


def header(draw: random.Random, raw: bytes) -> bytes:
    """Change the header's JSON; its length fits."""
    size = int.from_bytes(raw[:8], "little")
    tree = parsed(raw[8 : 8 + size].decode())
    return framed(written(changes(draw, tree)), raw[8 + size :])


def document(draw: random.Random, raw: bytes) -> bytes:
    """Change the document's JSON; the header around it is whole."""
    size = int.from_bytes(raw[:8], "little")
    fields = json.loads(raw[8 : 8 + size])
    fields["__metadata__"]["svdiff"] = written(changes(draw, parsed(fields["__metadata__"]["svdiff"])))
    return framed(json.dumps(fields), raw[8 + size :])


def changes(draw: random.Random, tree: Tree) -> Tree:
    """Return a tree that differs in one or a few places."""
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        tree = change(draw, tree)
    return tree


def framed(text: str, data: bytes) -> bytes:
    """Return a container."""
    head = text.encode("utf-8", "surrogatepass")
    return len(head).to_bytes(8, "little") + head + data


MUTATIONS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    mutation.__name__: mutation
    for mutation in (flip, cut, grow, splice, length, values, header, document, header, document)
} | {"header again": header, "document again": document, "document once more": document}
