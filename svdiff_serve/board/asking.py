"""Read what the page asks for: JSON bodies of a bounded size, checked against types."""

from __future__ import annotations

from math import isfinite
from typing import Annotated, Any, ClassVar, Final, TypeVar

import msgspec

from svdiff_delta._util.json import strict_json
from svdiff_delta._util.typed import build
from svdiff_delta.errors import DeltaError, FormatError, InputError
from svdiff_serve.errors import LimitError, RefusedError
from svdiff_serve.http.body import size_of
from svdiff_serve.settings import Defaults, Limits
from svdiff_train.sampling.png import check_text
from svdiff_train.sampling.sample import Sampling

from .listing import PICTURES, STAGES
from .mix import Mix, check_mix

T = TypeVar("T")

BODY: Final = 256 << 10
"""Bytes of a body: two mixes of 16 deltas with 64 parts each have less."""

_Client = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{8,64}\Z")]
_Share = Annotated[float, msgspec.Meta(ge=-10, le=10)]


class Checked(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Mixes to check."""

    NOUN: ClassVar[str] = "what is to be checked"

    mixes: Annotated[tuple[Mix, ...], msgspec.Meta(min_length=1, max_length=2)]


class Wanted(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One picture of a preview.

    Attributes:
        share: how much it has of each mix.
        seed: of its noise.
    """

    NOUN: ClassVar[str] = "a picture of a preview"

    share: Annotated[tuple[_Share, ...], msgspec.Meta(max_length=2)] = (1.0,)
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)] = 0


class Preview(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One position of the hand, and what is to be seen of it.

    Attributes:
        client: the page; its next request replaces this one.
        move: the page's number of the position.
        mixes: one, or A and B.
        pictures: of which each has a share of the mixes and a seed.
        stages: numbers of steps, from few to many.
        prompt: what to paint.
        negative: what not.
        guidance: its scale; None is the server's own.
        size: as WIDTHxHEIGHT; None is the model's own.
    """

    NOUN: ClassVar[str] = "a request for previews"

    client: _Client
    move: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
    mixes: Annotated[tuple[Mix, ...], msgspec.Meta(min_length=1, max_length=2)]
    pictures: Annotated[tuple[Wanted, ...], msgspec.Meta(min_length=1, max_length=PICTURES)]
    stages: Annotated[tuple[Annotated[int, msgspec.Meta(ge=1)], ...], msgspec.Meta(min_length=1, max_length=STAGES)]
    prompt: str = ""
    negative: str = ""
    guidance: float | None = None
    size: str | None = None

    def shares(self, picture: Wanted) -> list[tuple[Mix, float]]:
        """Return the mixes of a picture with their shares."""
        return list(zip(self.mixes, picture.share, strict=False))


def read(kind: type[T], raw: bytes) -> T:
    """Return what a body asks for.

    Raises:
        RefusedError: it is no JSON, or a field is unknown or of another type.
    """
    try:
        return build(kind, strict_json(raw, "the body", FormatError))
    except DeltaError as error:
        raise RefusedError(error.message, fix=error.fix) from None


def check_preview(asked: Preview, limits: Limits, defaults: Defaults) -> list[Sampling]:
    """Return how the pictures of each stage are sampled.

    Raises:
        LimitError: it asks for more than the server allows.
        RefusedError: fields do not go together.
    """
    for number, mix in enumerate(asked.mixes):
        check_mix(mix, f"mixes[{number}]")
    for picture in asked.pictures:
        if len(picture.share) > len(asked.mixes) or not all(map(isfinite, picture.share)):
            raise RefusedError("a picture has more shares than there are mixes", field="pictures")
    if list(asked.stages) != sorted(set(asked.stages)):
        raise RefusedError("the steps of stages must rise", fix="such as 4, then 20", field="stages")
    if asked.stages[-1] > limits.steps:
        raise LimitError(f"stages: {asked.stages[-1]} steps are more than {limits.steps}", field="stages")
    for field, text in (("prompt", asked.prompt), ("negative", asked.negative)):
        if len(text) > limits.prompt:
            message = f"{field}: has {len(text):,} characters, {limits.prompt:,} is the most"
            raise LimitError(message, fix="write less", field=field)
    size = size_of(asked.size)
    if size is not None and size[0] * size[1] > limits.pixels:
        raise LimitError(f"size: {limits.pixels:,} pixels are the most", fix="ask for smaller pictures", field="size")
    shared: dict[str, Any] = {
        "guidance": defaults.guidance if asked.guidance is None else asked.guidance,
        "negative_prompt": asked.negative or None,
        "batch_size": 1,
        "scheduler": defaults.scheduler,
        "height": size and size[0],
        "width": size and size[1],
    }
    try:
        check_text(asked.prompt)
        check_text(asked.negative)
        return [Sampling(steps=steps, **shared) for steps in asked.stages]
    except InputError as error:
        raise RefusedError(error.message, fix=error.fix) from None
