"""Files of other programs, told by their first bytes and by the ends of their keys."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Final

LFS: Final = b"version https://git-lfs.github.com/spec/"
"""How the text begins that Git LFS keeps in the place of a large file."""

LORA: Final = (
    r"lora_(?:up|down|mid)(?:\.\w+)?\.weight|lora_[AB](?:\.\w+)?\.weight|lora_embedding_[AB](?:\.\w+)?"
    r"|lora(?:_linear_layer)?\.(?:up|down)\.weight"
)
"""How keys of LoRA's two factors end, in all its spellings."""

METHODS: Final[tuple[tuple[str, str], ...]] = (
    ("OFT", r"oft_(?:blocks|diag|R|embedding_R)(?:\.\w+)*"),
    ("BOFT", r"boft_[Rs](?:\.\w+)*"),
    ("GLoRA", r"(?:a1|a2|b1|b2|bm1|bm2)\.weight|glora_\w+(?:\.\w+)*"),
    ("(IA)³", r"on_input|ia3_l(?:\.\w+)?"),
    ("LoKr", r"lokr_(?:w1|w2|t1|t2)(?:_[ab])?(?:\.\w+)?"),
    ("LoHa", r"hada_(?:w[12]_[ab]|t[12])(?:\.\w+)?"),
    ("DoRA", r"dora_scale|lora_magnitude_vector(?:\.\w+)*"),
    ("AdaLoRA", r"lora_E(?:\.\w+)?|ranknum(?:\.\w+)?"),
    ("KaSA", r"lora_diag(?:\.\w+)*"),
    ("MonteCLoRA", r"lora_monteclora_sampler(?:\.\w+)*"),
    ("trained tokens", r"(?:token_adapter\.)?trainable_tokens_\w+(?:\.\w+)*"),
    ("VeRA", r"vera_(?:lambda_[bd]|[AB])(?:\.\w+)*"),
    ("PVeRA", r"pvera_\w+(?:\.\w+)*"),
    *(
        (name, rf"{prefix}_\w+(?:\.\w+)*")
        for name, prefix in {
            "AdaMSS": "adamss",
            "BEFT": "beft",
            "Bone": "bone",
            "C3A": "c3a",
            "DeFT": "deft",
            "DeLoRA": "delora",
            "FourierFT": "fourierft",
            "FRoD": "frod",
            "GraLoRA": "gralora",
            "HiRA": "hira",
            "HRA": "hra",
            "Lily": "lily",
            "MiSS": "miss",
            "OSF": "osf",
            "PEANuT": "peanut",
            "Poly": "poly",
            "PSOFT": "psoft",
            "RandLoRA": "randlora",
            "RoAd": "road",
            "SHiRA": "shira",
            "SuperTuning": "supertuning",
            "TinyLoRA": "tinylora",
            "Uni-LoRA": "unilora",
            "VB-LoRA": "vblora",
            "WaveFT": "waveft",
        }.items()
    ),
)
"""Methods of adapting a model other than LoRA, and how their keys end in the files of LyCORIS and PEFT."""

_PARTS: Final = r"alpha|scalar|rescale|diff|diff_b|[wb]_norm|(?<=\.)lora_[A-Za-z_]+(?:\.\w+)*|weight|bias"
"""How further keys of a module end."""


@cache
def _methods() -> list[tuple[str, re.Pattern[str]]]:
    return [(name, re.compile(rf"(?:^|(?<=\.))(?:{end})$")) for name, end in METHODS]


@cache
def _ending(ends: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|[._])(?:{ends})$")


def method_of(key: str) -> tuple[str, str] | None:
    """Return the method other than LoRA that a key is of, and the end that tells it; None if none is known."""
    for name, pattern in _methods():
        if match := pattern.search(key):
            return name, match[0]
    return None


def module_of(key: str) -> str:
    """Return the name of the module that a key of an adapter is of: the key without the end that says its part."""
    ends = "|".join([LORA, *(end for _, end in METHODS), _PARTS])
    return _ending(ends).sub("", key) or key


def adapter_in(keys: Iterable[str]) -> str:
    """Return which adapter keys are of: "LoRA", or another method by name; empty if nothing tells."""
    found = ""
    for key in keys:
        method = method_of(key)
        if _ending(LORA).search(key) or (method and method[0] == "DoRA"):
            found = found or "LoRA"
        elif method:
            found = method[0]
    return found


def beginning(keys: Iterable[str]) -> str:
    """Return how all keys begin, up to the number of a layer or to a module's last name."""
    modules = sorted({module_of(key) for key in keys})
    first, last = modules[0], modules[-1]
    same = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    common = first[:same]
    if match := re.match(r"(?:.*?[._])??(?=\d+(?:[._]|$))", common):
        return match[0] or common
    return common[: common.rfind("." if "." in common else "_") + 1] or common
