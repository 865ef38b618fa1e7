"""Share out a frozen denoiser's weights over the processes of a run, block by block (torch's FSDP2)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from svdiff_delta.errors import InputError, TrainError
from svdiff_train.settings.config import TrainConfig

ASKED: Final = "ACCELERATE_USE_FSDP"
"""What `accelerate launch --use_fsdp` sets."""

PLAIN: Final = frozenset({Tensor, nn.Parameter})


def asked_for() -> bool:
    """Tell whether accelerate was launched with FSDP."""
    return os.environ.get(ASKED, "").lower() in ("1", "true", "yes")


def check_sharding(config: TrainConfig, processes: int) -> None:
    """Refuse runs whose denoiser cannot be shared out.

    Raises:
        InputError: there is one process, or a setting needs the whole model in each.
    """
    if processes == 1:
        raise InputError(
            "the model's weights are to be shared out over processes (FSDP), and there is one",
            fix="start several with torchrun",
        )
    needing = {
        f"the method {config.method} trains weights, or puts some beside them": config.method != "svdiff",
        "compile needs them in one place": config.compile,
        "the unmix regularization looks into the denoiser": bool(config.unmix),
        f"they are quantized ({config.quantization})": config.quantization != "no",
    }
    for why, holds in needing.items():
        if holds:
            raise InputError(
                f"the model's weights cannot be shared out over processes (FSDP): {why}", fix="leave one of them out"
            )


def share_out(pipeline: Any, slots: Sequence[str], device: torch.device) -> None:
    """Share out the weights of a pipeline's denoisers over all processes, and bring the others to the device.

    Each process keeps a part of every weight; a block's are gathered while it computes, there and on the way back. A
    block at a time is brought to the device, so the whole model need not fit there.

    Args:
        pipeline: on the CPU, nothing of it trained.
        slots: the denoiser, or both experts.
        device: of this process.

    Raises:
        TrainError: a weight cannot be shared out; it is named.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    models: dict[str, nn.Module] = {slot: getattr(pipeline, slot) for slot in slots}
    for slot, model in models.items():
        check_weights(slot, model)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for model in models.values():
        model.requires_grad_(False)
        for block in blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and name not in models:
            part.to(device)


def check_weights(slot: str, model: nn.Module) -> None:
    """Refuse a model with a weight that FSDP cannot share out.

    Raises:
        TrainError: it has one; its name is in the message.
    """
    for name, weight in model.named_parameters():
        why = ""
        if type(weight) not in PLAIN or not weight.is_floating_point():
            why = f"it is no plain tensor of floating-point numbers, but a {type(weight).__name__} of {weight.dtype}"
        elif weight.ndim == 0:
            why = "it is a single number"
        elif not weight.is_contiguous():
            why = "it does not lie in one piece, as that of a layer with a delta on it"
        if why:
            raise TrainError(
                f"{slot}.{name}: cannot be shared out over processes (FSDP), since {why}",
                fix="let each process have the whole model, without `fsdp=True`",
            )


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a model whose weights are gathered together: those that its class says are not to be split.

    Inner ones come first. Of a model whose class says nothing, they are what its lists of modules hold.
    """
    named = set(getattr(model, "_no_split_modules", None) or ())
    lists = {id(each) for found in model.modules() if isinstance(found, nn.ModuleList) for each in found}
    for block in reversed(list(model.modules())):
        if block is not model and (type(block).__name__ in named if named else id(block) in lists):
            yield block
