"""A LoHa and a LoKr to a LoRA of rank 16, beside PEFT's own `convert_to_lora`: error, peak memory and time.

    python benchmarks/adapters_to_lora.py [--hidden 2048] [--layers 22] [--targets q_proj,v_proj] [--rank 16]
        [--work FOLDER] [--json FILE]

The base is a Llama of random weights in bfloat16, of a billion by default: 22 layers, 2048 wide, 5632 inside, 32 heads
that share 4 keys and values, 32,000 words. The adapters are PEFT's own layers of default rank 8 on every layer's
projections, drawn at random. PEFT loads the whole model and the adapter, and writes what `save_as_lora` writes;
`convert_directly` reads the same files. Each runs in a process of its own. Its time goes from after its first imports
until the file is there, its memory is the most that the process had, with the pages of files that it mapped. Of the
model transformers only maps the file, and PEFT reads none of its pages: so most of both figures is what it takes to
import torch and transformers. What is above that stands in the line "beyond". The error is that of all weights
together, ‖ΔW − BA‖, against ΔW by the method's formula in float64.

Both find the best factors of their rank, so that errors differ by rounding alone. Of a LoHa and a LoKr they follow from
the small matrices in the file (`svdiff_delta/conversion/update_factors.py`), where PEFT decomposes each ΔW.

Goals: an error at most that of PEFT (but for 1e-6 of it), at most 0.3 × its memory, at most 0.5 × its time. With the
small model of `--hidden 256 --layers 2` only the error means anything: the rest is what programs take to start.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METHODS = ("LOHA", "LOKR")
GOALS = {"error": 1 + 1e-6, "memory": 0.3, "time": 0.5}


def make_base(folder: Path, hidden: int, layers: int) -> None:
    """Write the model, in a process of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=32_000 * hidden // 2048,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
    )
    model = LlamaForCausalLM(config)
    print(sum(parameter.numel() for parameter in model.parameters()))
    model.save_pretrained(folder)


def make_adapter(base: Path, folder: Path, method: str, targets: list[str]) -> None:
    """Write an adapter of PEFT's layers, one of each shape built, each layer drawn."""
    import torch
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from safetensors.torch import save_file
    from torch import nn

    from svdiff_delta import open_base

    kinds: dict[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    config: PeftConfig = kinds[method](target_modules=targets)
    shapes: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = {}
    tensors, draw, opened = {}, torch.Generator().manual_seed(1), open_base(base)
    for name in opened.names():
        path, leaf = name.partition(".")[2].rsplit(".", 1)
        if path.rpartition(".")[2] not in targets or leaf != "weight":
            continue
        rows, columns = opened.shape(name)
        if (rows, columns) not in shapes:
            root = nn.ModuleDict({targets[0]: nn.Linear(columns, rows, bias=False)})
            found = get_peft_model_state_dict(get_peft_model(root, config))
            shapes[rows, columns] = {key.rpartition(".")[2]: tuple(value.shape) for key, value in found.items()}
        for end, shape in shapes[rows, columns].items():
            tensors[f"base_model.model.{path}.{end}"] = torch.randn(shape, generator=draw) * 0.1
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config.save_pretrained(str(folder))


def by_peft(base: Path, adapter: Path, output: Path, rank: int) -> float:
    import torch
    from peft import PeftModel
    from peft.tuners.lora.conversion import save_as_lora
    from transformers import LlamaForCausalLM

    start = time.perf_counter()
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    save_as_lora(output, PeftModel.from_pretrained(model, str(adapter)), rank=rank)
    return time.perf_counter() - start


def by_us(base: Path, adapter: Path, output: Path, rank: int) -> float:
    from svdiff_delta import open_base
    from svdiff_delta.conversion import convert_directly

    start = time.perf_counter()
    convert_directly(adapter, to="peft", base=open_base(base), rank=rank, output=output)
    return time.perf_counter() - start


def imports(who: str) -> None:
    """Import what both programs import."""
    own = ("peft.peft_model", "peft.tuners.lora.conversion") if who == "PEFT" else ("svdiff_delta.conversion",)
    for name in ("torch", "transformers.models.llama.modeling_llama", *own):
        importlib.import_module(name)


def peak() -> int:
    """Return the most memory that this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def error_of(adapter: Path, output: Path, method: str) -> float:
    """Return ‖ΔW − BA‖ of all weights together, float64."""
    from safetensors.torch import load_file

    said = json.loads((adapter / "adapter_config.json").read_text())
    scale = said["alpha"] / said["r"]
    given = {key: value.double() for key, value in load_file(adapter / "adapter_model.safetensors").items()}
    found = {key: value.double() for key, value in load_file(output / "adapter_model.safetensors").items()}
    total = 0.0
    for key, down in found.items():
        if key.endswith("lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            change = true_change(method, module, given) * scale
            total += float((change - found[f"{module}.lora_B.weight"] @ down).square().sum())
    return float(total**0.5)


def true_change(method: str, module: str, given: dict[str, Any]) -> Any:
    import torch

    if method == "LOHA":
        pairs = (given[f"{module}.hada_w{i}_a"] @ given[f"{module}.hada_w{i}_b"] for i in (1, 2))
        return torch.mul(*pairs)
    halves = [
        given[f"{module}.lokr_w{i}"]
        if f"{module}.lokr_w{i}" in given
        else given[f"{module}.lokr_w{i}_a"] @ given[f"{module}.lokr_w{i}_b"]
        for i in (1, 2)
    ]
    return torch.kron(*halves)


def child(*words: object) -> str:
    """Run a step in a process of its own; return the last line that it prints."""
    command = [sys.executable, __file__, "--step", *map(str, words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]


def step(words: list[str]) -> None:
    """Do one step, as a process of its own."""
    match words:
        case ["base", folder, hidden, layers]:
            make_base(Path(folder), int(hidden), int(layers))
        case ["adapter", base, folder, method, targets]:
            make_adapter(Path(base), Path(folder), method, targets.split(","))
            print("done")
        case ["error", adapter, output, method]:
            print(error_of(Path(adapter), Path(output), method))
        case ["imports", who]:
            imports(who)
            print(peak())
        case [who, base, adapter, output, rank]:
            run = by_peft if who == "PEFT" else by_us
            seconds = run(Path(base), Path(adapter), Path(output), int(rank))
            print(json.dumps([seconds, peak()]))


def measure(place: Path, options: argparse.Namespace) -> dict[str, Any]:
    base = place / "base"
    weights = int(child("base", base, options.hidden, options.layers))
    print(f"a Llama of {weights:,} random weights in bfloat16; {options.targets} to rank {options.rank}")
    results: dict[str, Any] = {"weights": weights, "rank": options.rank, "targets": options.targets}
    floors = results["imports"] = {who: int(child("imports", who)) for who in ("here", "PEFT")}
    for method in METHODS:
        adapter = place / method
        child("adapter", base, adapter, method, options.targets)
        figures: dict[str, dict[str, float]] = {}
        for who in ("here", "PEFT"):
            output = place / f"{method}-{who}"
            seconds, memory = json.loads(child(who, base, adapter, output, options.rank))
            figures[who] = {"time": seconds, "memory": memory, "error": float(child("error", adapter, output, method))}
        ratios = {name: figures["here"][name] / figures["PEFT"][name] for name in GOALS}
        results[method] = {**figures, "ratios": ratios}
        for name, unit, size in (("error", "", 1.0), ("memory", "MB", 1e6), ("time", "s", 1.0)):
            here, there = figures["here"][name] / size, figures["PEFT"][name] / size
            good = "" if ratios[name] <= GOALS[name] else "  MISSED"
            print(f"{method} {name:7} {here:12.5g} {unit:2} PEFT {there:12.5g} {unit:2} ratio {ratios[name]:.7g}{good}")
        here, there = ((figures[who]["memory"] - floors[who]) / 1e6 for who in ("here", "PEFT"))
        print(f"{method} beyond  {here:12.5g} MB PEFT {there:12.5g} MB")
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--targets", default="q_proj,v_proj")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--work", type=Path, help="where the base is made, 2.2 GB; a temporary folder by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step(options.step)
        return 0
    place = Path(tempfile.mkdtemp(dir=options.work))
    try:
        results = measure(place, options)
    finally:
        shutil.rmtree(place)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    met = all(results[method]["ratios"][name] <= goal for method in METHODS for name, goal in GOALS.items())
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
