"""What two replicas on Ray serve against one, measured in one run on this machine (extra `ray`).

    python benchmarks/serve_ray.py [--replicas 2] [--json FILE]

8 clients with 8 δ ask for pictures of the embedded base from one replica that computes with one thread, from one that
computes with as many threads as there are replicas later, and from so many replicas of one thread; beside them the same
load on the server of one process, without Ray. Where there are more cores than two, two replicas must serve 1.6 times
what one does; on two cores, which one replica, the front, Ray's proxy and the clients share already, at least 0.95
times. All of it stays on this machine's loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.ray_processes import free_port
from support.served import server, service, shifted

from svdiff_delta import save
from svdiff_serve.ray_app import RaySettings, serving
from svdiff_train.ray_cluster import joined

CLIENTS, STEPS, ROUNDS, EACH = 8, 4, 2, 2
PATH = "/v1/images/generations"
MANY_CORES, FEW_CORES = 1.6, 0.95
MEMORY = 128 << 20


def rate(url: str, names: list[str]) -> float:
    """Return the pictures in a second of the best round, after one that does not count."""
    with ThreadPoolExecutor(CLIENTS) as threads, httpx.Client(base_url=url, timeout=300) as client:

        def one(number: int) -> None:
            for _ in range(EACH):
                body = {"model": names[number], "prompt": "a photo of a dog", "seed": number, "steps": STEPS}
                client.post(PATH, json=body).raise_for_status()

        found = []
        for _ in range(ROUNDS + 1):
            begun = time.perf_counter()
            list(threads.map(one, range(CLIENTS)))
            found.append(CLIENTS * EACH / (time.perf_counter() - begun))
            time.sleep(1.5)  # replicas say every second what they hold
    return max(found[1:])


def on_ray(folder: Path, names: list[str], replicas: int, cpus: int) -> float:
    """Return what so many replicas of so many threads serve."""
    settings = RaySettings(
        base="tiny", deltas=(str(folder),), min_replicas=replicas, max_replicas=replicas, cpus=cpus, batch_size=CLIENTS
    )
    with serving(settings, port=free_port()) as url:
        return rate(url, names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    many, cores = given.replicas, len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        names = [f"d{number}" for number in range(CLIENTS)]
        for number, name in enumerate(names):
            save(shifted(0.05 * (1 + number), "unet"), folder / f"{name}.safetensors")
        with service(folder, batch_size=CLIENTS) as served, server(served) as (url, _, _):
            alone = rate(url, names)
        with joined(many, memory=MEMORY):
            one = on_ray(folder, names, 1, 1)
            wide = on_ray(folder, names, 1, many)
            several = on_ray(folder, names, many, 1)
    found = {
        "cores": cores,
        "pictures per second": {"no Ray": alone, "one": one, f"one of {many} threads": wide, "several": several},
        "one on Ray against none": one / alone,
        "several against one": several / one,
        "several against the better one": several / max(one, wide),
    }
    least = MANY_CORES if cores > many else FEW_CORES
    print(json.dumps(found, indent=2))
    reached = several / max(one, wide)
    print(f"several against the better one: {reached:.4g}, at least {least:g}{'' if reached >= least else ': MISSED'}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
