"""Run what predicts in a pipeline as CUDA graphs while it paints; as it is where that cannot be, and say why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import nn

from svdiff_train.graphs.cuda_capture import Capture, CudaCapture
from svdiff_train.graphs.graphed_model import GraphedModel

DENOISERS: Final = ("unet", "transformer", "transformer_2")
"""Components that predict; of some pipelines two, each for a part of the way."""


class GraphedDenoiser:
    """The forwards of one pipeline's denoiser as graphs, for as many pictures as are painted.

    A shape of batch is captured after a few forwards of it, which count. Graphs that are there see another δ on the
    same layers, and another scale; where δ is put on other layers, or off, there is one more. What chance draws,
    schedulers and text encoders stay outside, so pictures are those that are painted without.

    Args:
        pipeline: the live pipeline.
        say: whom to tell, in one line, why it runs without a graph.
        capture: how work is captured; by default as CUDA graphs, where the pipeline is on such a device.
    """

    def __init__(
        self, pipeline: Any, *, say: Callable[[str], None] | None = None, capture: Capture | None = None
    ) -> None:
        self._say, self._told = say, set[str]()
        device = torch.device(pipeline.device)
        if capture is None and device.type == "cuda":
            capture = CudaCapture(device)
        found = [part for name in DENOISERS if isinstance(part := getattr(pipeline, name, None), nn.Module)]
        self.models = [] if capture is None else [GraphedModel(each, device, capture, self._tell) for each in found]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let calls of the denoiser be graphs while the block runs, in which nothing but its inputs may change."""
        with ExitStack() as stack:
            for model in self.models:
                stack.enter_context(model.running())
            yield

    def forget(self) -> None:
        """Let go of all graphs, and of the memory that they keep."""
        for model in self.models:
            model.forget()

    def _tell(self, reason: str) -> None:
        if self._say is not None and reason not in self._told:
            self._say(f"painting without CUDA graphs: {reason}")
        self._told.add(reason)
