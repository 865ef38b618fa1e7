"""Sets of pictures that are measured side by side: painted by one delta each, or read from one folder each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from svdiff_delta.base_model.base import Base
from svdiff_delta.format.delta import Delta
from svdiff_delta.runtime import attach
from svdiff_train.sampling.graphed_denoiser import GraphedDenoiser
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import Sampling, generate

from .pictures import read_prompted


@dataclass(frozen=True)
class Candidate:
    """Pictures that have one origin.

    Attributes:
        label: what results call it.
        images: RGB.
        prompts: one for each.
        about: what results say of each: prompt and seed, or prompt and file.
    """

    label: str
    images: Sequence[Image.Image]
    prompts: Sequence[str]
    about: Sequence[Mapping[str, Any]]


def paint_candidates(
    base: Base,
    deltas: Mapping[str, Delta | None],
    jobs: Sequence[tuple[str, int]],
    sampling: Sampling,
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
    cuda_graphs: bool = True,
    say: Callable[[str], None] | None = None,
) -> Iterator[Candidate]:
    """Yield what each delta paints; all paint the same (prompt, seed) with one pipeline.

    Args:
        base: an opened pipeline folder.
        deltas: by label; None is the base itself.
        jobs: prompts with seeds.
        sampling: how to sample.
        device: where to run.
        progress: called with pictures done and in all.
        cuda_graphs: whether the denoiser's forwards are CUDA graphs on such a device, where they can be.
        say: whom to tell why they are not.

    Raises:
        DeltaError: as `load_pipeline` and `attach`.
    """
    pipeline = load_pipeline(base, device=device)
    for delta in [*deltas.values()][1:]:  # none is painted for hours before another proves to be for another base
        if delta is not None:
            attach(pipeline, delta, base=base).detach()
    total = len(deltas) * len(jobs)
    graphs = GraphedDenoiser(pipeline, say=say) if cuda_graphs else None
    for number, (label, delta) in enumerate(deltas.items()):

        def count(done: int, _: int, before: int = number * len(jobs)) -> None:
            if progress is not None:
                progress(before + done, total)

        with nullcontext() if delta is None else attach(pipeline, delta, base=base):
            images = generate(pipeline, jobs, sampling, count, graphs=graphs)
        if graphs is not None:
            graphs.forget()  # they are of this delta; what measures needs memory too
        about = [{"prompt": prompt, "seed": seed} for prompt, seed in jobs]
        yield Candidate(label, images, [prompt for prompt, _ in jobs], about)


def read_candidates(folders: Sequence[Path], *, skip_bad: bool = False) -> tuple[list[Candidate], list[str]]:
    """Return the pictures of each folder with their prompts, and remarks on what was passed over.

    Raises:
        InputError: as `read_prompted`.
    """
    found, remarks = list[Candidate](), list[str]()
    names = [folder.resolve().name for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        pictures, said = read_prompted(folder, skip_bad=skip_bad)
        label = name if names.count(name) == 1 else str(folder)
        about = [{"prompt": each.prompt, "file": each.name} for each in pictures]
        found.append(Candidate(label, [each.image for each in pictures], [each.prompt for each in pictures], about))
        remarks += said
    return found, remarks
