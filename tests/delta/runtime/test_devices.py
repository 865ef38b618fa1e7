"""What breaks on a GPU and can be shown without one: default devices, mixed state dicts, offloading, first calls."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import torch.nn.functional as F
from support.forked import forked
from support.live import delta_of, run, tiny
from support.models import MINILM, live_zero, named, random_delta
from support.refusals import EXHAUSTED, FAILED
from support.weights import normal
from torch import nn

from svdiff_delta import bake, open_base, zero_delta
from svdiff_delta.base_model import devices
from svdiff_delta.errors import AttachError
from svdiff_delta.runtime import attach
from svdiff_delta.svd.cache import BasisCache

FORMS: dict[str, dict[str, Any]] = {"live": {}, "exact": {"exact": True}, "fused": {"mode": "fused"}}


@pytest.mark.parametrize("form", FORMS)
def test_a_default_device_of_the_caller_changes_nothing(form: str) -> None:
    model, delta = tiny("UNet"), delta_of("UNet")
    with attach(model, delta, **FORMS[form]) as handle:
        handle.set_scale(0.5)
        expected = run(model, "UNet")
    with torch.device("meta"):
        handle = attach(model, delta, **FORMS[form])
        handle.set_scale(0.5)
    assert torch.equal(run(model, "UNet"), expected)
    with torch.device("meta"):
        model.double().float()
        found = handle.delta()
        handle.detach()
    assert found.keys() == delta.keys()


def test_bases_and_bakes_do_not_depend_on_the_default_device(tmp_path: Path) -> None:
    names = ("*.layer.0.attention.self.query.weight", "*.layer.0.attention.output.LayerNorm.weight")
    with torch.device("meta"):
        base = open_base(MINILM)
        delta = zero_delta(base, *names, cache=BasisCache(tmp_path / "cache"))
        bake(base, [(delta, 1.0)], tmp_path / "baked")
    again = zero_delta(base, *names, cache=BasisCache(tmp_path / "other"))
    assert again.metadata.parameters == delta.metadata.parameters


def test_the_first_decomposition_is_one_call_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch loads its linear algebra at the first call, and fails if several threads make that call at once."""
    monkeypatch.setattr(devices, "_LOADED", set())
    loading, loaded, late = threading.Lock(), threading.Event(), threading.Barrier(3)
    eigh = torch.linalg.eigh

    def fake(*args: Any) -> Any:
        if not loaded.is_set():
            if not loading.acquire(blocking=False):
                raise RuntimeError("lazy wrapper should be called at most once")
            loaded.set()
        return eigh(*args)

    monkeypatch.setattr(torch.linalg, "eigh", fake)
    errors: list[Exception] = []

    def work() -> None:
        late.wait()
        try:
            devices.load_linear_algebra(torch.device("cpu"))
        except RuntimeError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert torch.device("cpu") in devices._LOADED


def test_every_basis_waits_for_the_first_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[torch.device] = []
    monkeypatch.setattr("svdiff_delta.svd.decomposition.load_linear_algebra", seen.append)
    live_zero(named(nn.Linear(7, 9)))
    cache = BasisCache(tmp_path)
    cache.obtain("A" * 22, normal(7, 9), 0)
    assert seen
    assert set(seen) == {torch.device("cpu")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_norms_of_torch_in_half_precision_do_without_its_fused_kernel(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU that kernel gives gradients of 1e36 where the weight takes none (torch 2.11)."""
    model = named(nn.RMSNorm(16, eps=1e-6))
    delta = random_delta(live_zero(model.to(dtype)), size=0.2)

    def refused(*args: object, **options: object) -> None:
        raise AssertionError("the fused kernel was called")

    with attach(model, delta, trainable=True) as handle:
        with monkeypatch.context() as patch:
            patch.setattr(F, "rms_norm", refused)
            x = normal(4, 16).to(dtype).requires_grad_()
            model(x).float().square().sum().backward()
        (grad,) = (value.grad for _, value in handle.parameters())
    # d/dδ Σ (x̂ (w + δ))² = 2 Σ x̂² (w + δ), with x̂ as the norm of the same rounded x.
    x64 = x.detach().double()
    unit = x64 / (x64.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    weight = model.layer.weight.double() + torch.tensor(next(iter(delta.values()))).double()
    wanted = 2 * (unit.square() * weight).sum(0)
    assert torch.allclose(torch.as_tensor(grad).double(), wanted, rtol=4 * torch.finfo(dtype).eps, atol=1e-3)


FAKE = """
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from svdiff_delta.runtime.dropped_weight import Dropped

_setup_privateuseone_for_python_backend("other")
with FakeTensorMode():
    layer = nn.Linear(8, 6, device="other")
    Dropped(layer, lambda: torch.empty(6, 8)).drop()
    print({str(value.device) for value in layer.state_dict().values()})
"""


@pytest.mark.slow
def test_a_state_dict_of_dropped_weights_is_on_the_model_s_device() -> None:
    assert forked(FAKE).out == "{'other:0'}\n"


def test_a_fused_model_may_be_offloaded_layer_by_layer() -> None:
    model, delta = tiny("UNet"), delta_of("UNet")
    plain = run(model, "UNet")
    handle = attach(model, delta, mode="fused")
    expected = run(model, "UNet")
    accelerate.cpu_offload(model, torch.device("cpu"))
    assert torch.equal(run(model, "UNet"), expected)
    handle.set_scale(0.5)
    handle.set_scale(1.0)
    assert torch.equal(run(model, "UNet"), expected)
    handle.detach()
    assert torch.equal(run(model, "UNet"), plain)


def test_a_fused_weight_that_nobody_can_find_is_named() -> None:
    model = named(nn.Linear(8, 6))
    handle = attach(model, random_delta(live_zero(model)), mode="fused")
    model.layer._parameters["weight"] = nn.Parameter(torch.empty(6, 8, device="meta"), requires_grad=False)
    with pytest.raises(AttachError, match=r"model\.layer\.weight: the weight was offloaded after the delta was fused"):
        handle.set_scale(0.5)


@pytest.mark.parametrize("mode", ["live", "fused"])
@pytest.mark.parametrize("who", EXHAUSTED)
def test_attaching_without_enough_memory_says_what_to_set_and_leaves_the_model(
    who: str, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = named(nn.Linear(7, 9))
    delta, before = random_delta(live_zero(model)), model.layer.weight.clone()

    def full(*_: object) -> None:
        raise EXHAUSTED[who]()

    place = "spectral_shift.SpectralShift._hold" if mode == "live" else "fused.write_shifted"
    with monkeypatch.context() as patch:
        patch.setattr(f"svdiff_delta.runtime.{place}", full)
        with pytest.raises(AttachError, match=r"^out of memory while attaching: load the model in half"):
            attach(model, delta, mode=mode)
    assert torch.equal(model.layer.weight, before)
    attach(model, delta, mode=mode).detach()


@pytest.mark.parametrize("how", FAILED)
def test_a_device_that_fails_while_attaching_is_named(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = named(nn.Linear(7, 9))
    delta = random_delta(live_zero(model))

    def failed(*_: object) -> None:
        raise FAILED[how]()

    monkeypatch.setattr("svdiff_delta.runtime.spectral_shift.SpectralShift._hold", failed)
    with pytest.raises(AttachError, match=r"^the device has failed or is gone \(.*\): start again, in a new process"):
        attach(model, delta)
