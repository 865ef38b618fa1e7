"""Small deltas with everything a real one has (two components, tied and null runs, all kinds), without torch."""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import Dtype
from svdiff_delta.format.file import save
from svdiff_delta.format.metadata import BaseInfo, Metadata
from svdiff_delta.format.parameter import Parameter

CONV = "unet.conv_in.weight"
NORM = "unet.mid_block.attentions.0.norm.weight"
QUERY = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight"


def fingerprint(seed: int) -> str:
    """Return a random fingerprint of the right form: 128 bits in base64url."""
    return base64.urlsafe_b64encode(random.Random(seed).randbytes(16)).decode().rstrip("=")


def parameter(*shape: int, seed: int = 0, axis: int = 0, dtype: Dtype = "F16", **runs: Any) -> Parameter:
    """Return a parameter of this shape, elementwise if that has one dimension, with a random fingerprint."""
    kind = "elementwise" if len(shape) == 1 else "spectral"
    return Parameter(shape, kind, axis, dtype, fingerprint(seed), **runs)


PARAMETERS = {
    TEXT: parameter(9, 4, seed=1, dtype="F32"),
    CONV: parameter(6, 2, 3, 3, seed=2),
    NORM: parameter(5, seed=3),
    QUERY: parameter(8, 10, seed=4, tied=((0, 1), (3, 5)), null=2),
}
BASE = BaseInfo(
    {"text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel"}, repository="owner/base", revision="main"
)
METADATA = Metadata(BASE, PARAMETERS)


def allowed(parameter: Parameter, values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the values with the first of each tied run in all of it, and zeros where σ is null."""
    result = np.array(values, dtype=np.float32)
    for first, last in parameter.tied:
        result[first : last + 1] = result[first]
    result[parameter.size - parameter.null :] = 0
    return result


def random_values(parameters: Mapping[str, Parameter], seed: int, size: float = 0.1) -> dict[str, NDArray[np.float32]]:
    """Return allowed values for every parameter."""
    draw = np.random.default_rng(seed)
    return {name: allowed(p, draw.standard_normal(p.size) * size) for name, p in sorted(parameters.items())}


def random_delta(seed: int = 0, metadata: Metadata = METADATA, *, title: str | None = None, **extra: Any) -> Delta:
    """Return a delta with random values."""
    return Delta(random_values(metadata.parameters, seed), metadata.with_title(title), **extra)


def norm_delta(values: Sequence[float]) -> Delta:
    """Return a delta of one elementwise weight."""
    return Delta({NORM: np.array(values)}, replace(METADATA, parameters={NORM: parameter(len(values), seed=3)}))


def part(metadata: Metadata, *names: str) -> Metadata:
    """Return metadata of these parameters only."""
    return replace(metadata, parameters={name: metadata.parameters[name] for name in names})


def of_another_base(metadata: Metadata = METADATA) -> Metadata:
    """Return metadata in which every fingerprint is another."""
    parameters = {
        name: replace(parameter, fingerprint=fingerprint(1000 + index))
        for index, (name, parameter) in enumerate(metadata.parameters.items())
    }
    return replace(metadata, parameters=parameters)


def saved(delta: Delta, path: Path) -> Path:
    """Save a delta and return its path."""
    save(delta, path)
    return path
