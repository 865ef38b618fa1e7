"""What a training step of δ on a 4-bit transformer costs, beside PEFT's LoRA on the same quantized layers.

    python benchmarks/quantized_training.py [--json FILE] [--folder FOLDER] [--steps 5] [--models "GGUF Q4_0,bfloat16"]

Two blocks of Flux at its real widths (3072, 24 heads of 128), one of two streams and one of a single stream, since Flux
has both, between small ends; random weights, one sample of 1,024 tokens, half of them a picture's and half a text's,
on the CPU with 2 threads. All linear layers are quantized, to compute in bfloat16 (GGUF Q4_0, as diffusers loads it),
or left in bfloat16. Both ways train on all of them: δ as our trainer does it (`attach` with trainable δ, one flat
parameter), and PEFT's LoRA of rank 4 as its own defaults make it, with factors in float32 beside quantized layers. A
step is prediction, backward pass and fused AdamW.

The floor is LoRA's step. Both ways run in processes of their own that take steps by turns; medians count. Limits:

- time: 1.1 × the ratio of both ways' operations. Counted by torch are all products and the attention, forward and
  backward, those of autograd functions too; unpacking a quantized weight is no operation. On the model in bfloat16 our
  layers do some products twice over, to have sums in float32; it is held to the count of the quantized one, where all
  are done once: the same layers in the same form.
- memory: the most that a process ever has during its steps, beyond LoRA's, at most 1.05 × the bytes of the factors that
  our layers hold. At rest likewise.

The folder (by default a temporary one) needs 3 GB, the computer 12 GB of memory. Making the bases takes five minutes.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import flux, sd15
from common.process import resident, restart_peak
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from svdiff_delta import attach, open_base, zero_delta
from svdiff_delta.runtime.memory import give_back
from svdiff_delta.svd.cache import BasisCache

THREADS, TOKENS, RANK = 2, 1024, 4
WAYS = ("lora", "svdiff")
MODELS = {"GGUF Q4_0": "GGUF Q4_0", "bfloat16": "none"}
"""What is measured, and how its layers are quantized."""

TIME, MEMORY = 1.1, 1.05
"""Limits: on the ratio of times, of the ratio of operations; on memory beyond LoRA's, of the factors' bytes."""

Figures = dict[str, float]


def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Return the operations of attention's forward by shapes."""
    return int(sdpa_flop_count(query, key, value))


def attention_back(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Return those of its backward."""
    return int(sdpa_backward_flop_count(grad, query, key, value))


ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_back,
}
"""What torch's counter does not know: attention on a CPU."""


def svdiff(model: Any, folder: Path) -> tuple[list[Any], int]:
    """Put δ = 0 on all linear layers; return what is trained and the bytes of the factors."""
    base, cache = open_base(folder), BasisCache(folder / "cache")
    handle = attach(model, zero_delta(base, "2d", cache=cache), base=base, trainable=True, cache=cache)
    shifts = [module for module in model.modules() if type(module).__name__ == "SpectralShift"]
    held = [found for shift in shifts for found in (shift.square, shift.inner, shift.outer) if found is not None]
    return list(handle.flat_parameters().values()), sum(found.nbytes for found in held)


def lora(model: Any, folder: Path) -> tuple[list[Any], int]:  # noqa: ARG001
    """Put LoRA on all linear layers; return what is trained."""
    from peft import LoraConfig

    names = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names))
    return [parameter for parameter in model.parameters() if parameter.requires_grad], 0


WAY = {"svdiff": svdiff, "lora": lora}


def serve(way: str, folder: Path, quantize: str) -> None:
    """Answer lines on stdin, as one of the two processes.

    "count" takes the first step and tells its operations, "step" takes another and tells its seconds, "memory" tells
    how much there is at rest and how much there was at most.
    """
    torch.set_num_threads(THREADS)
    model = flux.load(folder, quantize)
    parameters, factors = WAY[way](model, folder)
    step = stepper(model, parameters)
    gc.collect()
    give_back()
    facts = {"factors": factors, "trained": sum(parameter.numel() for parameter in parameters)}
    print(json.dumps(facts | {"start": resident()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(line.strip(), step)), flush=True)


def answer(asked: str, step: Callable[[], None]) -> Figures:
    if asked == "memory":
        most = resident("VmHWM")
        gc.collect()
        give_back()
        return {"peak": most, "rest": resident()}
    if asked == "count":
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            step()
        gc.collect()
        give_back()
        restart_peak()
        return {"operations": counter.get_total_flops()}
    begun = time.perf_counter()
    step()
    return {"seconds": time.perf_counter() - begun}


def stepper(model: Any, parameters: list[Any]) -> Callable[[], None]:
    """Return what does one optimizer step."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    given = flux.inputs(TOKENS)
    target = torch.randn(given["hidden_states"].shape, generator=torch.Generator().manual_seed(1))

    def step() -> None:
        optimizer.zero_grad()
        found = model(**given, return_dict=False)[0]
        torch.nn.functional.mse_loss(found.float(), target).backward()
        optimizer.step()

    return step


def measured(model: str, folder: Path, steps: int) -> dict[str, Figures]:
    """Let both ways take steps by turns, each in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--folder", str(folder), "--models", model, "--way"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    running = {way: subprocess.Popen([*command, way], text=True, **pipes) for way in WAYS}  # type: ignore[call-overload]
    try:
        found = {way: heard(process) for way, process in running.items()}
        for way, process in running.items():
            found[way] |= asked(process, "count")
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(steps):
            for way, process in running.items():
                taken[way].append(asked(process, "step")["seconds"])
        for way, process in running.items():
            found[way] |= {"seconds": statistics.median(taken[way]), **asked(process, "memory")}
    finally:
        for process in running.values():
            process.communicate()
    return found


def asked(process: Any, line: str) -> Figures:
    """Ask a process."""
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return heard(process)


def heard(process: Any) -> Figures:
    """Return the next line that a process says, as JSON."""
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{' '.join(process.args)}: ended")
    result: Figures = json.loads(line)
    return result


def report(model: str, found: dict[str, Figures], operations: float) -> dict[str, tuple[float, float]]:
    """Print what was found; return limits and figures."""
    for way in WAYS:
        each = found[way]
        print(
            f"{model:<14}{way:<8}{each['seconds']:>8.2f} s/step{each['operations'] / 1e12:>8.3f} T operations"
            f"{each['rest'] / 1e9:>8.2f} GB at rest{each['peak'] / 1e9:>8.2f} GB at most{each['trained']:>10,} trained"
        )
    own, other = found["svdiff"], found["lora"]
    beyond = {key: (own[key] - other[key]) / own["factors"] for key in ("peak", "rest")}
    print(f"{model:<14}factors {own['factors'] / 1e9:.2f} GB; {operations:.3f} × LoRA's operations")
    return {
        f"{model}: time, of LoRA's by operations": (TIME, own["seconds"] / other["seconds"] / operations),
        f"{model}: memory at most beyond LoRA's, of the factors": (MEMORY, beyond["peak"]),
        f"{model}: memory at rest beyond LoRA's, of the factors": (MEMORY, beyond["rest"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where weights and cache lie or are made")
    parser.add_argument("--steps", type=int, default=5, help="steps of each way that count")
    parser.add_argument("--models", default=",".join(MODELS), help="with commas; bfloat16 needs one that is quantized")
    parser.add_argument("--way", choices=WAYS, help="be one of the two processes")
    given = parser.parse_args()
    if given.way:
        serve(given.way, given.folder, MODELS[given.models])
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        torch.set_num_threads(THREADS)
        flux.prepare(folder)
        found: dict[str, Any] = {}
        rows: dict[str, Any] = {}
        operations = 0.0
        for model in given.models.split(","):
            found[model] = measured(model, folder, given.steps)
            if MODELS[model] != "none" or not operations:
                operations = found[model]["svdiff"]["operations"] / found[model]["lora"]["operations"]
            rows |= report(model, found[model], operations)
    print(f"\n{THREADS} threads\n{'':<68}{'limit':>8}{'measured':>10}")
    for name, (limit, value) in rows.items():
        print(f"{name:<68}{limit:>8.2f}{value:>10.3f}")
    sd15.save_figures(given.json, {"threads": THREADS, **found, "rows": rows})
    sys.exit(0 if all(value <= limit for limit, value in rows.values()) else 1)


if __name__ == "__main__":
    main()
