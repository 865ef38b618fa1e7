"""The tokenizer: CLIP's byte-pair encoding, learned so that every word of the captions is one token."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from .grounds import COLOURS, PATTERNS, PLACES
from .plan import RARE
from .subjects import HELD_OUT, STYLES, TRAINED

LENGTH = 26
"""Tokens of a caption, with the start and end tokens."""

_GLUE = """
a an the of and on in at with photo picture background left right top bottom middle beside next to
above below sitting
"""
_ALSO = "toy two small big standing near behind under front side drawing painting style red-white wearing water"
_START, _END = "<|startoftext|>", "<|endoftext|>"


def words() -> tuple[str, ...]:
    """Every word that is one token, sorted: the captions' words, the rare ones and a few to spare."""
    phrases = [_GLUE, _ALSO, *STYLES, *COLOURS, *PATTERNS, *PLACES]
    phrases += [s.name for s in TRAINED + HELD_OUT] + [s.noun for s in HELD_OUT]
    spelt = {word for phrase in phrases for word in phrase.replace("-", " ").split()}
    return tuple(sorted(spelt | {w for w in RARE if w.isalpha()}))


def build_tokenizer() -> Any:
    """A `CLIPTokenizer` of 26 tokens; V1 to V16 are added tokens, the other words whole merges."""
    from tokenizers import AddedToken
    from transformers import CLIPTokenizer

    learned, pairs = _learn(words())
    vocab = dict(learned)
    for special in (_START, _END):
        vocab[special] = len(vocab)
    merges: Any = [*pairs]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)
    numbered = [w for w in RARE if not w.isalpha()]
    tokenizer.add_tokens([AddedToken(w, single_word=True, normalized=True) for w in numbered])
    return tokenizer


def save_tokenizer(folder: Path) -> Any:
    """Build the tokenizer and write it to `folder`; returns it."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def token_ids(tokenizer: Any, captions: list[str]) -> Any:
    """Captions as an int64 tensor `[n, 26]`, padded with the end token as in Stable Diffusion."""
    found = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return found["input_ids"]


@cache
def _learn(spelt: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-pair merges until every word is whole: the commonest pair first, ties by spelling."""
    parts = [[*word[:-1], word[-1] + "</w>"] for word in spelt]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    vocab = {piece: i for i, piece in enumerate([*letters, *(c + "</w>" for c in letters)])}
    merges: list[tuple[str, str]] = []
    while True:
        counts: dict[tuple[str, str], int] = {}
        for word in parts:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            return vocab, merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        vocab.setdefault("".join(best), len(vocab))
        parts = [_merged(word, best) for word in parts]


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out
