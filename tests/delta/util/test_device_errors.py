"""Errors of a device: each library's words are told apart, and become one line."""

from __future__ import annotations

import pytest
from support.refusals import EXHAUSTED, FAILED

from svdiff_delta._util.device_errors import is_device_failure, tell, telling
from svdiff_delta.errors import AttachError, BaseError, is_out_of_memory

NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."


@pytest.mark.parametrize("who", EXHAUSTED)
def test_memory_that_is_not_enough_is_known_by_every_librarys_words(who: str) -> None:
    error = EXHAUSTED[who]()
    assert is_out_of_memory(error)
    assert not is_device_failure(error)
    assert tell(error, "while here", "buy some") == ("out of memory while here", "buy some")


@pytest.mark.parametrize("how", FAILED)
def test_a_device_that_fails_is_known_by_every_librarys_words(how: str) -> None:
    error = FAILED[how]()
    assert is_device_failure(error)
    assert not is_out_of_memory(error)
    told = tell(error, "while here", "buy some")
    assert told is not None
    assert told.message == f"the device has failed or is gone ({str(error).splitlines()[0]})"
    assert told.fix.startswith("start again, in a new process")


def test_a_gpu_that_torch_has_no_code_for_is_no_failure_of_it() -> None:
    told = tell(RuntimeError("CUDA error: no kernel image is available for execution on the device\nhints"))
    assert told is not None
    assert told.message.startswith("this torch has no code for the GPU (CUDA error: no kernel image")


@pytest.mark.parametrize(
    ("error", "message", "fix"),
    [
        (
            NotImplementedError("The operator 'aten::linalg_eigh' is not currently implemented for the MPS device. If"),
            "mps: lacks aten::linalg_eigh, which this needs",
            'use `device="cpu"`, or set PYTORCH_ENABLE_MPS_FALLBACK=1 to compute that part there',
        ),
        (
            NotImplementedError("Could not run 'aten::_foo.out' with arguments from the 'MPS' backend."),
            "mps: lacks aten::_foo.out, which this needs",
            'use `device="cpu"`, or set PYTORCH_ENABLE_MPS_FALLBACK=1 to compute that part there',
        ),
        (
            TypeError(NO_FLOAT64),
            f"mps: cannot do what this needs ({NO_FLOAT64[:-1]})",
            'use `device="cpu"`',
        ),
    ],
)
def test_what_mps_lacks_is_named(error: Exception, message: str, fix: str) -> None:
    assert tell(error) == (message, fix)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes differ"),
        TypeError("unsupported operand"),
        NotImplementedError("Could not run 'aten::x' with arguments from the 'Meta' backend."),
        RuntimeError("an error of CUDA's documentation"),
        ValueError("CUDA error: this is none of torch"),
        BaseError("out of memory", fix="of another kind"),
    ],
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert tell(error) is None
    with pytest.raises(type(error)) as raised, telling(AttachError, "while here", "buy some"):
        raise error
    assert raised.value is error


def test_an_error_that_memory_caused_is_still_one_of_the_memory() -> None:
    with pytest.raises(AttachError) as raised, telling(AttachError, "while here", "buy some"):
        raise MemoryError
    assert str(raised.value) == "out of memory while here: buy some"
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(AttachError("out of memory"))
