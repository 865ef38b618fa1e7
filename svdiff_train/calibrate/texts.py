"""Calibration on texts: what the layers of a transformers model meet while it reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from svdiff_delta._util.interrupted import interruptions_kept
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import BaseError, InputError, MissingExtraError, is_out_of_memory
from svdiff_delta.runtime import measure
from svdiff_delta.svd.calibration import Calibration, Moments, Probe

from .prompts import digest_lines


def is_language_model(base: Base) -> bool:
    """Tell whether a base is one transformers model on its own, with a tokenizer beside it."""
    parts = [*base.components.values()]
    alone = not base.pipeline and len(parts) == 1 and parts[0].library == "transformers"
    return alone and any(base.path.glob("tokenizer*"))


def load_language_model(base: Base, *, device: torch.device) -> tuple[Any, Any]:
    """Load a base as a transformers model in float32, with its tokenizer; foreign code never runs.

    Raises:
        BaseError: transformers cannot load it.
        MissingExtraError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "train") from None
    (part,) = base.components.values()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        kind: Any = getattr(transformers, part.class_name)
        with interruptions_kept():
            model = kind.from_pretrained(base.path, dtype=torch.float32, use_safetensors=True, local_files_only=True)
            tokenizer = transformers.AutoTokenizer.from_pretrained(base.path, local_files_only=True)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise BaseError(f"{base.path}: transformers could not load it ({error or type(error).__name__})") from error
    return model.to(device).eval(), tokenizer


def calibration_on_texts(load: Callable[[], tuple[Any, Any]], texts: Sequence[str]) -> Calibration:
    """Return the calibration on what a model's layers meet while it reads texts.

    Args:
        load: returns a transformers model and its tokenizer, when they are needed.
        texts: what it reads; each is cut to as many tokens as the model takes.

    Raises:
        InputError: there is no text.
    """
    if not texts:
        raise InputError("calibration needs at least 1 text")
    facts = {"texts": len(texts), "sha256": digest_lines(texts)}
    return Calibration(lambda probes: collect(*load(), texts, probes), facts)


def collect(model: Any, tokenizer: Any, texts: Sequence[str], probes: Mapping[str, Probe]) -> dict[str, Moments]:
    """Return the moments of what layers of a model meet while it reads texts, one by one, so that nothing is padded.

    Args:
        model: a live transformers model; it stays as it is.
        tokenizer: of the model.
        texts: what it reads.
        probes: the layers, by parameter name.

    Raises:
        AttachError: the model has no such layer.
    """
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 1 << 30))

    def read() -> None:
        for text in texts:
            tokens = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
            model(**tokens.to(model.device))

    return measure(model, probes, read)
