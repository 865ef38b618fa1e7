"""The lines of Python and shell that use a delta of the Hub: what its card shows."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Final

from svdiff_delta._text.markup import python_literal, shell_line
from svdiff_delta.format.metadata import BaseInfo
from svdiff_delta.hub_client.names import EMBEDDED
from svdiff_delta.hub_client.reference import is_commit

PAINTERS: Final = frozenset(
    {"UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel", "PixArtTransformer2DModel"}
)
"""Denoisers of pipelines that make pictures from prompts."""

_ALONE: Final = "model"
"""What the one component of a base that is no pipeline is called."""


def paints(components: Mapping[str, str]) -> bool:
    """Tell whether a base makes pictures from prompts, by the class names of its components."""
    return bool(PAINTERS & {*components.values()}) or any(name.startswith("text_encoder") for name in components)


def pinned(base: BaseInfo, model: str) -> str | None:
    """Return the commit of a base that a delta was made for, if that is known of this repository."""
    return base.revision if model == base.repository and is_commit(base.revision) else None


def python_usage(repository: str, base: BaseInfo, model: str, prompt: str | None) -> str:
    """Return a few lines of Python that put a delta on its base and, if that paints, paint with it.

    Args:
        repository: of the delta.
        base: what the delta says of its base.
        model: the base's repository, or the word for the embedded base.
        prompt: what to paint.
    """
    alone = base.components.get(_ALONE)
    package, name = ("diffusers", "DiffusionPipeline") if alone is None else ("transformers", _class_name(alone))
    # Of a base in half precision diffusers loads text encoders as they are and all else in float32: one dtype for all.
    live, cast = ("pipe", ".to(pipe.dtype)") if alone is None else ("model", "")
    revision = pinned(base, model)
    if model == EMBEDDED:
        source, extra = "base_path()", ["from svdiff_train.tiny import base_path"]
    else:
        source = python_literal(model) + (f", revision={python_literal(revision)}" if revision else "")
        extra = []
    lines = [
        f"from {package} import {name}",
        "from svdiff_delta import attach, pull",
        *extra,
        "",
        f"{live} = {name}.from_pretrained({source})",
        f"attach({live}{cast}, pull({python_literal(repository)}))",
    ]
    if paints(base.components):
        lines.append(f'pipe({python_literal(prompt or "a photo")}).images[0].save("picture.png")')
    return "\n".join(lines)


def shell_usage(repository: str, base: BaseInfo, model: str, prompt: str | None) -> str:
    """Return a command line that paints with a delta, or bakes it where the base does not paint; as `python_usage`."""
    revision = pinned(base, model)
    reference = f"{model}@{revision}" if revision else model
    if paints(base.components):
        words = ["svdiff", "generate", reference, repository, "--prompt", prompt or "a photo", "-o", "picture.png"]
    else:
        words = ["svdiff", "bake", reference, repository, "-o", "baked"]
    return shell_line(words)


def _class_name(name: str) -> str:
    return name if name.isidentifier() and name.isascii() and not keyword.iskeyword(name) else "AutoModel"
