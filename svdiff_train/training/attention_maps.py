"""Cross-attention maps of a live denoiser: where in the picture each token of the prompt is attended to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """One cross-attention of a denoiser.

    Attributes:
        name: of its module in the denoiser.
        factor: how many latent pixels lie along one side of a pixel of its map.
    """

    name: str
    factor: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of its map for latents of a size."""
        return height // self.factor, width // self.factor


def cross_attention(denoiser: nn.Module) -> tuple[Layer, ...]:
    """Return the layers of a denoiser that attend from latents to the prompt, sorted by name.

    They are there in diffusers' UNets. Transformers with joint attention, such as those of SD 3 and Flux, have none.
    """
    from diffusers.models.attention_processor import Attention

    names = [
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention and module.added_kv_proj_dim is None
    ]
    config: Any = getattr(denoiser, "config", None)
    levels = len(getattr(config, "block_out_channels", ()))
    return tuple(Layer(name, 2 ** _depth(name, levels)) for name in sorted(names))


def _depth(name: str, levels: int) -> int:
    """Return how often latents are halved before they reach a block of a UNet."""
    block, _, rest = name.partition(".")
    number = int(rest.partition(".")[0]) if block in ("down_blocks", "up_blocks") else 0
    return {"down_blocks": number, "up_blocks": levels - 1 - number}.get(block, levels - 1)


class Maps:
    """What layers record in one forward pass.

    Attributes:
        rows: which samples of the batch are recorded, (rows,) on any device; None records nothing.
        taken: softmax(QKᵀ · scale) of those, as a mean over heads: (rows, pixels, tokens), in float32, by layer.
    """

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        self.taken: dict[str, Tensor] = {}

    @contextmanager
    def recording(self, rows: Sequence[int]) -> Iterator[None]:
        """Record some samples of the batch that passes; at the end, when it has gone back too, all is forgotten."""
        self.rows = torch.tensor([*rows]) if rows else None
        try:
            yield
        finally:
            self.rows, self.taken = None, {}


@contextmanager
def recorded(denoiser: nn.Module, layers: Sequence[Layer]) -> Iterator[Maps]:
    """Let layers of a denoiser record their maps, and let them be as they were at the end.

    Their outputs are those of the processors they have: each goes on working inside the one that records. What is
    recorded has gradients. It is written anew when gradient checkpointing computes a layer again, and then equal.

    Args:
        denoiser: the live model, with or without shifts or adapters on it.
        layers: of it, as `cross_attention` returns them.
    """
    maps = Maps()
    modules: list[tuple[Any, Any]] = [
        (module, module.processor) for module in (denoiser.get_submodule(layer.name) for layer in layers)
    ]
    for layer, (module, stock) in zip(layers, modules, strict=True):
        module.set_processor(RecordingProcessor(stock, layer.name, maps))
    try:
        yield maps
    finally:
        for module, stock in modules:
            module.set_processor(stock)


class RecordingProcessor:
    """An attention processor that does what another does, and records the attention's probabilities.

    Args:
        stock: the other one.
        name: of the layer.
        maps: where they are recorded.
    """

    def __init__(self, stock: Callable[..., Tensor], name: str, maps: Maps) -> None:
        self.stock, self.name, self.maps = stock, name, maps

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        """Return the layer's output, as diffusers' processors do."""
        if self.maps.rows is not None and encoder_hidden_states is not None:
            rows = self.maps.rows.to(hidden_states.device)
            self.maps.taken[self.name] = probabilities(
                attn, hidden_states[rows], encoder_hidden_states[rows], _mask(attn, attention_mask, rows)
            )
        return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, **others)


def probabilities(attn: Any, latents: Tensor, prompt: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(QKᵀ · scale) of a cross-attention as a mean over heads, (batch, pixels, tokens) in float32.

    Args:
        attn: the layer, a diffusers `Attention`.
        latents: (batch, pixels, width), what asks.
        prompt: (batch, tokens, width), what is attended to.
        mask: (batch · heads, 1 or pixels, tokens), added to the scores.
    """
    if attn.norm_cross:
        prompt = attn.norm_encoder_hidden_states(prompt)
    query, key = (
        layer(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for layer, states in ((attn.to_q, latents), (attn.to_k, prompt))
    )
    query = query if attn.norm_q is None else attn.norm_q(query)
    key = key if attn.norm_k is None else attn.norm_k(key)
    with torch.autocast(latents.device.type, enabled=False):  # a product in half precision would be rounded
        found: Tensor = attn.get_attention_scores(query.float().flatten(0, 1), key.float().flatten(0, 1), mask)
    return cast("Tensor", found.unflatten(0, (len(latents), -1)).mean(1))


def _mask(attn: Any, mask: Tensor | None, rows: Tensor) -> Tensor | None:
    """Return the rows of a mask (batch, 1 or pixels, tokens) for every head, in float32."""
    return None if mask is None else mask[rows].float().repeat_interleave(attn.heads, 0)
