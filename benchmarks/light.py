"""How light the light half is: `svdiff add` as a whole process, and the bytes of a file, both with SD 1.5's layout.

    python benchmarks/light.py [--json FILE] [--rounds N]

Two F32 files with 322,856 numbers in 391 parameters are added. The commands take turns, once per round after one round
to warm up, so that whatever else the machine does meets all of them; the figures are medians in seconds of wall time.
What Python and NumPy themselves need to start is measured beside them.
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

from svdiff_delta import save

LIMIT_SECONDS, LIMIT_BYTES = 0.25, 1_404_000
SVDIFF = str(Path(sys.executable).with_name("svdiff"))
COMMANDS = {
    "svdiff add a b": [SVDIFF, "add", "a", "b", "-o", "sum", "--force", "--quiet"],
    "svdiff --help": [SVDIFF, "--help"],
    "import numpy, safetensors.numpy": [sys.executable, "-c", "import numpy, safetensors.numpy"],
    "python -c pass": [sys.executable, "-c", "pass"],
}


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
        sizes = {"a trained delta": (folder / "a").stat().st_size, "a sum of two": (folder / "sum").stat().st_size}
    medians = {label: median(values) for label, values in times.items()}
    print(
        f"{'seconds of a whole process, ' + str(arguments.rounds) + ' rounds':<42}{'limit':>8}{'median':>8}{'best':>8}"
    )
    for label, value in medians.items():
        limit = f"{LIMIT_SECONDS:.2f}" if label == "svdiff add a b" else ""
        print(f"{label:<42}{limit:>8}{value:>8.3f}{min(times[label]):>8.3f}")
    print(f"\n{'bytes of an F32 file, everything included':<42}{'limit':>12}{'measured':>12}")
    for label, size in sizes.items():
        print(f"{label:<42}{LIMIT_BYTES:>12,}{size:>12,}")
    if arguments.json:
        facts = {"median seconds": medians, "seconds": times, "bytes": sizes}
        limits = {"seconds": LIMIT_SECONDS, "bytes": LIMIT_BYTES}
        arguments.json.write_text(json.dumps({"limits": limits, **facts}, indent=2) + "\n")
    met = medians["svdiff add a b"] <= LIMIT_SECONDS and max(sizes.values()) <= LIMIT_BYTES
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
