"""What rounding loses: the relative error of δ in each number format, for several distributions of δ.

    python benchmarks/quantize.py [--json FILE] [--numbers N]

‖rounded − δ‖ / ‖δ‖ of one parameter with N numbers of standard deviation 0.01, in float64, drawn with seed 0. The limit
is for I8 on Gaussian and Laplace δ; the others are reported. Beside I8 stands the share of parameters of 320 numbers
that `svdiff quantize` would give a wider format, because they would lose more than 2 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from svdiff_delta.format.dtypes import STORED_DTYPES, encode

LIMIT, WIDER, SIZE, LIMITED = 0.01, 0.02, 320, ("Gaussian", "Laplace")
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

DISTRIBUTIONS: dict[str, Draw] = {
    "Gaussian": lambda random, n: random.standard_normal(n),
    "Laplace": lambda random, n: random.laplace(size=n) / 2**0.5,
    "uniform": lambda random, n: random.uniform(-1, 1, n) * 3**0.5,
    "Student t, 3 degrees": lambda random, n: random.standard_t(3, n) / 3**0.5,
    "Gaussian, 90 % zeros": lambda random, n: random.standard_normal(n) * (random.random(n) < 0.1) * 10**0.5,
    "Gaussian, one value 100 times": lambda random, n: random.standard_normal(n) * np.where(np.arange(n) % 64, 1, 100),
}


def error(values: NDArray[np.float64], dtype: str) -> float:
    """The relative error of rounding to a dtype."""
    rounded = encode(values, dtype).decode()  # type: ignore[arg-type]
    return float(np.linalg.norm(rounded - values) / np.linalg.norm(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--numbers", type=int, default=320_000)
    arguments = parser.parse_args()
    print(f"{'relative error':<32}" + "".join(f"{dtype:>11}" for dtype in STORED_DTYPES) + f"{'wider':>8}")
    rows: dict[str, dict[Any, float]] = {}
    for label, draw in DISTRIBUTIONS.items():
        values = 0.01 * draw(np.random.default_rng(0), arguments.numbers)
        errors = {dtype: error(values, dtype) for dtype in STORED_DTYPES}
        parts = np.array_split(values, max(1, arguments.numbers // SIZE))
        wider = float(np.mean([error(part, "I8") > WIDER for part in parts]))
        rows[label] = {**errors, "wider": wider}
        print(f"{label:<32}" + "".join(f"{value:>11.2e}" for value in errors.values()) + f"{wider:>8.1%}")
    print(f"limit {LIMIT:.0%} for I8 on {' and '.join(LIMITED)}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"limit": LIMIT, "errors": rows}, indent=2) + "\n")
    sys.exit(0 if all(rows[label]["I8"] <= LIMIT for label in LIMITED) else 1)


if __name__ == "__main__":
    main()
