"""What deltas on a live model of SD 1.5's size cost: attaching, swapping, the forward, memory.

    python benchmarks/live.py [--json FILE] [--folder FOLDER] [--side 32] [--only SECTION ...]

SD 1.5's UNet with random float32 weights and a δ on all its weights; bases in the cache, fingerprints remembered; one
picture of latents of `side`². Seconds are those of the processor, on one thread, so that other work on the machine
counts little. The floors, in the same run: for attaching, reading every basis of the cache with its checksum, and one
product per matrix, each way in processes of its own; for the forward, that of another copy of the model, one by turns
with the other. Beside the floors stands what explains a miss: the floor with bases and products kept, as an attached
delta must keep them, both without the kernel's time, and how many operations a live forward has.

Swaps are the median of 50, each to another delta that was loaded from a file, and of another scale; those of the
embedded base as well. Memory is that of a process of its own: what it has more once the delta is on the model, all
resident pages counted, those of mapped files too, beside what it has with the model alone. The folder (by default a
temporary one) needs 5 GB; `bake.py` makes and takes the same.

The same UNet in bfloat16: attaching live, whose floor is to read every square factor of the cache with its checksum, to
cast it, and to compare every live weight with the file's once, on one thread and in processes of its own; and another
scale of a fused model, by the clock on all threads, whose floor is the two products per matrix on tensors in memory,
one by turns with the other. Memory at rest, and the most while the scale changes, of processes of their own.

Sections: attach, swap, forward, memory, half-attach, half-scale, half-memory; all of them if none is named.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import half, sd15
from common.live_scene import RUNS, Scene
from common.process import Spent, child, spending, spent_by
from torch.utils.flop_counter import FlopCounterMode

from svdiff_delta import Delta, Handle, attach, load, open_base, save, zero_delta
from svdiff_delta.base_model.base import Base
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.cache_entry import read_entry
from svdiff_delta.svd.decomposition import matricize
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.tiny import open_tiny

ATTACH, LIVE, FUSED, MEMORY, SWAP, TINY_SWAP = 1.3, 1.35, 1.0, 1.35, 0.010, 0.001

NOISE = 0.02
"""How far apart two runs of the same forward may be."""

GROWTH = """
import json, sys
from pathlib import Path
from common.process import resident, restart_peak
from diffusers import UNet2DConditionModel
from svdiff_delta import attach, load, open_base
from svdiff_delta.svd import cache

empty = UNet2DConditionModel(block_out_channels=(32, 32, 32, 32))  # loads the libraries
del empty
start = resident()
model = UNet2DConditionModel.from_pretrained(sys.argv[1]).requires_grad_(False)
for parameter in model.parameters():
    parameter.data = parameter.data.clone()  # its own memory, not pages of the file
size = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
plain = resident() - start
restart_peak()
attach(model, load(sys.argv[2]), base=open_base(sys.argv[1]), cache=cache.BasisCache(Path(sys.argv[3])))
peak = resident("VmHWM") - start
print(json.dumps({"model": size, "plain": plain, "attached": resident() - start, "peak": peak}))
"""


WAYS = {"attach": "attach", "floor": "its floor", "kept": "the floor, all of it kept"}
CODES = {
    way: f"import json, sys, live; print(json.dumps(vars(live.attaching({way!r}, *sys.argv[1:]))))" for way in WAYS
}


def seconds(action: Callable[[], object]) -> float:
    """Processor time of one call."""
    begun = time.process_time()
    action()
    return time.process_time() - begun


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def attaching(way: str, folder: str, delta: str) -> Spent:
    """What one of WAYS takes on a model just loaded: attaching, its floor, or the floor with all of it kept."""
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(1)
    base, cache, given = open_base(folder), BasisCache(Path(folder) / "cache"), load(delta)
    model = UNet2DConditionModel.from_pretrained(folder).requires_grad_(False).eval()
    if way != "attach":
        return attach_floor(model, given, cache, keep=way == "kept")
    spent = Spent()
    with spending(spent):
        attach(model, given, base=base, cache=cache)
    return spent


def attach_floor(model: torch.nn.Module, delta: Delta, cache: BasisCache, *, keep: bool) -> Spent:
    """What reading every basis, and one product per matrix, take; `keep` lets both stay in memory, as they must."""
    modules, spent, kept = dict(model.named_modules()), Spent(), []
    for name, parameter in delta.metadata.parameters.items():
        if parameter.kind == "spectral":
            weight: Any = modules[name.removeprefix("unet.").removesuffix(".weight")].weight
            matrix = matricize(weight.detach(), parameter.axis)
            with spending(spent):
                basis = read_entry(cache.path(parameter.fingerprint), parameter.fingerprint, once=False)
                product = basis.factor @ (matrix if basis.left else matrix.T)
            if keep:
                kept.append((basis, product))
    return spent


def swap_time(handle: Handle, deltas: list[Delta], *, times: int = 50) -> tuple[float, float]:
    """Median seconds of a swap and of another scale."""
    swaps = [seconds(partial(handle.swap, deltas[index % 2])) for index in range(times)]
    scales = [seconds(partial(handle.set_scale, 0.5 + index / times)) for index in range(times)]
    return median(swaps), median(scales)


def tiny_swap_time(folder: Path) -> tuple[float, float]:
    """The same on the embedded base."""
    base, cache = open_tiny(), BasisCache(folder / "tiny")
    places = folder / "tiny-deltas"
    places.mkdir()
    zero = zero_delta(base, "unet", cache=cache)
    deltas = []
    for index, size in enumerate((0.01, 0.02)):
        values = {name: np.full(shift.size, size) for name, shift in zero.items()}
        parameters = zero.metadata.parameters
        for name, parameter in parameters.items():
            values[name][parameter.size - parameter.null :] = 0
        save(Delta(values, zero.metadata), places / f"{index}.safetensors")
        deltas.append(load(places / f"{index}.safetensors"))
    with attach(load_pipeline(base), deltas[0], base=base, cache=cache) as handle:
        return swap_time(handle, deltas)


def forwards(
    models: tuple[Any, Any], base: Base, delta: Delta, cache: BasisCache, side: int, rounds: int
) -> tuple[dict[str, float], dict[str, float], float]:
    """Compare forwards of two copies of the model, the second with a delta, one by turns with the other.

    Returns:
        Median ratio of their seconds, and ratio of operations, by mode; and the median seconds of the first.
    """
    latents, states = torch.randn(1, 4, side, side), torch.randn(1, 77, 768)

    def run(model: Any) -> None:
        with torch.no_grad():
            model(latents, 10, states)

    times, operations, plain = {}, {}, []
    whole = counted(partial(run, models[0]))
    for mode in ("live", "fused"):
        with attach(models[1], delta, base=base, cache=cache, mode=mode):
            operations[mode] = counted(partial(run, models[1])) / whole
            pairs = [tuple(seconds(partial(run, model)) for model in models) for _ in range(rounds)]
        times[mode] = median([shifted / own for own, shifted in pairs])
        plain += [own for own, _ in pairs]
    return times, operations, median(plain)


def counted(run: Callable[[], None]) -> int:
    """Operations of products and convolutions; the run also fills what a first one must."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def attach_section(scene: Scene) -> None:
    taken = spent_by(CODES, scene.folder, scene.delta, runs=RUNS, key=lambda run: run.processor)
    spent = {way: runs[RUNS // 2] for way, runs in taken.items()}
    for way, label in WAYS.items():
        scene.notes.append(f"{label:<48}{spent[way]}")
    ratio = spent["attach"].processor / spent["floor"].processor
    scene.rows["attach, of reading the cache and one product"] = (ATTACH, ratio)
    ratio = spent["attach"].processor / spent["kept"].processor
    scene.beside["attach, of the floor with all of it kept"] = ratio
    scene.beside["attach, of the floor, without the kernel's time"] = spent["attach"].user / spent["floor"].user
    scene.figures |= {way: [vars(run) for run in runs] for way, runs in taken.items()}


def swap_section(scene: Scene) -> None:
    with attach(scene.model, scene.deltas[0], base=scene.base, cache=scene.cache) as handle:
        swap, scale = swap_time(handle, scene.deltas)
    tiny, tiny_scale = tiny_swap_time(scene.temporary)
    scene.rows |= {
        "swap, milliseconds": (1e3 * SWAP, 1e3 * swap),
        "another scale, milliseconds": (1e3 * SWAP, 1e3 * scale),
        "swap on the embedded base, milliseconds": (1e3 * TINY_SWAP, 1e3 * tiny),
        "another scale there, milliseconds": (1e3 * TINY_SWAP, 1e3 * tiny_scale),
    }


def forward_section(scene: Scene) -> None:
    from diffusers import UNet2DConditionModel

    models = scene.model, UNet2DConditionModel.from_pretrained(scene.folder).requires_grad_(False).eval()
    forward, operations, plain = forwards(models, scene.base, scene.deltas[0], scene.cache, scene.side, scene.rounds)
    scene.notes.append(f"forward {plain:.1f} s")
    scene.rows["live forward, of the base's"] = (LIVE, forward["live"])
    scene.rows["fused forward, of the base's"] = (FUSED + NOISE, forward["fused"])
    scene.beside["operations of a live forward, of the base's"] = operations["live"]


def memory_section(scene: Scene) -> None:
    memory = child(GROWTH, scene.folder, scene.delta, scene.folder / "cache")
    scene.rows["memory with a delta, of the model's"] = (MEMORY, memory["attached"] / memory["plain"])
    scene.rows["the most on the way, of the model's"] = (MEMORY, memory["peak"] / memory["plain"])
    scene.figures |= memory


SECTIONS: dict[str, Callable[[Scene], None]] = {
    "memory": memory_section,
    "attach": attach_section,
    "swap": swap_section,
    "forward": forward_section,
    "half-attach": half.attach_section,
    "half-scale": half.scale_section,
    "half-memory": half.memory_section,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where weights and cache lie or are made")
    parser.add_argument("--side", type=int, default=32, help="of the latents")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of forwards in each mode")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to measure")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        os.environ["SVDIFF_HOME"] = name  # fingerprints are remembered there
        folder = sd15.folder_of(arguments.folder, Path(name))
        scene = Scene(folder, Path(name), arguments.side, arguments.rounds)
        for section, measure in SECTIONS.items():
            if section in arguments.only:
                measure(scene)
    print("\n".join(scene.notes))
    print(f"medians of {RUNS}; one thread where no number is named")
    print(f"{'':<48}{'limit':>14}{'measured':>14}")
    for label, (limit, value) in scene.rows.items():
        print(f"{label:<48}{limit:>14.2f}{value:>14.2f}")
    for label, value in scene.beside.items():
        print(f"{label:<48}{'':>14}{value:>14.2f}")
    figures = {label: value for label, (_, value) in scene.rows.items()} | scene.beside
    sd15.save_figures(arguments.json, figures | scene.figures)
    sys.exit(0 if all(value <= limit for limit, value in scene.rows.values()) else 1)


if __name__ == "__main__":
    main()
