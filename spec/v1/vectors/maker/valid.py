"""Files that a reader must accept, and what is in them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from .container import JSON, Tensor, canonical, container, entries, framed
from .delta import Delta, Param, document, file_bytes, made_up, strings, tensors
from .numbers import Stored, encode, exact, hexadecimal

KNOWN: Final = {"format", "version", "must_understand", "base", "parameters", "lineage", "training"}
Number = float | int | str


class Case(NamedTuple):
    """A valid file.

    Attributes:
        about: what it shows.
        delta: its content.
        raw: its bytes, where they are not the canonical ones of its content.
        settled: whether the specification says what a writer makes of it.
        said: its strings but the document, where they are not the ones of its content.
    """

    about: str
    delta: Delta
    raw: bytes | None = None
    settled: bool = True
    said: Mapping[str, str] | None = None


def made(
    parts: Mapping[str, tuple[Param, str, Sequence[Number]]],
    base: Mapping[str, JSON] | None = None,
    strings_: Mapping[str, str] | None = None,
    **members: JSON,
) -> Delta:
    """Return a delta of parameters with format and values, further strings, and further members of the document."""
    components = {name.partition(".")[0]: "" for name in parts}
    return Delta(
        {name: param for name, (param, _, _) in parts.items()},
        {name: encode(exact(values), dtype) for name, (_, dtype, values) in parts.items()},
        base or {"components": components},
        members,
        strings_ or {},
    )


LINEAR: Final = Param((2, 3))
PLAIN: Final = made({"unet.a.weight": (LINEAR, "F32", (0.5, -1.25))})
DIGEST: Final = [f"{number:x}" * 64 for number in range(16)]


def formats() -> Iterator[Case]:
    """Yield files of each number format."""
    yield Case("one linear layer, F32", PLAIN)
    square = Param((5, 5))
    for dtype, values in (
        ("F32", ("0x1p-149", "-0x1.fffffep127", "0x1.fffffep-127", 1, 0)),
        ("F16", ("0x1p-24", -65504, "0x1.ff8p-15", "0x1.004p0", 0)),
        ("BF16", ("0x1p-133", "-0x1.fep127", "0x1.fcp-127", "0x1.02p0", 0)),
        ("I8", (8319008, -65504, 0, 131008, 1)),
    ):
        floats = [float.fromhex(value) if isinstance(value, str) else value for value in values]
        yield Case(f"{dtype} at its ends", made({"unet.a.weight": (square, dtype, floats)}))
    ramp = [(index - 35) / 1024 for index in range(70)]
    runs = replace(Param((70, 80)), tied=((60, 66),), null=2)
    ramp[60:] = [ramp[60]] * 7 + [0.125] + [0.0] * 2
    i8 = made({
        "unet.a.weight": (runs, "I8", ramp),
        "unet.b.weight": (square, "F32", (1, 2, 3, 4, 5)),
        "unet.c.weight": (square, "I8", (0, 0, 0, 0, 0)),
        "unet.d.weight": (Param((129,)), "I8", [index - 64 for index in range(129)]),
    })  # fmt: skip
    yield Case("I8 in several blocks and tensors; a tied run over two blocks is projected by the reader", i8)
    coarse = Stored("I8", struct.pack("<2b", 3, -100), struct.pack("<e", 0.5))
    larger = replace(PLAIN, stored={"unet.a.weight": coarse})
    yield Case("I8 with a larger scale than a writer takes", larger, file_bytes(larger), settled=False)
    tied = made({"unet.a.weight": (Param((6, 6), tied=((0, 2),), null=1), "F32", (0,) * 6)})
    uneven = Stored("I8", struct.pack("<6b", 1, 2, 2, 127, -1, 1), struct.pack("<e", 0.75))
    odd = replace(tied, stored={"unet.a.weight": uneven})
    yield Case("I8 that is projected by the reader alone", odd, file_bytes(odd), settled=False)
    mixed = made({
        "unet.a.weight": (LINEAR, "BF16", (1, 2)),
        "unet.b.weight": (LINEAR, "I8", (3, 4)),
        "unet.c.weight": (LINEAR, "F16", (5, 6)),
        "unet.d.weight": (LINEAR, "F32", (7, 8)),
        "unet.e.weight": (LINEAR, "I8", (9, 10)),
        "unet.zz.weight": (LINEAR, "F16", (11, 12)),
    })  # fmt: skip
    yield Case("all four formats; the scales stand among the 16-bit tensors, by name", mixed)
    yield Case("δ is zero", made({"unet.a.weight": (LINEAR, "F16", (0, 0))}))


def kinds() -> Iterator[Case]:
    """Yield files of each kind of layer, each place and each name."""
    layers = {
        "unet.conv1d.weight": Param((2, 3, 2)),
        "unet.conv2d.weight": Param((4, 1, 1, 2), dtype="F32"),
        "unet.conv3d.weight": Param((9, 1, 2, 2, 2), dtype="F32"),
        "unet.deconv1d.weight": Param((3, 2, 5), axis=1),
        "unet.deconv2d.weight": Param((2, 3, 1, 1), axis=1, dtype="BF16"),
        "unet.eight.weight": Param((1, 2, 1, 2, 1, 2, 1, 2)),
        "unet.embedding.weight": Param((7, 2)),
        "unet.gpt2.weight": Param((3, 2), axis=1),
        "unet.norm.weight": Param((3,)),
        "unet.one.weight": Param((1, 1)),
        "unet.row.weight": Param((1, 9)),
        "unet.scale.weight": Param((2, 2), "elementwise", 1),
    }
    parts = {
        name: (param, "F32", [(index + 1) / 8 for index in range(param.size)])
        for name, param in layers.items()
    }  # fmt: skip
    yield Case("linear, convolutions, transposed ones, norms, and elementwise ones of two dimensions", made(parts))
    yield Case("two basis dtypes as frequent as each other: the first of F32, F16, BF16 is the default", made({
        "unet.a.weight": (replace(LINEAR, dtype="BF16"), "F32", (1, 2)),
        "unet.b.weight": (replace(LINEAR, dtype="F16"), "F32", (3, 4)),
    }))  # fmt: skip
    runs = {
        "unet.a.weight": (Param((6, 6), tied=((0, 1), (2, 3)), null=2), "F16", (1, 1, -2, -2, 0, 0)),
        "unet.b.weight": (Param((3, 4), null=3), "F32", (0, 0, 0)),
        "unet.c.weight": (Param((4, 4), tied=((0, 3),)), "BF16", (0.5,) * 4),
    }
    yield Case("tied runs side by side, and null ones", made(runs))
    named = {
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight": (Param((2, 2)), "F32", (1, 2)),
        "text_encoder_2.text_projection.weight": (Param((2, 3)), "F32", (3, 4)),
        "T5_3. odd key, \"quoted\" \\ ~!..weight": (Param((2,)), "F32", (5, 6)),
        "transformer.weight": (Param((2, 2)), "F32", (7, 8)),
        "transformer.Weight": (Param((2, 2)), "F32", (9, 10)),
    }  # fmt: skip
    components = {
        "T5_3": "T5EncoderModel",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "",
        "transformer": "X",
        "vae": "AutoencoderKL",
        "0": "é",
    }
    base = {"components": components, "repository": "owner/repo", "revision": "main", "sample_size": 128}
    yield Case("several components, one of them unused, and names of odd characters", made(named, base))


def texts() -> Iterator[Case]:
    """Yield files that say much about themselves."""
    spec = {
        "modelspec.title": "Grüße, 世界 🐕 \"quoted\" \\ \u007f \u2028",
        "modelspec.hash_sha256": "0x00",
        "modelspec.": "empty",
        "modelspec": "not a field of it",
        "format": "pt",
        "ue000": "\ue000", "\ue000": "after 🐕 in UTF-16, before it in UTF-8", "🐕": "",
        "\b\t\n\f\r\u0000\u001f": "/\b\t\n\f\r\u0000\u001f",
    }  # fmt: skip
    yield Case("texts in many scripts, escapes, and keys in the order of UTF-16", replace(PLAIN, strings=spec))
    numbers = [
        0,
        -1,
        2**53 - 1,
        -(2**53) + 1,
        2.0**53,
        1e20,
        1e21,
        123456789012345680000.0,
        1e-6,
        1e-7,
        0.1,
        -0.5,
        5e-324,
        1.7976931348623157e308,
        333333333.3333333,
        1.5e300,
        True,
        None,
    ]
    deep: JSON = "bottom"
    for _ in range(10):
        deep = [deep]
    base = {"components": {"unet": ""}, "org.example.base": {"a": [None]}, "sample_sizes": [1]}
    unknown = {"org.example.numbers": numbers, "org.example.deep": {"x": deep}, "": "", "𝒳": {"": [], "\ufb33": {}}}
    yield Case("unknown members, numbers in every form, twelve levels", replace(PLAIN, base=base, document=unknown))
    facts = {"method": "svdiff", "prompt": "a photo of a sks dog", "steps": 500, "rate": 0.001, "note": None}
    yield Case("facts of the training", replace(PLAIN, document={"training": facts}))
    files: JSON = {
        DIGEST[1]: {"digest": DIGEST[2], "title": "Dog", "training": facts},
        DIGEST[3]: {"digest": DIGEST[4], "inputs": 5, "arguments": "mean nothing without an operation"},
        DIGEST[5]: {"digest": DIGEST[6], "operation": "scale", "arguments": {"factor": 0.5}, "inputs": [DIGEST[1]],
                    "org.example.more": [1]},
    }  # fmt: skip
    lineage = {
        "operation": "add",
        "arguments": {"weights": [1, 0.5]},
        "inputs": [DIGEST[5], DIGEST[3], DIGEST[7]],
        "files": files,
        "org.example.more": {"kept": True},
    }
    yield Case(
        "a lineage with unknown members, and with an input that it does not hold",
        replace(PLAIN, document={"lineage": lineage}),
    )
    untitled: JSON = {"operation": "add", "arguments": {}, "inputs": [DIGEST[1]]}
    untitled["files"] = {DIGEST[1]: {"digest": DIGEST[2], "title": ""}}
    yield Case("a lineage of a file with an empty title", replace(PLAIN, document={"lineage": untitled}))
    omitted = {
        "operation": "merge",
        "arguments": {},
        "inputs": [DIGEST[1]] * 3,
        "files": {},
        "omitted": {"count": 3, "digest": DIGEST[2]},
    }
    yield Case("a lineage whose files were left out", replace(PLAIN, document={"lineage": omitted, "training": facts}))


def loose() -> Iterator[Case]:
    """Yield files that are valid without being canonical."""
    text = canonical(document(PLAIN))
    two = made({
        "unet.a.weight": (LINEAR, "F16", (1, 2)),
        "unet.b.weight": (Param((3,)), "F32", (3, 4, 5)),
    })  # fmt: skip
    swapped = list(reversed(tensors(two)))
    yield Case(
        "data in another order, so that F32 is not aligned to its size; no spaces after the header",
        two,
        framed(canonical({**entries(swapped)[0], "__metadata__": strings(two)}).encode(), entries(swapped)[1]),
    )
    header, data = entries(tensors(PLAIN))
    pretty = json.dumps({"unet.a.weight": header["unet.a.weight"], "__metadata__": strings(PLAIN)}, indent=3)
    yield Case("a header with JSON whitespace within and after", PLAIN, framed(f"{pretty}\t\r\n \n".encode(), data))
    escaped = canonical({**header, "__metadata__": strings(PLAIN)}).replace("unet", "\\u0075n\\u0065t")
    yield Case("a header with needless escapes", PLAIN, framed(escaped.encode(), data))
    said = json.dumps(json.loads(text), indent=1, sort_keys=False, ensure_ascii=True)
    yield Case("a document with whitespace", PLAIN, container({"svdiff": f"\n{said} "}, tensors(PLAIN)))
    wordy = document(PLAIN)
    wordy["parameters"] = {
        "dtype": "F32",
        "exceptions": {"unet.a.weight": {"axis": 0, "dtype": "F16", "kind": "spectral"}},
        "fingerprints": made_up("unet.a.weight"), "null": {}, "shapes": "2x3", "tied": {},
    }  # fmt: skip
    yield Case("columns that state defaults", PLAIN, container({"svdiff": canonical(wordy)}, tensors(PLAIN)))
    spelled = canonical({**document(PLAIN), "x": "here"}).replace('"here"', "[1.0,1E2,-0,-0.0,1e+20,0.10,1.5e-7]")
    numbers = replace(PLAIN, document={"x": [1, 100, 0, 0, 1e20, 0.1, 1.5e-7]})
    yield Case("numbers in other spellings", numbers, container({"svdiff": spelled}, tensors(PLAIN)))
    short = {**document(PLAIN), "lineage": {"operation": "add"}}
    full = {"operation": "add", "arguments": {}, "inputs": [], "files": {}}
    yield Case(
        "a lineage of an operation alone",
        replace(PLAIN, document={"lineage": full}),
        container({"svdiff": canonical(short)}, tensors(PLAIN)),
    )
    asked = canonical({**document(PLAIN), "must_understand": []})
    yield Case("no feature must be understood", PLAIN, container({"svdiff": asked}, tensors(PLAIN)))
    hashed = replace(PLAIN, strings={"modelspec.hash_sha256": ""})
    wrong = {"modelspec.hash_sha256": "0x00"}
    raw = container({**strings(hashed), **wrong}, tensors(PLAIN))
    yield Case("a hash of other tensors, which is corrected when written", hashed, raw, said=wrong)
    zeros = made({
        "unet.a.weight": (LINEAR, "F32", (0, 1)),
        "unet.b.weight": (LINEAR, "F16", (0, 1)),
        "unet.c.weight": (LINEAR, "BF16", (0, 1)),
        "unet.d.weight": (Param((4, 4), tied=((0, 1),), null=2), "F32", (0, 0, 0, 0)),
    })  # fmt: skip
    yield Case("−0 is read as 0 and written as +0", zeros, container(strings(zeros), _negative(tensors(zeros))))


def stacked() -> Iterator[Case]:
    """Yield files with weights that are slices of a tensor."""
    feature: JSON = ["stacked"]
    experts = {
        "model.layers.0.experts.down_proj[0]": (Param((3, 2), axis=1), "F32", (1, -2)),
        "model.layers.0.experts.down_proj[10]": (Param((3, 2), axis=1), "F16", (3, 4)),
        "model.layers.0.experts.up[999999999999]": (Param((4, 4), tied=((0, 1),), null=1), "F32", (5, 5, 6, 0)),
        "model.layers.0.norm.weight": (Param((3,)), "F32", (7, 8, 9)),
    }  # fmt: skip
    yield Case("slices of a tensor of experts, on both axes", made(experts, must_understand=feature))
    plain = made({
        "model.a[x].weight": (LINEAR, "F32", (1, 2)),
        "model.a[3].weight": (LINEAR, "F32", (3, 4)),
        "model.b[]": (LINEAR, "F32", (5, 6)),
        "model.c[-1]": (LINEAR, "F32", (7, 8)),
        "model.d[1]x": (LINEAR, "F32", (9, 10)),
    })  # fmt: skip
    yield Case("brackets that are no index", plain)
    two = made({"model.a[0]": (LINEAR, "F32", (1, 2))}, must_understand=feature)
    twice = canonical({**document(two), "must_understand": ["stacked", "stacked"]})
    yield Case("a feature that is named twice", two, container({"svdiff": twice}, tensors(two)))


def _negative(parts: Sequence[Tensor]) -> list[Tensor]:
    """Set the sign of the first value, and of the last where it is zero."""
    result = []
    for part in parts:
        size = 4 if part.dtype == "F32" else 2
        raw = bytearray(part.data)
        raw[size - 1] |= 0x80
        if not any(raw[-size:]):
            raw[-1] |= 0x80
        result.append(part._replace(data=bytes(raw)))
    return result


def cases() -> Iterator[Case]:
    """Yield all valid files in order."""
    for group in (formats, kinds, texts, loose, stacked):
        yield from group()


def expected(case: Case) -> JSON:
    """Return what a reader must find in a file."""
    delta, full = case.delta, document(case.delta)
    own = file_bytes(delta)
    return {
        "about": case.about,
        "canonical": case.raw is None,
        "rewritten": hashlib.sha256(own).hexdigest() if case.settled else None,
        "base": full["base"],
        "lineage": full.get("lineage"),
        "training": full.get("training"),
        "unknown": {key: value for key, value in full.items() if key not in KNOWN},
        "strings": case.said or {key: text for key, text in strings(delta).items() if key != "svdiff"},
        "parameters": {name: _parameter(delta, name) for name in sorted(delta.params)},
    }


def _parameter(delta: Delta, name: str) -> JSON:
    param, stored = delta.params[name], delta.stored[name]
    return {
        "shape": list(param.shape),
        "kind": "spectral" if param.spectral else "elementwise",
        "axis": param.axis,
        "basis_dtype": param.dtype,
        "fingerprint": param.fingerprint or made_up(name),
        "tied": [list(run) for run in param.tied],
        "null": param.null,
        "dtype": stored.dtype,
        "values": hexadecimal(delta.values(name)),
    }
