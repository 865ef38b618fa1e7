"""Random delta files and operations for the second implementation of the format, which is in `js/`.

Each case depends on a seed and its number. What this library makes of it is written beside its inputs, from which
`js/test/cases.mjs` does the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.deltas import allowed, fingerprint
from support.mutants import mutant

from svdiff_delta.errors import DeltaError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import LARGEST, StoredDtype, encode
from svdiff_delta.format.file import dumps, loads
from svdiff_delta.format.lineage import Record
from svdiff_delta.format.metadata import BaseInfo, Metadata
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.ops.replay import perform
from svdiff_delta.selectors.addresses import Layout

Case = dict[str, Any]
Drawn = Callable[[random.Random], tuple[str, int, dict[str, Any]]]

VECTORS = Path(__file__).parents[2] / "spec" / "v1" / "vectors" / "operations"

STORED: Sequence[StoredDtype] = ("F32", "F16", "BF16", "I8")
SHAPES: Mapping[str, tuple[int, ...]] = {
    "model.layers.0.mlp.experts.gate_up_proj[0]": (12, 9),
    "model.layers.0.mlp.experts.gate_up_proj[17]": (12, 9),
    "text_encoder.encoder.layers.0.self_attn.q_proj.weight": (16, 16),
    "text_encoder_2.final_layer_norm.weight": (200,),
    "unet.conv_in.weight": (6, 2, 3, 3),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (70, 90),
    "unet.down_blocks.0.resnets.0.conv1.weight": (5, 3, 3),
    "unet.down_blocks.1.resnets.0.norm1.weight": (130,),
    "unet.mid_block.attentions.0.norm.weight": (5,),
    "unet.mid_block.resnets.1.conv2.weight": (4, 4, 1, 1),
    "unet.up_blocks.0.resnets.0.conv1.weight": (8, 4),
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0.weight": (140, 128),
}
FAMILIES: Mapping[str, tuple[int, ...]] = {
    name: parameter.shape
    for file in ("flux", "joint", "language")
    for name, parameter in loads((VECTORS / f"{file}.safetensors").read_bytes()).metadata.parameters.items()
} | {
    f"model.{where}{module.rjust(length, '_')}.weight": (3, 2)
    for where, module in (("", "attn"), ("attn.", "k"), ("0.", "_mlp"))
    for length in (255, 256)
} | {f"model.layers.{'1' * digits}.weight": (2,) for digits in (3, 9, 10)}  # fmt: skip
"""Names of many families, which selectors tell by part, and those that are as long as what is told may be."""

ALL = {**FAMILIES, **SHAPES}
PARTS = ("attn", "ca", "kv", "ca-kv", "mlp", "experts", "conv", "1d", "2d", "4d")
COMPONENTS = ("unet", "transformer", "text", "text-1", "text-2", "text-3", "transformer_2", "model", "Bert", "prior")

SELECTORS = (
    "unet", "unet-ca", "unet-ca-kv", "UNET-1d", "unet-2d", "unet-4d", "up", "down", "mid", "up-ca", "down-ca",
    "mid-ca", "text", "text-1", "text-2-1d", "1d", "2d", "4d", "conv", "unet-conv", "model", "model-experts",
    "experts", "down.0", "up.1", "down.3", "(8,down,0)", "(4,down,0)", "( 8 , 'up' ,0)", "(8,down,0)-(8,up,0)",
    "(4,down,0)-(8,down,0)", "*.weight", "unet.*[!k].weight", "*.[a-c]*", "*[[]0]", "*].weight", "*[", "!mid",
    "!text", "!unet.conv_in.weight", "unet.conv_in.weight", "unet.*.?esnets.*", "nothing", "transformer",
    "text_encoder_2", "*[z-a]*", "*[]q]*", "(64,down,0)", "(8,DOWN,0)", "up-1d", "text-3",
    "block.\u0663", "down.\u0660", "(\u0668,down,0)", "(8,\tdown,0)", "up.000", "block.1000",
    "\u212av", "attn-mlp", "transformer-", "-attn", "text-block", "block.0-block.1", "up-block.1", "up-ca-block.0",
    "text_encoder-attn", "MODEL", "transformer_3-attn",
)  # fmt: skip
COMMON = (
    "*.weight",
    "unet",
    "1d",
    "2d",
    "*",
    "!4d",
    "!up",
    "!text",
    "conv",
    "*t*",
    "unet.[a-d]*",
    "*norm*",
    "attn",
    "kv",
    "block.0",
    "block.0-9",
    "!mlp",
)
"""Selectors that name something in most deltas here."""

OPERATIONS = [*["add"] * 3, "interpolate", "scale", "slice", "slice", "truncate", "quantize", "merge", "merge"]
TITLES = ("", "Dog", "Cat", "a, b", "Zürich – 東京 𝔸", 'quote " and \\', "tab\tand\nline")
JSONS: Sequence[Any] = (
    {}, {"seed": 0, "steps": 500}, {"prompt": "a photo of a sks dog", "rate": 1e-7, "list": [1, 2.5, None, True, []]},
    {"deep": [[[{"a": 1e21}]]], "é": -0.5, "\U0001f600": 1e300, "\ue000": 0.1},
)  # fmt: skip


def draw_parameter(draw: random.Random, name: str, base: int) -> Parameter:
    """Return what a file says of a parameter: inputs of one base agree about it, but for runs and the basis dtype."""
    fixed = random.Random(f"{name} {base}")
    shape, axis = ALL[name], 0
    kind = "elementwise" if len(shape) == 1 or (len(shape) == 3 and fixed.random() < 0.5) else "spectral"
    if kind == "spectral":
        axis = fixed.randrange(min(2, len(shape)))
    dtype = draw.choice(["F16", "F16", "BF16", "F32"])
    plain = Parameter(shape, kind, axis, dtype, fingerprint(fixed.randrange(1 << 30)))
    if kind == "elementwise" or draw.random() < 0.4:
        return plain
    null = draw.choice([0, 0, 1, 2, plain.size])
    runs, index = [], 0
    while (index := index + draw.randrange(4)) < plain.size - null - 1:
        last = min(plain.size - null - 1, index + draw.randrange(1, 6))
        runs.append((index, last))
        index = last + 1
    return Parameter(shape, kind, axis, dtype, plain.fingerprint, tuple(runs), null)


def draw_values(draw: random.Random, parameter: Parameter, dtype: StoredDtype) -> NDArray[np.float64]:
    """Return values of any size, with equal ones, zeros and ends of the format among them."""
    numbers = np.random.default_rng(draw.randrange(1 << 30))
    values = numbers.standard_normal(parameter.size) * 10.0 ** draw.choice([-9, -5, -2, -1, -1, 0, 0, 2])
    if draw.random() < 0.3:
        values = np.round(values, 1)
    if draw.random() < 0.2:
        values *= 10.0 ** numbers.integers(-30, 3, parameter.size)
    if draw.random() < 0.1:
        values[numbers.random(parameter.size) < 0.2] = LARGEST[dtype] * draw.choice([1, -1, 0.5])
    values[numbers.random(parameter.size) < draw.choice([0, 0.2, 1 if draw.random() < 0.1 else 0])] = 0
    return np.clip(values, -LARGEST[dtype], LARGEST[dtype])


def draw_delta(draw: random.Random, base: int) -> Delta:
    """Return a delta with whatever a file can hold."""
    pool = [*draw.choice([SHAPES, FAMILIES])]
    names = sorted(draw.sample(pool, draw.randrange(1, min(len(pool), 20) + 1)))
    parameters = {name: draw_parameter(draw, name, base) for name in names}
    stored = {}
    for name, parameter in parameters.items():
        dtype = draw.choice(STORED)
        values = draw_values(draw, parameter, dtype)
        stored[name] = encode(values if dtype == "I8" else allowed(parameter, values), dtype)
    components = {name.partition(".")[0]: draw.choice(["", "SomeModel", "Other"]) for name in names}
    layout = draw.choice([None, Layout((1, 1), 1, (1, 1)), Layout((1, 0), 1, (0, 1))])
    info = BaseInfo(
        components | ({"vae": "AutoencoderKL"} if draw.random() < 0.3 else {}),
        draw.choice([None, "owner/base", "base"]),
        draw.choice([None, "main", "v1.0"]),
        draw.choice([None, 8, 8, 16, 17]),
        layout,
        draw.choice([{}, {"dequantized": {"scheme": "GGUF"}}, {"x": 1.5}]),
    )
    spec = {} if draw.random() < 0.3 else {"title": draw.choice(TITLES)}
    spec |= draw.choice([{}, {"author": "A"}, {"author": "B", "hash_sha256": ""}, {"merged_from": "x, y"}])
    return Delta.from_stored(
        stored,
        Metadata(
            info,
            parameters,
            None,
            draw.choice([None, *JSONS]),
            spec,
            draw.choice([{}, {"org.example.note": draw.choice(JSONS)}, {"org.example.other": [1, "x"]}]),
            draw.choice([{}, {"format": "pt"}, {"format": "np", "note": "ü\u2028"}]),
        ),
    )


def draw_number(draw: random.Random) -> float:
    """Return a weight: mostly small ones, now and then one that is too large."""
    odd = draw.choice([1e-30, 1e30, 1e300]) if draw.random() < 0.05 else draw.gauss(0, 1)
    return draw.choice([0, 1, -1, 0.5, 2, 0.1, -0.3, odd, odd])


def draw_selector(draw: random.Random) -> str:
    """Return a selector: mostly one that names something."""
    if draw.random() < 0.1:
        return draw_part(draw)
    return draw.choice(COMMON if draw.random() < 0.8 else SELECTORS)


def draw_part(draw: random.Random) -> str:
    """Return a selector by part or block, or by both, of one component or of all."""
    first = draw.randrange(3)
    block = f"block.{first}" if draw.random() < 0.5 else f"block.{first}-{first + draw.randrange(12)}"
    part = draw.choice([draw.choice(PARTS[:5]), draw.choice(PARTS), block, block])
    if draw.random() < 0.3:
        part = f"{draw.choice(COMPONENTS)}-{part}"
    if draw.random() < 0.1:
        part += f"-{block}"
    return draw.choice(["", "", "", "!"]) + draw.choice([part, part, part.upper()])


def draw_weights(draw: random.Random, count: int) -> list[Any]:
    """Return weights of inputs, numbers and such that differ by selector."""

    def one() -> Any:
        if draw.random() < 0.7:
            return draw_number(draw)
        where = {draw_selector(draw): draw_number(draw) for _ in range(draw.randrange(3))}
        return {"default": draw_number(draw), "where": [[key, value] for key, value in where.items()]}

    return [one() for _ in range(count if draw.random() < 0.95 else count + 1)]


def draw_slice(draw: random.Random) -> tuple[str, int, dict[str, Any]]:
    """Return a slice by a selector that tells parts, or by two."""
    return "slice", 1, {"selectors": [draw_part(draw) for _ in range(draw.choice([1, 1, 1, 2]))]}


def draw_operation(draw: random.Random) -> tuple[str, int, dict[str, Any]]:
    """Return an operation, how many inputs it gets, and its arguments."""
    operation = draw.choice(
        ["add", "add", "add", "interpolate", "scale", "slice", "slice", "truncate", "quantize", "merge", "merge"]
    )
    count = {"add": draw.randrange(1, 5), "merge": draw.randrange(1, 5), "interpolate": 2}.get(operation, 1)
    arguments: dict[str, Any] = {}
    match operation:
        case "add":
            arguments["weights"] = draw_weights(draw, count)
        case "interpolate":
            arguments["alpha"] = draw.choice([0, 1, 0.1, 0.5, draw.random(), draw.random(), 1.5])
        case "scale":
            arguments["factor"] = draw_number(draw)
        case "slice":
            arguments["selectors"] = [draw_selector(draw) for _ in range(draw.choice([0, 1, 1, 2, 2, 3, 3, 3]))]
        case "truncate":
            arguments |= draw.choice(
                [{"rank": draw.randrange(80)}, {"energy": draw.choice([0.5, 0.9, 1, draw.random(), 1.1])}]
            )
        case "quantize":
            arguments |= {
                "dtype": draw.choice(STORED),
                "max_error": draw.choice([0, 1e-4, 0.002, 0.02, 1, 1e-3 * draw.random()]),
            }
        case _:
            method = draw.choice(["linear", "magnitude", "ties", "dare_linear", "dare_ties", "slerp"])
            arguments |= {"method": method}
            if method == "slerp":
                count = 2 if draw.random() < 0.95 else count
                arguments["alpha"] = draw.choice([0, 1, 0.5, draw.random(), draw.random(), 1e-20 * draw.random(), 1.5])
            else:
                arguments["weights"] = draw_weights(draw, count)
            if method not in ("linear", "slerp"):
                arguments["density"] = draw.choice(
                    [0.5, 0.25, 1, draw.random(), draw.random(), draw.randrange(100) / 100, 0.001, 0]
                )
            if method.startswith("dare") and draw.random() < 0.8:
                arguments["seed"] = draw.choice([0, 7, draw.randrange(1 << 53), (1 << 53) - 1])
    if operation in ("add", "interpolate", "scale", "merge") and draw.random() < 0.5:
        arguments["dtype"] = draw.choice(STORED)
    if operation in ("add", "merge", "slice") and draw.random() < 0.3:
        arguments["sample_size"] = draw.choice([8, 8, 8, 16, 16, 0])
    return operation, count, arguments


def calculated(operation: str, arguments: Mapping[str, Any], inputs: Sequence[bytes], title: str | None) -> bytes | str:
    """Return the file that this library makes, or the class of its refusal."""
    try:
        result = perform(Record(operation, arguments), [loads(raw) for raw in inputs])
        return dumps(result if title is None else result.with_title(title))
    except DeltaError as error:
        return type(error).__name__


def write_operations(folder: Path, seed: str, count: int, drawn: Drawn = draw_operation) -> list[Case]:
    """Write `count` random operations and their inputs into a folder, and what this library makes of them."""
    draw = random.Random(seed)
    pool: dict[int, list[bytes]] = {0: [], 1: []}
    cases: list[Case] = []
    for number in range(count):
        base = 0 if draw.random() < 0.9 else 1
        pool[base].append(dumps(draw_delta(draw, base)))
        operation, wanted, arguments = drawn(draw)
        strange = pool[1 - base][-1:] if draw.random() < 0.03 else []
        near = [*pool[base][-8:], *strange]
        inputs = [draw.choice(near) for _ in range(wanted)]
        title = draw.choice([None, None, "New", *TITLES[3:]])
        result = calculated(operation, arguments, inputs, title)
        for place, raw in enumerate(inputs):
            (folder / f"{number}-{place}").write_bytes(raw)
        case: Case = {
            "number": number,
            "operation": operation,
            "inputs": len(inputs),
            "arguments": arguments,
            "title": title,
            "any": bool(strange),  # of several reasons for a refusal each implementation names one
        }
        cases.append(case | ({"error": result} if isinstance(result, str) else {}))
        if isinstance(result, bytes):
            (folder / f"{number}-result").write_bytes(result)
            if draw.random() < 0.5 and not strange:
                pool[base].append(result)
    (folder / "cases.json").write_text(json.dumps(cases), "utf-8")
    return cases


def write_files(folder: Path, seed: int, count: int) -> list[str]:
    """Write `count` files, valid and broken, into a folder; return what this library refuses each with, or nothing."""
    refusals = []
    for number in range(count):
        _, raw = mutant(seed, number)
        (folder / f"{number}").write_bytes(raw)
        try:
            delta = loads(raw)
            for name in delta:
                delta[name]
            (folder / f"{number}-result").write_bytes(dumps(delta))
            refusals.append("")
        except DeltaError as error:
            refusals.append(type(error).__name__)
    (folder / "files.json").write_text(json.dumps(refusals), "utf-8")
    return refusals
