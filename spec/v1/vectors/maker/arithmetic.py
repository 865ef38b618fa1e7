"""Operations on deltas in exact arithmetic, rounded where the specification says so (spec, sections 7.3 and 7.5)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

from . import families
from .combine import combine_params, result_metadata
from .container import JSON
from .delta import Delta, Param
from .numbers import LARGEST, Stored, Values, decode, encode, nearest, project

Weight = Any  # a number, or {"default": number, "where": [[selector, number], …]}
wide: Callable[[Fraction], Fraction] = partial(nearest, name="F64")

CROSS = r"\.attn2\.to_(q|k|v|out\.0)\.weight"
SUBSETS: dict[str, tuple[str, str, int]] = {
    "unet": ("unet.", "", 0),
    "unet-ca": ("unet.", CROSS, 0),
    "unet-ca-kv": ("unet.", r"\.attn2\.to_[kv]\.weight", 0),
    "unet-1d": ("unet.", "", 1),
    "unet-2d": ("unet.", "", 2),
    "unet-4d": ("unet.", "", 4),
    "up": ("unet.up_blocks.", "", 0),
    "down": ("unet.down_blocks.", "", 0),
    "mid": ("unet.mid_block.", "", 0),
    "up-ca": ("unet.up_blocks.", CROSS, 0),
    "down-ca": ("unet.down_blocks.", CROSS, 0),
    "mid-ca": ("unet.mid_block.", CROSS, 0),
    "text": ("text_encoder", "", 0),
    "1d": ("", "", 1),
    "2d": ("", "", 2),
    "4d": ("", "", 4),
}


def chosen(params: Mapping[str, Param], selector: str, spots: Mapping[str, Sequence[str]]) -> set[str]:
    """Return what one selector names; `spots` are the name prefixes that each address in the vectors stands for."""
    if selector in params:
        return {selector}
    known = families.chosen(params, selector)
    if known is not None:
        return known
    lower = selector.lower()
    if level := re.fullmatch(r"(up|down)\.(\d+)", lower):
        return {name for name in params if name.startswith(f"unet.{level[1]}_blocks.{level[2]}.")}
    if lower in SUBSETS:
        prefix, pattern, dimensions = SUBSETS[lower]
        return {
            name
            for name, param in params.items()
            if name.startswith(prefix)
            and re.search(f"(?:{pattern})\\Z", name)
            and dimensions in (0, len(param.shape))
        }  # fmt: skip
    if selector in spots:
        return {name for name in params if name.startswith(tuple(spots[selector]))}
    return {name for name in params if re.fullmatch(_regex(selector), name, re.DOTALL)}


def _regex(glob: str) -> str:
    parts = re.findall(r"\[!?[^\]]+\]|.", glob, re.DOTALL)
    return "".join(
        {"*": ".*", "?": "."}.get(p) or (p.replace("[!", "[^") if len(p) > 1 else re.escape(p)) for p in parts
    )


def select(
    delta: Delta, selectors: Sequence[str], spots: Mapping[str, Sequence[str]], size: int | None = None
) -> Delta:
    """Return a slice."""
    wanted = [chosen(delta.params, item, spots) for item in selectors if item[0] != "!"]
    names = set().union(*wanted) if wanted else set(delta.params)
    for item in selectors:
        names -= chosen(delta.params, item[1:], spots) if item[0] == "!" else set()
    arguments: dict[str, JSON] = {"selectors": list(selectors)}
    if size is not None:
        arguments["sample_size"] = size
    params = {name: delta.params[name] for name in sorted(names)}
    result = result_metadata([delta], params, "slice", arguments)
    return replace(result, stored={name: _plus_zero(delta.stored[name]) for name in params})


def _plus_zero(stored: Stored) -> Stored:
    """Return the same values in the same format; a writer has no −0."""
    return stored if stored.dtype == "I8" else encode(decode(stored), stored.dtype)


def factors(delta: Delta, weight: Weight) -> dict[str, Fraction]:
    """Return the weight of each parameter; of several selectors that name it the last one counts."""
    if not isinstance(weight, Mapping):
        return dict.fromkeys(delta.params, Fraction(weight))
    result = dict.fromkeys(delta.params, Fraction(weight["default"]))
    for selector, factor in weight["where"]:
        result |= dict.fromkeys(chosen(delta.params, selector, {}), Fraction(factor))
    return result


def recorded(weight: Weight) -> JSON:
    """Return what a lineage says of a weight."""
    if not isinstance(weight, Mapping):
        return weight
    return {"default": weight["default"], "where": weight["where"]} if weight["where"] else weight["default"]


def weighted(values: Sequence[Values], weights: Sequence[Fraction]) -> Values:
    """Return Σ wₖ vₖ in F64: a rounding for each product and each sum."""
    total = [Fraction(0)] * len(values[0])
    for value, weight in zip(values, weights, strict=True):
        total = [wide(old + wide(weight * new)) for old, new in zip(total, value, strict=True)]
    return total


def total(
    inputs: Sequence[Delta],
    weights: Sequence[Weight],
    operation: str,
    arguments: Mapping[str, JSON],
    dtype: str = "F32",
) -> Delta:
    """Return a weighted sum."""
    params = combine_params(inputs)
    by_name = [factors(delta, weight) for delta, weight in zip(inputs, weights, strict=True)]
    stored = {}
    for name, param in params.items():
        having = [index for index, delta in enumerate(inputs) if name in delta.params]
        values = weighted([inputs[index].values(name) for index in having], [by_name[index][name] for index in having])
        stored[name] = encode(project(values, param.tied, param.null), dtype)
    said = dict(arguments) if dtype == "F32" else {**arguments, "dtype": dtype}
    return replace(result_metadata(inputs, params, operation, said), stored=stored)


def add(inputs: Sequence[Delta], weights: Sequence[Weight] | None = None, dtype: str = "F32") -> Delta:
    """Return Σ wₖ δₖ."""
    given = list(weights or [1.0] * len(inputs))
    return total(inputs, given, "add", {"weights": [recorded(weight) for weight in given]}, dtype)


def interpolate(inputs: Sequence[Delta], alpha: float, dtype: str = "F32") -> Delta:
    """Return α δ₁ + (1 − α) δ₂."""
    rest = float(wide(1 - Fraction(alpha)))
    return total(inputs, [alpha, rest], "interpolate", {"alpha": alpha}, dtype)


def scale(delta: Delta, factor: float, dtype: str = "F32") -> Delta:
    """Return f · δ."""
    return total([delta], [factor], "scale", {"factor": factor}, dtype)


def truncate(delta: Delta, *, rank: int | None = None, energy: float | None = None) -> Delta:
    """Return the largest shifts of each spectral parameter."""
    stored = {}
    for name, param in delta.params.items():
        own = delta.stored[name]
        if param.spectral:
            kept = _largest(delta.values(name), param, rank, energy)
            own = encode(kept, "F32" if own.dtype == "I8" else own.dtype)
        stored[name] = own
    arguments: dict[str, JSON] = {"energy": energy} if rank is None else {"rank": rank}
    return replace(result_metadata([delta], delta.params, "truncate", arguments), stored=stored)


def _largest(values: Values, param: Param, rank: int | None, energy: float | None) -> Values:
    inside = {index for first, last in param.tied for index in range(first, last + 1)}
    units = [list(range(first, last + 1)) for first, last in param.tied]
    units += [[index] for index in range(param.size - param.null) if index not in inside]
    units.sort(key=lambda unit: (-abs(values[unit[0]]), unit[0]))
    result, count, sum_ = [Fraction(0)] * len(values), 0, Fraction(0)
    wanted = Fraction(energy or 0) * sum(value**2 for value in values)
    for unit in units:
        if count + len(unit) > rank if rank is not None else sum_ >= wanted:
            continue
        count += len(unit)
        sum_ += sum(values[index] ** 2 for index in unit)
        for index in unit:
            result[index] = values[index]
    return result


WIDER = {"I8": "F16", "F16": "F32", "BF16": "F32"}


def quantize(delta: Delta, dtype: str, max_error: float) -> Delta:
    """Return the delta in another number format."""
    stored = {name: _rounded(delta, name, dtype, Fraction(max_error)) for name in delta.params}
    arguments = {"dtype": dtype, "max_error": max_error}
    return replace(result_metadata([delta], delta.params, "quantize", arguments), stored=stored)


def _rounded(delta: Delta, name: str, dtype: str, limit: Fraction) -> Stored:
    if delta.stored[name].dtype == dtype:
        return delta.stored[name]
    values = delta.values(name)
    if max(map(abs, values)) <= LARGEST[dtype] or dtype not in WIDER:
        stored = encode(values, dtype)
        lost = sum((new - old) ** 2 for new, old in zip(decode(stored), values, strict=True))
        if dtype not in WIDER or lost <= limit**2 * sum(value**2 for value in values):
            return stored
    return _rounded(delta, name, WIDER[dtype], limit)
