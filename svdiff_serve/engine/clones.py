"""Give each picture a pipeline of its own, which shares its models with the others and meets them in their calls."""

from __future__ import annotations

import copy
from typing import Any, Final

import torch

from svdiff_delta.errors import TensorError
from svdiff_serve.errors import RefusedError
from svdiff_train.sampling.graphed_denoiser import DENOISERS
from svdiff_train.sampling.sample import generate

from .job import Job
from .picture import MetModule

TEXTS: Final = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""Components that read prompts."""


def clones_of(pipeline: Any, count: int) -> list[Any]:
    """Return pipelines with the models of one, and a scheduler each: a scheduler remembers where its picture is.

    Args:
        pipeline: the live pipeline. An autoencoder in float16 that is too narrow for it becomes float32 for good:
            pipelines would cast it around each picture.
        count: how many.
    """
    vae = getattr(pipeline, "vae", None)
    if vae is not None and vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
        vae.to(torch.float32)
    return [_clone(pipeline) for _ in range(count)]


def _clone(pipeline: Any) -> Any:
    clone = copy.copy(pipeline)
    own = clone.__dict__  # not as attributes: the pipeline would look its components' libraries up
    own["scheduler"] = copy.deepcopy(pipeline.scheduler)
    for name in (*DENOISERS, *TEXTS):
        if getattr(pipeline, name, None) is not None:
            own[name] = MetModule(name, getattr(pipeline, name))
    if getattr(pipeline, "vae", None) is not None:
        own["vae"] = MetModule("vae", pipeline.vae, decode=True)
    return clone


def paint(clone: Any, job: Job) -> Any:
    """Return a picture as `svdiff generate` paints it.

    Raises:
        RefusedError: it is black, since a number on its way was too large.
    """
    try:
        return generate(clone, [(job.prompt, job.seed)], job.sampling)[0]
    except TensorError:  # whose message holds the prompt
        raise RefusedError(
            "the picture is black: a number on its way was too large, or none", fix="lower guidance, or weights"
        ) from None
