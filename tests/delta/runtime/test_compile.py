"""torch.compile: a compiled model shows swaps and scales without being compiled again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.live import CASES, delta_of, relative, tiny
from support.models import live_zero, named, random_delta
from support.weights import normal
from torch import nn

from svdiff_delta.runtime import attach

pytestmark = [
    pytest.mark.slow,
    # The compiler's own modules bring it, when they are imported.
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit\.script_method.*:DeprecationWarning"),
]


CHOSEN: list[tuple[str, dict[str, Any]]] = [
    ("UNet", {}),
    ("Flux", {"exact": True}),
    ("CLIP's text encoder", {"mode": "fused"}),
]


@pytest.mark.parametrize(("name", "options"), CHOSEN)
def test_swapping_and_scaling_do_not_compile_again(name: str, options: dict[str, Any]) -> None:
    model, inputs = tiny(name), CASES[name].inputs(2)
    dog, cat = delta_of(name, seed=1), delta_of(name, seed=2)
    torch.compiler.reset()
    with attach(model, {"dog": dog, "cat": cat}, **options) as handle, torch.no_grad():
        compiled = torch.compile(model)

        def error() -> float:
            found, expected = (getattr(each(**inputs), CASES[name].output) for each in (compiled, model))
            return relative(found, expected)

        assert error() < 1e-5
        with torch._dynamo.config.patch(error_on_recompile=True):
            for change in (
                lambda: handle.set_adapters(["dog", "cat"], [0.8, 0.5]),
                lambda: handle.set_scale(0.5),
                lambda: handle.set_adapters("dog"),
                lambda: handle.swap(cat),
                handle.disable,
                handle.enable,
            ):
                change()
                assert error() < 1e-5


def test_a_compiled_model_takes_a_delta_for_each_sample() -> None:
    model, x = named(nn.Linear(12, 8)), normal(4, 12)
    zero = live_zero(model)
    deltas = {name: random_delta(zero, size=0.3, seed=seed) for seed, name in enumerate(["dog", "cat"])}
    torch.compiler.reset()
    with attach(model, deltas) as handle, torch.no_grad():
        compiled = torch.compile(model)
        together = compiled(x)
        with handle.per_sample(["dog", "cat"]):
            assert relative(compiled(x), model(x)) < 1e-6
            assert relative(compiled(x), together) > 0.01
        assert relative(compiled(x), together) < 1e-6
