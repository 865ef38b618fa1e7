"""Files whose container or tensors a reader must refuse (rules H and T)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from .container import JSON, Tensor, canonical, container, entries, framed
from .delta import SCALES, Delta, Param, file_bytes, strings, tensors
from .valid import LINEAR, PLAIN, made

A: Final = "unet.a.weight"
B: Final = "unet.b.weight"
PAIR: Final = made({A: (LINEAR, "F32", (1, 2)), B: (Param((3,)), "F32", (3, 4, 5))})


class Broken(NamedTuple):
    """A file that breaks one rule, or section 4.4; the message must hold one of `names`, if there is any."""

    rule: str
    about: str
    raw: bytes
    names: tuple[str, ...] = ()

    @property
    def error(self) -> str:
        """The class of the refusal."""
        return {"H": "HeaderError", "M": "MetadataError", "V": "VersionError"}.get(self.rule[0], "TensorError")


def refit(change: Callable[[dict[str, JSON]], None], delta: Delta = PAIR, data: bytes | None = None) -> bytes:
    """Return the file of a delta whose header was changed."""
    header, own = entries(tensors(delta))
    header["__metadata__"] = strings(delta)
    change(header)
    return framed(canonical(header).encode(), own if data is None else data)


def edit(name: str, **members: JSON) -> bytes:
    """Return the pair's file with changed members of one entry; None takes one away."""

    def change(header: dict[str, JSON]) -> None:
        header[name] = {key: value for key, value in {**header[name], **members}.items() if value is not None}

    return refit(change)


def sizes() -> Iterator[Broken]:
    """Yield files that are too short or lie about their length."""
    whole = file_bytes(PLAIN)
    (length,) = struct.unpack("<Q", whole[:8])
    yield Broken("H1", "nothing", b"")
    yield Broken("H1", "7 bytes", whole[:7])
    yield Broken("H2", "a header of 14,000,001 bytes", struct.pack("<Q", 14_000_001) + whole[8:])
    yield Broken("H2", "a header of 2^64 - 1 bytes", b"\xff" * 8 + whole[8:])
    yield Broken("H3", "cut off after the length", whole[:8])
    yield Broken("H3", "cut off within the header", whole[: 8 + length // 2])
    yield Broken("H3", "the length reaches one byte past the end", struct.pack("<Q", len(whole) - 7) + whole[8:])
    yield Broken("H4", "an empty header", framed(b"", b""))
    yield Broken("H4", "the length is one byte short of the brace", struct.pack("<Q", _brace(whole) - 8) + whole[8:])
    yield Broken("H4", "the length reaches into the data", struct.pack("<Q", length + 1) + whole[8:])


def _brace(whole: bytes) -> int:
    return whole.rindex(b"}")


def syntax() -> Iterator[Broken]:
    """Yield files whose header is not strict JSON."""
    header, data = entries(tensors(PLAIN))
    text = canonical({**header, "__metadata__": strings(PLAIN)})
    entry = canonical(header)[1:-1]

    def broken(about: str, raw: str | bytes, *names: str) -> Broken:
        return Broken("H4", about, framed(raw if isinstance(raw, bytes) else raw.encode(), data), names)

    yield broken("an array", f"[{text}]")
    yield broken("a space before the brace", f" {text}")
    yield broken("a byte order mark", b"\xef\xbb\xbf" + text.encode())
    yield broken("UTF-16", text.encode("utf-16-le"))
    yield broken("a byte that is not UTF-8", text.encode().replace(b"unet.a", b"unet.\xe9"))
    yield broken("an encoded surrogate", text.encode().replace(b"unet.a", b"unet.\xed\xa0\x80"))
    yield broken("half of a surrogate pair", text.replace("unet.a", "unet.\\ud83d"))
    yield broken("a comma too many", text[:-1] + ",}")
    yield broken("zeros after the header", text.encode() + b"\0\0\0\0")
    yield broken("a no-break space after the header", text + "\u00a0")
    yield broken("a second object after the first", text + "{}")
    yield broken("single quotes", text.replace('"dtype"', "'dtype'"))
    yield broken("a comment", text[:-1] + "/**/}")
    yield broken("a control character in a string", text.replace("unet.a", "unet.\ta"))
    yield broken("an unknown escape", text.replace("unet.a", "unet.\\a"))
    yield broken("the same tensor twice", text[:-1] + f",{entry}}}", A)
    yield broken("the same tensor twice, once escaped", text[:-1] + f",{entry.replace('unet', chr(92) + 'u0075net')}}}")
    yield broken("`__metadata__` twice", text[:-1] + ',"__metadata__":{}}', "__metadata__")
    yield broken("`dtype` twice in an entry", text.replace('"dtype":"F32"', '"dtype":"F32","dtype":"F32"'), "dtype")
    yield broken("NaN", text.replace("[0,8]", "[0,NaN]"))
    yield broken("a leading zero", text.replace("[0,8]", "[0,08]"))
    yield broken("nested 2,000 deep", text[:-1] + ',"unet.b.weight":' + "[" * 2000 + "]" * 2000 + "}")


def shapes() -> Iterator[Broken]:
    """Yield files whose header entries have a wrong form."""
    header, data = entries(tensors(PLAIN))
    for about, value in (("null", None), ("an array", []), ("an object with a number", {"svdiff": 1})):
        raw = framed(canonical({**header, "__metadata__": value}).encode(), data)
        yield Broken("H5", f"`__metadata__` is {about}", raw, ("__metadata__",))
    yield Broken("H6", "an entry is an array", refit(lambda h: h.update({A: []})), (A,))
    yield Broken("H6", "an entry without dtype", edit(A, dtype=None), (A,))
    yield Broken("H6", "an entry with a fourth member", edit(A, strides=[1]), (A,))
    yield Broken("H6", "dtype is a number", edit(A, dtype=4), (A,))
    yield Broken("H6", "shape is a number", edit(A, shape=2), (A,))
    yield Broken("H6", "a length is 2.0", refit_text('"shape":[2]', '"shape":[2.0]'), (A,))
    yield Broken("H6", "a length is true", refit_text('"shape":[2]', '"shape":[2,true]'), (A,))
    yield Broken("H6", "lengths are negative", edit(A, shape=[-2, -1]), (A,))
    yield Broken("H6", "three offsets", edit(A, data_offsets=[0, 8, 8]), (A,))
    yield Broken("H6", "an offset is negative", edit(A, data_offsets=[-8, 0]), (A,))
    yield Broken("H6", "an offset is 0e0", refit_text("[0,8]", "[0e0,8]"), (A,))
    for dtype in ("F4", "f32", "C64", ""):
        yield Broken("H7", f"the dtype {dtype!r}", edit(A, dtype=dtype), (A,))
    yield Broken("H8", "the shape needs more bytes than the offsets give", edit(A, shape=[3]), (A,))
    yield Broken("H8", "the dtype needs fewer bytes than the offsets give", edit(A, dtype="F16"), (A,))
    yield Broken("H8", "the offsets run backwards", edit(A, data_offsets=[8, 0]), (A,))
    yield Broken("H8", "a product of lengths beyond 64 bits", edit(A, shape=[2**32, 2**32, 2]), (A,))
    yield from places()


def refit_text(old: str, new: str) -> bytes:
    """Return the pair's file with a text of the header replaced."""
    header, data = entries(tensors(PAIR))
    text = canonical({**header, "__metadata__": strings(PAIR)})
    return framed(text.replace(old, new).encode(), data)


def places() -> Iterator[Broken]:
    """Yield files whose tensors do not fill the data section."""
    data = entries(tensors(PAIR))[1]
    either = (A, B)
    yield Broken(
        "H9", "two tensors overlap", refit(lambda h: h[B].update(data_offsets=[4, 16]), data=data[:16]), either
    )
    yield Broken("H9", "two tensors in one place", refit(lambda h: h.update({B: h[A]})), either)
    yield Broken(
        "H9",
        "a hole between tensors",
        refit(lambda h: h[B].update(data_offsets=[12, 24]), data=data + bytes(4)),
        either,
    )
    yield Broken("H9", "a hole before the first tensor", refit(_moved, data=bytes(4) + data), (A,))
    yield Broken("H9", "bytes after the last tensor", refit(lambda _: None, data=data + b"\0"))
    yield Broken("H9", "the data are cut off", refit(lambda _: None, data=data[:-1]))
    yield Broken("H9", "no data", refit(lambda _: None, data=b""))


def _moved(header: dict[str, JSON]) -> None:
    for name in (A, B):
        header[name]["data_offsets"] = [offset + 4 for offset in header[name]["data_offsets"]]


def values() -> Iterator[Broken]:
    """Yield files whose tensors have a wrong format, shape or value."""
    for dtype, raw in (("F64", bytes(16)), ("U16", bytes(4)), ("F8_E4M3", bytes(2)), ("BOOL", bytes(2))):
        yield Broken("T1", f"δ in {dtype}", _single(dtype, (2,), raw), (A,))
    yield Broken("T2", "δ is too short", _single("F32", (1,), bytes(4)), (A,))
    yield Broken("T2", "δ is too long", _single("F32", (3,), bytes(12)), (A,))
    yield Broken("T2", "δ has two dimensions", _single("F32", (2, 1), bytes(8)), (A,))
    yield Broken("T2", "δ has none", _single("F32", (), bytes(4)), (A,))
    yield Broken("T2", "δ is empty", _single("F32", (0,), b""), (A,))
    nothing = {
        "NaN in F32": ("F32", "0000c07f"), "a signalling NaN in F32": ("F32", "0100807f"),
        "an infinity in F32": ("F32", "000080ff"), "NaN in F16": ("F16", "007e"),
        "a signalling NaN in F16": ("F16", "01fc"), "an infinity in F16": ("F16", "007c"),
        "NaN in BF16": ("BF16", "c07f"), "an infinity in BF16": ("BF16", "80ff"),
    }  # fmt: skip
    for about, (dtype, digits) in nothing.items():
        raw = bytes.fromhex(digits)
        yield Broken("T3", about, _single(dtype, (2,), bytes(len(raw)) + raw), (A,))
    tied = replace(PLAIN, params={A: Param((4, 4), tied=((1, 2),), null=1)})
    for rule, about, numbers in (
        ("T4", "two values of a tied run differ", (1.0, 2.0, 2.0000002384185791, 0.0)),
        ("T5", "a value at a null singular value is not 0", (1.0, 2.0, 2.0, 1e-45)),
    ):
        part = Tensor(A, "F32", (4,), struct.pack("<4f", *numbers))
        yield Broken(rule, about, container(strings(tied), [part]), (A,))
    yield from scales()


def _single(dtype: str, shape: tuple[int, ...], raw: bytes) -> bytes:
    return container(strings(PLAIN), [Tensor(A, dtype, shape, raw)])


def scales() -> Iterator[Broken]:
    """Yield files whose I8 tensors and scales do not fit each other (section 4.4)."""
    counts = Tensor(A, "I8", (2,), b"\x01\x7f")

    def scaled(dtype: str, shape: tuple[int, ...], digits: str, part: Tensor = counts) -> bytes:
        own = Tensor(SCALES, dtype, shape, bytes.fromhex(digits))
        return container(strings(PLAIN), [own, part])

    either = (A, SCALES)
    plain = tensors(PLAIN)[0]
    yield Broken("T6", "an I8 tensor without scales", container(strings(PLAIN), [counts]), either)
    yield Broken("T6", "scales without an I8 tensor", scaled("F16", (1,), "003c", plain), (SCALES,))
    yield Broken("T6", "no scale in the tensor of scales, and no I8 tensor", scaled("F16", (0,), "", plain), (SCALES,))
    yield Broken("T6", "too few scales", scaled("F16", (0,), ""), either)
    yield Broken("T6", "a scale too many", scaled("F16", (2,), "003c003c"), (SCALES,))
    yield Broken("T6", "scales in F32", scaled("F32", (1,), "0000803f"), (SCALES,))
    yield Broken("T6", "scales of two dimensions", scaled("F16", (1, 1), "003c"), (SCALES,))
    yield Broken("T7", "a scale is negative", scaled("F16", (1,), "00bc"), either)
    yield Broken("T7", "a scale is NaN", scaled("F16", (1,), "007e"), either)
    yield Broken("T7", "a scale is infinite", scaled("F16", (1,), "007c"), either)
    zero = counts._replace(data=b"\x00\x01")
    yield Broken("T7", "a scale is infinite, and a count 0", scaled("F16", (1,), "007c", zero), either)
    yield Broken("T7", "a count is −128", scaled("F16", (1,), "003c", counts._replace(data=b"\x01\x80")), (A,))
    five = replace(PLAIN, params={A: Param((4, 4), null=1)})
    part = [Tensor(SCALES, "F16", (1,), b"\x00\x3c"), Tensor(A, "I8", (5,), bytes(5))]
    yield Broken("T2", "an I8 tensor of a wrong length", container(strings(five), part), (A,))


def cases() -> Iterator[Broken]:
    """Yield all of them in order."""
    for group in (sizes, syntax, shapes, values):
        yield from group()
