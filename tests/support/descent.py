"""Runs whose results may be compared: plain gradient descent keeps rounding as small as it was, Adam does not."""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from svdiff_delta import Delta

ROUNDED: Final = 1e-3
"""What the order of float32 sums keeps a `greatest_distance` below, in a few steps of plain descent on a small base.

A gradient passes about 200 sums, there and back, of up to N = 2304 terms (256 channels of 3 x 3). Each errs by about
√N ε of its length, ε = 2⁻²⁴, and all by about √200 √N ε = 4e-5; the rest is left for terms that cancel. A sample that
is left out, counted twice or weighted wrongly moves δ by tenths.
"""


def plain_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs take plain gradient descent in Adam's place.

    Adam divides each number's gradient by its size: where that is nearly 0, the order of a sum decides the step.
    """
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **_: torch.optim.SGD(groups))


def numbers(delta: Delta) -> NDArray[np.float64]:
    """Return all values of a delta as one vector."""
    return np.concatenate([delta[name].astype("f8") for name in sorted(delta)])


def distance(found: Delta, expected: Delta) -> float:
    """Return ‖δ − δ'‖ / ‖δ'‖ over all parameters."""
    assert found.keys() == expected.keys()
    a, b = numbers(found), numbers(expected)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def greatest_distance(found: Delta, expected: Delta) -> float:
    """Return the greatest `distance` of one parameter."""
    assert found.keys() == expected.keys()
    lengths = {name: float(np.linalg.norm(expected[name])) for name in expected}
    return max(float(np.linalg.norm(found[name].astype("f8") - expected[name])) / lengths[name] for name in expected)
