"""What the classes of a model say that its layers are: the evidence that names of subsets are held against."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from torch import nn

ATTENTION: Final = re.compile(r".*(?:Attention|Attn)\w*")
NO_ATTENTION: Final = re.compile(
    r".*(?:Block|Processor|Norm|Pool|Embed|Transformer|Layer|Adapter|2Module)\w*|CLIPTextModel.*"
)
FEED_FORWARD: Final = re.compile(r"(?!.*(?:Block|Norm|AdaLN|Embed|Model|For)).*(?:FeedForward|MLP|SwiGLU|GLUMBConv)\w*")
TO_ITSELF: Final = re.compile(r"(?:.*\.)?(?:attn1|self_attn)")
"""What diffusers' own flag calls cross-attention because a width was given for it."""


def within(names: Mapping[str, tuple[int, ...]], slot: str, paths: Iterable[str]) -> set[str]:
    """Return the matrices in these modules of a component."""
    prefixes = tuple(f"{slot}.{path}." for path in paths)
    return {name for name, shape in names.items() if len(shape) > 1 and name.startswith(prefixes)}


def attention_layers(model: nn.Module) -> Iterator[str]:
    """Yield the paths of modules whose class is an attention layer."""
    for path, module in model.named_modules():
        kind = type(module).__name__
        if path and ATTENTION.fullmatch(kind) and not NO_ATTENTION.fullmatch(kind):
            yield path


def cross_layers(model: nn.Module) -> Iterator[str]:
    """Yield the paths of what attends to another sequence, by the flags and parts of the classes."""
    for path, module in model.named_modules():
        crosses = getattr(module, "is_cross_attention", False) and not TO_ITSELF.fullmatch(path)
        if crosses and getattr(module, "to_k", None) is not None:
            yield path
        yield from (f"{path}.{part}" for part in ("add_k_proj", "add_v_proj") if getattr(module, part, None))


def feed_forwards(model: nn.Module) -> Iterator[str]:
    """Yield the paths of feed-forward layers within blocks."""
    for path, module in model.named_modules():
        if re.search(r"\.\d+\.", path) and FEED_FORWARD.fullmatch(type(module).__name__):
            yield path
