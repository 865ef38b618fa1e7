"""A forward pass with a live delta beside the base's own: float16, a batch of 2, eager and as one graph each.

    python -m benchmarks.gpu.forward [--json FILE] [--folder FOLDER] [--dry]

The floor is the same model without a delta, in the same run. Launches are kernels; the base's are taken off, and what
is left is shared out to the layers that have singular values, so that what norms need is in it too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdiff_delta import attach

from .figures import Figures
from .scene import Scene
from .script import main
from .timing import as_graph, held, launches, milliseconds, tidy

GRAPH, LAUNCHES = 1.6, 3.0
BATCH = 2


def measure(scene: Scene, figures: Figures) -> None:
    """Measure both, one after the other, on one model."""
    (delta,), dtype = scene.deltas(1), torch.float16
    if scene.device.type == "cpu":
        dtype = torch.bfloat16  # products in float16 are emulated there
    before = held(scene.device)
    model, inputs = scene.unet(dtype), scene.inputs(BATCH, dtype)
    alone = held(scene.device) - before

    @torch.no_grad()
    def forward() -> Tensor:
        out: Tensor = model(*inputs, return_dict=False)[0]
        return out

    base = _ways(scene, figures, "base", forward)
    plain = forward().float()
    with attach(model, delta, base=scene.base, cache=scene.cache):
        live = _ways(scene, figures, "live", forward)
        memory = held(scene.device) - before
        shifted = forward().float()
        moved = float((shifted - plain).norm() / plain.norm())
        figures.add("the delta changes the output by", moved, "of it", limit=1e-3, least=True)
        replayed = as_graph(forward, scene.device)().float()
        apart = float((replayed - shifted).norm() / shifted.norm())
        figures.add("a graph's output differs by", apart, "of it", limit=1e-2)
    figures.add("live of the base's, eager", live["eager"] / base["eager"], "times")
    figures.add("live of the base's, both as graphs", live["graph"] / base["graph"], "times", limit=GRAPH)
    more = (live["launches"] - base["launches"]) / scene.layers
    figures.add("launches more for each layer", more, "", limit=LAUNCHES)
    if alone:
        figures.add("memory at rest, of the model's", memory / alone, "times")


def _ways(scene: Scene, figures: Figures, name: str, forward: object) -> dict[str, float]:
    assert callable(forward)
    runs = 1 if scene.dry else 10
    for _ in range(1 if scene.dry else 3):
        forward()
    found = {"eager": milliseconds(forward, scene.device, runs=runs)}
    found["launches"] = launches(forward, scene.device)
    graph = as_graph(forward, scene.device)
    graph()
    found["graph"] = milliseconds(graph, scene.device, runs=runs)
    del graph
    tidy(scene.device)
    figures.add(f"{name}, eager", found["eager"], "ms")
    figures.add(f"{name}, as a graph", found["graph"], "ms")
    figures.add(f"{name}, launches", found["launches"], "")
    return found


if __name__ == "__main__":
    main("forward", measure, __doc__)
