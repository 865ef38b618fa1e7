"""A whole training step in bfloat16, draws to optimizer, beside PEFT's LoRA of rank 4 on the same layers.

    python -m benchmarks.gpu.step [--json FILE] [--folder FOLDER] [--dry]

Both are steps of the trainer on the same batches, drawn from its seeds: eager, and with all that is on the device as
one CUDA graph. (The trainer makes graphs of spectral shifts only; here it makes them of LoRA too, for comparison.)
By the clock, over several steps between two waits. Memory is the most there was, the model included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor

from svdiff_delta import attach, zero_delta
from svdiff_train.data.batches import Batch, Batches, Encoded
from svdiff_train.data.cut_mix import Mixing
from svdiff_train.families import Conditioning
from svdiff_train.families.stable_diffusion import StableDiffusion
from svdiff_train.graphs.static_work import WARM
from svdiff_train.methods import Job, Tuned
from svdiff_train.methods.lora import Lora
from svdiff_train.methods.svdiff import TunedShifts
from svdiff_train.settings.config import TrainConfig
from svdiff_train.training import graphed_step
from svdiff_train.training.graphed_step import GraphedStep
from svdiff_train.training.setup import RunInputs
from svdiff_train.training.step import Stepper

from .figures import Figures
from .scene import TOKENS, Scene
from .script import main
from .timing import capture_on, held, milliseconds, peak, restart_peak, tidy

BATCHES = (1, 4)
EAGER = {1: 0.30, 4: 0.50}
"""Limits of the step as it is by default, of LoRA's eager step."""
GRAPH, MEMORY = 1.3, 1.35
METHODS = ("svdiff", "lora")


class Family(StableDiffusion):
    """The family of a UNet alone, with the same states for every prompt."""

    def __init__(self, scene: Scene, model: Any) -> None:
        from diffusers import DDPMScheduler

        config = SimpleNamespace(latent_channels=4, shift_factor=None, scaling_factor=0.18215)
        parts = {"unet": model, "scheduler": DDPMScheduler(), "vae": SimpleNamespace(config=config)}
        super().__init__(SimpleNamespace(**parts, vae_scale_factor=8, components={"unet": model}))
        self.states = scene.inputs(1, self.dtype)[2]
        assert self.states.shape[1] == TOKENS

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Return the states (batch, tokens, width)."""
        return {"states": self.states.expand(len(prompts), -1, -1)}


class Drawn(Batches):
    """Batches of one picture that was encoded before."""

    def __init__(self, family: Family, side: int) -> None:
        super().__init__(family, [], seed=0, crop=False, flip=False)
        self.moments = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(2)).abs()

    def batch(self, step: int, samples: Sequence[int]) -> Batch:
        """Return samples of a step."""
        known = Encoded(self.moments, torch.zeros(6), {})
        drawn = [self._noised(0, known, "a photo", step, sample) for sample in samples]
        return self._stacked(drawn, len(samples))


@contextmanager
def tuned(scene: Scene, family: Family, config: TrainConfig) -> Iterator[Tuned]:
    """Put on the model what is trained."""
    if config.method == "lora":
        with Lora().tune(Job(scene.base, family, config, scene.cache)) as factors:
            yield factors
        return
    start = zero_delta(scene.base, cache=scene.cache)
    with attach(family.denoiser, start, base=scene.base, trainable=True, cache=scene.cache) as handle:
        yield TunedShifts(handle, config)


def stepper_of(scene: Scene, family: Family, config: TrainConfig, trained: Tuned) -> Stepper:
    """Return what does the trainer's steps."""
    mixing = Mixing(config.mixing, *config.templates)
    opened = RunInputs(config, family, (), (), ("unet",), 8 * scene.config["sample_size"], mixing, None)
    batches = Drawn(family, scene.config["sample_size"])
    return Stepper(opened, trained, Accelerator(cpu=scene.device.type == "cpu"), batches, lambda _: 1.0)


def measure(scene: Scene, figures: Figures) -> None:
    """Measure each batch size both ways, each on a model of its own, and compare."""
    for batch in BATCHES[:1] if scene.dry else BATCHES:
        found = {method: _method(scene, figures, method, batch) for method in METHODS}
        own, other = found["svdiff"], found["lora"]
        figures.add(f"batch {batch}: what chance draws of a step, on the host", own["draws"], "ms")
        name = f"batch {batch}: step as a graph"
        figures.add(f"{name}, of LoRA's eager step", own["graph"] / other["eager"], "times", limit=EAGER[batch])
        figures.add(f"{name}, of LoRA's as a graph", own["graph"] / other["graph"], "times", limit=GRAPH)
        figures.add(f"batch {batch}: eager step, of LoRA's", own["eager"] / other["eager"], "times")
        for kind in ("eager", "graph"):
            if other[f"{kind} memory"]:
                share = own[f"{kind} memory"] / other[f"{kind} memory"]
                figures.add(f"batch {batch}: memory, {kind}, of LoRA's", share, "times", limit=MEMORY)


def _method(scene: Scene, figures: Figures, method: str, batch: int) -> dict[str, float]:
    config = TrainConfig(
        prompt="a photo",
        method=cast("Any", method),
        selectors=("unet",),
        batch_size=batch,
        mixed_precision="bf16",
        lora_rank=4,
        learning_rate=1e-6,
    )
    found: dict[str, float] = {}
    for kind in ("eager", "graph"):
        tidy(scene.device)
        before = held(scene.device)
        family = Family(scene, scene.unet(torch.bfloat16))
        restart_peak(scene.device)
        with tuned(scene, family, config) as trained:
            stepper = stepper_of(scene, family, config, trained)
            found[kind] = _milliseconds(scene, stepper, graph=kind == "graph")
            found["draws"] = _draws(scene, stepper)
        found[f"{kind} memory"] = peak(scene.device) - before
        del family, trained, stepper
        figures.add(f"batch {batch}: {method}, {kind}", found[kind], "ms")
        if found[f"{kind} memory"]:
            figures.add(f"batch {batch}: {method}, {kind}, memory", found[f"{kind} memory"] / 1e9, "GB")
    return found


def _milliseconds(scene: Scene, stepper: Stepper, *, graph: bool) -> float:
    """Return how long a step takes once it is as fast as it gets."""
    step = _graphed(stepper) if graph else stepper.step
    number = iter(range(10**6))

    def once() -> Tensor:
        return step(next(number))

    for _ in range(WARM + 1 if graph or not scene.dry else 1):
        last = once()
    taken = milliseconds(once, scene.device, runs=1 if scene.dry else 5, rounds=2 if scene.dry else 3)
    if not bool(last.isfinite().all()):
        raise RuntimeError(f"the step gave {last.tolist()}")
    return taken


def _draws(scene: Scene, stepper: Stepper) -> float:
    """Return how long the host takes to draw a batch, which is in every step and in no graph."""
    samples, number = stepper.samples(0, 0), iter(range(10**6))

    def draw() -> Batch:
        return stepper.batches.batch(next(number), samples)

    draw()
    return milliseconds(draw, scene.device, runs=1 if scene.dry else 5, rounds=2 if scene.dry else 3)


def _graphed(stepper: Stepper) -> Any:
    """Return graphed steps, of any method; what keeps them from being graphs is an error here."""

    def refuse(line: str) -> None:
        raise RuntimeError(line)

    with patch.object(graphed_step, "why_not", lambda _: None):
        return GraphedStep(stepper, say=refuse, capture=capture_on(stepper.accelerator.device)).step


if __name__ == "__main__":
    main("step", measure, __doc__)
