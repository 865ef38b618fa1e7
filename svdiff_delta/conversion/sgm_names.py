"""Translate diffusers' block names to those of the original Stable Diffusion code (SGM), which kohya uses for SDXL."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

OUTER: Final = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
"""Modules outside of the blocks."""

RESNET: Final = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
"""Modules of a residual block."""

MIDDLE: Final = {("resnets", 0): 0, ("attentions", 0): 1, ("resnets", 1): 2}
_BLOCK: Final = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE: Final = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


class SgmNames:
    """Names by the layout of one UNet.

    Args:
        paths: the paths of all modules of the UNet, in diffusers' names.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = list(paths)
        resnets = [match for path in self._paths if (match := _BLOCK.match(path)) and match[3] == "resnets"]
        self._down = 1 + max((int(match[4]) for match in resnets if match[1] == "down"), default=0)
        self._up = 1 + max((int(match[4]) for match in resnets if match[1] == "up"), default=0)
        self._attending = {
            (match[1], match[2]) for path in self._paths if (match := _BLOCK.match(path)) and match[3] == "attentions"
        }

    def name(self, path: str) -> str | None:
        """Return the original name of a module; None if it has none."""
        if path in OUTER:
            return OUTER[path]
        if match := _MIDDLE.fullmatch(path):
            kind, index, rest = match[1], int(match[2]), match[3]
            place = MIDDLE.get((kind, index))
            return None if place is None else _join(f"middle_block.{place}", kind, rest)
        if match := _BLOCK.fullmatch(path):
            return self._in_block(match)
        return None

    def _in_block(self, match: re.Match[str]) -> str | None:
        side, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if side == "down":
            # Each block has its residual blocks, and one more place for the way down; conv_in has the first place.
            start = 1 + block * (self._down + 1)
            if kind == "downsamplers":
                return f"input_blocks.{start + self._down}.0.op" if rest == "conv" else None
            return _join(f"input_blocks.{start + index}.{int(kind == 'attentions')}", kind, rest)
        start = block * self._up
        if kind == "upsamplers":
            place = 2 if (side, match[2]) in self._attending else 1
            return f"output_blocks.{start + self._up - 1}.{place}.{rest}"
        return _join(f"output_blocks.{start + index}.{int(kind == 'attentions')}", kind, rest)


def _join(place: str, kind: str, rest: str) -> str | None:
    if kind == "attentions":
        return f"{place}.{rest}"
    return f"{place}.{RESNET[rest]}" if rest in RESNET else None
