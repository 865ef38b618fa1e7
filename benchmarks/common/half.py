"""What a model of SD 1.5's size in bfloat16 costs with a delta: attaching it, and changing the scale of a fused one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdiff_delta import Delta, attach, load, open_base
from svdiff_delta.base_model.base import Base
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.cache_entry import read_entry
from svdiff_delta.svd.decomposition import Basis, matricize
from svdiff_delta.svd.side_by_side import run_costliest_first

from .live_scene import RUNS, Scene
from .process import Spent, child, resident, restart_peak, spending, spent_by

HALF = torch.bfloat16
ATTACH, SCALE, MEMORY = 1.15, 1.15, 1.35

CODES = {
    way: f"import json, sys; from common import half; print(json.dumps(vars(half.attaching({way!r}, *sys.argv[1:]))))"
    for way in ("attach", "floor")
}
SCALING = "import json, sys; from common import half; print(json.dumps(half.scaling(*sys.argv[1:])))"
GROWTH = """
import json, sys
from common import half
print(json.dumps(half.growth(*sys.argv[1:3], fused=sys.argv[3] == "fused")))
"""


def half_model(folder: str) -> Any:
    """The UNet in bfloat16, in memory of its own."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(folder, torch_dtype=HALF).requires_grad_(False).eval()


def attaching(way: str, folder: str, delta: str, threads: int = 1) -> Spent:
    """What attaching to a model just loaded takes ("attach"), or its floor."""
    torch.set_num_threads(threads)
    base, cache, given = open_base(folder), BasisCache(Path(folder) / "cache"), load(delta)
    model, spent = half_model(folder), Spent()
    with spending(spent):
        kept = attach(model, given, base=base, cache=cache) if way == "attach" else floor(model, given, base, cache)
    del kept
    return spent


def floor(model: Any, delta: Delta, base: Base, cache: BasisCache) -> dict[str, Tensor | None]:
    """Read every square factor with its checksum, cast and keep it; compare every live weight with the file's.

    Shared out to threads as attaching is.
    """
    modules, parameters = dict(model.named_modules()), delta.metadata.parameters

    def read(name: str, wait: bool) -> Tensor | None:  # noqa: ARG001
        live: Tensor = modules[name.removeprefix("unet.").removesuffix(".weight")].weight
        assert torch.equal(live, base.read(name).to(HALF))
        if parameters[name].kind == "elementwise":
            return None
        key = parameters[name].fingerprint
        return read_entry(cache.path(key), key, once=False).factor.to(HALF)

    return run_costliest_first({name: base.read(name).numel() for name in parameters}, read)


def scaling(folder: str, delta: str, rounds: int = 3) -> dict[str, Any]:
    """Seconds by the clock of a change of scale of a fused model, and of its bare products, one by turns.

    Returns:
        Medians: "scale"; "products", on tensors in memory, each on all threads; "shared", the same on one thread each,
        as many at once as there are threads; and the number of threads.
    """
    base, cache, given = open_base(folder), BasisCache(Path(folder) / "cache"), load(delta)
    threads, times = torch.get_num_threads(), {"scale": [], "products": [], "shared": []}  # type: ignore[var-annotated]
    handle = attach(half_model(folder), given, base=base, cache=cache, mode="fused")
    for index in range(rounds):
        times["scale"].append(clocked(lambda: handle.set_scale(0.5 + 0.1 * index)))  # noqa: B023
        for way in ("products", "shared"):
            times[way].append(products(base, given, cache, shared=way == "shared"))
    return {way: sorted(taken)[rounds // 2] for way, taken in times.items()} | {"threads": threads}


def products(base: Base, delta: Delta, cache: BasisCache, *, shared: bool) -> float:
    """Seconds of the two products of every matrix; what they are made of is brought into memory before, in parts."""
    taken, parts, room = 0.0, dict[str, tuple[Basis, Tensor]](), 1 << 28
    names = [name for name, parameter in delta.metadata.parameters.items() if parameter.kind == "spectral"]
    for name in sorted(names, key=lambda name: -base.read(name).numel()):
        parameter = delta.metadata.parameters[name]
        basis = read_entry(cache.path(parameter.fingerprint), parameter.fingerprint)
        matrix = matricize(base.read(name), parameter.axis)
        parts[name] = basis, (matrix if basis.left else matrix.T).clone()
        room -= matrix.numel()
        if room < 0:
            taken, parts, room = taken + both(parts, shared=shared), {}, 1 << 28
    return taken + both(parts, shared=shared)


def both(parts: dict[str, tuple[Basis, Tensor]], *, shared: bool) -> float:
    """Seconds of the products of some matrices, into memory that is used again."""
    largest = max(work.numel() for _, work in parts.values())
    spaces = [(torch.ones(largest), torch.ones(largest)) for _ in range(torch.get_num_threads() if shared else 1)]
    factors = {name: basis.factor.clone() for name, (basis, _) in parts.items()}

    def multiply(name: str, wait: bool = True) -> None:  # noqa: ARG001
        space, work = spaces.pop(), parts[name][1]
        first, second = (memory[: work.numel()].view(work.shape) for memory in space)
        torch.mm(factors[name], work, out=first)
        torch.mm(factors[name].T, first, out=second)
        spaces.append(space)

    if shared:
        costs = {name: work.shape[0] * work.numel() for name, (_, work) in parts.items()}
        return clocked(lambda: run_costliest_first(costs, multiply))

    def each() -> None:
        for name in parts:
            multiply(name)

    return clocked(each)


def clocked(action: Callable[[], object]) -> float:
    """Seconds of one call by the clock."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def growth(folder: str, delta: str, *, fused: bool) -> dict[str, int]:
    """Bytes of a model and of what it has with a delta, at rest, and at most while its scale changes."""
    from diffusers import UNet2DConditionModel

    empty = UNet2DConditionModel(block_out_channels=(32, 32, 32, 32))  # loads the libraries
    del empty
    base, cache, given = open_base(folder), BasisCache(Path(folder) / "cache"), load(delta)
    start = resident()
    model = half_model(folder)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # its own memory, not pages of the file
    plain = sum(parameter.nbytes for parameter in model.parameters())
    handle = attach(model, given, base=base, cache=cache, mode="fused" if fused else "live")
    attached = resident() - start
    restart_peak()
    handle.set_scale(0.5)
    return {"plain": plain, "attached": attached, "scaled": resident("VmHWM") - start}


def attach_section(scene: Scene) -> None:
    taken = spent_by(CODES, scene.folder, scene.delta, runs=RUNS, key=lambda run: run.processor)
    spent = {way: runs[RUNS // 2] for way, runs in taken.items()}
    for way, run in spent.items():
        scene.notes.append(f"{'bfloat16, ' + way:<48}{run}")
    ratio = spent["attach"].processor / spent["floor"].processor
    scene.rows["bfloat16: attach, of reading what it must"] = (ATTACH, ratio)
    scene.figures |= {f"half {way}": [vars(run) for run in runs] for way, runs in taken.items()}


def scale_section(scene: Scene) -> None:
    spent = child(SCALING, scene.folder, scene.delta)
    for way in ("scale", "products", "shared"):
        taken = f"{spent[way]:.1f} s by the clock, {spent['threads']} threads"
        scene.notes.append(f"{'bfloat16, fused, ' + way:<48}{taken}")
    scene.rows["bfloat16: another scale, fused, of its products"] = (SCALE, spent["scale"] / spent["products"])
    scene.beside["the same, of products on one thread each"] = spent["scale"] / spent["shared"]
    scene.figures["half scale"] = spent


def memory_section(scene: Scene) -> None:
    for mode in ("live", "fused"):
        memory = child(GROWTH, scene.folder, scene.delta, mode)
        at_rest, most = memory["attached"] / memory["plain"], memory["scaled"] / memory["plain"]
        scene.rows[f"bfloat16: memory with a delta, {mode}"] = (MEMORY, at_rest)
        scene.rows[f"bfloat16: the most while scaled, {mode}"] = (MEMORY, most)
        scene.figures[f"half memory, {mode}"] = memory
