"""What the demo costs beside a process that keeps two threads busy, against the demo alone.

    python benchmarks/busy.py [--json FILE] [--steps 200] [--rounds 1]

The busy process multiplies matrices of 1000 by 1000 on two threads, again and again. The figure is the ratio of wall
times of `svdiff demo`, each in a process of its own and with the threads it takes by itself; of several rounds, that of
the medians. On two cores the busy process leaves about half of each, so 2 is what sharing them costs. The demo's own
figures for its two trainings are printed too. Where the environment says how OpenMP's threads wait, that holds: with
OMP_WAIT_POLICY=ACTIVE one sees what waiting in a loop costs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from svdiff_train.demo.rows import SUBJECTS

LIMIT = 2.5
BUSY = """
import torch
torch.set_num_threads(2)
a = torch.rand(1000, 1000)
print("busy", flush=True)
while True:
    a @ a
"""


@contextmanager
def busy() -> Iterator[None]:
    """Keep two threads busy."""
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE)
    try:
        if process.stdout is None or not process.stdout.readline():
            raise SystemExit("the busy process did not start")
        yield
    finally:
        process.kill()
        process.wait()


def demo(steps: int) -> dict[str, Any]:
    """Seconds of one demo as a whole process, and of its parts."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "svdiff_cli", "demo", "--steps", str(steps), "-o", f"{folder}/out", "--json"]
        begun = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return {"whole": time.perf_counter() - begun, "parts": json.loads(done.stdout)["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=200, help="of each of the demo's trainings")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the busy process ends with this one
    found: dict[str, list[dict[str, Any]]] = {"alone": [], "busy": []}
    for _ in range(arguments.rounds):
        for name, beside in (("alone", nullcontext()), ("busy", busy())):
            with beside:
                found[name].append(demo(arguments.steps))
    for name, runs in found.items():
        for run in runs:
            trainings = [run["parts"][subject.name] for subject in SUBJECTS]
            print(f"{name:>6}: {run['whole']:6.1f} s, trainings {', '.join(f'{each:.1f} s' for each in trainings)}")
    ratio = median(run["whole"] for run in found["busy"]) / median(run["whole"] for run in found["alone"])
    policy = os.environ.get("OMP_WAIT_POLICY", "as svdiff sets it")
    print(f"ratio {ratio:.2f} (at most {LIMIT}); {os.cpu_count()} cores, waiting threads: {policy}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"cores": os.cpu_count(), "ratio": ratio, "runs": found}, indent=1))
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    main()
