"""Operations on deltas in exact arithmetic, rounded where the specification says so (spec, sections 7.3, 7.5, 7.6)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import partial
from math import acos, floor
from typing import Any

from . import families
from .combine import combine_params, result_metadata
from .container import JSON
from .delta import Delta, Param
from .numbers import LARGEST, Stored, Values, checked, decode, encode, nearest, project

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


# --- Merging ---


def merge(
    inputs: Sequence[Delta],
    method: str,
    weights: Sequence[Weight] | None = None,
    dtype: str = "F32",
    **options: float,
) -> Delta:
    """Return a merged delta (spec, section 7.6)."""
    given = list(weights or [1.0] * len(inputs))
    if method.startswith("dare"):
        options.setdefault("seed", 0)
    arguments: dict[str, JSON] = {"method": method, **options}
    if dtype != "F32":
        arguments["dtype"] = dtype
    if method != "slerp":
        arguments["weights"] = [recorded(weight) for weight in given]
    params = combine_params(inputs)
    by_name = [factors(delta, weight) for delta, weight in zip(inputs, given, strict=True)]
    stored = {}
    for name, param in params.items():
        own = [factor.get(name, Fraction(0)) for factor in by_name]
        values = [delta.values(name) if name in delta.params else [Fraction(0)] * param.size for delta in inputs]
        merged = _merged(name, param, values, own, method, options)
        stored[name] = encode(project(checked(merged, dtype), param.tied, param.null), dtype)
    return replace(result_metadata(inputs, params, "merge", arguments), stored=stored)


def _merged(
    name: str,
    param: Param,
    values: Sequence[Values],
    weights: Sequence[Fraction],
    method: str,
    options: Mapping[str, float],
) -> Values:
    values = [project(value, param.tied, param.null) for value in values]
    if method == "slerp":
        return _slerp(values[0], values[1], Fraction(options["alpha"]))
    second = {index for first, last in param.tied for index in range(first + 1, last + 1)}
    free = [index for index in range(param.size - param.null) if index not in second]
    points = [[value[index] for index in free] for value in values]
    density = Fraction(options.get("density", 1))
    if method in ("ties", "magnitude"):
        points = [_trim(point, density) for point in points]
    if method.startswith("dare"):
        points = [_drop(point, density, int(options["seed"]), k, name) for k, point in enumerate(points)]
    merged = (_elect if method.endswith("ties") else weighted)(points, weights)
    result = [Fraction(0)] * param.size
    for index, value in zip(free, merged, strict=True):
        result[index] = value
    for first, last in param.tied:
        result[first : last + 1] = [result[first]] * (last + 1 - first)
    return result


def _trim(values: Values, density: Fraction) -> Values:
    count = max(1, floor(wide(wide(density * len(values)) + Fraction(1, 2))))
    kept = sorted(range(len(values)), key=lambda index: (-abs(values[index]), index))[:count]
    return [value if index in kept else Fraction(0) for index, value in enumerate(values)]


def _drop(values: Values, density: Fraction, seed: int, number: int, name: str) -> Values:
    text = f"svdiff draw 1\n{seed}\n{number}\n{name}".encode()
    stream = hashlib.shake_256(text).digest(8 * len(values))
    draws = [Fraction(int.from_bytes(stream[8 * i : 8 * i + 8], "little") >> 11, 2**53) for i in range(len(values))]
    return [wide(value / density) if draw < density else Fraction(0) for value, draw in zip(values, draws, strict=True)]


def _elect(values: Sequence[Values], weights: Sequence[Fraction]) -> Values:
    products = [[wide(weight * item) for item in value] for value, weight in zip(values, weights, strict=True)]
    result = []
    for index, sum_ in enumerate(weighted(values, weights)):
        agree = [k for k, product in enumerate(products) if product[index] * sum_ > 0]
        above, below = Fraction(0), Fraction(0)
        for k in agree:
            above, below = wide(above + products[k][index]), wide(below + abs(weights[k]))
        result.append(wide(above / below) if agree else Fraction(0))
    return result


def _slerp(a: Values, b: Values, alpha: Fraction) -> Values:
    """Return (sin(αφ) a + sin((1 − α)φ) b) / sin φ: both factors to 80 digits, and rounded once to F64."""
    dot, first, second = (sum(x * y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (a, a), (b, b)))
    rest = first * second - dot**2
    if rest <= first * second / 10**12:
        return weighted([a, b], [alpha, wide(1 - alpha)])
    with localcontext(prec=100):
        angle = _angle(_decimal(dot) / (_decimal(first) * _decimal(second)).sqrt())
        shares = (_series(_decimal(share) * angle, 1) / _series(angle, 1) for share in (alpha, 1 - alpha))
        factors_ = [wide(Fraction(share)) for share in shares]
    return weighted([a, b], factors_)


def _decimal(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


def _angle(cosine: Decimal) -> Decimal:
    """Return an angle from 0 to π by its cosine, by Newton's method."""
    angle = Decimal(acos(cosine))
    for _ in range(9):
        angle += (_series(angle, 0) - cosine) / _series(angle, 1)
    return angle


def _series(angle: Decimal, start: int) -> Decimal:
    """Return a cosine (from 0) or a sine (from 1) by its series."""
    term, total_, power = angle**start, Decimal(0), start
    while total_ + term != total_:
        total_ += term
        term *= -angle * angle / ((power + 1) * (power + 2))
        power += 2
    return total_
