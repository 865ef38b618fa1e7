"""What `svdiff serve` reaches, against the same work without a server, measured in one run on this machine.

    python benchmarks/serve.py [--only throughput cold index load] [--files 10000] [--minutes 30] [--json FILE]

throughput: 8 clients with 8 δ, against 8 clients with one δ; against a bare batch of 8 by `per_sample`, which bounds
what batching can gain over one picture at a time; beside them LoRAs of PEFT that are switched request by request. All
in turn, five rounds; the ratios are medians of the rounds'.
cold: what a request with a δ that is not loaded takes more, at the size of Stable Diffusion 1.5's.
index: the first look at many δ against SHA-256 over their bytes, opening the store again, and its memory.
load: for some minutes clients that go, wrong keys, wrong δ, bodies that are too large, a δ that is replaced and a disk
that is full; every request must get its answer (`common/serve_load.py`), and memory must be level after a while.

All of it stays on this machine's loopback. Clients are threads of the same process, so their time counts against the
server.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import torch
from common.process import child

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from common.serve_load import run_load
from support.sd15 import sd15_delta
from support.served import base, pipeline, server, service, shifted

from svdiff_delta import Delta, attach, save
from svdiff_delta.runtime.flat_deltas import Sums
from svdiff_delta.runtime.gain_map import Response
from svdiff_delta.runtime.sample_gains import SampleGains
from svdiff_serve.store.sources import FolderSource
from svdiff_serve.store.store import Store
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import Sampling, generate

CLIENTS, STEPS, ROUNDS, EACH = 8, 10, 5, 2
PATH = "/v1/images/generations"
LIMITS: dict[str, dict[str, tuple[bool, float]]] = {
    "throughput": {"eight against one": (True, 0.95), "share of the bare gain": (True, 0.9)},
    "cold": {"seconds": (False, 0.05)},
    "index": {
        "against SHA-256": (False, 1.5),
        "seconds to open again": (False, 5.0),
        "bytes of memory": (False, 200e6),
    },
    "load": {"unanswered": (False, 0), "growth after the first quarter": (False, 0.05)},
}
"""What is to be reached: whether it is the least, and the figure."""


def in_turn(ways: dict[str, Callable[[int], int]]) -> dict[str, list[float]]:
    """Return the pictures per second of each way, one number for each round, after a short one that does not count.

    A round has every way once, so that a machine that is slower for a minute is so for all of them.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, paint in ways.items():
            begun = time.perf_counter()
            count = paint(STEPS if number else 1)
            if number:
                found[name].append(count / (time.perf_counter() - begun))
    return found


def throughput(folder: Path) -> dict[str, Any]:
    names = [f"d{number}" for number in range(CLIENTS)]
    deltas = {name: shifted(0.05 * (1 + number), "unet") for number, name in enumerate(names)}
    for name, delta in deltas.items():
        save(delta, folder / f"{name}.safetensors")
    jobs = [("a photo of a dog", number) for number in range(CLIENTS)]

    def bare_batch(steps: int) -> int:
        with handle.per_sample(names):
            return len(generate(pipeline(), jobs, Sampling(steps=steps, batch_size=CLIENTS)))

    def bare_alone(steps: int) -> int:
        for name, each in zip(names, jobs, strict=True):
            with handle.per_sample([name]):
                generate(pipeline(), [each], Sampling(steps=steps))
        return CLIENTS

    with (
        attach(pipeline(), deltas, base=base()) as handle,
        service(folder, live=load_pipeline(base()), batch_size=CLIENTS) as served,
        server(served) as (url, _, _),
        ThreadPoolExecutor(CLIENTS) as threads,
        httpx.Client(base_url=url, timeout=300) as client,
    ):

        def ask(name: str, seed: int, steps: int) -> None:
            body = {"model": name, "prompt": "a photo of a dog", "seed": seed, "steps": steps}
            client.post(PATH, json=body).raise_for_status()

        def clients(models: list[str], steps: int) -> int:
            def one(number: int) -> None:
                for _ in range(EACH):
                    ask(models[number], number, steps)

            list(threads.map(one, range(CLIENTS)))
            return EACH * CLIENTS

        def single(steps: int) -> int:
            for number in range(CLIENTS):
                ask(names[number], number, steps)
            return CLIENTS

        rates = in_turn(
            {
                "alone": bare_alone,
                "batch": bare_batch,
                "eight": lambda steps: clients(names, steps),
                "one": lambda steps: clients(names[:1] * CLIENTS, steps),
                "single": single,
                "peft": _peft(jobs),
            }
        )

    def against(one: str, other: str) -> float:
        return statistics.median(mine / theirs for mine, theirs in zip(rates[one], rates[other], strict=True))

    return {
        "pictures per second": rates,
        "eight against one": against("eight", "one"),
        "gain of the bare batch": against("batch", "alone"),
        "gain of the server": against("eight", "alone"),
        "share of the bare gain": against("eight", "batch"),
        "against LoRAs switched by request": against("eight", "peft"),
    }


def _peft(jobs: list[tuple[str, int]]) -> Callable[[int], int]:
    """Return what paints each picture with its own LoRA of rank 4, all of them loaded."""
    from peft import LoraConfig

    own: Any = load_pipeline(base())
    for number in range(len(jobs)):
        config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
        own.unet.add_adapter(config, adapter_name=f"l{number}")

    def paint(steps: int) -> int:
        for number, each in enumerate(jobs):
            own.unet.set_adapter(f"l{number}")
            generate(own, [each], Sampling(steps=steps))
        return len(jobs)

    return paint


def cold(folder: Path) -> dict[str, Any]:
    """Time from a name to gains, without a model of that size: the table is Stable Diffusion 1.5's."""
    start = sd15_delta()
    draw = np.random.default_rng(0)
    for number in range(8):
        values = {name: draw.standard_normal(value.size) * 0.01 for name, value in start.items()}
        save(Delta(values, start.metadata), folder / f"{number}.safetensors")
    store = Store([FolderSource(folder)], lambda _: None)
    store.refresh()
    parameters = start.metadata.parameters
    shifts = []
    for name, parameter in parameters.items():
        response = Response.of_change(torch.ones(parameter.size, dtype=torch.float64))
        shift = SimpleNamespace(name=name, component="unet", response=response, gain=torch.zeros(1), _buffers={})
        shifts.append(shift)
    handle = SimpleNamespace(
        _check_fixed=lambda: None, _sums=Sums(parameters, {}), _board=SimpleNamespace(live=True, _shifts=shifts)
    )
    gains = SampleGains(handle)  # type: ignore[arg-type]
    found = []
    for number in range(8):
        begun = time.perf_counter()
        gains.of([(store.open(store.entry(str(number))), 1.0)])
        found.append(time.perf_counter() - begun)
    store.close()
    size = (folder / "0.safetensors").stat().st_size
    return {"bytes of a file": size, "seconds": statistics.median(found[1:]), "seconds of the first": found[0]}


INDEX = """
import sys, time
from pathlib import Path
from common.process import resident
from svdiff_serve.store.store import Store
from svdiff_serve.store.sources import FolderSource
folder, index = Path(sys.argv[1]), Path(sys.argv[2])
before = resident()
begun = time.perf_counter()
store = Store([FolderSource(folder)], lambda delta: None, index=index)
store.refresh()
print([time.perf_counter() - begun, resident() - before, len(store.names())])
"""
SHA = """
import hashlib, sys, time
from pathlib import Path
paths = sorted(Path(sys.argv[1]).iterdir())
begun = time.perf_counter()
for path in paths:
    hashlib.sha256(path.read_bytes()).hexdigest()
print(time.perf_counter() - begun)
"""


def index(folder: Path, count: int, size: str) -> dict[str, Any]:
    """Look at many files of which no two have the same values."""
    start = {"embedded": lambda: shifted(0.1, "unet"), "sd15": sd15_delta}[size]()
    path = folder / "first"
    save(start, path)
    raw = bytearray(path.read_bytes())
    path.unlink()
    deltas = folder / "deltas"
    deltas.mkdir()
    for number in range(count):
        raw[-4:] = np.float32(number * 1e-6).tobytes()
        (deltas / f"d{number}.safetensors").write_bytes(raw)
    time.sleep(2.1)  # else their times would be too young to be trusted
    child(SHA, deltas)  # into the page cache
    looks, hashes = [], []
    for number in range(3):
        hashes.append(child(SHA, deltas))
        looks.append(child(INDEX, deltas, folder / f"{number}.sqlite"))
    again = child(INDEX, deltas, folder / "2.sqlite")
    first = min(seconds for seconds, _, _ in looks)
    return {
        "files": count,
        "bytes of a file": len(raw),
        "seconds": first,
        "seconds of SHA-256": min(hashes),
        "against SHA-256": first / min(hashes),
        "seconds to open again": again[0],
        "bytes of memory": max(looks[0][1], again[1]),
        "known": again[2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["throughput", "cold", "index"])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--size", choices=["embedded", "sd15"], default="embedded")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--graph", type=Path, help="Where to draw the memory under load.")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for section in given.only:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if section == "throughput":
                found[section] = throughput(folder)
            elif section == "cold":
                found[section] = cold(folder)
            elif section == "index":
                found[section] = index(folder, given.files, given.size)
            else:
                found[section] = run_load(folder, given.minutes, given.graph)
        print(json.dumps({section: found[section]}, indent=2), flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))
    missed = [key for section in given.only for key in compared(section, found[section])]
    sys.exit(1 if missed else 0)


def compared(section: str, figures: dict[str, Any]) -> list[str]:
    """Print figures beside their limits, and return those that are missed."""
    missed = []
    for key, (least, limit) in LIMITS.get(section, {}).items():
        reached = figures[key] >= limit if least else figures[key] <= limit
        words = f"{'at least' if least else 'at most'} {limit:g}{'' if reached else ': MISSED'}"
        print(f"{section}, {key}: {figures[key]:.4g}, {words}", flush=True)
        if not reached:
            missed.append(key)
    return missed


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
