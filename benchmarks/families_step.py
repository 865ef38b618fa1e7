"""One training step of each family's denoiser, beside PEFT's LoRA on the same layers.

    python benchmarks/families_step.py [--json FILE] [--folder FOLDER] [--repeats 41] [--flux-repeats 5] [--only NAMES]

Denoisers are those of the tests' tiny pipelines, of their real classes a few channels wide, on one sample with 1
thread; and one double and one single block of Flux at its real widths (3072, 24 heads of 128), on 1,024 tokens, half of
them a picture's and half a text's, with 2 threads. All in float32 with random weights, on the CPU. What a denoiser is
called with is taken from a prediction of its family; of two experts both are called.

Both ways train on the same layers, all with singular values that LoRA can have: δ as our trainer does it (`attach` with
trainable δ, one flat parameter), and PEFT's LoRA of rank 4. A step is prediction, mean square error, backward pass and
fused AdamW. Steps are taken by turns, and medians count.

The floor is LoRA's step. The limit is on the ratio of times over the ratio of operations: products, convolutions and
attention, forward and backward, as torch counts them.

The folder (by default a temporary one) needs 3 GB for Flux, and making its bases takes ten minutes. A tiny model
computes next to nothing, so its time is what dispatching operations takes: `benchmarks/dispatched.py` counts those.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest.mock import patch

import torch
from common import flux, sd15
from quantized_training import ATTENTION, RANK, TOKENS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.models import live_zero
from support.pipelines import PIPELINES
from support.recorded_pipelines import BUILDERS
from support.recorded_truth import shape_of
from support.seeing_pipelines import MASKED, SEEING, wan_image
from support.weights import normal

from svdiff_delta import attach, open_base, select, zero_delta
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.families import family_of
from svdiff_train.families.recording import first_of

LIMIT: Final = 1.1
"""On the ratio of times, of the ratio of operations."""

WAYS: Final = ("svdiff", "lora")

TINY: Final[Mapping[str, Callable[[], Any]]] = {
    **{f"tiny {name}": make for name, make in PIPELINES.items()},
    **{f"tiny {name}": make for name, make in BUILDERS.items() if name != "Wan with UniPC"},  # Wan 2.1's denoiser
    **{f"tiny {name}": make for name, make in SEEING.items()},
    "tiny Wan from a picture": wan_image,
}
"""How pipelines are made."""

FLUX: Final = "Flux.1 double and single block"

EDITED: Final = (32, 64)
"""Height and width of what Qwen-Image-Edit changes: multiples of 32."""

TIMES: Final = (950.0, 300.0)
"""Timesteps at which a prediction is asked for; where there are two experts, each has one of them."""


class Call(NamedTuple):
    """How a denoiser is called.

    Attributes:
        slot: of the denoiser.
        model: itself.
        args: its arguments.
        given: those by name.
    """

    slot: str
    model: Any
    args: tuple[Any, ...]
    given: dict[str, Any]


class Way(NamedTuple):
    """A step that is measured.

    Attributes:
        step: takes one.
        trained: how many numbers it trains.
    """

    step: Callable[[], None]
    trained: int


class Found(NamedTuple):
    """What was measured of a way.

    Attributes:
        seconds: the median of a step.
        operations: of a step.
        trained: numbers.
    """

    seconds: float
    operations: int
    trained: int


def told(name: str, family: Any) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """Return the shape of one sample's latents, and what a family's denoiser is told beside them."""
    family.prepare()
    if hasattr(family, "frames"):
        family.frames = 1 + family.frame_unit
    shape = shape_of(name, family)
    found = {**family.encode_prompts(["a cat"]), "sizes": torch.zeros(1, 6)}
    if family.companion is not None:
        height, width = EDITED if name == "Qwen-Image-Edit" else (3 * family.unit, 2 * family.unit)
        shape = family.latent_shape(height, width)
        pixels = normal(1, 3, height, width).clamp(-1, 1)
        beside = (pixels[:, :1] > 0).float() if name in MASKED else pixels
        found |= family.see(pixels, beside, "a cat")
    return shape, found


def calls_of(name: str, pipeline: Any) -> list[Call]:
    """Return how a pipeline's denoisers are called when its family asks for predictions."""
    family, found = family_of(pipeline), list[Call]()
    shape, beside = told(name, family)
    latents = normal(1, *shape, seed=1)
    with torch.no_grad():
        for time_ in TIMES[: len(family.slots)]:
            family.settle(latents, family.join([beside]))  # before anything looks on
            hooks = [
                getattr(pipeline, slot).register_forward_pre_hook(partial(_note, found, slot), with_kwargs=True)
                for slot in family.slots
            ]
            family.predict(family.denoiser, latents, torch.tensor([time_]), family.join([beside]))
            for hook in hooks:
                hook.remove()
    return found


@contextmanager
def seen_small() -> Iterator[None]:
    """Let Qwen-Image-Edit's text encoder see a small picture: the denoiser is what is measured."""
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit as module

    from svdiff_train.families import qwen_image_edit

    height, width = EDITED
    with (
        patch.object(module, "calculate_dimensions", lambda *_: (width, height, None)),
        patch.object(qwen_image_edit, "AREA", height * width),
    ):
        yield


def _note(found: list[Call], slot: str, model: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
    found.append(Call(slot, model, args, given))


def layers_of(model: nn.Module) -> list[str]:
    """Return the names of a model's layers that both ways can train: LoRA's rank is a multiple of their groups."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, kinds) and RANK % getattr(layer, "groups", 1) == 0
    ]


def with_delta(calls: list[Call], base: Any = None, cache: BasisCache | None = None) -> list[Tensor]:
    """Put δ = 0 on the layers of all denoisers; return what is trained."""
    found: list[Tensor] = []
    for model in {id(call.model): call.model for call in calls}.values():
        zero = live_zero(model) if base is None else zero_delta(base, "2d", cache=cache)
        slot = next(iter(zero)).partition(".")[0]
        names = [f"{slot}.{name}.weight" for name in layers_of(model)]
        if left := {*names} - {*zero}:
            raise SystemExit(f"{type(model).__name__}: not shifted: {', '.join(sorted(left))}")
        handle = attach(model, select(zero, *names), base=base, cache=cache, trainable=True)
        found += handle.flat_parameters().values()
        _KEPT.append(handle)
    return found


_KEPT: list[Any] = []
"""Handles, for as long as their models are used."""


def with_lora(calls: list[Call]) -> list[Tensor]:
    """Put LoRA on the layers of all denoisers; return what is trained."""
    from peft import LoraConfig

    for model in {id(call.model): call.model for call in calls}.values():
        model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers_of(model)))
    return [each for call in calls for each in call.model.parameters() if each.requires_grad]


def stepper(calls: list[Call], leaves: list[Tensor]) -> Way:
    """Return what does one optimizer step."""
    optimizer = torch.optim.AdamW(leaves, lr=1e-4, fused=True)
    with torch.no_grad():
        targets = [normal(*first_of(call.model(*call.args, **call.given)).shape, seed=2) for call in calls]

    def step() -> None:
        optimizer.zero_grad()
        for call, target in zip(calls, targets, strict=True):
            output = first_of(call.model(*call.args, **call.given))
            torch.nn.functional.mse_loss(output, target).backward()
        optimizer.step()

    return Way(step, sum(leaf.numel() for leaf in leaves))


def tiny_ways(label: str) -> dict[str, Way]:
    """Return both ways on a tiny pipeline's denoisers, each on models of its own."""
    name = label.removeprefix("tiny ")
    found: dict[str, Way] = {}
    for way in WAYS:
        pipeline = TINY[label]()
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        with seen_small():
            calls = calls_of(name, pipeline)
        found[way] = stepper(calls, with_delta(calls) if way == "svdiff" else with_lora(calls))
    return found


def flux_ways(folder: Path) -> dict[str, Way]:
    """Return both ways on two blocks of Flux."""
    flux.prepare(folder)
    given = {name: value.float() if value.is_floating_point() else value for name, value in flux.inputs(TOKENS).items()}
    found: dict[str, Way] = {}
    for way in WAYS:
        model = flux.load(folder, "none").float()
        calls = [Call("model", model, (), {**given, "return_dict": False})]
        base, cache = open_base(folder), BasisCache(folder / "cache")
        found[way] = stepper(calls, with_delta(calls, base, cache) if way == "svdiff" else with_lora(calls))
    return found


def measured(ways: Mapping[str, Way], repeats: int) -> dict[str, Found]:
    """Let both ways take steps by turns; the first counts operations, and its time does not count."""
    operations, taken = {}, {way: list[float]() for way in ways}
    for way, each in ways.items():
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            each.step()
        operations[way] = counter.get_total_flops()
        each.step()
    for _ in range(repeats):
        for way, each in ways.items():
            begun = time.perf_counter()
            each.step()
            taken[way].append(time.perf_counter() - begun)
    return {way: Found(statistics.median(taken[way]), operations[way], each.trained) for way, each in ways.items()}


class Ratios(NamedTuple):
    """δ's figures by LoRA's.

    Attributes:
        time: of a step.
        operations: of a step.
    """

    time: float
    operations: float

    @property
    def figure(self) -> float:
        """What has a limit."""
        return self.time / self.operations


def ratios(found: Mapping[str, Found]) -> Ratios:
    """Return δ's figures by LoRA's."""
    own, other = found["svdiff"], found["lora"]
    return Ratios(own.seconds / other.seconds, own.operations / other.operations)


def subjects(given: argparse.Namespace, temporary: Path) -> Iterator[tuple[str, dict[str, Found], int]]:
    """Yield what is asked for: a name, what was measured, and with how many threads."""
    for label in (*TINY, FLUX):
        if given.only and not any(part in label for part in given.only.split(",")):
            continue
        torch.manual_seed(0)
        threads, repeats = (2, given.flux_repeats) if label == FLUX else (1, given.repeats)
        torch.set_num_threads(threads)
        ways = flux_ways(given.folder or temporary / "flux") if label == FLUX else tiny_ways(label)
        yield label, measured(ways, repeats), threads
        _KEPT.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where Flux's weights and cache lie or are made")
    parser.add_argument("--repeats", type=int, default=41, help="steps of each way on a tiny model that count")
    parser.add_argument("--flux-repeats", type=int, default=5, help="the same on Flux's blocks")
    parser.add_argument("--only", help="parts of names, with commas: tiny, Flux.1 double")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'':<38}{'threads':>8}{'δ':>10}{'LoRA':>10}{'time':>8}{'operations':>12}{'of it':>8}{'limit':>7}")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for label, found, threads in subjects(given, Path(temporary)):
            ratio = ratios(found)
            times = "".join(f"{1e3 * found[way].seconds:>7.1f} ms" for way in WAYS)
            mark = "" if ratio.figure <= LIMIT else "  missed"
            row = f"{ratio.time:>8.3f}{ratio.operations:>12.3f}{ratio.figure:>8.3f}{LIMIT:>7.2f}{mark}"
            print(f"{label:<38}{threads:>8}{times}{row}", flush=True)
            figures[label] = {way: each._asdict() for way, each in found.items()} | {"of LoRA's": ratio.figure}
    met = sum(each["of LoRA's"] <= LIMIT for each in figures.values())
    print(f"\n{met} of {len(figures)} met")
    sd15.save_figures(given.json, figures)
    sys.exit(0 if met == len(figures) else 1)


if __name__ == "__main__":
    main()
