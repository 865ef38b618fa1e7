"""Merging in exact arithmetic, rounded where the specification says so (spec, section 7.6)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction
from math import acos, floor

from .arithmetic import Weight, factors, recorded, weighted, wide
from .combine import combine_params, result_metadata
from .container import JSON
from .delta import Delta, Param
from .numbers import Values, checked, encode, project


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
    dot, first, second = (_product(*pair) for pair in ((a, b), (a, a), (b, b)))
    rest = first * second - dot**2
    if rest <= first * second / 10**12:
        return weighted([a, b], [alpha, wide(1 - alpha)])
    with localcontext(prec=100):
        angle = _angle(_decimal(dot) / (_decimal(first) * _decimal(second)).sqrt())
        shares = (_series(_decimal(share) * angle, 1) / _series(angle, 1) for share in (alpha, 1 - alpha))
        factors_ = [wide(Fraction(share)) for share in shares]
    return weighted([a, b], factors_)


def _product(a: Values, b: Values) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


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
