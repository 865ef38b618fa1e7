"""The library passes the conformance vectors, and these are what their script makes of the standard library alone."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from numpy.typing import NDArray
from torch import Tensor

import svdiff_delta
from svdiff_delta import errors
from svdiff_delta.format.container import read_header
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps, loads
from svdiff_delta.format.lineage import dump_lineage
from svdiff_delta.format.metadata import dump
from svdiff_delta.ops.weights import Weight
from svdiff_delta.svd.decomposition import compute_basis, find_runs, matricize, unmatricize
from svdiff_delta.svd.fingerprint import choose_dtype, fingerprint, round_weight

SPEC = Path(__file__).parents[2] / "spec" / "v1"
VECTORS = SPEC / "vectors"
VALIDATOR = Draft202012Validator(json.loads((SPEC / "schema.json").read_text("utf-8")))
STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def manifest(name: str) -> Any:
    return json.loads((VECTORS / name).read_text("utf-8"))


def floats(texts: list[str]) -> NDArray[np.float64]:
    return np.array([float.fromhex(text) for text in texts], dtype=np.float64)


def tensor(texts: list[str], shape: list[int]) -> Tensor:
    return torch.tensor(floats(texts)).reshape(shape)


def about(row: dict[str, Any]) -> str:
    return "-".join(str(row[key]) for key in ("rule", "operation", "about") if key in row)


# --- Valid files ---

VALID = sorted((VECTORS / "valid").glob("*.safetensors"))


def expectation(path: Path) -> Any:
    return json.loads(path.with_suffix(".json").read_text("utf-8"))


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_valid_file_holds_these_values(path: Path) -> None:
    expected, delta = expectation(path)["parameters"], loads(path.read_bytes())
    assert list(delta) == list(expected)
    for name, parameter in delta.metadata.parameters.items():
        row = expected[name]
        assert (list(parameter.shape), parameter.kind, parameter.axis) == (row["shape"], row["kind"], row["axis"])
        assert (parameter.dtype, parameter.fingerprint) == (row["basis_dtype"], row["fingerprint"])
        assert ([list(run) for run in parameter.tied], parameter.null) == (row["tied"], row["null"])
        assert delta.dtype_of(name) == row["dtype"]
        assert delta[name].tolist() == floats(row["values"]).tolist()


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_valid_file_says_this_of_itself(path: Path) -> None:
    expected, metadata = expectation(path), loads(path.read_bytes()).metadata
    document = json.loads(dump(metadata)["svdiff"])
    assert document["base"] == expected["base"]
    assert metadata.training == expected["training"]
    assert (metadata.lineage and dump_lineage(metadata.lineage)) == expected["lineage"]
    assert {key: metadata.extra[key] for key in expected["unknown"]} == expected["unknown"]
    spec = {f"modelspec.{key}": value for key, value in metadata.modelspec.items()}
    assert {**metadata.foreign, **spec} == expected["strings"]


@pytest.mark.parametrize("path", [path for path in VALID if expectation(path)["rewritten"]], ids=lambda path: path.stem)
def test_a_valid_file_is_written_in_canonical_form(path: Path) -> None:
    expected, raw = expectation(path), path.read_bytes()
    written = dumps(loads(raw))
    assert hashlib.sha256(written).hexdigest() == expected["rewritten"]
    assert (written == raw) == expected["canonical"]


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_valid_document_fits_the_schema(path: Path) -> None:
    raw = path.read_bytes()
    VALIDATOR.validate(json.loads(read_header(raw, len(raw)).metadata["svdiff"]))


# --- Invalid files ---


@pytest.mark.parametrize("row", manifest("invalid.json")["files"], ids=about)
def test_an_invalid_file_is_refused_by_class_and_name(row: dict[str, Any]) -> None:
    with pytest.raises(errors.FormatError) as caught:
        dict(loads((VECTORS / row["file"]).read_bytes()))
    assert type(caught.value).__name__ == row["error"]
    assert not row["names"] or any(name in caught.value.message for name in row["names"])


# --- Operations ---

OPERATIONS = manifest("operations.json")
RESULTS = [row for row in OPERATIONS["operations"] if "error" not in row]
REFUSALS = [row for row in OPERATIONS["operations"] if "error" in row]


def as_weight(value: Any) -> float | Weight:
    return Weight(value["default"], dict(value["where"])) if isinstance(value, dict) else float(value)


def calculate(row: dict[str, Any]) -> Delta:
    """Do what a row says."""
    inputs = [loads((VECTORS / OPERATIONS["inputs"][name]).read_bytes()) for name in row["inputs"]]
    given = dict(row["arguments"])
    if "weights" in given:
        given["weights"] = [as_weight(weight) for weight in given["weights"]]
    operation = row["operation"]
    if operation == "slice":
        return svdiff_delta.select(inputs[0], *given.pop("selectors"), **given)
    if operation == "merge":
        return svdiff_delta.merge(inputs, **given)
    result = getattr(svdiff_delta, operation)(*inputs, **given)
    assert isinstance(result, Delta)
    return result


@pytest.mark.parametrize("row", RESULTS, ids=about)
def test_an_operation_gives_these_bytes(row: dict[str, Any]) -> None:
    result, expected = loads(dumps(calculate(row))), row["tensors"]
    assert list(result) == list(expected)
    for name, stored in result.stored.items():
        assert stored.dtype == expected[name]["dtype"], name
        assert bytes(stored.data).hex() == expected[name]["data"], name
        assert bytes(stored.scales).hex() == expected[name].get("scales", ""), name


@pytest.mark.parametrize("row", RESULTS, ids=about)
def test_an_operation_gives_this_file(row: dict[str, Any]) -> None:
    raw = dumps(calculate(row))
    if "document" in row:
        written = read_header(raw, len(raw)).metadata
        assert json.loads(written.pop("svdiff")) == row["document"]
        assert written == row["strings"]
    assert hashlib.sha256(raw).hexdigest() == row["sha256"]


@pytest.mark.parametrize("row", REFUSALS, ids=about)
def test_an_operation_is_refused_by_class_and_name(row: dict[str, Any]) -> None:
    with pytest.raises(errors.DeltaError) as caught:
        calculate(row)
    assert type(caught.value).__name__ == row["error"]
    assert not row["names"] or any(name in caught.value.message for name in row["names"])


# --- Bases ---

CASES = manifest("basis.json")["cases"]
SIGMA_ERROR = 1e-13  # of ‖W‖: section 6.3 bounds the reconstruction by it, and σ moves no further than W
CHANGE_ERROR = 2e-6  # of ‖ΔW‖: section 6.5


def base_weight(row: dict[str, Any]) -> Tensor:
    return tensor(row["weight"], row["shape"]).to(STORED[row["stored"]])


@pytest.mark.parametrize("row", CASES, ids=about)
def test_a_weight_is_rounded_and_identified(row: dict[str, Any]) -> None:
    weight = base_weight(row)
    rounded = round_weight(weight, row["basis_dtype"])
    assert choose_dtype(weight, "weight") == row["chosen"]
    assert torch.equal(rounded.double(), tensor(row["rounded"], row["shape"]))
    assert fingerprint(rounded, row["axis"]) == row["fingerprint"]


@pytest.mark.parametrize("row", [row for row in CASES if row["kind"] == "spectral"], ids=about)
def test_a_basis_has_these_singular_values_runs_and_changes(row: dict[str, Any]) -> None:
    rounded, axis = round_weight(base_weight(row), row["basis_dtype"]), row["axis"]
    basis, matrix = compute_basis(rounded, axis), matricize(rounded, axis)
    runs = find_runs(basis.sigma)
    error = np.abs(basis.sigma.numpy() - floats(row["sigma"])).max()
    assert error <= SIGMA_ERROR * float(matrix.double().norm())
    assert ([list(run) for run in runs.tied], runs.null, basis.null) == (row["tied"], row["null"], row["null"])
    for shift in row["shifts"]:
        expected = tensor(shift["change"], row["shape"])
        change = unmatricize(
            basis.delta_weight(matrix, torch.tensor(floats(shift["delta"]))), tuple(row["shape"]), axis
        )
        assert float((change.double() - expected).norm()) <= CHANGE_ERROR * float(expected.norm())


# --- The script ---


def committed() -> dict[str, bytes]:
    made = [*VECTORS.glob("*.json"), *VECTORS.glob("*/*.json"), *VECTORS.glob("*/*.safetensors")]
    return {path.relative_to(VECTORS).as_posix(): path.read_bytes() for path in made}


def test_the_script_makes_these_files_without_any_package(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-B", "-S", VECTORS / "make.py", tmp_path], check=True)
    assert {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*.*")} == committed()


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0]


def test_the_script_imports_the_standard_library_alone() -> None:
    names = {name for path in VECTORS.rglob("*.py") for name in imported(path)}
    assert names <= sys.stdlib_module_names | {"maker"}


def test_there_are_enough_vectors_and_they_are_small() -> None:
    counts = [len(VALID), len(manifest("invalid.json")["files"]), len(RESULTS), len(CASES)]
    assert [count >= least for count, least in zip(counts, (15, 60, 40, 10), strict=True)] == [True] * 4
    assert sum(map(len, committed().values())) < 500_000
