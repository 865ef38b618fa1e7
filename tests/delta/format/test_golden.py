"""Byte for byte: what is written is what was written here by hand, from literals, and the same in any process."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import SVDIFF, python
from support.deltas import CONV, METADATA, QUERY, part, random_delta, saved

from svdiff_delta import add
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps, loads
from svdiff_delta.format.metadata import BaseInfo, Metadata
from svdiff_delta.format.parameter import Parameter

CONV_IN, NORM_OUT, UP = "unet.conv_in.weight", "unet.conv_norm_out.weight", "unet.up.conv.weight"

BASE = '"base":{"components":{"unet":"UNet2DConditionModel"},"repository":"owner/base","revision":"main"}'
COLUMNS = (
    '"parameters":{"dtype":"F16",'
    '"exceptions":{"unet.conv_norm_out.weight":{"dtype":"F32"},"unet.up.conv.weight":{"axis":1}},'
    '"fingerprints":"AAECAwQFBgcICQoLDA0ODw EBESExQVFhcYGRobHB0eHw _____________________w",'
    '"null":{"unet.conv_in.weight":1},'
    '"shapes":"4x3x3x3 2 3x2x2x2",'
    '"tied":{"unet.conv_in.weight":"0-1"}}'
)
TRAINED = (
    "{" + BASE + ',"format":"svdiff-delta",' + COLUMNS + ',"training":{"learning_rate":0.001,'
    '"prompt":"a photo of a ☃","steps":500},"version":1}'
)
TENSORS = (
    '"unet.conv_in.weight":{"data_offsets":[0,16],"dtype":"F32","shape":[4]},'
    '"unet.conv_norm_out.weight":{"data_offsets":[24,28],"dtype":"BF16","shape":[2]},'
    '"unet.up.conv.weight":{"data_offsets":[16,24],"dtype":"F32","shape":[2]}'
)
BODY = struct.pack("<4f2f", 0.5, 0.5, -1.25, 0, 3, 4) + bytes.fromhex("c03f 00c0")  # bfloat16 1.5 and -2


def by_hand(strings: str, tensors: str, body: bytes) -> bytes:
    """Length, header padded with spaces to a multiple of 8, body."""
    header = ('{"__metadata__":{' + strings + "}," + tensors + "}").encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + body


def quoted(document: str) -> str:
    """A document as a string in another: only its quotes need escapes."""
    return '"svdiff":"' + document.replace('"', '\\"') + '"'


GOLDEN = by_hand('"modelspec.title":"Dog",' + quoted(TRAINED), TENSORS, BODY)


def dog() -> Delta:
    """The delta that the golden file holds, made in memory."""
    parameters = {
        UP: Parameter((3, 2, 2, 2), "spectral", 1, "F16", "_____________________w"),
        NORM_OUT: Parameter((2,), "elementwise", 0, "F32", "EBESExQVFhcYGRobHB0eHw"),
        CONV_IN: Parameter((4, 3, 3, 3), "spectral", 0, "F16", "AAECAwQFBgcICQoLDA0ODw", tied=((0, 1),), null=1),
    }
    metadata = Metadata(
        BaseInfo({"unet": "UNet2DConditionModel"}, "owner/base", "main"),
        parameters,
        training={"steps": 500, "prompt": "a photo of a ☃", "learning_rate": 1e-3},
        modelspec={"title": "Dog"},
    )
    values = {UP: [3.0, 4.0], NORM_OUT: [1.5, -2.0], CONV_IN: [0.5, 0.5, -1.25, -0.0]}
    return Delta(values, metadata, dtypes={NORM_OUT: "BF16"})


def test_a_delta_is_written_as_by_hand() -> None:
    assert dumps(dog()) == GOLDEN


def test_a_file_written_by_hand_is_read() -> None:
    delta = loads(GOLDEN)
    assert delta.metadata == dog().metadata
    assert {name: value.tolist() for name, value in delta.items()} == {
        CONV_IN: [0.5, 0.5, -1.25, 0.0],
        NORM_OUT: [1.5, -2.0],
        UP: [3.0, 4.0],
    }


def test_a_sum_is_written_as_by_hand_with_its_lineage() -> None:
    untitled = by_hand(quoted(TRAINED), TENSORS, BODY)
    first, second = (hashlib.sha256(raw).hexdigest() for raw in (GOLDEN, untitled))
    facts = '"training":{"learning_rate":0.001,"prompt":"a photo of a ☃","steps":500}'
    digest = f'"digest":"{hashlib.sha256(BODY).hexdigest()}"'
    entries = [f'"{first}":{{{digest},"title":"Dog",{facts}}}', f'"{second}":{{{digest},{facts}}}']
    lineage = (
        '"lineage":{"arguments":{"weights":[0.5,-2]},"files":{'
        + ",".join(sorted(entries))
        + f'}},"inputs":["{first}","{second}"],"operation":"add"}}'
    )
    document = "{" + BASE + ',"format":"svdiff-delta",' + lineage + "," + COLUMNS + ',"version":1}'
    tensors = (
        '"unet.conv_in.weight":{"data_offsets":[0,16],"dtype":"F32","shape":[4]},'
        '"unet.conv_norm_out.weight":{"data_offsets":[16,24],"dtype":"F32","shape":[2]},'
        '"unet.up.conv.weight":{"data_offsets":[24,32],"dtype":"F32","shape":[2]}'
    )
    merged = '"modelspec.merged_from":"Dog",'
    body = struct.pack("<4f2f2f", -0.75, -0.75, 1.875, 0, -2.25, 3, -4.5, -6)
    assert dumps(add(loads(GOLDEN), loads(untitled), weights=(0.5, -2))) == by_hand(
        merged + quoted(document), tensors, body
    )


def inputs(folder: Path) -> list[Path]:
    """Three files of one base with different parameters, components, extra fields and lineages."""
    extra = {f"field {letter}": letter for letter in "zyxwvu"}
    whole = random_delta(1, replace(METADATA, extra=extra, foreign=extra, modelspec=extra), title="Dog")
    half = random_delta(2, part(METADATA, CONV, QUERY))
    return [
        saved(whole, folder / "whole"),
        saved(half, folder / "half"),
        saved(add(half, whole, weights=(2, 3)), folder / "both"),
    ]


COMMANDS = {
    "add": ["add", "whole:0.3", "both:-0.5", "half", "-o"],
    "interpolate": ["interpolate", "both", "half", "--alpha", "0.3", "-o"],
    "scale": ["scale", "both", "--factor", "0.3", "-o"],
    "slice": ["slice", "both", "unet-ca", "text_encoder.*", "unet-4d", "-o"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_the_same_inputs_give_the_same_bytes_in_every_process(tmp_path: Path, arguments: list[str]) -> None:
    inputs(tmp_path)
    for seed in ("1", "2"):
        outcome = python(SVDIFF, *arguments, f"out{seed}", folder=tmp_path, PYTHONHASHSEED=seed)
        assert (outcome.code, outcome.err.count("error")) == (0, 0), outcome.err
    assert (tmp_path / "out1").read_bytes() == (tmp_path / "out2").read_bytes()
