"""Loading a base as a live diffusers pipeline, quietly and without ever running foreign code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from svdiff_delta.base import Base
from svdiff_delta.devices import find_device
from svdiff_delta.errors import BaseError, MissingExtraError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_pipeline(base: Base, *, device: str | torch.device = "cpu", dtype: str = "F32") -> DiffusionPipeline:
    """Load a base as a pipeline.

    Args:
        base: an opened pipeline folder.
        device: where to put it.
        dtype: "F32", "F16" or "BF16".

    Raises:
        InputError: there is no such device.
        BaseError: the base is not a whole pipeline, or diffusers cannot load it.
        MissingExtraError: diffusers is not installed.
    """
    device = find_device(device)
    if not base.pipeline:
        raise BaseError(f"{base.path}: is one model, not a whole pipeline", fix="name the pipeline's folder")
    try:
        import diffusers
        import transformers
    except ImportError:
        raise MissingExtraError("diffusers", "train") from None
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(
            str(base.path), dtype=DTYPES[dtype], use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise BaseError(f"{base.path}: diffusers could not load it ({error})") from error
    pipeline.set_progress_bar_config(disable=True)
    return cast("DiffusionPipeline", pipeline.to(device))
