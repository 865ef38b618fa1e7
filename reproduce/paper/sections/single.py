"""Sections (a), (d) and (h): single subjects, subsets, ranks and scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from reproduce.paper.claim import SHARE, Claim, all_of, higher, shown, similar, table
from reproduce.paper.experiments.shifts import SCALES
from reproduce.paper.experiments.singles import METHODS, RANKS, SEEDS
from reproduce.paper.recipe import BATCH, PRIOR, RATES, STEPS
from reproduce.paper.subjects import ABLATED, SINGLES
from svdiff_delta.selectors.subsets import PAPER

from .results import Results, Section

SIMILAR: Final = 0.03
"""A difference of cosines that counts as none."""
ABOUT: Final = """\
Five held-out subjects, three seeds each, {steps} steps of {batch} pictures, λ = {prior:g}; the better of the
checkpoints after half and after all steps, by the sum of both alignments. Learning rates: {rates}, chosen
in (i). *Text*: cosine of picture and prompt, its token left out; *image*: mean cosine with
the subject's pictures; *identity*: share of pictures nearer to those than to the base's own of the class. Means
with 95 % intervals, those of shares cut to 0 to 1. The size is that of the file that holds what was trained: for full
fine-tuning the UNet; Custom Diffusion's result is kept as whole components too, though only keys, values and one
embedding change.
"""
LABELS: Final = {"svdiff": "SVDiff", "full": "full (DreamBooth)", "kv": "Custom Diffusion", "lora": "LoRA, rank 4"}


def _score(name: str) -> Callable[[Any], float]:
    return lambda numbers: float(numbers[name])


def _scores(values: Mapping[str, Sequence[float]]) -> list[str]:
    """Return text and image alignment and the share of identity as a table shows them."""
    return [shown(values["text"]), shown(values["image"]), shown(values["identity"], within=SHARE)]


def _slug(name: str) -> str:
    return name.replace(" ", "_")


def _names(method: str) -> list[str]:
    return [f"{_slug(name)}-{method}-{seed}" for seed in SEEDS for name in SINGLES]


def singles(results: Results) -> Section:
    """Return section (a)."""
    rows = []
    for method in METHODS:
        names = _names(method)
        found = {
            key: results.values("a", names, _score(key)) for key in ("text", "image", "identity", "size", "seconds")
        }
        size = f"{found['size'][0] / 1e3:,.0f} kB" if found["size"] else "–"
        took = f"{sum(found['seconds']) / len(found['seconds']):.0f} s" if found["seconds"] else "–"
        rows.append([LABELS[method], *_scores(found), size, took, str(len(found["text"]))])
    against = {method: list(zip(_names("svdiff"), _names(method), strict=True)) for method in METHODS}
    image = {method: results.differences("a", against[method], _score("image")) for method in METHODS}
    text = {method: results.differences("a", against[method], _score("text")) for method in METHODS}
    rates = ", ".join(f"{LABELS[name]} {rate:g}" for name, rate in RATES.items())
    body = [
        ABOUT.format(steps=STEPS, batch=BATCH, prior=PRIOR, rates=rates),
        "",
        *table(["method", "text", "image", "identity", "size", "training", "runs"], rows),
        "",
        "Seed 0: four pictures per cell.",
        "",
        *table(["subject", *LABELS.values()], _pictures(results)),
    ]
    sizes = {method: results.values("a", _names(method), _score("size"))[:1] for method in METHODS}
    ratio = sizes["full"][0] / sizes["svdiff"][0] if sizes["full"] and sizes["svdiff"] else None
    claims = [
        Claim(
            "4.1, Fig. 9b",
            "SVDiff performs like full fine-tuning: similar text and image alignment.",
            f"SVDiff less full: text {shown(text['full'])}, image {shown(image['full'])}; similar is within {SIMILAR}",
            all_of(similar(text["full"], SIMILAR), similar(image["full"], SIMILAR)),
        ),
        Claim(
            "4.1, Fig. 9b",
            "Custom Diffusion underfits: lower image alignment than SVDiff, higher text alignment.",
            f"SVDiff less Custom Diffusion: image {shown(image['kv'])}, text {shown(text['kv'])}",
            all_of(higher(image["kv"]), higher([-value for value in text["kv"]])),
        ),
        Claim(
            "1, 3.2",
            "A shift is thousands of times smaller than a fully tuned model (2,200 times on Stable Diffusion).",
            "–" if ratio is None else f"{ratio:,.0f} times smaller than the UNet, whose matrices are small here",
            "not measured" if ratio is None else "agrees" if ratio > 1000 else "differs",
        ),
    ]  # fmt: skip
    return Section("(a) Single subjects", body, claims)


def _pictures(results: Results) -> list[list[str]]:
    return [
        [name, *(results.row("a", f"{_slug(name)}-{method}-0", "painted") for method in LABELS)] for name in SINGLES
    ]


def subsets(results: Results) -> Section:
    """Return section (d)."""
    found = {key: {name: _subset(results, name, key) for name in PAPER} for key in ("text", "image", "identity")}
    rows = []
    for name in PAPER:
        pictures = results.row("d", f"{name}-{_slug(ABLATED[0])}", "painted")
        rows.append([f"`{name}`", *_scores({key: values[name] for key, values in found.items()}), pictures])
    body = [
        "Three subjects on each subset of Table 1, everything else as in (a).",
        "",
        *table(["subset", "text", "image", "identity", "pictures"], rows),
    ]

    def less(first: str, second: str) -> list[float]:
        names = [(f"{first}-{_slug(name)}", f"{second}-{_slug(name)}") for name in ABLATED]
        return results.differences("d", names, _score("image"))

    alone = [less("unet", block) for block in ("up", "down", "mid")]
    ups = [less("up", block) for block in ("down", "mid")]
    claims = [
        Claim(
            "4.4 (1)",
            "All cross-attention layers preserve identity better than keys and values alone.",
            f"image, UNet-CA less UNet-CA-KV: {shown(less('unet-ca', 'unet-ca-kv'))}",
            higher(less("unet-ca", "unet-ca-kv")),
        ),
        Claim(
            "4.4 (2)",
            "Up-, down- or mid-blocks alone are not enough to keep identity; of them up-blocks do it best.",
            "image, UNet less up, down, mid: " + ", ".join(shown(values) for values in alone)
            + "; up less down, mid: " + ", ".join(shown(values) for values in ups),
            all_of(*(higher(values) for values in (*alone, *ups))),
        ),
        Claim(
            "4.4 (3)",
            "2-D weights have the most influence of the three kinds, and keep identity better than UNet-CA.",
            "image, 2-D less 1-D, 4-D, UNet-CA: "
            + ", ".join(shown(less("unet-2d", other)) for other in ("unet-1d", "unet-4d", "unet-ca")),
            all_of(*(higher(less("unet-2d", other)) for other in ("unet-1d", "unet-4d", "unet-ca"))),
        ),
    ]  # fmt: skip
    return Section("(d) Subsets of parameters", body, claims)


def _subset(results: Results, subset: str, key: str) -> list[float]:
    return results.values("d", [f"{subset}-{_slug(name)}" for name in ABLATED], _score(key))


def sweeps(results: Results) -> Section:
    """Return section (h)."""

    def ranked(rank: int, key: str) -> list[float]:
        return results.values("h", [f"rank-{rank}-{_slug(name)}" for name in ABLATED], _score(key))

    whole = {key: _subset(results, "unet", key) for key in ("text", "image", "identity")}
    short = _slug(ABLATED[0])
    rows = [
        [
            str(rank),
            *_scores({key: ranked(rank, key) for key in whole}),
            results.row("h", f"rank-{rank}-{short}", "painted"),
        ]
        for rank in RANKS
    ]
    rows.append(["all", *_scores(whole), results.row("d", f"unet-{short}", "painted")])
    scaled = [_at_scale(results, index) for index in range(len(SCALES))]
    body = [
        "Three subjects; only so many of the largest singular values of each weight are shifted.",
        "",
        *table(["rank", "text", "image", "identity", "pictures"], rows),
        "",
        "The deltas of (a), seed 0, at several scales.",
        "",
        *table(
            ["scale", "text", "image", "identity"],
            [[f"{scale:g}", *_scores(values)] for scale, values in zip(SCALES, scaled, strict=True)],
        ),
        "",
        results.row("h", f"scales-{_slug(ABLATED[0])}", "strip"),
    ]
    low = [a - b for a, b in zip(whole["image"], ranked(RANKS[0], "image"), strict=False)]
    far = [a - b for a, b in zip(scaled[SCALES.index(1.0)]["text"], scaled[-1]["text"], strict=True)]
    claims = [
        Claim(
            "appendix, ranks",
            "Lower ranks capture less of the subject.",
            f"image, all singular values less the largest one: {shown(low)}",
            higher(low),
        ),
        Claim(
            "appendix, scales",
            "A scale that is too large brings artefacts and loses the prompt.",
            f"text, scale 1 less scale {SCALES[-1]:g}: {shown(far)}",
            higher(far),
        ),
    ]
    return Section("(h) Ranks and scales", body, claims)


def _at_scale(results: Results, index: int) -> dict[str, list[float]]:
    names = [f"scales-{_slug(name)}" for name in ABLATED]
    return {
        key: results.values("h", names, lambda numbers, key=key: float(numbers["scales"][index][key]))  # type: ignore[misc]
        for key in ("text", "image", "identity")
    }
