"""Deltas that are pushed, and how a push is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.deltas import METADATA, random_delta
from support.hub import TOKEN, Hub

from svdiff_delta import push
from svdiff_delta.errors import DeltaError

TRAINED = replace(METADATA, training={"method": "svdiff", "prompt": "a photo of a sks dog", "steps": 500})
DOG = random_delta(1, TRAINED, title="dog")
CAT = random_delta(2, TRAINED, title="cat")
LORA = "pytorch_lora_weights.safetensors"
BASE_CARD = b"---\nlicense: creativeml-openrail-m\n---\n# base\n"


def refused(kind: type[DeltaError], *arguments: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        push(*(arguments or (DOG, "owner/dog")), **options)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    return str(caught.value)


def writes(hub: Hub) -> list[str]:
    return [asked for asked in hub.asked if not asked.startswith(("GET", "HEAD"))]
