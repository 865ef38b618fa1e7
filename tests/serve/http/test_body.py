"""Bodies: OpenAI's fields and those of diffusion models, within limits; what is wrong is said by field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from svdiff_serve.errors import LimitError, RefusedError
from svdiff_serve.http.body import Asked, parse_request, read_request
from svdiff_serve.settings import Defaults, Limits


def read(limits: Limits | None = None, **fields: Any) -> Asked:
    request = parse_request(json.dumps({"prompt": "a dog", **fields}).encode())
    defaults = Defaults(steps=7)
    return read_request(request, base="tiny", own_size=(64, 64), limits=limits or Limits(), defaults=defaults, seed=5)


def test_what_is_not_said_has_defaults() -> None:
    asked = read()
    assert (asked.mix, asked.seeds, asked.urls) == ("tiny", (5,), False)
    assert (asked.sampling.steps, asked.sampling.height) == (7, None)


def test_what_is_said_counts() -> None:
    asked = read(model="dog", n=3, seed=2, steps=4, guidance=2.5, negative_prompt="blue", size="64x128")
    assert (asked.mix, asked.seeds) == ("dog", (2, 3, 4))
    sampling = asked.sampling
    assert (sampling.steps, sampling.guidance, sampling.negative_prompt) == (4, 2.5, "blue")
    assert (sampling.width, sampling.height) == (64, 128)
    assert read(mix="dog+cat", model="tiny").mix == "dog+cat"
    assert read(response_format="url", size="auto", quality="standard", user="me").urls


@pytest.mark.parametrize(
    ("fields", "said", "field"),
    [
        ({"n": 9}, "4", "n"),
        ({"n": 0}, "at least 1", "n"),
        ({"steps": 101}, "more than 100", "steps"),
        ({"steps": 2.5}, "steps", "steps"),
        ({"seed": -1}, "at least 0", "seed"),
        ({"seed": 2**53 - 1, "n": 2}, "more than", "seed"),
        ({"size": "2048x2048"}, "pixels", "size"),
        ({"size": "big"}, "WIDTHxHEIGHT", "size"),
        ({"size": "0x64"}, "WIDTHxHEIGHT", "size"),
        ({"prompt": "x" * 5000}, "4,000 is the most", "prompt"),
        ({"negative_prompt": "x" * 5000}, "4,000 is the most", "negative_prompt"),
        ({"negative_prompt": "x", "guidance": 1.0}, "does nothing", ""),
        ({"model": "dog", "mix": "cat"}, "both name deltas", "mix"),
        ({"quality": "hd"}, "quality", "quality"),
        ({"stream": True}, "stream", "stream"),
        ({"colour": "red"}, "colour", ""),
        ({"prompt": "a\0b"}, "NUL", ""),
        ({"prompt": None}, "prompt", "prompt"),
    ],
)
def test_what_cannot_be_painted_is_refused_by_field(fields: dict[str, Any], said: str, field: str) -> None:
    with pytest.raises(RefusedError, match=said) as found:
        read(**fields)
    assert found.value.field == field


def test_a_prompt_is_needed() -> None:
    with pytest.raises(RefusedError, match="prompt"):
        parse_request(b'{"model": "dog"}')


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"prompt=dog", b'{"prompt": NaN}', b'{"prompt": "a", "prompt": "b"}', b"\xff", b"[" * 9000],
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(RefusedError):
        parse_request(raw)


def test_limits_are_what_they_are_set_to() -> None:
    tight = Limits(pixels=64 * 64, steps=2, pictures=1)
    with pytest.raises(LimitError):
        read(tight, size="64x72")
    assert read(tight, size="64x64", steps=2, n=1).seeds == (5,)
