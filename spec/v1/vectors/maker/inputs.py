"""The deltas that operations work on."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from . import families
from .arithmetic import add
from .container import container
from .delta import Delta, Param, file_bytes, made_up, strings, tensors
from .numbers import Stored
from .valid import DIGEST, made

CROSS: Final = "transformer_blocks.0.attn2"
Q: Final = f"unet.down_blocks.0.attentions.0.{CROSS}.to_q.weight"
RES: Final = "unet.down_blocks.0.resnets.0.conv1.weight"
K: Final = f"unet.down_blocks.1.attentions.0.{CROSS}.to_k.weight"
V: Final = f"unet.mid_block.attentions.0.{CROSS}.to_v.weight"
TIME: Final = "unet.mid_block.resnets.1.time_emb_proj.weight"
OUT: Final = f"unet.up_blocks.0.attentions.0.{CROSS}.to_out.0.weight"
NORM: Final = "unet.conv_norm_out.weight"
TEXT: Final = "text_encoder.encoder.layers.0.self_attn.q_proj.weight"

PARAMS: Final = {
    Q: Param((4, 6)),
    RES: Param((3, 2, 3, 3)),
    K: Param((5, 5), tied=((1, 2),), null=1),
    V: Param((3, 3), dtype="F32"),
    TIME: Param((2, 8), axis=1),
    OUT: Param((6, 6), tied=((0, 1), (2, 4))),
    NORM: Param((4,)),
    TEXT: Param((3, 3), dtype="BF16"),
}
BASE: Final = {
    "components": {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel"},
    "repository": "owner/base",
    "revision": "r1",
    "sample_size": 8,
    "attentions": {"down": [1, 1], "mid": 1, "up": [1, 0]},
    "org.example.base": 1,
}


def dog() -> Delta:
    """Return a delta with all that a file can say."""
    values = {
        Q: ("F32", (0.1, -0.2, 0.3, 2.0**-30)),
        RES: ("F32", (1.5, -2.25, 1e-3)),
        K: ("F32", (0.7, -0.4, -0.4, 0.05, 0)),
        V: ("F32", (3, -4, 0)),
        TIME: ("F32", (1 / 3, -2 / 3)),
        OUT: ("F32", (0.3, 0.3, -0.5, -0.5, -0.5, 0.9)),
        NORM: ("F32", (0.01, -0.02, 0.03, 100)),
        TEXT: ("F32", (1, 2, -3)),
    }
    texts = {"modelspec.title": "Dog", "modelspec.author": "A", "modelspec.hash_sha256": "0x1", "format": "pt"}
    return made(
        {name: (PARAMS[name], *pair) for name, pair in values.items()},
        BASE,
        texts,
        training={"steps": 500},
        **{"org.example.note": "dog"},
    )


def cat() -> Delta:
    """Return a delta with other formats, another word on borderline runs, and a lineage."""
    params = {**PARAMS, K: replace(PARAMS[K], tied=((2, 3),)), Q: replace(PARAMS[Q], null=1)}
    values = {
        Q: ("F16", (0.3, 0.7, -0.1, 0)),
        RES: ("BF16", (-1.5, 1, 7)),
        K: ("F32", (0.1, 0.2, 0.35, 0.35, 0)),
        V: ("I8", (1, -0.5, 0.25)),
        TIME: ("F32", (0.1, 0.1)),
        OUT: ("I8", (0.1, 0.1, 0.2, 0.2, 0.2, -0.7)),
        TEXT: ("F16", (2, -2, 0.5)),
    }
    lineage = {
        "operation": "scale",
        "arguments": {"factor": 2},
        "inputs": [DIGEST[1]],
        "org.example.x": [1],
        "files": {DIGEST[1]: {"digest": DIGEST[2], "title": "Kitten"}},
    }
    base = {"components": {"unet": "Other", "vae": "AutoencoderKL"}, "sample_size": 16, "org.example.more": 2}
    base["components"] |= {"text_encoder": ""}  # type: ignore[operator]
    texts = {"modelspec.title": "Cat", "modelspec.author": "A", "modelspec.license": "x", "org.example.key": "k"}
    more = {"lineage": lineage, "org.example.note": "cat", "org.example.other": [None]}
    return made({name: (params[name], *pair) for name, pair in values.items()}, base, texts, **more)


def fine() -> Delta:
    """Return values whose sums lie just beside the middle between two numbers of a narrow format."""
    return made({
        NORM: (PARAMS[NORM], "F32", (1, 1, 1, -1)),
        Q: (PARAMS[Q], "F32", (2.0**-8, 2.0**-11, 2.0**-24, -(2.0**-8))),
    }, BASE)  # fmt: skip


def dust() -> Delta:
    """Return what decides on which side of the middle those sums lie, and where F32 and F16 end below."""
    return made({
        NORM: (PARAMS[NORM], "F32", (2.0**-8 + 2.0**-31, 2.0**-11, 2.0**-24, -(2.0**-8))),
        Q: (PARAMS[Q], "F32", (2.0**-149, 3 * 2.0**-149, 2.0**-25, -(2.0**-149))),
    }, BASE)  # fmt: skip


def large() -> Delta:
    """Return values near the end of each format."""
    return made(
        {NORM: (PARAMS[NORM], "F32", (65504, -32768, 3.0e38, 1)), TEXT: (PARAMS[TEXT], "F32", (1, 70000, 2))}, BASE
    )


def blocks() -> Delta:
    """Return a parameter of two I8 blocks with a tied run across them."""
    size = Param((80, 70), tied=((60, 66),), null=1)
    values = [(37 * index % 71 - 35) / 97 for index in range(70)]
    values[60:] = [0.25] * 7 + [1, 2, 0]
    return made({Q: (size, "F32", values), TEXT: (PARAMS[TEXT], "F32", (0, 0, 0))}, BASE)


def other() -> Delta:
    """Return a delta of another base."""
    return made({Q: (replace(PARAMS[Q], fingerprint=made_up(Q, "other ")), "F32", (1, 2, 3, 4))}, BASE)


def lone() -> Delta:
    """Return a delta of another component and base, which fits all."""
    base = {"components": {"transformer": "FluxTransformer2DModel"}}
    return made({"transformer.a.weight": (Param((2, 2)), "F16", (0.5, -0.25))}, base)


def middle() -> Delta:
    """Return a delta of nothing but a middle block."""
    return made({V: (PARAMS[V], "F32", (1, 2, 3))}, BASE)


def part() -> Delta:
    """Return a middle block of a UNet whose layout is not said."""
    return replace(middle(), base={key: value for key, value in BASE.items() if key != "attentions"})


def plain_a() -> Delta:
    """Return a delta for the angle between two."""
    return made({TEXT: (PARAMS[TEXT], "F32", (3, 4, 0)), NORM: (PARAMS[NORM], "F32", (1, 2, 2, 4))}, BASE)


def plain_b() -> Delta:
    """Return a delta orthogonal to the other in one parameter, and parallel in the other."""
    return made({TEXT: (PARAMS[TEXT], "F32", (-4, 3, 0)), NORM: (PARAMS[NORM], "F32", (2, 4, 4, 8))}, BASE)


def near_a() -> Delta:
    """Return a delta that others are nearly parallel to."""
    values = {TEXT: (1, 0, 0), V: (1, 0, 0), Q: (1, 0, 0, 0), NORM: (2.0**-149, 2.0**-140, 0, 0)}
    return made({name: (PARAMS[name], "F32", own) for name, own in values.items()}, BASE)


def near_b() -> Delta:
    """Return a delta whose sines are just above and below 1e-6, and one of tiny numbers, all but opposite."""
    values = {TEXT: (1, 1.0000001e-6, 0), V: (1, 9.9999999e-7, 0), Q: (-1, 0, 2.0**-19, 0),
              NORM: (2.0**-148, -(2.0**-139), 0, 2.0**-149)}  # fmt: skip
    return made({name: (PARAMS[name], "F32", own) for name, own in values.items()}, BASE)


def minus() -> tuple[Delta, bytes]:
    """Return a delta and a file of it that has −0, as a writer must not leave it."""
    clean = made({TEXT: (PARAMS[TEXT], "F16", (0, 1, 0)), NORM: (PARAMS[NORM], "F16", (1, 0, 0, 0))}, BASE)
    odd = {TEXT: bytes.fromhex("0080003c0080"), NORM: bytes.fromhex("003c008000000000")}
    raw = container(strings(clean), [tensor._replace(data=odd[tensor.name]) for tensor in tensors(clean)])
    return replace(clean, raw=raw), raw


def deltas() -> dict[str, tuple[Delta, bytes]]:
    """Return the inputs by name, with their files."""
    again = replace(dog(), stored={**dog().stored, **_again()}, strings={"modelspec.title": "Again"})
    half = made({TEXT: (PARAMS[TEXT], "F32", (1, 0, 0))}, BASE)
    small = made({V: (PARAMS[V], "F16", (1 / 3, 5, -7)), NORM: (PARAMS[NORM], "BF16", (1, 2, 3, 4))}, BASE)
    found = {
        "dog": dog(), "cat": cat(), "fine": fine(), "dust": dust(), "large": large(), "large_half": half,
        "blocks": blocks(), "blocks_small": small, "other": other(), "lone": lone(), "middle": middle(), "part": part(),
        "plain_a": plain_a(), "plain_b": plain_b(), "dog_again": again,
        "near_a": near_a(), "near_b": near_b(), **families.deltas(),
        "weighed": add([dog(), cat()], [{"default": 1.0, "where": [["unet", 2.0]]}, 1.0]),
    }  # fmt: skip
    return {name: (delta, file_bytes(delta)) for name, delta in found.items()} | {"minus": minus()}


def _again() -> dict[str, Stored]:
    values = {
        Q: ("F32", (-0.1, 0.25, 0.5, 0.75)), RES: ("F32", (-1.5, -2, 3)), K: ("F32", (0.2, 0.6, 0.6, -1, 0)),
        V: ("F32", (-1, -1, 1)), TIME: ("F16", (0.7, 0.9)), OUT: ("F32", (-0.6, -0.6, 0.1, 0.1, 0.1, 0.2)),
        NORM: ("F32", (0.5, -0.5, 0.25, -0.25)), TEXT: ("BF16", (2, -1, -1)),
    }  # fmt: skip
    return dict(made({name: (PARAMS[name], *pair) for name, pair in values.items()}).stored)
