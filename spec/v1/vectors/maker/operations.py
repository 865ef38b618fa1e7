"""Operations with their inputs and results, and operations that are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from . import arithmetic as do
from .container import JSON
from .delta import Delta, document, file_bytes, strings
from .families import BY_PART
from .inputs import NORM, TEXT, Q, deltas
from .merging import merge
from .numbers import Stored

SPOTS: Final = {
    "(8,down,0)": ("unet.down_blocks.0.attentions.0.", "unet.down_blocks.0.resnets.0."),
    "(4,down,0)": ("unet.down_blocks.1.attentions.0.",),
    "(4,down,1)": ("unet.mid_block.",),
    "(4,up,0)": ("unet.up_blocks.0.",),
    "( 4, 'up' ,0 )": ("unet.up_blocks.0.",),
    "(4,down,0)-(4,up,0)": ("unet.down_blocks.1.", "unet.mid_block.", "unet.up_blocks.0."),
    "(3,up,0)": (),
    "(32,down,0)": ("unet.down_blocks.1.attentions.0.",),
}
"""What addresses name here: two levels, so that latents are 8 wide at depth 0 and 4 wide at depth 1."""


class Case(NamedTuple):
    """An operation, and its result or the class of its refusal."""

    name: str
    operation: str
    inputs: tuple[str, ...]
    arguments: Mapping[str, Any]
    error: str = ""
    names: tuple[str, ...] = ()


def sums() -> Iterator[Case]:
    """Yield `add`, `interpolate` and `scale`."""

    def plus(about: str, *inputs: str, **arguments: Any) -> Case:
        return Case(about, "add", inputs, arguments)

    yield plus("one input", "dog")
    yield plus("two inputs with different runs, formats and words", "dog", "cat")
    yield plus("the other order: the first input's word stands", "cat", "dog")
    yield plus("weights", "dog", "cat", weights=[0.7, 0.3])
    yield plus("a negative weight", "dog", "cat", weights=[1, -0.1])
    yield plus("one file twice: title and training stay, and it cancels out", "dog", "dog", weights=[1, -1])
    yield plus("weight zero leaves the runs and the lineage", "dog", "cat", weights=[1, 0])
    yield plus("four inputs, in the order given", "dog", "cat", "dust", "lone", weights=[0.1, 0.2, 0.3, 0.4])
    yield plus("a large weight of tiny values", "dust", weights=[1e30])
    yield plus("half of the smallest F32 number: ties to even", "dust", weights=[0.5])
    yield plus("sums beside the middle, F32", "fine", "dust", weights=[1, 1])
    yield plus("sums beside the middle, BF16: rounded once, not by way of F32", "fine", "dust", dtype="BF16")
    yield plus("sums beside the middle, F16: rounded once, not by way of F32", "fine", "dust", dtype="F16")
    yield plus("I8 with a tied run over two blocks", "blocks", dtype="I8")
    yield plus("three inputs, I8", "dog", "cat", "blocks_small", weights=[0.5, 0.25, 3], dtype="I8")
    yield plus(
        "weights by subset, glob and name, of which the last one counts",
        "dog",
        "cat",
        weights=[
            {"default": 0, "where": [["unet-ca", 2], ["*.to_q.weight", -1], [TEXT, 0.5]]},
            {"default": 0.1, "where": [["down.1", 3]]},
        ],
    )
    yield plus("−0 is read as 0", "minus")
    parts_ = [["attn", 2], ["text-mlp", -1], ["ca-kv", 0.3], ["block.1", 0.1], ["transformer-block.10", 3]]
    yield plus("weights by part", "flux", "joint", weights=[{"default": 0.5, "where": parts_}, -1])
    yield plus(
        "weights by expert and by a component without a word",
        "language",
        weights=[{"default": 1, "where": [["experts", 0.5], ["bert-attn", 0], ["prior-block.0", -3]]}],
    )
    yield Case("a quarter", "interpolate", ("dog", "cat"), {"alpha": 0.25})
    yield Case("a tenth: 1 − α is rounded to F64", "interpolate", ("dog", "cat"), {"alpha": 0.1})
    yield Case("one end", "interpolate", ("dog", "cat"), {"alpha": 1})
    yield Case("the other end, in BF16", "interpolate", ("dog", "cat"), {"alpha": 0, "dtype": "BF16"})
    yield Case("a half", "scale", ("dog",), {"factor": 0.5})
    yield Case("a negative third, F16", "scale", ("dog",), {"factor": -1 / 3, "dtype": "F16"})
    yield Case("zero: no −0", "scale", ("dog",), {"factor": 0})
    yield Case("minus one: zeros stay +0", "scale", ("dog",), {"factor": -1})
    yield Case("the lineage of a lineage", "scale", ("cat",), {"factor": 3})
    yield Case("the lineage of weights by selector", "scale", ("weighed",), {"factor": 0.5})


def parts() -> Iterator[Case]:
    """Yield `slice`, `truncate` and `quantize`."""

    def piece(*selectors: str, of: str = "dog", **arguments: Any) -> Case:
        return Case(" ".join(selectors), "slice", (of,), {"selectors": list(selectors), **arguments})

    for selectors in (("unet-ca",), ("unet-ca-kv",), ("UP",), ("mid-ca", "text"), ("1d",), ("unet-2d",), ("4d",),
                      ("down.1",), (Q,), ("*.attn2.*",), ("unet.*.to_[qv].weight",), ("*.to_?.weight", "!unet-ca-kv"),
                      ("*[!t].0.conv1.weight",), ("!unet",), ("!unet-ca", "!text"), ("(8,down,0)",),
                      ("( 4, 'up' ,0 )",), ("(4,down,0)-(4,up,0)",)):  # fmt: skip
        yield piece(*selectors)
    yield piece("(32,down,0)", sample_size=64)
    yield piece("unet-ca", of="cat")
    yield piece("text", of="minus")
    yield piece("(4,down,1)", of="middle")
    for of, all_ in BY_PART.items():
        for several in all_:
            yield piece(*several.split(), of=of)
    for rank in (1, 2, 3):
        yield Case(f"rank {rank}", "truncate", ("dog",), {"rank": rank})
    yield Case("rank 2 of several formats", "truncate", ("cat",), {"rank": 2})
    for energy in (0.6, 0.65, 1):
        yield Case(f"energy {energy}", "truncate", ("dog",), {"energy": energy})
    for dtype, limit in (
        ("F16", 0.02),
        ("BF16", 0.02),
        ("BF16", 1e-4),
        ("I8", 0.02),
        ("I8", 1e-3),
        ("I8", 0),
        ("F32", 0),
    ):
        for of in ("dog", "cat") if limit in (0.02, 0) else ("dog",):
            yield Case(f"{of} to {dtype} within {limit}", "quantize", (of,), {"dtype": dtype, "max_error": limit})
    yield Case("two blocks to I8", "quantize", ("blocks",), {"dtype": "I8", "max_error": 0.1})


def merges() -> Iterator[Case]:
    """Yield the merge methods."""

    def blend(about: str, *inputs: str, **arguments: Any) -> Case:
        return Case(about, "merge", inputs, arguments)

    two = ("dog", "dog_again")
    yield blend("linear", *two, method="linear", weights=[0.75, -0.5])
    yield blend("magnitude", *two, method="magnitude", density=0.5)
    yield blend(
        "magnitude, weights by selector",
        *two,
        method="magnitude",
        density=0.25,
        weights=[{"default": 1, "where": [["unet-ca", 0.5]]}, 2],
    )
    yield blend("a product that rounds up to a half", *two, method="magnitude", density=0.8333333333333333)
    yield blend("ties", *two, method="ties", density=0.5)
    by_part = [{"default": 1, "where": [["attn", 0.5], ["kv", -2]]}, {"default": 0.25, "where": [["mlp", 3]]}]
    yield blend("linear, weights by part", "flux", "joint", method="linear", weights=by_part)
    yield blend("dare_linear, weights by part", "flux", "flux", method="dare_linear", density=0.5, weights=by_part)
    yield blend("ties of three, one lacks parameters", *two, "fine", method="ties", density=1, weights=[1, 0.3, -2])
    yield blend("dare_linear", *two, method="dare_linear", density=0.5)
    yield blend("dare_linear with a seed, BF16", *two, method="dare_linear", density=0.7, seed=2**53 - 1, dtype="BF16")
    yield blend("dare_ties", *two, method="dare_ties", density=0.6, seed=7, weights=[0.5, 1.5])
    yield blend("slerp: the middle of a right angle, and of parallels", "plain_a", "plain_b", method="slerp", alpha=0.5)
    yield blend("slerp with zeros is a straight line", "plain_a", "lone", method="slerp", alpha=0.25)
    for alpha in (0, 0.3, 1 - 2**-53, 1e-30, 1):
        yield blend(f"slerp: any angles, α {alpha}", *two, method="slerp", alpha=alpha)
    yield blend("slerp: angles near 0 and π", "near_a", "near_b", method="slerp", alpha=0.7)


def refusals() -> Iterator[Case]:
    """Yield operations that are refused."""
    yield Case("different bases", "add", ("dog", "other"), {}, "BaseMismatchError", (Q,))
    yield Case("beyond F16", "add", ("large",), {"dtype": "F16"}, "TensorError", (NORM, TEXT))
    yield Case("beyond I8", "add", ("large",), {"dtype": "I8"}, "TensorError", (NORM,))
    yield Case("beyond F32", "scale", ("large",), {"factor": 2}, "TensorError", (NORM,))
    yield Case(
        "above 65504, though it would round to it",
        "scale",
        ("large_half",),
        {"factor": 65504.5, "dtype": "F16"},
        "TensorError",
        (TEXT,),
    )
    yield Case("beyond F64", "scale", ("large",), {"factor": 1e300}, "TensorError", (NORM, TEXT))
    yield Case(
        "infinities that would cancel", "add", ("large",) * 2, {"weights": [1e300, -1e300]}, "TensorError", (NORM,)
    )
    yield Case("one weight of two inputs", "add", ("dog", "cat"), {"weights": [1]}, "InputError", ("weights",))
    for energy in (0, 1.5, -1):
        yield Case(f"energy {energy}", "truncate", ("dog",), {"energy": energy}, "InputError", ("energy",))
    yield Case("nothing to add", "add", (), {}, "InputError")
    yield Case("α above 1", "interpolate", ("dog", "cat"), {"alpha": 1.5}, "InputError", ("alpha",))
    yield Case("α below 0", "interpolate", ("dog", "cat"), {"alpha": -0.1}, "InputError", ("alpha",))
    yield Case("no selector", "slice", ("dog",), {"selectors": []}, "SelectionError")
    for selector in (
        "unet-cb",
        "unet-4D-x",
        "*.bias",
        "down.7",
        "UNET.*",
        "text_encoder",
        "(16,down,0)",
        "(8,down,1)",
        "(4,up,0)-(4,down,0)",
        "!unet-x",
    ):
        yield Case(selector, "slice", ("dog",), {"selectors": [selector]}, "SelectionError", (selector.lstrip("!"),))
    for of, selector in (
        ("flux", "experts"), ("flux", "unet-attn"), ("flux", "block.11"), ("flux", "block.2-1"), ("flux", "attn-attn"),
        ("flux", "block.1000"), ("flux", "attn-transformer"), ("flux", "transformer-"), ("flux", "model-attn"),
        ("joint", "transformer_2-conv"), ("joint", "text_encoder_3-kv"), ("joint", "text-2"), ("joint", "down.001"),
        ("joint", "transformer-ca-kv-q"), ("language", "prior-ca"), ("language", "bert-block.0"), ("language", "ca"),
        ("language", "model-block"), ("language", "none-block.0"),
    ):  # fmt: skip
        yield Case(f"{selector} of {of}", "slice", (of,), {"selectors": [selector]}, "SelectionError", (selector,))
    yield Case("nothing left", "slice", ("dog",), {"selectors": ["!unet", "!text"]}, "SelectionError")
    yield Case(
        "an address without a sample size",
        "slice",
        ("lone",),
        {"selectors": ["(8,down,0)"]},
        "SelectionError",
        ("(8,down,0)",),
    )
    yield Case(
        "an address in a part of a UNet, without its layout",
        "slice",
        ("part",),
        {"selectors": ["(4,down,1)"]},
        "SelectionError",
        ("(4,down,1)",),
    )
    for selector, about in (("(3,up,0)", "no depth"), ("(8,down,0)", "no parameter here")):
        yield Case(
            f"an address that {about} has, in a middle block alone",
            "slice",
            ("middle",),
            {"selectors": [selector]},
            "SelectionError",
            (selector,),
        )
    yield Case(
        "a weight's selector that names nothing",
        "add",
        ("lone",),
        {"weights": [{"default": 1, "where": [["unet", 2]]}]},
        "SelectionError",
        ("unet",),
    )
    two = ("dog", "dog_again")
    for about, method, options, name in (
        ("an unknown method", "mean", {}, "mean"), ("no density", "ties", {}, "density"),
        ("density 0", "ties", {"density": 0}, "density"), ("density above 1", "ties", {"density": 1.5}, "density"),
        ("an option too many", "linear", {"seed": 1}, "seed"),
        ("a negative seed", "dare_ties", {"density": 1, "seed": -1}, "seed"),
        ("a seed of 2^53", "dare_ties", {"density": 1, "seed": 2**53}, "seed"), ("no alpha", "slerp", {}, "alpha"),
        ("slerp with weights", "slerp", {"alpha": 0.5, "weights": [1, 1]}, "weights"),
    ):  # fmt: skip
        yield Case(about, "merge", two, {"method": method, **options}, "InputError", (name,))


def result(case: Case, inputs: Sequence[Delta]) -> Delta:
    """Return what an operation gives."""
    given = dict(case.arguments)
    if case.operation == "slice":
        return do.select(inputs[0], given["selectors"], SPOTS, given.get("sample_size"))
    if case.operation == "add":
        return do.add(inputs, **given)
    if case.operation == "merge":
        return merge(inputs, given.pop("method"), **given)
    if case.operation == "interpolate":
        return do.interpolate(inputs, **given)
    single: dict[str, Callable[..., Delta]] = {"scale": do.scale, "truncate": do.truncate, "quantize": do.quantize}
    return single[case.operation](inputs[0], **given)


def cases() -> Iterator[Case]:
    """Yield all operations in order."""
    for group in (sums, parts, merges, refusals):
        yield from group()


def manifest() -> tuple[JSON, dict[str, bytes]]:
    """Return the manifest, and the input files by name."""
    known = deltas()
    rows = [_row(case, {name: delta for name, (delta, _) in known.items()}) for case in cases()]
    files = {name: raw for name, (_, raw) in known.items()}
    return {"inputs": {name: f"operations/{name}.safetensors" for name in files}, "operations": rows}, files


def _row(case: Case, known: Mapping[str, Delta]) -> JSON:
    row = {
        "about": case.name,
        "operation": case.operation,
        "inputs": list(case.inputs),
        "arguments": dict(case.arguments),
    }
    if case.error:
        return {**row, "error": case.error, "names": list(case.names)}
    made_ = result(case, [known[name] for name in case.inputs])
    own = dict(sorted(made_.stored.items()))
    return {
        **row,
        "tensors": {name: _digits(stored) for name, stored in own.items()},
        "sha256": hashlib.sha256(file_bytes(made_)).hexdigest(),
        **(_metadata(made_) if case.operation == "add" else {}),
    }


def _metadata(delta: Delta) -> dict[str, JSON]:
    texts = {key: text for key, text in strings(delta).items() if key != "svdiff"}
    return {"document": document(delta), "strings": texts}


def _digits(stored: Stored) -> JSON:
    scales = {"scales": stored.scales.hex()} if stored.dtype == "I8" else {}
    return {"dtype": stored.dtype, "data": stored.data.hex(), **scales}
