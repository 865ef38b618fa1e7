"""List the layers of models that all have the same ones: Stable Diffusion's UNets, CLIP's and T5's text encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Unet:
    """The layout of a UNet.

    Attributes:
        context: the width of the text that cross-attention sees.
        down: transformer blocks in each attention of the blocks on the way down; 0 for a block without attention.
        middle: likewise in the middle.
        added: whether it takes sizes and a pooled text beside the time.
    """

    context: int
    down: tuple[int, ...]
    middle: int
    added: bool = False


UNETS: Final[Mapping[str, Unet]] = {
    "Stable Diffusion 1.x": Unet(768, (1, 1, 1, 0), 1),
    "Stable Diffusion 2.x": Unet(1024, (1, 1, 1, 0), 1),
    "SDXL": Unet(2048, (0, 2, 10), 10, added=True),
}
"""Layouts by family."""

RESNETS: Final = 2
"""Residual blocks on the way down; there is one more on the way up."""

_ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0")
_BLOCK: Final = (
    *(f"{name}.{layer}" for name in ("attn1", "attn2") for layer in _ATTENTION),
    *("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"),
)
_RESNET: Final = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")


def unet_layers(unet: Unet) -> dict[str, Shape]:
    """Return the paths of all layers; of the shapes only the width of the text is one that is told."""
    return {path: (0, unet.context) if path.endswith(("attn2.to_k", "attn2.to_v")) else (0, 0) for path in _paths(unet)}


def _paths(unet: Unet) -> Iterator[str]:
    yield from ("conv_in", "conv_norm_out", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")
    if unet.added:
        yield from ("add_embedding.linear_1", "add_embedding.linear_2")
    yield from _stage("mid_block", RESNETS, unet.middle, attentions=1)
    last = len(unet.down) - 1
    for index, depth in enumerate(unet.down):
        yield from _stage(f"down_blocks.{index}", RESNETS, depth, attentions=RESNETS)
        yield from _stage(f"up_blocks.{last - index}", RESNETS + 1, depth, attentions=RESNETS + 1)
        if index < last:
            yield f"down_blocks.{index}.downsamplers.0.conv"
            yield f"up_blocks.{index}.upsamplers.0.conv"


def _stage(name: str, resnets: int, depth: int, *, attentions: int) -> Iterator[str]:
    for index in range(resnets):
        yield from (f"{name}.resnets.{index}.{layer}" for layer in _RESNET)
    for index in range(attentions if depth else 0):
        stem = f"{name}.attentions.{index}"
        yield from (f"{stem}.{layer}" for layer in ("norm", "proj_in", "proj_out"))
        yield from (f"{stem}.transformer_blocks.{block}.{layer}" for block in range(depth) for layer in _BLOCK)


CLIP_LAYERS, T5_LAYERS = 32, 24
_CLIP: Final = (*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
_T5: Final = (
    *(f"layer.0.SelfAttention.{name}" for name in "qkvo"),
    *(f"layer.1.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wi", "wo")),
)
TEXT_LAYERS: Final[Mapping[str, tuple[str, ...]]] = {
    "CLIP": tuple(f"text_model.encoder.layers.{block}.{layer}" for block in range(CLIP_LAYERS) for layer in _CLIP),
    "T5": tuple(f"encoder.block.{block}.{layer}" for block in range(T5_LAYERS) for layer in _T5),
}
"""Layers that adapters change of each kind of text encoder, of its largest model."""
