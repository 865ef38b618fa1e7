"""Write a recipe: the YAML file that `svdiff merge --recipe` reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from svdiff_delta.format.dtypes import StoredDtype
from svdiff_delta.ops.weights import Weight


def recipe_text(
    inputs: Sequence[tuple[str, Weight]], *, title: str | None = None, dtype: StoredDtype = "F32", remark: str = ""
) -> str:
    """Return a recipe of the weighted sum of deltas; the same inputs give the same text.

    Args:
        inputs: how the recipe names each delta, and its weight; in order.
        title: of the result.
        dtype: number format of the result.
        remark: a comment of one line at its beginning.
    """
    recipe: dict[str, Any] = {"method": "linear"}
    if title is not None:
        recipe["title"] = title
    if dtype != "F32":
        recipe["dtype"] = dtype
    recipe["inputs"] = [_input(text, weight) for text, weight in inputs]
    body: str = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=1000)
    return (f"# {' '.join(remark.split())}\n" if remark else "") + body


def _input(text: str, weight: Weight) -> dict[str, Any]:
    said: dict[str, Any] = {"delta": text, "weight": weight.default}
    return said | ({"where": dict(weight.where)} if weight.where else {})
