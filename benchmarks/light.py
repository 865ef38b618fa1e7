"""How light the light half is: `svdiff add` as a whole process, and the bytes of a file, both with SD 1.5's layout.

    python benchmarks/light.py [--json FILE] [--rounds N]

Two F32 files with 322,856 numbers in 391 parameters are added. The commands take turns, once per round after one round
to warm up, so that whatever else the machine does meets all of them; the figures are medians of wall time, and ratios
to what Python needs to import NumPy and safetensors in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from svdiff_delta import quantize, save

FLOOR = "import numpy, safetensors.numpy"
RATIOS = {"svdiff add a b": 2.5, "svdiff --help": 2.0}
BYTES = {"F32": 1_404_000, "I8": 430_000}
SVDIFF = str(Path(sys.executable).with_name("svdiff"))
COMMANDS = {
    "svdiff add a b": [SVDIFF, "add", "a", "b", "-o", "sum", "--force", "--quiet"],
    "svdiff --help": [SVDIFF, "--help"],
    FLOOR: [sys.executable, "-c", FLOOR],
    "python -c pass": [sys.executable, "-c", "pass"],
}


FILES = {"F32, a trained delta": "a", "F32, a sum of two": "sum", "I8, a quantized delta": "small"}


def seconds(command: list[str], folder: Path) -> float:
    """Wall time of a whole process."""
    begun = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Times of every command, one per round."""
    times: dict[str, list[float]] = {label: [] for label in COMMANDS}
    for index in range(rounds + 1):
        for label, command in COMMANDS.items():
            taken = seconds(command, folder)
            if index:
                times[label].append(taken)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.sd15 import sd15_delta

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, path in enumerate(("a", "b")):
            save(sd15_delta(seed), folder / path)
        times = measure(folder, arguments.rounds)
        save(quantize(sd15_delta(0)), folder / "small")
        sizes = {label: (folder / path).stat().st_size for label, path in FILES.items()}
    medians = {label: median(values) for label, values in times.items()}
    ratios = {label: medians[label] / medians[FLOOR] for label in RATIOS}
    title = f"seconds of a whole process, {arguments.rounds} rounds"
    print(f"{title:<42}{'median':>8}{'best':>8}{'ratio':>8}{'limit':>8}")
    for label, value in medians.items():
        shown = f"{ratios[label]:>8.2f}{RATIOS[label]:>8.2f}" if label in RATIOS else ""
        print(f"{label:<42}{value:>8.3f}{min(times[label]):>8.3f}{shown}")
    print(f"\n{'bytes of a file, everything included':<42}{'measured':>12}{'limit':>12}")
    for label, size in sizes.items():
        print(f"{label:<42}{size:>12,}{BYTES[label.split(',')[0]]:>12,}")
    if arguments.json:
        facts = {"median seconds": medians, "seconds": times, "ratios": ratios, "bytes": sizes}
        arguments.json.write_text(json.dumps({"limits": {"ratios": RATIOS, "bytes": BYTES}, **facts}, indent=2) + "\n")
    fast = all(ratios[label] <= limit for label, limit in RATIOS.items())
    sys.exit(0 if fast and all(size <= BYTES[label.split(",")[0]] for label, size in sizes.items()) else 1)


if __name__ == "__main__":
    main()
