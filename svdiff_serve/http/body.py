"""Read the body of a request for pictures: OpenAI's fields, and those of diffusion models beside them."""

from __future__ import annotations

import re
from typing import ClassVar, Final, Literal

import msgspec

from svdiff_delta._util.json import strict_json
from svdiff_delta._util.typed import build
from svdiff_delta.errors import DeltaError, FormatError, InputError
from svdiff_serve.errors import LimitError, RefusedError
from svdiff_serve.settings import Defaults, Limits
from svdiff_train.sampling.png import check_text
from svdiff_train.sampling.sample import Sampling

_SIZE: Final = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")
AUTO: Final = "auto"


class ImageRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request for pictures.

    What OpenAI's own models are told beside (quality, background, …) is taken with the value that changes nothing.

    Attributes:
        prompt: what to paint.
        model: a mix of deltas, or the base's name, which is taken if it is left out.
        mix: a mix of deltas, where `model` must stay what a client has it to be.
        n: how many pictures; their seeds follow each other.
        size: as WIDTHxHEIGHT; "auto" is the model's own.
        response_format: pictures themselves as base64, or addresses.
        seed: of the first picture; drawn if not given.
        steps: of denoising.
        guidance: its scale.
        negative_prompt: what guidance leads away from.
        scheduler: a class of diffusers.
        user: whoever the client asks for; it is not kept.
    """

    NOUN: ClassVar[str] = "a request for pictures"

    prompt: str
    model: str | None = None
    mix: str | None = None
    n: int | None = 1
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    scheduler: str | None = None
    user: str | None = None
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    output_format: Literal["png"] | None = None
    stream: bool | None = None


FIELDS: Final = frozenset(ImageRequest.__struct_fields__)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks for, checked against the limits.

    Attributes:
        prompt: what to paint.
        mix: the text of its mix.
        seeds: one for each picture.
        sampling: how they are sampled.
        urls: whether addresses are wanted, and not the pictures themselves.
    """

    prompt: str
    mix: str
    seeds: tuple[int, ...]
    sampling: Sampling
    urls: bool


def parse_request(raw: bytes) -> ImageRequest:
    """Return the request that a body holds.

    Raises:
        RefusedError: it is no JSON, or a field is unknown or of another type; the error names the field.
    """
    try:
        value = strict_json(raw, "the body", FormatError)
        return build(ImageRequest, value)
    except DeltaError as error:
        named = error.message.partition(":")[0].split()
        field = next((word for word in named if word in FIELDS), "")
        raise RefusedError(error.message, fix=error.fix, field=field) from None


def read_request(
    request: ImageRequest, *, base: str, own_size: tuple[int, int], limits: Limits, defaults: Defaults, seed: int
) -> Asked:
    """Return what a request asks for.

    Args:
        request: as it was parsed.
        base: the name that stands for the base alone.
        own_size: height and width of the model's own pictures.
        limits: what may be asked for.
        defaults: what counts where the request does not say.
        seed: of the first picture, where the request does not say.

    Raises:
        LimitError: it asks for more than the server allows.
        RefusedError: fields do not go together, or a value is none that the model takes.
    """
    texts = (("prompt", request.prompt), ("negative_prompt", request.negative_prompt or ""))
    for field, text in texts:
        _at_most(field, len(text), limits.prompt, "characters")
    count = 1 if request.n is None else request.n
    _within("n", count, 1, limits.pictures)
    steps = defaults.steps if request.steps is None else request.steps
    _within("steps", steps, 1, limits.steps)
    first = seed if request.seed is None else request.seed
    _within("seed", first, 0, 2**53 - count)
    height, width = size_of(request.size) or own_size
    if height * width > limits.pixels:
        raise LimitError(
            f"size: {width}x{height} has {height * width:,} pixels, {limits.pixels:,} is the most",
            fix="ask for smaller pictures",
            field="size",
        )
    if request.stream:
        raise RefusedError("stream: pictures come whole", fix="leave it out", field="stream")
    if request.mix is not None and request.model not in (None, base):
        raise RefusedError("`mix` and `model` both name deltas", fix="leave one of them out", field="mix")
    guidance = defaults.guidance if request.guidance is None else request.guidance
    given = request.size not in (None, AUTO)
    try:
        sampling = Sampling(
            steps=steps,
            guidance=guidance,
            negative_prompt=request.negative_prompt,
            batch_size=1,
            scheduler=request.scheduler or defaults.scheduler,
            height=height if given else None,
            width=width if given else None,
        )
        for _, text in texts:
            check_text(text)
    except InputError as error:
        raise RefusedError(error.message, fix=error.fix) from None
    return Asked(
        prompt=request.prompt,
        mix=request.mix or request.model or base,
        seeds=tuple(range(first, first + count)),
        sampling=sampling,
        urls=request.response_format == "url",
    )


def size_of(text: str | None) -> tuple[int, int] | None:
    """Return height and width of WIDTHxHEIGHT; None for the model's own."""
    if text is None or text == AUTO:
        return None
    found = _SIZE.fullmatch(text)
    if found is None:
        raise RefusedError(f"size: {text!r} is not WIDTHxHEIGHT", fix="such as 512x512, or auto", field="size")
    return int(found[2]), int(found[1])


def _within(field: str, value: int, least: int, most: int) -> None:
    if value > most:
        raise LimitError(f"{field}: {value:,} is more than {most:,}", fix="ask for less", field=field)
    if value < least:
        raise RefusedError(f"{field}: must be at least {least}, is {value}", field=field)


def _at_most(field: str, value: int, most: int, what: str) -> None:
    if value > most:
        raise LimitError(f"{field}: has {value:,} {what}, {most:,} is the most", fix="write less", field=field)
