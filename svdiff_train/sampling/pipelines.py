"""Loading a base as a live diffusers pipeline, quietly and without ever running foreign code."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from svdiff_delta._util.interrupted import interruptions_kept
from svdiff_delta.base_model.base import Base
from svdiff_delta.base_model.devices import find_device
from svdiff_delta.base_model.layout import unused_parts
from svdiff_delta.base_model.mapped_tensor import TORCH_DTYPES
from svdiff_delta.errors import BaseError, MissingExtraError, is_out_of_memory

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SAMPLES = 32
"""Values of each weight that tell one base from another: those of two trainings differ in nearly all."""


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
    if base.absent:  # of a tokenizer that is not there, transformers makes an empty one
        raise BaseError(
            f"{base.path}: has no folder {base.absent[0]}, which its model_index.json names",
            fix="fetch the base again, with all of its parts",
        )
    try:
        import diffusers
        import transformers
    except ImportError:
        raise MissingExtraError("diffusers", "train") from None
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    unused = dict.fromkeys(unused_parts(base.path))  # diffusers 0.42 would ask for SD 3's third text encoder
    try:
        with interruptions_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of diffusers, about classes that its own models use
            pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(
                str(base.path), dtype=TORCH_DTYPES[dtype], use_safetensors=True, local_files_only=True, **unused
            )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise BaseError(f"{base.path}: diffusers could not load it ({error or type(error).__name__})") from error
    _check_texts(base, pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return cast("DiffusionPipeline", pipeline.to(device))


def _check_texts(base: Base, pipeline: Any) -> None:
    """Raise BaseError if what reads prompts is switched off, or is a tokenizer without words.

    Of a folder without a vocabulary transformers makes a tokenizer to which all words are one (seen in 5.23).
    """
    for name in ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"):  # a third one is optional
        if name in pipeline.components and pipeline.components[name] is None:
            raise BaseError(
                f"{base.path}: has no {name}, which its pipeline reads prompts with",
                fix="fetch the base again, with all of its parts",
            )
    for name, part in pipeline.components.items():
        files = getattr(part, "vocab_files_names", None)
        if files and not any((base.path / name / file).exists() for file in files.values()):
            raise BaseError(
                f"{base.path / name}: holds no vocabulary ({', '.join(sorted(files.values()))})",
                fix="fetch the base again, with all of its parts",
            )


def weights_digest(pipeline: Any) -> str:
    """Return a digest of a pipeline's weights: names, shapes, and some values of each, wherever they lie in its files.

    It tells bases apart at no cost, to notice a mistake; what identifies a weight is its fingerprint.
    """
    total = hashlib.sha256()
    for slot, model in sorted(pipeline.components.items()):
        for key, weight in sorted(model.state_dict().items()) if isinstance(model, nn.Module) else ():
            if type(weight) in (Tensor, nn.Parameter):  # what libraries pack into classes of their own, the run says
                some = weight.detach().flatten()[:: max(1, weight.numel() // SAMPLES)]
                total.update(f"{slot}.{key} {tuple(weight.shape)} {weight.dtype}".encode())
                total.update(some.to("cpu", torch.float64).numpy().tobytes())
    return total.hexdigest()
