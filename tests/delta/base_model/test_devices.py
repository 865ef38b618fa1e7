"""Devices: those that are not there are refused, and the basis is computed on the one that was named.

No GPU is needed: tensors that only know shape, dtype and device run through the code, and a mix of devices is an error.
torch cannot slice such tensors on "cuda" where it was built without CUDA, so they lie on a device of another name.
"""

from __future__ import annotations

import pytest
import torch
from support.forked import forked

from svdiff_delta._util import warned
from svdiff_delta._util.warned import DeltaWarning
from svdiff_delta.base_model.devices import bases_beside, best_device, find_device, multiply
from svdiff_delta.errors import InputError

FAKE = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from svdiff_delta.svd import decomposition as basis

_setup_privateuseone_for_python_backend("other")
basis.find_runs = lambda sigma: basis.Runs((), 2)  # what depends on values is given: there are none
basis.tail_length = lambda sigma, null: 3
with FakeTensorMode():
    for shape in [(12, 30), (30, 12), (12, 5, 3, 2)]:
        for two_sided in (False, True):
            counts = iter([5, 8])
            basis._count_above = lambda sigma, share: next(counts)
            weight = torch.empty(shape, device="other")
            found = basis.compute_basis(weight, 0, two_sided=two_sided)
            for tensor in (found.sigma, found.factor, found.tail):
                print(tensor.device, tensor.dtype, *tensor.shape)
    try:
        weight + torch.empty(shape)
    except RuntimeError as error:
        print("found at least two devices" in str(error))
"""


@pytest.mark.slow
def test_a_basis_is_computed_on_its_weights_device_and_comes_back() -> None:
    done = forked(FAKE)
    both = ["cpu torch.float64 12", "cpu torch.float32 12 12"]
    assert done.err == ""
    assert done.out.splitlines() == 3 * [*both, "cpu torch.float32 3 30", *both, "cpu torch.float32 10 30"] + ["True"]


def test_a_device_is_found_by_its_name() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device(torch.device("cpu", 0)) == torch.device("cpu:0")


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"^cuda:99: there is no such device here \(.*: use `device=.cpu.`$"):
        find_device("cuda:99")


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> None:
    """Let torch see a GPU, whose numbers lie on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: torch.zeros(shape))


def test_the_refusal_says_what_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = f"torch {torch.__version__} is built for CUDA 12.8 and sees "
    with pytest.raises(InputError) as none:
        find_device("cuda")
    assert f"; {seen}no GPU: use" in str(none.value)
    card(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(InputError) as other:
        find_device("cuda:1")
    assert f"; {seen}cuda:0 (Card 0), where CUDA_VISIBLE_DEVICES is '3': use" in str(other.value)


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x"])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: .*use `device=.cpu.`"):
        find_device(name)


def test_a_device_without_float64_computes_no_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*shape: int, dtype: torch.dtype | None = None, **_: object) -> None:
        if dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )

    monkeypatch.setattr(torch, "empty", empty)
    assert find_device("mps") == torch.device("mps")
    with pytest.raises(InputError, match=r"^mps: has no float64, which bases are computed in .*use `device=.cpu.`$"):
        find_device("mps", float64=True)


def test_the_best_device_is_a_gpu_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert best_device() == CPU  # of this torch
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.tensor(1.0))
    assert best_device() == torch.device("mps")
    assert best_device(float64=True) == CPU
    card(monkeypatch)
    assert best_device() == CUDA
    assert best_device(float64=True) == CUDA
    assert bases_beside(CUDA) == CUDA


@pytest.mark.parametrize("capability", [(7, 5), (8, 6), (8, 9), (12, 0)])
def test_a_card_that_is_slow_in_float64_computes_no_bases_unasked(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    card(monkeypatch, capability)
    assert best_device() == CUDA
    assert best_device(float64=True) == bases_beside(CUDA) == CPU


def test_a_card_that_does_not_work_is_left_alone_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(*_: object, device: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nhints")

    card(monkeypatch)
    monkeypatch.setattr(warned, "_SAID", set())
    monkeypatch.setattr(torch, "ones", ones)
    with pytest.warns(DeltaWarning, match=r"^computing on the CPU, since cuda does not work \(CUDA error: no kernel"):
        assert best_device() == CPU
    assert best_device() == CPU


PRODUCTS = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from svdiff_delta.format.parameter import Parameter
from svdiff_delta.runtime.gain_map import additive, factored
from svdiff_delta.svd import prepare
from svdiff_delta.svd.decomposition import Basis
from svdiff_delta.svd.prepare import Prepared
from svdiff_delta.svd.shifted_weight import shifted_parts

_setup_privateuseone_for_python_backend("other")
other = torch.device("other")
prepare.round_weight = lambda weight, dtype: weight  # which looks at addresses: there are none
with FakeTensorMode():
    for shape in [(12, 30), (30, 12)]:
        sigma, weight = torch.empty(12, dtype=torch.float64), torch.empty(shape)
        basis = Basis(sigma, torch.empty(12, 12), torch.empty(3, 30), 2, shape[0] == 12)
        prepared = Prepared(Parameter(shape, "spectral", 0, "F16", "", (), 2), basis, lambda: weight, other)
        shift, target = torch.empty(12, dtype=torch.float64), torch.empty(shape)
        (part,) = shifted_parts(prepared, shift, weight, target, device=prepared.device)
        print(part.own.device, part.change.device, part.place.device, *part.change.shape)
        for found in (additive(prepared, basis.to(other)), factored(weight.to(other), basis.to(other))):
            print(found.rows.device, found.columns.device, found.response.slope.device, len(found.rows))
"""


@pytest.mark.slow
def test_products_are_computed_where_the_vectors_are() -> None:
    done = forked(PRODUCTS)
    assert done.err == ""
    factors = ["other:0 other:0 cpu 12", "other:0 other:0 cpu 15"]
    assert done.out.splitlines() == ["other:0 other:0 cpu 12 30", *factors, "other:0 other:0 cpu 30 12", *factors]


def test_products_are_not_rounded_where_a_program_rounds_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that says it is on CUDA shows which product is taken; what TF32 makes of it only a card does."""

    seen: list[torch.dtype] = []

    class Card(torch.Tensor):
        device = CUDA

        def double(self) -> torch.Tensor:  # type: ignore[override]
            seen.append(self.dtype)
            return super().double()

    left, right = torch.rand(5, 7), torch.rand(7, 3)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    found = multiply(left.as_subclass(Card), right.as_subclass(Card)).as_subclass(torch.Tensor)
    assert torch.equal(found, (left.double() @ right.double()).float())
    assert seen == [torch.float32, torch.float32]
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    multiply(left.as_subclass(Card), right.as_subclass(Card))
    assert len(seen) == 2
