"""`python -m svdiff_train.paper.search`: learning rates of all methods, on a subject that no experiment uses."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from .experiments.judge import measured
from .lab import Lab
from .recipe import RATES, Recipe
from .sight import Sight
from .subjects import SEARCHED

FACTORS: Final = (0.3, 1.0, 3.0)


def main() -> None:
    """Print what each method reaches around its rate in `RATES`."""
    torch.set_num_threads(1)
    lab, sight = Lab(Path(sys.argv[1] if len(sys.argv) > 1 else "paper-out")), Sight()
    for method in RATES:
        for factor in FACTORS:
            recipe = replace(Recipe(method=method, subjects=(SEARCHED,)), faster=factor)
            trained = lab.trained(recipe)
            found, _ = measured(lab, sight, recipe, trained.results)
            print(f"{method} {recipe.rate:g}: {found}, {trained.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
