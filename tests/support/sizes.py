"""Sizes of tiny language models of transformers' own classes."""

from __future__ import annotations

from typing import Final

TEXT: Final = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
"""Of those whose attention may have fewer keys than queries."""

SMALL: Final = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
"""Of all others."""
