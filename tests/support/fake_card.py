"""Run denoisers on a device without numbers, and list what a graph of CUDA's could not hold: `python -m` this.

The device is not the CPU, so that what goes from one to the other is seen: a copy from the host's memory, or a value
that the host waits for, ends a capture. Nothing is computed but shapes.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from .graphs import READS

CARD: Final = "card"


class Watch(TorchDispatchMode):
    """Notes operations that read values, or bring something from one device to the other.

    A number on the CPU is no such thing: an operation on the device takes it along when it is launched.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        taken, given = (
            [each for each in tree_leaves(part) if isinstance(each, Tensor)] for part in ((args, kwargs), found)
        )
        crosses = len({each.device.type for each in (*taken, *given)}) > 1
        numbers = all(each.ndim == 0 for each in taken if each.device.type == "cpu")
        stays = all(each.device.type != "cpu" for each in given) and name not in ("_to_copy", "copy_")
        if name in READS or (crosses and not (numbers and stays)):
            self.faults.append(name)
        return found


def on_card(model: nn.Module) -> nn.Module:
    """Move parameters and buffers; what a model keeps beside them stays on the CPU, as `.to()` leaves it."""
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for key, value in kind.items():
                if value is not None:
                    moved = torch.empty(value.shape, dtype=value.dtype, device=CARD)
                    kind[key] = nn.Parameter(moved, requires_grad=False) if kind is module._parameters else moved
    return model


def faults(model: nn.Module, args: Any, options: Any) -> list[str]:
    """Return what of a model's forward a graph could not hold."""
    model = copy.deepcopy(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        there = on_card(model)

        def moved(value: Any) -> Any:
            return torch.empty(value.shape, dtype=value.dtype, device=CARD) if isinstance(value, Tensor) else value

        args, options = tree_map(moved, (args, options))
        with torch.no_grad(), Watch() as watch:
            try:
                there(*args, **options)
            except RuntimeError as error:  # a value is asked for that is not there
                watch.faults.append(type(error).__name__)
    return watch.faults


class Reads(nn.Module):
    """A model that does both: it shows that this is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight + torch.ones(2).to(x.device)) * float(x.sum())


def called(pipeline: Any) -> tuple[nn.Module, Any, Any]:
    """Return a pipeline's denoiser, and what it is called with while a picture is painted."""
    from svdiff_train.sampling.sample import Sampling, generate

    model: nn.Module = getattr(pipeline, "transformer", None) or pipeline.unet
    seen: list[tuple[Any, Any]] = []
    handle = model.register_forward_pre_hook(lambda _, args, options: seen.append((args, options)), with_kwargs=True)
    generate(pipeline, [("a cat", 0)], Sampling(steps=1, guidance=4.0, height=32, width=32))
    handle.remove()
    return model, *seen[0]


def main() -> None:
    """Print the faults of all families."""
    from svdiff_train.sampling.pipelines import load_pipeline
    from svdiff_train.tiny import open_tiny

    from .pipelines import PIPELINES

    logging.disable(logging.CRITICAL)
    _setup_privateuseone_for_python_backend(CARD)
    made: dict[str, Callable[[], Any]] = {"sd1": lambda: load_pipeline(open_tiny()), **PIPELINES}
    found = {name: faults(*called(make())) for name, make in made.items()}
    found["reads"] = faults(Reads(), (torch.ones(2),), {})
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
