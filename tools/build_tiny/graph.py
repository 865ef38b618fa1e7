"""What makes a step fast on a GPU: half of the precision, joined kernels, and one CUDA graph in place of launches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mixed(device: torch.device) -> AbstractContextManager[Any]:
    """Compute products in bfloat16 on a GPU; change nothing on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def lean(model: nn.Module) -> nn.Module:
    """Let group norms of a model write what they read: under autocast they would write float32."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = partial(_norm, module)  # type: ignore[method-assign]
    return model


def _norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return F.group_norm(x, norm.num_groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def join_kernels(model: nn.Module, step: Callable[[], None]) -> None:
    """Compile a model, and do two steps with it; if that fails, the model is as it was, and the error goes on."""
    try:
        model.compile(dynamic=False)
        for _ in range(2):
            step()
        torch.cuda.synchronize()
    except Exception:
        model._compiled_call_impl = None  # what nn.Module.compile sets
        torch._dynamo.reset()
        raise


def capture(step: Callable[[], None], forget: Callable[[], None]) -> Any:
    """Capture a step as a graph to replay, after three that warm up; `forget` drops the gradients in between."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    forget()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph
