"""The repositories that examples name, on a Hub of this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from svdiff_delta import open_base
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps
from svdiff_delta.svd.build import zero_delta
from svdiff_train.tiny import base_path

from .hub import Hub, folder_files


def serve_dog(hub: Hub, folder: Path | None = None) -> Delta:
    """Put the embedded base, or another one, and a delta of it on a Hub as alice/base and alice/dog; return that."""
    folder = folder or base_path()
    zero = zero_delta(open_base(folder), "mid-ca")
    shifted = {name: shift + np.float32(0.2) for name, shift in zero.items()}
    base = replace(zero.metadata.base, repository="alice/base", revision=hub.add("alice/base", folder_files(folder)))
    dog = Delta(shifted, replace(zero.metadata, base=base, training={"prompt": "a photo of a sks dog"}))
    hub.add("alice/dog", {"svdiff.safetensors": dumps(dog)})
    return dog
