"""`svdiff what` over 10,000 headers: a folder of downloads described, beside reading and parsing the same headers.

    python benchmarks/what.py [--json FILE] [--files N] [--rounds N]

The files are LoRA, DoRA, LoHa and LoKr of six families in four spellings, of ranks 4 to 128, with metadata as
trainers write them; their data are holes, which nothing reads. The floor opens each file, reads its header and calls
`json.loads` on it. Both run on one thread and take turns after a round to warm up; figures are medians of wall time.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from statistics import median

from svdiff_delta.adapters.places import look
from svdiff_delta.format.container import header_bytes

LIMIT = 2.0
"""Times reading and parsing."""

LAYERS = {
    "lora_unet_double_blocks_{}_img_attn_qkv": (3072, 9216),
    "lora_unet_down_blocks_1_attentions_{}_transformer_blocks_0_attn2_to_k": (768, 640),
    "transformer.transformer_blocks.{}.attn.to_q": (3072, 3072),
    "diffusion_model.layers.{}.attention.qkv": (3840, 11520),
    "diffusion_model.blocks.{}.self_attn.q": (1536, 1536),
    "lora_unet_transformer_blocks_{}_img_mlp_net_0_proj": (3072, 12288),
}
BLOCKS = 40
METHODS = ("LoRA", "DoRA", "LoHa", "LoKr")
METADATA = {"ss_network_module": "networks.lora", "ss_base_model_version": "x", "modelspec.title": "a file", "note": ""}

Tensors = list[tuple[str, str, tuple[int, ...]]]


def tensors(layer: str, sides: tuple[int, int], method: str, rank: int) -> Tensors:
    """Return the tensors of a file: names, formats and shapes."""
    found: Tensors = []
    columns, rows = sides
    for block in range(BLOCKS):
        name = layer.format(block)
        if method == "LoHa":
            halves = {"a": (rows, rank), "b": (rank, columns)}
            found += [(f"{name}.hada_w{i}_{half}", "F16", shape) for i in (1, 2) for half, shape in halves.items()]
        elif method == "LoKr":
            found += [(f"{name}.lokr_w1", "F16", (16, 16)), (f"{name}.lokr_w2", "F16", (rows // 16, columns // 16))]
        else:
            found += [
                (f"{name}.lora_down.weight", "BF16", (rank, columns)),
                (f"{name}.lora_up.weight", "BF16", (rows, rank)),
            ]
        found += [(f"{name}.dora_scale", "F32", (rows, 1))] if method == "DoRA" else []
        found.append((f"{name}.alpha", "F32", ()))
    return found


def write(folder: Path, count: int) -> None:
    """Write the files, ten folders of them."""
    draw, widths = random.Random(0), {"F32": 4, "F16": 2, "BF16": 2}
    for index in range(count):
        layer, sides = draw.choice([*LAYERS.items()])
        entries = tensors(layer, sides, draw.choice(METHODS), draw.choice((4, 8, 16, 32, 64, 128)))
        draw.shuffle(entries)
        head = header_bytes(entries, {**METADATA, "note": f"{index} " * draw.randrange(200)})
        path = folder / f"{index % 10}" / f"{index}.safetensors"
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as stream:
            stream.write(head)
            stream.truncate(len(head) + sum(widths[dtype] * prod(shape) for _, dtype, shape in entries))


def floor(folder: Path) -> int:
    """Read and parse every header."""
    found = 0
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as stream:
            found += len(json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0])))
    return found


def describe(folder: Path) -> int:
    """Describe every file as the command does."""
    return sum(described.layers for described in look(str(folder)) if not described.error)


def times(run: Callable[[Path], int], folder: Path) -> float:
    """Wall time."""
    begun = time.perf_counter()
    run(folder)
    return time.perf_counter() - begun


def lines(taken: dict[str, list[float]], count: int) -> Iterator[str]:
    """Yield what is printed."""
    yield f"{f'seconds for {count:,} headers, one thread':<42}{'median':>8}{'best':>8}{'ratio':>8}{'limit':>8}"
    base = median(taken["json.loads of each"])
    for label, values in taken.items():
        ratio = median(values) / base
        verdict = (
            f"{ratio:>8.2f}{LIMIT:>8.2f}  {'met' if ratio <= LIMIT else 'MISSED'}" if label == "svdiff what" else ""
        )
        yield f"{label:<42}{median(values):>8.3f}{min(values):>8.3f}{verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    taken: dict[str, list[float]] = {"svdiff what": [], "json.loads of each": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, arguments.files)
        if describe(folder) != BLOCKS * arguments.files:
            sys.exit("error: not every layer was found")
        for _ in range(arguments.rounds):
            taken["svdiff what"].append(times(describe, folder))
            taken["json.loads of each"].append(times(floor, folder))
    print("\n".join(lines(taken, arguments.files)))
    ratio = median(taken["svdiff what"]) / median(taken["json.loads of each"])
    if arguments.json:
        arguments.json.write_text(json.dumps({"limit": LIMIT, "ratio": ratio, "seconds": taken}, indent=2) + "\n")
    sys.exit(0 if ratio <= LIMIT else 1)


if __name__ == "__main__":
    main()
