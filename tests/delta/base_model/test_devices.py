"""Devices: those that are not there are refused, and the basis is computed on the one that was named.

No GPU is needed: tensors that only know shape, dtype and device run through the code, and a mix of devices is an error.
torch cannot slice such tensors on "cuda" where it was built without CUDA, so they lie on a device of another name.
"""

from __future__ import annotations

import pytest
import torch
from support.commands import python

from svdiff_delta.base_model.devices import find_device
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


def test_a_basis_is_computed_on_its_weights_device_and_comes_back() -> None:
    done = python(FAKE)
    both = ["cpu torch.float64 12", "cpu torch.float32 12 12"]
    assert done.err == ""
    assert done.out.splitlines() == 3 * [*both, "cpu torch.float32 3 30", *both, "cpu torch.float32 10 30"] + ["True"]


def test_a_device_is_found_by_its_name() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device(torch.device("cpu", 0)) == torch.device("cpu:0")


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"^cuda:99: there is no such device here \(.*: use `device=.cpu.`$"):
        find_device("cuda:99")
