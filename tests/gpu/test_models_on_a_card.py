"""What once went wrong on a card only: gradients in half precision, default devices, offloading, memory's end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from support.commands import svdiff
from support.live import CASES, delta_of, relative, run, tiny
from support.models import live_zero, random_delta
from torch import Tensor

from svdiff_delta import Delta, attach, build_basis, open_base
from svdiff_delta._util import warned
from svdiff_delta._util.warned import DeltaWarning
from svdiff_delta.errors import AttachError, TrainError
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training.loop import train

pytestmark = pytest.mark.gpu

CONFIG = TrainConfig(prompt="a photo of a sks cat", steps=2, learning_rate=1e-2)
ERRORS = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far gradients by δ may be from those of float32 on the processor, of all of them together."""


def there(name: str, card: torch.device) -> dict[str, Any]:
    given = CASES[name].inputs(2)
    return {key: each.to(card) if isinstance(each, Tensor) else each for key, each in given.items()}


def gradients(model: Any, delta: Delta, name: str, device: torch.device) -> Tensor:
    """The gradients by all δ in a row, of the mean square of what a model gives."""
    with attach(model.to(device), delta, trainable=True) as handle:
        run(model, name, there(name, device)).float().square().mean().backward()
        return torch.cat([value.grad.double().cpu() for _, value in handle.parameters() if value.grad is not None])


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_processors(name: str, card: torch.device) -> None:
    """Those of Flux were 1e36 in half precision, where the others' were right."""
    for dtype, limit in ERRORS.items():
        model = tiny(name).to(dtype)
        delta = random_delta(live_zero(model), size=0.3)
        expected = gradients(tiny(name).to(dtype).float(), delta, name, torch.device("cpu"))
        found = gradients(model, delta, name, card)
        assert found.shape == expected.shape
        assert relative(found, expected) < limit, dtype


@pytest.mark.parametrize("mode", ["live", "fused"])
def test_a_default_device_changes_nothing(mode: Any, card: torch.device) -> None:
    delta, expected = delta_of("UNet"), []
    for default in ("cpu", card):
        model = tiny("UNet").to(card)
        with torch.device(default):
            handle = attach(model, delta, mode=mode)
            handle.set_scale(0.5)
        expected.append(run(model, "UNet", there("UNet", card)))
        with torch.device(default):
            handle.detach()
    assert torch.equal(*expected)


def test_all_of_a_live_models_state_is_on_the_card(card: torch.device) -> None:
    model = tiny("UNet").to(card)
    with attach(model, delta_of("UNet")):
        assert {value.device.type for value in model.state_dict().values()} == {"cuda"}


@pytest.mark.parametrize("mode", ["live", "fused"])
def test_a_model_is_offloaded_layer_by_layer_with_a_delta_on_it(mode: Any, card: torch.device) -> None:
    delta, plain, model = delta_of("UNet"), tiny("UNet"), tiny("UNet")
    with attach(plain, delta, mode=mode) as here, attach(model, delta, mode=mode) as handle:
        accelerate.cpu_offload(model, card)
        for scale in (1.0, 0.5):
            here.set_scale(scale)
            handle.set_scale(scale)
            found = run(model, "UNet", there("UNet", card)).cpu()
            assert relative(found, run(plain, "UNet")) < 1e-4


@contextmanager
def full(card: torch.device) -> Iterator[None]:
    """Let torch take no more of the card's memory, and fill what it has."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-9)
    kept: list[Tensor] = []
    try:
        for size in (1 << power for power in range(30, 8, -1)):
            with suppress(torch.OutOfMemoryError):
                while True:
                    kept.append(torch.empty(size, dtype=torch.uint8, device=card))
        yield
    finally:
        kept.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_card_without_memory_is_one_line_of_every_part(card: torch.device, tmp_path: Path) -> None:
    model, delta = tiny("UNet").to(card), delta_of("UNet")
    with full(card):
        with pytest.raises(AttachError, match=r"^out of memory while attaching: "):
            attach(model, delta)
        with pytest.raises(TrainError, match=r"^out of memory while loading the model: "):
            train(open_tiny(), pictures_path("black_cat"), CONFIG, device=card)
        done = svdiff("generate", "tiny", "--prompt", "a cat", "--device", "cuda", "-o", str(tmp_path / "a.png"))
        assert done.code == 1
        assert done.err.startswith("error: out of memory: lower --batch-size or --size, or use --device cpu")


def test_bases_that_do_not_fit_on_the_card_are_computed_beside_it(
    card: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warned, "_SAID", set())
    with full(card), pytest.warns(DeltaWarning, match="not enough memory for the basis of a weight of"):
        found = build_basis(open_tiny(), "mid-ca", cache=BasisCache(tmp_path / "full", device=card))
    assert found == build_basis(open_tiny(), "mid-ca", cache=BasisCache(tmp_path / "cpu"))


def test_a_delta_trained_from_bases_of_either_is_the_same_to_rounding(card: torch.device, tmp_path: Path) -> None:
    base, found = open_base(open_tiny().path), []
    for device in ("cpu", card):
        cache = BasisCache(tmp_path / str(device), device=device)
        outcome = train(base, pictures_path("black_cat"), CONFIG, cache=cache, device="cpu")
        found.append(torch.cat([torch.as_tensor(values).double() for _, values in sorted(outcome.delta.items())]))
    assert relative(found[1], found[0]) < 1e-2
