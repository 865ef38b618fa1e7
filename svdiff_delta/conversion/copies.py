"""Recognize weights of the base in an adapter's file, such as PEFT's copy of the layer under a LoRA."""

from __future__ import annotations

import torch

from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import BaseError, BaseMismatchError

from .adapter_reader import Adapter
from .lazy_tensors import Ref


def same_as_base(ref: Ref, base: Base, name: str) -> bool:
    """Tell whether a tensor is the base's own weight, as it is or rounded to the tensor's number format.

    Raises:
        TensorError: as `Ref.load`.
    """
    value, dtype = ref.read(), ref.tensors.load(ref.key).dtype
    try:
        return base.shape(name) == ref.shape and torch.equal(base.read(name).to(dtype).double(), value)
    except BaseError:
        return False


def check_copy(ref: Ref, base: Base, name: str, adapter: Adapter) -> None:
    """Remark a copy of a weight that the adapter's factors change; it says nothing but which base that was.

    Raises:
        BaseMismatchError: the base's weight is another one.
        TensorError: as `Ref.load`.
    """
    if not same_as_base(ref, base, name):
        raise BaseMismatchError(
            f"{ref}: is the layer that a LoRA was put on, and it is not {name} of the base {base.path}",
            fix='name the base that it was trained on, or merge it with PEFT, then `from_="full"`',
        )
    adapter.remarks.append(f"{ref.key} is the base's own layer, saved beside the LoRA on it, and no change")
