"""Reports: between them nothing is read from the device, and what goes wrong is found at the next one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.descent import numbers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from svdiff_delta import save
from svdiff_delta.errors import InputError, TrainError
from svdiff_train.methods import METHODS
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny, pictures_path
from svdiff_train.training.callbacks import Report, Watch
from svdiff_train.training.checkpoint import load_state, states
from svdiff_train.training.keeping import Keeping
from svdiff_train.training.loop import train
from svdiff_train.training.outcome import Outcome
from svdiff_train.training.records import Records, Taken, first_bad
from svdiff_train.training.step import Stepper

PICTURES = pictures_path("black_cat")
CONFIG = TrainConfig(
    prompt="a photo of a sks cat", selectors=("unet-ca-kv",), steps=6, learning_rate=1e-2, resolution=32
)

READS = frozenset({"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero"})
"""Operations that hand values, or a size that depends on them, to the host."""


class Reads(TorchDispatchMode):
    """Count what hands values to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.all = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.all += 1
        if name in READS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def uncounted(draw: Callable[..., Any]) -> Callable[..., Any]:
    """What chance draws is on the host from the start: it is read from no device."""

    def drawn(*given: Any) -> Any:
        with _disable_current_modes():
            return draw(*given)

    return drawn


def watched_steps(monkeypatch: pytest.MonkeyPatch, after: int) -> list[Reads]:
    """Count the reads of each step from one on: the first ones prepare what later ones use."""
    counted: list[Reads] = []
    step = Stepper.step

    def counting(self: Stepper, number: int) -> Tensor:
        if number < after:
            return step(self, number)
        with Reads() as reads:
            monkeypatch.setattr(self.batches, "batch", uncounted(self.batches.batch))
            numbers = step(self, number)
        counted.append(reads)
        return numbers

    monkeypatch.setattr(Stepper, "step", counting)
    return counted


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all layers, clipped": {"selectors": None, "batch_size": 2, "accumulate": 2},
    "bf16": {"mixed_precision": "bf16"},
    "fp16": {"mixed_precision": "fp16"},
    "checkpointed, of low rank": {"gradient_checkpointing": True, "train_rank": 4},
    "lora": {"method": "lora", "selectors": None},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_reads_nothing_from_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = watched_steps(monkeypatch, after=2)
    train(open_tiny(), PICTURES, replace(CONFIG, steps=3, **SETTINGS[name]), watch=Watch(every=10))
    assert [dict(reads.found) for reads in counted] == [{}]
    assert counted[0].all > 100


def test_reports_come_as_often_as_they_are_asked_for_and_trackers_get_every_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told: list[Report] = []
    keeping = Keeping(folder=tmp_path, every=100)
    train(
        open_tiny(),
        PICTURES,
        replace(CONFIG, steps=5),
        watch=Watch(step=told.append, every=2),
        keeping=keeping,
        trackers=["tensorboard"],
    )
    assert [report.step for report in told] == [2, 4, 5]
    (log,) = (tmp_path / "svdiff").glob("events.out.tfevents.*")
    events = EventAccumulator(str(log)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert [event.step for event in events.Scalars("dead_shifts")] == [2, 4, 5]
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert [losses[report.step] for report in told] == pytest.approx([report.loss for report in told])


def test_reports_change_nothing_of_what_is_learned(tmp_path: Path) -> None:
    for every in (1, 4):
        save(train(open_tiny(), PICTURES, CONFIG, watch=Watch(every=every)).delta, tmp_path / f"{every}")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "4").read_bytes()


def broken_at(monkeypatch: pytest.MonkeyPatch, number: int, change: Callable[[Tensor], Tensor]) -> None:
    """Let the loss of one step be another one."""
    share = Stepper._loss
    steps: list[int] = []

    def loss(self: Stepper, batch: Any) -> Tensor:
        steps.append(1)
        found = share(self, batch)
        return change(found) if len(steps) == number else found

    monkeypatch.setattr(Stepper, "_loss", loss)


BREAKS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "loss": (lambda loss: loss * torch.nan, "the loss is nan at step 3"),
    "infinite loss": (lambda loss: loss + torch.inf, "the loss is inf at step 3"),
    # Its value is right, and its gradient is not.
    "gradient": (
        lambda loss: loss + (loss - loss.detach()).abs().sqrt(),
        "the length of the gradient is nan at step 3",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_was_good_before_a_bad_step_is_kept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, words = BREAKS[name]
    clean = Keeping(folder=tmp_path / "clean", every=2)
    train(open_tiny(), PICTURES, replace(CONFIG, steps=2), keeping=clean)
    broken_at(monkeypatch, 3, change)
    keeping = Keeping(folder=tmp_path / "broken", every=100)
    with pytest.raises(TrainError) as caught:
        train(open_tiny(), PICTURES, CONFIG, watch=Watch(every=5), keeping=keeping)
    (path,) = states(keeping.states)
    assert caught.value.message == (
        f"{words} (the report after step 5 found it, in steps 1 to 5); the last good state is kept in {path}"
    )
    assert caught.value.fix == "lower the learning rate, or run without mixed precision"
    found, wanted = load_state(path), load_state(states(clean.states)[-1])
    assert found.step == 2
    assert found.tensors.keys() == wanted.tensors.keys()
    assert all(torch.equal(found.tensors[key], wanted.tensors[key]) for key in wanted.tensors)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (3, r"the loss is (nan|inf) at step 4 \(.*in steps 3 to 4\)"),
        (4, r"what is trained is not finite at step 4 \(.*in steps 3 to 4\)"),
    ],
)
def test_what_was_good_at_the_last_report_is_kept_where_an_update_overflows(
    number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Stepper.step

    def overflowing(self: Stepper, done: int) -> Tensor:
        numbers = step(self, done)
        if done + 1 == number:
            with torch.no_grad():
                next(iter(self.parameters.values()))[0] = torch.inf
        return numbers

    clean = Keeping(folder=tmp_path / "clean")
    train(open_tiny(), PICTURES, replace(CONFIG, steps=2), keeping=clean)
    monkeypatch.setattr(Stepper, "step", overflowing)
    keeping = Keeping(folder=tmp_path / "broken", every=100)
    with pytest.raises(TrainError, match=f"{words}; the last good state is kept in .*step-000002"):
        train(open_tiny(), PICTURES, CONFIG, watch=Watch(every=2), keeping=keeping)
    found, wanted = (load_state(states(each.states)[-1]) for each in (keeping, clean))
    assert all(torch.equal(found.tensors[key], wanted.tensors[key]) for key in wanted.tensors)


def test_without_a_folder_the_error_says_that_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_at(monkeypatch, 2, lambda loss: loss * torch.nan)
    with pytest.raises(TrainError, match=r"the loss is nan at step 2 .*; no state is kept: lower the learning rate"):
        train(open_tiny(), PICTURES, replace(CONFIG, steps=2))


@pytest.mark.slow
def test_a_scaled_loss_stays_out_of_what_is_trained_once_it_was_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = replace(CONFIG, mixed_precision="fp16", steps=4)
    clean, keeping = (Keeping(folder=tmp_path / name, every=2) for name in ("clean", "broken"))
    train(open_tiny(), PICTURES, replace(half, steps=2), keeping=clean)
    broken_at(monkeypatch, 3, lambda loss: loss * torch.nan)
    with pytest.raises(TrainError, match="the loss is nan at step 3"):
        train(open_tiny(), PICTURES, half, watch=Watch(every=4), keeping=replace(keeping, every=100))
    found, wanted = (load_state(states(each.states)[-1]) for each in (keeping, clean))
    assert found.step == wanted.step == 2
    assert all(torch.equal(found.tensors[key], wanted.tensors[key]) for key in wanted.tensors)


@pytest.mark.parametrize("every", [0, -3])
def test_reports_are_at_least_a_step_apart(every: int) -> None:
    with pytest.raises(InputError, match=f"every must be at least 1, is {every}"):
        Watch(every=every)


def test_the_first_bad_step_is_named() -> None:
    records = Records()
    for step, (loss, length) in enumerate([(1.0, 2.0), (1.0, float("inf")), (float("nan"), 1.0)], 1):
        records.add(step, 0.5, torch.tensor([loss, length]))
    taken = records.read()
    assert not records.read()
    assert taken[0] == Taken(1, 0.5, 1.0, 2.0)
    assert first_bad(taken[:1], scaled=False) is None
    assert first_bad(taken, scaled=False) == (2, "the length of the gradient is inf")
    assert first_bad(taken, scaled=True) == (3, "the loss is nan")


def test_a_state_is_by_weights_and_one_of_an_earlier_release_goes_on(tmp_path: Path) -> None:
    """Earlier releases had one parameter and two moments for each weight, and none for weights without gradients."""
    whole = train(open_tiny(), PICTURES, CONFIG).delta
    keeping = Keeping(folder=tmp_path, resume=True)
    first = train(open_tiny(), PICTURES, replace(CONFIG, steps=3), keeping=keeping).delta
    (path,) = states(keeping.states)
    tensors = load_file(path)
    assert tensors.keys() == {f"{kind}/{name}" for kind in ("value", "exp_avg", "exp_avg_sq") for name in first}
    np.testing.assert_array_equal(numbers(first), np.concatenate([tensors[f"value/{name}"] for name in sorted(first)]))
    outcome = train(open_tiny(), PICTURES, CONFIG, keeping=keeping)
    save(outcome.delta, tmp_path / "a")
    save(whole, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_adamw_on_flat_numbers_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups of weights with a rate each, from the same gradients, in float64."""
    seen: list[dict[str, Tensor]] = []
    note = Stepper._note

    def noting(self: Stepper, taken: Tensor) -> None:
        note(self, taken)
        grads = {name: torch.as_tensor(self.parameters[place.parameter].grad) for name, place in self.places.items()}
        seen.append({name: place.of(grads[name]).double() for name, place in self.places.items()})

    monkeypatch.setattr(Stepper, "_note", noting)
    config = replace(CONFIG, selectors=("unet.mid_block.*",), steps=3, learning_rate_1d=1e-3, weight_decay=0.1)
    delta = train(open_tiny(), PICTURES, config).delta
    kinds = {name: parameter.kind for name, parameter in delta.metadata.parameters.items()}
    assert set(kinds.values()) == {"spectral", "elementwise"}
    norms = [torch.cat(list(grads.values())).norm() for grads in seen]
    assert all(norm <= 1.0 + 1e-4 for norm in norms)  # clipped in one for all weights
    for name in delta:
        rate = 1e-2 if kinds[name] == "spectral" else 1e-3
        value = mean = square = torch.zeros(seen[0][name].shape, dtype=torch.float64)
        for step, grads in enumerate(seen, 1):
            mean, square = 0.9 * mean + 0.1 * grads[name], 0.999 * square + 0.001 * grads[name] ** 2
            value = value * (1 - rate * 0.1)
            value = value - rate * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        # Three updates, each of at most the rate and rounded in about ten operations by 2⁻²⁴ of it.
        np.testing.assert_allclose(delta[name], value.numpy(), rtol=0, atol=3 * 10 * 2**-24 * 4 * rate)


@pytest.mark.parametrize(
    ("method", "dtype", "cast"),
    [("svdiff", "bf16", False), ("svdiff", "fp16", False), ("lora", "bf16", True), ("kv", "bf16", True)],
)
def test_only_a_model_that_is_not_in_half_precision_is_cast(
    method: str, dtype: str, cast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    backward = Stepper._loss

    def looking(self: Stepper, batch: Any) -> Tensor:
        hook = self.family.denoiser.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        try:
            return backward(self, batch)
        finally:
            hook.remove()

    monkeypatch.setattr(Stepper, "_loss", looking)
    selectors = ("unet-ca-kv",) if method == "svdiff" else None
    outcome: Outcome = train(
        open_tiny(),
        PICTURES,
        replace(CONFIG, method=method, mixed_precision=dtype, steps=1, selectors=selectors, token="sks"),
    )
    assert seen == [cast]
    assert outcome.loss is not None
    assert METHODS[method].half() is (method != "kv")
