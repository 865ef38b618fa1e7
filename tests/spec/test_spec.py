"""The specification is true: its examples, snippets, tables and section numbers are those of the code."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from support.bytes import NAME, columns, document
from support.deltas import METADATA, PARAMETERS, random_delta
from support.sd15 import LAYOUT
from support.weights import normal

from svdiff_delta import add, errors, interpolate, scale, select
from svdiff_delta.errors import MetadataError
from svdiff_delta.format.delta import Delta, project
from svdiff_delta.format.dtypes import LARGEST
from svdiff_delta.format.entry import ITEM_SIZE
from svdiff_delta.format.file import dumps, loads
from svdiff_delta.format.metadata import BaseInfo, Metadata, dump, parse
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.ops.combine import combine_parameters
from svdiff_delta.ops.merge.slerp import coefficients
from svdiff_delta.selectors.match import match
from svdiff_delta.selectors.subsets import PAPER as SUBSETS
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.calibration import Moments, calibrate_change
from svdiff_delta.svd.decomposition import find_runs, tail_length
from svdiff_delta.svd.fingerprint import fingerprint, round_weight
from svdiff_delta.svd.prepare import prepare_weight

ROOT = Path(__file__).parents[2]
SPEC = (ROOT / "spec" / "v1" / "spec.md").read_text("utf-8")
SCHEMA = json.loads((ROOT / "spec" / "v1" / "schema.json").read_text("utf-8"))
SECTIONS = set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?)\.? ", SPEC, re.MULTILINE))
VALIDATOR = Draft202012Validator(SCHEMA)


def fences(language: str) -> list[str]:
    """Return the contents of all fences in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", SPEC, re.MULTILINE | re.DOTALL)


def documents() -> Iterator[tuple[list[str], str]]:
    """Yield tensor names and text of every JSON example; the comment before it gives the names."""
    for names, text in re.findall(r"^<!-- tensors: ([^\n]*) -->\n```json\n(.*?)^```$", SPEC, re.MULTILINE | re.DOTALL):
        yield names.split(), text


def worked_bytes() -> bytes:
    """Return the file that appendix A.3 shows."""
    (dump_,) = fences("hexdump")
    return b"".join(bytes.fromhex(line[6:77]) for line in dump_.splitlines())


@pytest.fixture(scope="module")
def snippets() -> dict[str, Any]:
    """Run every Python snippet of the specification, in order; they check themselves."""
    found = fences("python")
    assert len(found) >= 5
    space: dict[str, Any] = {}
    for text in found:
        exec(text, space)
    return space


# --- Section numbers ---


def citations() -> Iterator[tuple[str, str]]:
    number = r"\d+(?:\.\d+)?"
    pattern = re.compile(rf"sections?\s+({number}(?:(?:, |,? and ){number})*)(?!\s+of the paper)")
    for path in [*(ROOT / "svdiff_delta").rglob("*.py"), ROOT / "spec" / "v1" / "spec.md"]:
        for group in pattern.findall(path.read_text("utf-8")):
            for section in re.findall(number, group):
                yield path.name, section


def test_every_section_that_is_cited_exists() -> None:
    cited = list(citations())
    assert ("container.py", "3") in cited
    assert [(name, section) for name, section in cited if section not in SECTIONS] == []


def test_every_error_class_that_is_named_exists() -> None:
    named = set(re.findall(r"`([A-Z]\w+Error)`", SPEC))
    assert named >= {"HeaderError", "MetadataError", "TensorError", "VersionError"}
    assert [name for name in sorted(named) if not hasattr(errors, name)] == []


# --- Examples and schema ---


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_every_json_example_names_its_tensors() -> None:
    assert len(list(documents())) == len(fences("json")) >= 3


@pytest.mark.parametrize(("names", "text"), list(documents()))
def test_every_json_example_fits_the_schema_and_is_read_and_written(names: list[str], text: str) -> None:
    VALIDATOR.validate(json.loads(text))
    metadata = parse({"svdiff": text}, names)
    assert list(metadata.parameters) == sorted(names)
    assert json.loads(dump(metadata)["svdiff"]) == json.loads(text)


def made_deltas() -> Iterator[Delta]:
    full = replace(METADATA, training={"steps": 5}, modelspec={"title": "Dog"}, extra={"org.example.a": [1]})
    dog, cat = random_delta(0, full), random_delta(1, METADATA)
    yield dog
    yield cat
    yield add(dog, cat, weights=(0.8, 0.5))
    yield interpolate(dog, add(dog, cat), 0.25)
    yield select(scale(dog, 0.5), "unet-ca", "text_encoder.*")
    transposed = {NAME: Parameter((4, 3, 2, 2), "spectral", 1, "BF16", PARAMETERS[min(PARAMETERS)].fingerprint)}
    yield Delta({NAME: np.zeros(3)}, Metadata(BaseInfo({"unet": ""}), transposed))


@pytest.mark.parametrize("delta", list(made_deltas()))
def test_what_is_written_fits_the_schema(delta: Delta) -> None:
    VALIDATOR.validate(json.loads(dump(delta.metadata)["svdiff"]))


@pytest.mark.parametrize(
    "broken",
    [
        {key: value for key, value in document().items() if key != "base"},
        document(format="svdiff"),
        document(version=0),
        document(must_understand="all"),
        document(base={"components": {}}),
        document(base={"components": {"unet": "UNet2DConditionModel", "a b": ""}}),
        document(base={"components": {"unet": "UNet2DConditionModel"}, "repository": ""}),
        columns(shapes=None),
        columns(more=""),
        columns(shapes="3x02"),
        columns(fingerprints="AAECAwQFBgcICQoLDA0ODx"),
        columns(exceptions={NAME: {"axis": -1}}),
        columns(exceptions={NAME: {"dtype": "F64"}}),
        columns(exceptions={NAME: {"side": 1}}),
        columns(tied={NAME: "0-1,"}),
        columns(tied={"unet": "0-1"}),
        columns(null={NAME: 0}),
        document(lineage={"arguments": {}}),
        document(lineage={"operation": "add", "inputs": ["12"]}),
        document(lineage={"operation": "add", "files": None}),
        document(lineage={"operation": "add", "files": {"0" * 64: {}}}),
        document(lineage={"operation": "add", "files": {"0" * 64: {"digest": "0" * 64, "operation": ""}}}),
        document(training=[]),
    ],
    ids=lambda fields: json.dumps(fields)[-60:],
)
def test_reader_and_schema_refuse_the_same(broken: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(broken)
    with pytest.raises(MetadataError):
        parse({"svdiff": json.dumps(broken)}, [NAME])


# --- Tables ---


def test_the_item_sizes_are_those_of_the_code() -> None:
    (text,) = re.findall(r"^Known dtypes and their item sizes are (.*?)\.", SPEC, re.MULTILINE | re.DOTALL)
    groups = [group.split(":") for group in text.split(";")]
    assert {name: int(size) for names, size in groups for name in names.replace(",", " ").split()} == ITEM_SIZE


def test_the_largest_values_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (F32|F16|BF16|I8) \| ([\d.e]+) \|$", SPEC, re.MULTILINE)
    assert {name: float(value) for name, value in rows} == LARGEST


def test_the_subsets_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| `(unet\.\w*\.?)` \| (?:(.+) )?\| (?:(\d) )?\|$", SPEC, re.MULTILINE)
    patterns = {name: pattern.strip(" `").replace("\\|", "|") for name, _, pattern, _ in rows}
    patterns |= {name: patterns["unet-ca"] for name, text in patterns.items() if text.startswith("as ")}
    assert list(patterns) == list(SUBSETS)
    for name, prefix, _, dimensions in rows:
        found = [
            parameter
            for parameter, shape in LAYOUT.items()
            if parameter.startswith(prefix)
            and re.search(f"(?:{patterns[name]})\\Z" if patterns[name] else "", parameter)
            and len(shape) in ([int(dimensions)] if dimensions else range(9))
        ]
        assert found == match(LAYOUT, [name]), name


# --- Formulas ---


def plain_fingerprint(shape: tuple[int, ...], axis: int, values: list[float]) -> str:
    """Section 6.2 in plain Python, without the library's code and without the specification's."""
    values = [0.0 if value == 0 else value for value in values]
    singles = [struct.pack("<f", value) for value in values]
    if all(abs(value) <= 65504 and struct.unpack("<e", struct.pack("<e", value))[0] == value for value in values):
        name, raw = "F16", b"".join(struct.pack("<e", value) for value in values)
    elif all(single[:2] == b"\0\0" for single in singles):
        name, raw = "BF16", b"".join(single[2:] for single in singles)
    else:
        name, raw = "F32", b"".join(singles)
    text = "svdiff 1 " + name + " " + "x".join(str(length) for length in shape) + " " + str(axis) + "\n"
    digest = hashlib.sha256(text.encode("ascii") + raw).digest()
    return base64.b64encode(digest[:16], b"-_").decode().strip("=")


WEIGHTS = {
    "F16": (normal(6, 4, 3, 3).half().float(), 0),
    "F16 with -0": (torch.tensor([[0.0, -0.0, 1.0]]), 0),
    "BF16": (normal(5, 7, seed=1).bfloat16().float() * 2.0**20, 0),
    "F32": (normal(8, 3, seed=2), 0),
    "transposed": (normal(3, 8, 2, seed=3), 1),
    "norm": (normal(16, seed=4).half().float(), 0),
    "zero": (torch.zeros(4, 4), 0),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_fingerprint_is_the_formula(name: str, snippets: dict[str, Any]) -> None:
    weight, axis = WEIGHTS[name]
    rounded = round_weight(weight, "F32")
    shape, values = tuple(weight.shape), weight.flatten().tolist()
    assert fingerprint(rounded, axis) == plain_fingerprint(shape, axis, values)
    assert fingerprint(rounded, axis) == snippets["fingerprint"](shape, axis, values)


SPECTRA = [
    [3.0, 2.0, 1.0],
    [2.0, 2.0, 2.0, 1.0, 1.0, 0.5],
    [1.0, 1.0 - 0.9e-7, 1.0 - 1.8e-7, 0.5, 2e-7, 1e-7, 0.0],
    [5.0, 1e-3, 1e-4, 1e-5, 3e-7],
    [0.0, 0.0, 0.0],
    [7.0],
]


@pytest.mark.parametrize("sigma", SPECTRA)
def test_runs_and_tail_are_the_snippets(sigma: list[float], snippets: dict[str, Any]) -> None:
    values = torch.tensor(sigma, dtype=torch.float64)
    runs = find_runs(values)
    tied, null = snippets["find_runs"](sigma)
    assert (list(runs.tied), runs.null) == (tied, null)
    assert tail_length(values, null) == snippets["tail_length"](sigma, null)


def random_runs(draw: random.Random, size: int) -> tuple[list[tuple[int, int]], int]:
    null = draw.choice([0, 0, 1, 2])
    cuts = sorted(draw.sample(range(size - null), draw.choice([0, 2, 4])))
    return [(first, last) for first, last in zip(cuts[::2], cuts[1::2], strict=True)], null


def test_combined_runs_are_the_snippet(snippets: dict[str, Any]) -> None:
    draw = random.Random(0)
    plain = PARAMETERS[NAME]
    size = 12
    for _ in range(200):
        inputs = [random_runs(draw, size) for _ in range(draw.choice([1, 2, 3]))]
        deltas = [
            Delta({NAME: np.zeros(size)}, replace(METADATA, parameters={NAME: parameter}))
            for tied, null in inputs
            for parameter in [replace(plain, shape=(size, size), tied=tuple(tied), null=null)]
        ]
        combined = combine_parameters(deltas)[NAME]
        assert (list(combined.tied), combined.null) == snippets["combine_runs"](size, inputs)


def test_projection_is_the_snippet(snippets: dict[str, Any]) -> None:
    draw = random.Random(1)
    for _ in range(200):
        size = draw.choice([6, 12, 40])
        tied, null = random_runs(draw, size)
        parameter = replace(PARAMETERS[NAME], shape=(size, size), tied=tuple(tied), null=null)
        shift = [draw.gauss(0, 0.1) for _ in range(size)]
        projected = project(parameter, np.array(shift)).astype(np.float32)
        assert np.array_equal(projected, np.float32(snippets["project"](shift, tied, null)))
        assert np.array_equal(projected, project(parameter, projected.astype(np.float64)))


def test_calibration_is_the_snippet(snippets: dict[str, Any]) -> None:
    weight = torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0, 0.0]))
    prepared = prepare_weight(SimpleNamespace(read=lambda name: weight), "a.weight", "spectral", 0, BasisCache())
    assert (prepared.parameter.tied, prepared.parameter.null) == (((1, 2),), 1)
    draw = np.random.default_rng(2)
    for _ in range(50):
        change = torch.from_numpy(draw.standard_normal((5, 5)))
        cross, square = draw.standard_normal(5) * 3, draw.choice([0.0, 0.5, 2.0], 5)
        found, _, _ = calibrate_change(prepared, change, Moments(cross, square, 1.0, 4.0))
        sigma, dot = weight.diagonal().tolist(), change.diagonal().tolist()
        expected = snippets["calibrate"](dot, cross.tolist(), square.tolist(), 4.0, sigma, [(1, 2)], 1)
        assert found == pytest.approx(expected, abs=1e-6)


def test_slerp_is_the_snippet(snippets: dict[str, Any]) -> None:
    draw = random.Random(3)
    for _ in range(200):
        a, b = ([draw.randrange(-99, 100) for _ in range(3)] for _ in "ab")
        products = [sum(map(int.__mul__, *pair)) for pair in ((a, b), (a, a), (b, b))]
        alpha = draw.choice([0.0, 1.0, draw.random(), draw.random() * 2.0**-80])
        found = coefficients(products[0], products[1], products[2], alpha)
        assert found == snippets["slerp_factors"](*products, alpha)
        cosine = products[0] / math.sqrt(products[1] * products[2])
        angle = math.acos(max(-1.0, min(1.0, cosine)))
        if math.sin(angle) > 0.01:  # acos loses half of its digits near the ends
            expected = [math.sin(share * angle) / math.sin(angle) for share in (alpha, 1 - alpha)]
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-20)


# --- The worked example ---


def plain_file(document_: dict[str, Any], tensors: list[tuple[str, str, bytes]]) -> bytes:
    """Return a canonical file, made by json and struct alone (its texts are ASCII, its numbers short)."""
    position, header = 0, {}
    text = json.dumps(document_, sort_keys=True, separators=(",", ":"))
    for name, dtype, raw in tensors:
        header[name] = {"dtype": dtype, "shape": [2], "data_offsets": [position, position + len(raw)]}
        position += len(raw)
    header["__metadata__"] = {"modelspec.title": "worked example", "svdiff": text}
    encoded = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + b"".join(raw for _, _, raw in tensors)


def test_the_worked_file_is_made_by_plain_python_and_by_the_library() -> None:
    _, first, _ = (json.loads(text) for _, text in documents())
    raw = plain_file(
        first,
        [
            ("model.b.weight", "F32", struct.pack("<2f", 0.25, 0.25)),
            ("model.c.weight", "F32", struct.pack("<2f", 1, 0)),
            ("model.norm.weight", "F32", struct.pack("<2f", 0.125, -0.25)),
            ("model.a.weight", "F16", struct.pack("<2e", 0.5, -1.5)),
        ],
    )
    assert raw == worked_bytes()
    delta = loads(raw)
    assert dumps(Delta(dict(delta), delta.metadata, dtypes=delta.dtypes)) == raw
    assert f"{len(raw)} bytes. N is {hex(len(raw) - 36)} = {len(raw) - 36}" in SPEC
    assert f"`{hashlib.sha256(raw).hexdigest()}`" in SPEC
    assert f"`{hashlib.sha256(raw[-28:]).hexdigest()}`" in SPEC


def test_the_worked_weights_have_these_fingerprints_and_runs(snippets: dict[str, Any]) -> None:
    weights = {
        "model.a.weight": ([[0, 2, 0], [1, 0, 0]], 0),
        "model.b.weight": ([[1, 1], [1, -1]], 0),
        "model.c.weight": ([[[1]] * 3] * 2, 1),
        "model.norm.weight": ([65536, 0.5], 0),
    }
    parameters = loads(worked_bytes()).metadata.parameters
    for name, (weight, axis) in weights.items():
        values = np.array(weight, dtype=float)
        assert parameters[name].fingerprint == plain_fingerprint(values.shape, axis, values.flatten().tolist())
        assert parameters[name].axis == axis
        if values.ndim > 1:
            matrix = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
            tied, null = snippets["find_runs"](np.linalg.svd(matrix, compute_uv=False).tolist())
            assert (list(parameters[name].tied), parameters[name].null) == (tied, null)


def test_the_worked_operation_gives_these_bytes() -> None:
    *_, last = (json.loads(text) for _, text in documents())
    raw = plain_file(
        last,
        [
            ("model.a.weight", "F32", struct.pack("<2f", 0.25, -0.75)),
            ("model.b.weight", "F32", struct.pack("<2f", 0.125, 0.125)),
            ("model.c.weight", "F32", struct.pack("<2f", 0.5, 0)),
            ("model.norm.weight", "F32", struct.pack("<2f", 0.0625, -0.125)),
        ],
    )
    assert dumps(scale(loads(worked_bytes()), 0.5)) == raw
    assert f"The file has {len(raw)} bytes" in SPEC
    assert f"`{hashlib.sha256(raw).hexdigest()}`" in SPEC
