"""Files whose metadata a reader must refuse (rules M and V)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Final

from .broken_container import A, Broken
from .container import JSON, Tensor, canonical, container
from .delta import Param, document, made_up, strings, tensors
from .valid import DIGEST, LINEAR, PLAIN, made

DOCUMENT: Final = document(PLAIN)
TEXT: Final = canonical(DOCUMENT)


def said(text: str) -> bytes:
    """Return a file with one parameter and this document."""
    return container({"svdiff": text}, tensors(PLAIN))


def changed(**members: JSON) -> bytes:
    """Return a file with changed members of the document."""
    return said(canonical({**DOCUMENT, **members}))


def without(key: str) -> bytes:
    """Return a file whose document lacks a member."""
    return said(canonical({name: value for name, value in DOCUMENT.items() if name != key}))


def column(members: Mapping[str, JSON], param: Param = LINEAR) -> bytes:
    """Return a file with changed columns; None takes one away."""
    delta = made({A: (param, "F32", [0] * param.size)})
    full = document(delta)
    both = {**full["parameters"], **members}
    full["parameters"] = {key: value for key, value in both.items() if value is not None}
    return container({"svdiff": canonical(full)}, tensors(delta))


def syntax() -> Iterator[Broken]:
    """Yield files whose document is missing or not strict JSON."""

    def broken(about: str, text: str, *names: str) -> Broken:
        return Broken("M1", about, said(text), names or ("svdiff",))

    def extended(about: str, text: str, *names: str) -> Broken:
        return broken(about, TEXT[:-1] + f',"x":{text}}}', *names)

    yield Broken(
        "M1", "no metadata", container({}, tensors(PLAIN)).replace(b'"__metadata__":{},', b" " * 18), ("svdiff",)
    )
    yield Broken("M1", "metadata of others alone", container({"format": "pt"}, tensors(PLAIN)), ("svdiff",))
    yield broken("the document is empty", "")
    yield broken("the document is an array", f"[{TEXT}]")
    yield broken("the document is a string", '"svdiff-delta"')
    yield broken("the document is cut off", TEXT[:-1])
    yield broken("the document begins with a byte order mark", "\ufeff" + TEXT)
    yield broken("something follows the document", TEXT + "x")
    yield broken("a member twice", TEXT[:-1] + ',"format":"svdiff-delta"}', "format")
    yield broken("a member twice, once escaped", TEXT[:-1] + ',"\\u0062ase":{}}', "base")
    yield extended("a member twice, further down", '{"y":1,"y":1}', "y")
    yield extended("NaN", "NaN")
    yield extended("minus infinity", "-Infinity")
    yield extended("a number beyond F64", "1e999")
    yield extended("an integer beyond 2^53", "9007199254740993")
    yield extended("an integer below −2^53", "-9007199254740993")
    yield extended("an integer that is not the canonical form of its number", "100000000000000000001")
    yield extended("an integer of 400 digits", "1" * 400)
    yield extended("a number that ends with its point", "1.")
    yield extended("half of a surrogate pair", '"\\udc36"')
    yield extended("thirteen levels", "[" * 12 + "]" * 12)
    yield extended("thirteen levels, of objects", '{"y":' * 11 + "{}" + "}" * 11)
    yield extended("a control character in a string", '"\n"')


def heads() -> Iterator[Broken]:
    """Yield files whose format, version or base is wrong."""
    for key in ("format", "version", "base", "parameters"):
        yield Broken("M2", f"no `{key}`", without(key), (key,))
    yield Broken("M2", "no `base.components`", changed(base={}), ("base.components",))
    yield Broken("M3", "another format", changed(format="SVDiff-delta"), ("format",))
    yield Broken("M3", "the format is null", changed(format=None), ("format",))
    for version in (0, -1, True, "1", None, [1]):
        yield Broken("M3", f"the version is {json.dumps(version)}", changed(version=version), ("version",))
    yield Broken("M3", "the version is 1.0", said(TEXT.replace('"version":1', '"version":1.0')), ("version",))
    value: JSON
    for value in ("all", [1], None, {}):
        yield Broken(
            "M3", f"must_understand is {json.dumps(value)}", changed(must_understand=value), ("must_understand",)
        )
    yield Broken("V1", "version 2", changed(version=2), ("version",))
    yield Broken(
        "V1",
        "version 2, and everything else in another form",
        container({"svdiff": '{"format":"svdiff-delta","version":2,"base":[]}'}, [Tensor("x", "U8", (1,), b"x")]),
        ("version",),
    )
    yield Broken(
        "V1", "version 2, and must_understand in another form", changed(version=2, must_understand=1), ("version",)
    )
    yield Broken("V2", "an unknown feature", changed(must_understand=["org.example.feature"]), ("must_understand",))
    yield Broken(
        "V2",
        "an unknown feature, and the base in another form",
        changed(must_understand=["org.example.feature"], base=None),
        ("must_understand",),
    )
    yield from bases()


def bases() -> Iterator[Broken]:
    """Yield files whose base or training is wrong."""
    value: JSON
    components: JSON
    named = {"components": {"unet": ""}}
    for key, values in (
        ("repository", ("", 1, None)),
        ("revision", ("", [], None)),
        ("sample_size", (0, -8, "64", None)),
    ):
        for value in values:
            about = f"base.{key} is {json.dumps(value)}"
            yield Broken("M4", about, changed(base={**named, key: value}), (f"base.{key}",))
    one = {"down": [1], "mid": 1, "up": [1]}
    layouts: tuple[JSON, ...] = (
        None, [1], {}, {"down": [1], "up": [1]}, {**one, "more": 1}, {**one, "up": [1, 1]}, {**one, "down": 1},
        {**one, "mid": -1}, {**one, "mid": 100}, {**one, "mid": True}, {"down": [1] * 100, "mid": 1, "up": [1] * 100},
    )  # fmt: skip
    for layout in layouts:
        about = f"base.attentions is {json.dumps(layout)[:50]}"
        yield Broken("M4", about, changed(base={**named, "attentions": layout}), ("base.attentions",))
    text = canonical({**DOCUMENT, "base": {**named, "sample_size": 64}})
    yield Broken("M4", "base.sample_size is 64.0", said(text.replace(":64", ":64.0")), ("base.sample_size",))
    for key, value in (("base", "sd"), ("base", None), ("training", None), ("training", []), ("training", "none")):
        yield Broken("M4", f"{key} is {json.dumps(value)}", changed(**{key: value}), (key,))
    for components in ([], None, {"unet": None}, {"unet": 1}):
        about = f"base.components is {json.dumps(components)}"
        yield Broken("M4", about, changed(base={"components": components}), ("base.components",))
    for name in ("", "u-net", "unét", "a b", "svdiff", "unet\n"):
        yield Broken(
            "M5", f"the component {name!r}", changed(base={"components": {"unet": "", name: ""}}), ("base.components",)
        )


def tables() -> Iterator[Broken]:
    """Yield files whose columns are wrong."""
    value: JSON
    for name, document_ in (
        ("M6", DOCUMENT),
        ("M6", {**DOCUMENT, "parameters": {"dtype": "F16", "fingerprints": "", "shapes": ""}}),
    ):
        yield Broken(name, "no tensor", container({"svdiff": canonical(document_)}, []), ("parameters", "tensor"))
    for key in ("shapes", "fingerprints", "dtype"):
        yield Broken("M7", f"no column `{key}`", column({key: None}), (f"parameters.{key}",))
    yield Broken("M7", "an unknown column", column({"scales": "1"}), ("parameters.scales",))
    yield Broken("M7", "parameters is an array", changed(parameters=[]), ("parameters",))
    for key, value in (("shapes", ["2x3"]), ("fingerprints", 1), ("dtype", "F64"), ("dtype", ["F16"]), ("tied", []),
                       ("null", 1), ("exceptions", "")):  # fmt: skip
        yield Broken("M7", f"the column `{key}` is {json.dumps(value)}", column({key: value}), (f"parameters.{key}",))
    short = made_up(A)
    for about, key, text in (
        ("two shapes", "shapes", "2x3 2x3"), ("no shape", "shapes", ""), ("a space too many", "shapes", "2x3 "),
        ("a zero length", "shapes", "2x0"), ("a leading zero", "shapes", "2x03"), ("an open end", "shapes", "2x"),
        ("a capital X", "shapes", "2X3"), ("nine dimensions", "shapes", "2x3" + "x1" * 7),
        ("no dimension", "shapes", "x"),
        ("13 digits", "shapes", "2x1000000000000"), ("other digits", "shapes", "2x٣"), ("a sign", "shapes", "2x+3"),
        ("a line break", "shapes", "2x3\n"),
        ("two fingerprints", "fingerprints", f"{short} {short}"), ("no fingerprint", "fingerprints", ""),
        ("21 characters", "fingerprints", short[:-1]), ("23 characters", "fingerprints", f"{short}A"),
        ("a last character of more than two bits", "fingerprints", f"{short[:-1]}B"),
        ("base64 of the other alphabet", "fingerprints", f"+/{short[2:]}"), ("padding", "fingerprints", f"{short}=="),
        ("another letter", "fingerprints", f"é{short[1:]}"),
    ):  # fmt: skip
        yield Broken("M8", f"`{key}`: {about}", column({key: text}), (f"parameters.{key}", A))
    for key, value in (("exceptions", {"axis": 1}), ("tied", "0-1"), ("null", 1)):
        yield Broken("M9", f"`{key}` of no tensor", column({key: {"unet.other": value}}), (f"parameters.{key}",))


def exceptions() -> Iterator[Broken]:
    """Yield files whose exceptions or runs are wrong."""
    value: JSON
    tied: JSON
    null: JSON
    for value in ({"side": 1}, {"axis": 2}, {"axis": -1}, {"axis": "1"}, {"axis": True}, {"axis": None},
                  {"dtype": "I8"}, {"dtype": None}, {"kind": "Spectral"}, {"kind": None}, [], None):  # fmt: skip
        yield Broken(
            "M10",
            f"the exception {json.dumps(value)}",
            column({"exceptions": {A: value}}),
            (A, "parameters.exceptions"),
        )
    text = canonical({**DOCUMENT, "parameters": {**DOCUMENT["parameters"], "exceptions": {A: {"axis": 1}}}})
    yield Broken("M10", "the axis 1.0", said(text.replace('"axis":1', '"axis":1.0')), (A, "parameters.exceptions"))
    yield Broken(
        "M10",
        "one dimension is spectral",
        column({"exceptions": {A: {"kind": "spectral"}}}, Param((2,))),
        (A, "parameters.exceptions"),
    )
    square = Param((4, 4))
    for tied in ("", "0", "0-0", "1-0", "00-1", "0-01", "0-4", "0-1 1-2", "2-3 0-1", "0-1,2-3", "0-1  2-3", " 0-1",
                 "-1-1", [0, 1], None):  # fmt: skip
        yield Broken(
            "M11", f"the runs {json.dumps(tied)} of four", column({"tied": {A: tied}}, square), (A, "parameters.tied")
        )
    yield Broken(
        "M11",
        "a run that reaches into the null part",
        column({"tied": {A: "1-2"}, "null": {A: 2}}, square),
        (A, "parameters.tied", "parameters.null"),
    )
    for null in (0, 5, -1, "1", True, None):
        yield Broken(
            "M11", f"{json.dumps(null)} null of four", column({"null": {A: null}}, square), (A, "parameters.null")
        )
    norm = Param((4,))
    yield Broken("M11", "runs of a norm", column({"tied": {A: "0-1"}}, norm), (A, "parameters.tied"))
    yield Broken("M11", "null of a norm", column({"null": {A: 1}}, norm), (A, "parameters.null"))


def names() -> Iterator[Broken]:
    """Yield files whose tensors have wrong names."""
    for name, shown in (("unet", "unet"), ("unet.", "unet."), (".weight", ".weight"), ("unet.wéight", "unet.w"),
                        ("unet.a\u007f", "unet.a"), ("unet.a\n", "unet.a"), ("vae.weight", "vae.weight"),
                        ("svdiff.other", "svdiff.other"), ("u-net.weight", "u-net.weight")):  # fmt: skip
        delta = made({name: (LINEAR, "F32", (1, 2))}, {"components": {"unet": ""}})
        yield Broken("M12", f"the name {name!r}", container(strings(delta), tensors(delta)), (shown,))


def lineages() -> Iterator[Broken]:
    """Yield files whose lineage is wrong."""
    good = {"operation": "add", "arguments": {}, "inputs": [], "files": {}}
    source = {"digest": DIGEST[2]}
    for path, lineage in (
        ("lineage", None), ("lineage", []),
        ("lineage.operation", {}), ("lineage.operation", {**good, "operation": ""}),
        ("lineage.operation", {**good, "operation": None}),
        ("lineage.arguments", {**good, "arguments": []}), ("lineage.arguments", {**good, "arguments": None}),
        ("lineage.inputs", {**good, "inputs": DIGEST[1]}), ("lineage.inputs", {**good, "inputs": None}),
        ("lineage.inputs", {**good, "inputs": [DIGEST[1][1:]]}),
        ("lineage.inputs", {**good, "inputs": [DIGEST[11].upper()]}),
        ("lineage.files", {**good, "files": []}), ("lineage.files", {**good, "files": None}),
        ("lineage.files", {**good, "files": {"a.safetensors": source}}),
        ("lineage.files", {**good, "files": {DIGEST[1]: None}}),
        ("lineage.files", {**good, "files": {DIGEST[1]: {}}}),
        ("lineage.files", {**good, "files": {DIGEST[1]: {"digest": "12"}}}),
        ("lineage.files", {**good, "files": {DIGEST[1]: {**source, "title": 1}}}),
        ("lineage.files", {**good, "files": {DIGEST[1]: {**source, "title": None}}}),
        ("lineage.files", {**good, "files": {DIGEST[1]: {**source, "training": None}}}),
        ("lineage.files", {**good, "files": {DIGEST[1]: {**source, "operation": ""}}}),
        ("lineage.files", {**good, "files": {DIGEST[1]: {**source, "operation": "add", "inputs": ["x"]}}}),
        ("lineage.files", {**good, "files": {DIGEST[1]: {**source, "operation": "add", "arguments": 1}}}),
    ):  # fmt: skip
        yield Broken("M13", f"`{path}`: {json.dumps(lineage)[-60:]}", changed(lineage=lineage), (path,))


def hub_names() -> Iterator[Broken]:
    """Yield files whose base is no name of a repository, or at no revision."""
    repositories = (
        "a/b/c", "../base", "owner/", "/base", "own er/base", "-owner/base", "owner/base.", "owner/a--b", "owner/a..b",
        "owner/base.git", "é/base", "owner/base\n", "x](https://example.org)", "<b>base</b>", "owner/" + "a" * 97,
    )  # fmt: skip
    revisions = (
        "..",
        "a..b",
        "-v1",
        ".hidden",
        "a/.b",
        "a//b",
        "/a",
        "a/",
        "v1.",
        "v1.lock",
        "a b",
        "a\n",
        "a" * 256,
        "<b>",
    )
    for key, values in (("repository", repositories), ("revision", revisions)):
        for value in values:
            about = f"base.{key} is {json.dumps(value)[:50]}"
            base = {"components": {"unet": ""}, key: value}
            yield Broken("M14", about, changed(base=base), (f"base.{key}",))


def indices() -> Iterator[Broken]:
    """Yield files with names that have an index, and break a rule for it."""
    feature: JSON = ["stacked"]
    for key in ("a[03]", "a[00]", "a[1000000000000]", "[3]", "a[1][2]", "a[b][01]"):
        delta = made({f"unet.{key}": (LINEAR, "F32", (1, 2))}, must_understand=feature)
        yield Broken("M12", f"the key {key!r}", container(strings(delta), tensors(delta)), (f"unet.{key}",))
    slices = made({"unet.a[3]": (LINEAR, "F32", (1, 2))})
    yield Broken("M15", "an index without its feature", container(strings(slices), tensors(slices)), ("unet.a[3]",))
    yield Broken("M15", "a feature without an index", changed(must_understand=feature), ("must_understand",))
    inner = made({"unet.a[3].weight": (LINEAR, "F32", (1, 2))}, must_understand=feature)
    yield Broken(
        "M15", "a feature, and brackets within a key", container(strings(inner), tensors(inner)), ("must_understand",)
    )
    for about, param in (
        ("three dimensions", Param((2, 3, 1))),
        ("one dimension", Param((3,))),
        ("an elementwise one", Param((2, 2), "elementwise")),
    ):
        delta = made({"unet.a[3]": (param, "F32", [1] * param.size)}, must_understand=feature)
        yield Broken("M16", f"{about} with an index", container(strings(delta), tensors(delta)), ("unet.a[3]",))
    others: JSON = ["org.example.feature", "stacked"]
    yield Broken("V2", "an unknown feature beside a known one", changed(must_understand=others), ("must_understand",))


def cases() -> Iterator[Broken]:
    """Yield all of them in order."""
    for group in (syntax, heads, tables, exceptions, names, lineages, hub_names, indices):
        yield from group()
