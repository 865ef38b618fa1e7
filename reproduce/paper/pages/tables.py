"""What each experiment's page shows beside its claims."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from reproduce.paper.cell import Cell, Numbers
from reproduce.paper.claims.edits import good, like
from reproduce.paper.claims.pairs import both, stitched
from reproduce.paper.claims.verdict import Find
from reproduce.paper.plots import bars, lines, scatter
from reproduce.paper.subjects import TRIPLE, slug
from svdiff_delta.selectors.subsets import PAPER

from .text import mean_shown, table

Cells = Iterable[Cell]
SHARE: Final = (0.0, 1.0)
LABELS: Final = {"svdiff": "SVDiff", "full": "full (DreamBooth)", "kv": "Custom Diffusion", "lora": "LoRA, rank 4"}


def _found(cells: Cells, find: Find, wanted: Callable[[Cell], bool]) -> list[Numbers]:
    return [numbers for cell in cells if wanted(cell) and (numbers := find(cell)) is not None]


def _within(letter: str, *inside: str) -> Callable[[Cell], bool]:
    """Return a filter of cells of an experiment whose names hold one of some texts."""
    return lambda cell: cell.experiment == letter and any(text in cell.name for text in inside)


def _scores(found: list[Numbers]) -> list[str]:
    """Return text and image alignment, identity and the number of runs."""
    values = {key: [float(one[key]) for one in found] for key in ("text", "image", "identity")}
    shares = mean_shown(values["identity"], within=SHARE)
    return [mean_shown(values["text"]), mean_shown(values["image"]), shares, str(len(found))]


HEAD: Final = ("text", "image", "identity", "runs")
PAIR_HEAD: Final = ("both appear", "crossed over", "stitched", "runs")


def singles(cells: Cells, find: Find, out: Path) -> list[str]:
    """Return (a): every method's means, and all runs as in Fig. 9b."""
    by = {label: _found(cells, find, _within("a", f"-{method}-")) for method, label in LABELS.items()}
    points = {label: [(one["text"], one["image"]) for one in found] for label, found in by.items()}
    scatter(points, "text alignment", "image alignment", out / "plots" / "alignment.png")
    sizes = [f"{found[0]['size'] / 1e3:,.0f} kB" if found else "–" for found in by.values()]
    rows = [[label, *_scores(found), size] for (label, found), size in zip(by.items(), sizes, strict=True) if found]
    plot = ["![text and image alignment of every run](../plots/alignment.png)", ""] if any(points.values()) else []
    return [*table(["method", *HEAD, "size"], rows), *plot]


def pairs(cells: Cells, find: Find, out: Path) -> list[str]:  # noqa: ARG001
    """Return (b): shares of pictures of every variant, of two subjects and of three."""
    rows = []
    for three in (False, True):
        for method in ("svdiff", "full"):
            for variant in ("plain", "mix", "unmix"):
                found = _found(cells, find, _pair_filter(method, variant, three=three))
                rows += [
                    [
                        f"{'three' if three else 'two'} subjects, {LABELS[method]}, {_told(variant, kind)}",
                        *_pair_shares([{"positive": one[kind]} for one in found if kind in one]),
                    ]
                    for kind in ("positive", "negative")
                    if any(kind in one for one in found)
                ]
    return table(["", *PAIR_HEAD], rows)


def _pair_filter(method: str, variant: str, *, three: bool) -> Callable[[Cell], bool]:
    triple = slug(*TRIPLE)
    return lambda cell: (
        cell.experiment == "b" and f"-{method}-{variant}-" in cell.name and cell.name.startswith(f"{triple}-") == three
    )


def _told(variant: str, kind: str) -> str:
    words = {"plain": "without Cut-Mix-Unmix", "mix": "with Cut-Mix-Unmix", "unmix": "with unmix regularization too"}
    return words[variant] + (", negative prompt" if kind == "negative" else "")


def _pair_shares(found: list[Mapping[str, Any]]) -> list[str]:
    measures: tuple[Callable[[Any], float], ...] = (both, lambda one: fmean(one["positive"]["crossed"]), stitched)
    return [*(mean_shown([value(one) for one in found], 2, within=SHARE) for value in measures), str(len(found))]


def edits(cells: Cells, find: Find, out: Path) -> list[str]:  # noqa: ARG001
    """Return (c): every method's means, with and without inversion."""
    rows = []
    for method in ("svdiff", "full", "lora"):
        found = _found(cells, find, _within("c", f"-{method}-"))
        rows += [
            [
                f"{LABELS[method]}, {way}",
                mean_shown([float(one["faithful"]) for one in found]),
                mean_shown([good(one, way) for one in found], 2, within=SHARE),
                mean_shown([like(one, way) for one in found], 2),
                str(len(found)),
            ]
            for way in ("plain", "inverted")
            if found
        ]
    return table(["method, start", "faithful", "good edits", "like the source", "runs"], rows)


def subsets(cells: Cells, find: Find, out: Path) -> list[str]:
    """Return (d): all subsets of Table 1."""
    rows, means = [], {}
    for subset in PAPER:
        found = _found(cells, find, _of_subset(subset))
        if found:
            rows.append([f"`{subset}`", *_scores(found)])
            means[subset] = fmean(float(one["image"]) for one in found)
    bars(means, "image alignment", out / "plots" / "subsets.png")
    plot = ["![image alignment of subsets](../plots/subsets.png)", ""] if means else []
    return [*table(["subset", *HEAD], rows), *plot]


def _of_subset(subset: str) -> Callable[[Cell], bool]:
    """Return a filter of a subset's cells; the whole UNet is what SVDiff trains in (a)."""
    if subset == "unet":
        return _within("a", "-svdiff-")
    ending = re.compile(rf"-{subset}-\d+$")
    return lambda cell: cell.experiment == "d" and ending.search(cell.name) is not None


def combined(cells: Cells, find: Find, out: Path) -> list[str]:
    """Return (e): what sums keep, and likeness to both subjects on the way between them."""
    series, rows = {}, []
    for method in ("svdiff", "full"):
        every = _found(cells, find, _within("e", f"-{method}-"))
        sums = [one for one in every if "alone" in one]
        if sums:
            means = [mean_shown([fmean(one[key]) for one in sums]) for key in ("alone", "together", "class")]
            rows.append([LABELS[method], *means, *_pair_shares([{"positive": one["pair"]} for one in sums])])
        found = [one for one in every if "alphas" in one]
        for index, which in enumerate(("first", "second")):
            if found:
                series[f"{LABELS[method]}, like the {which}"] = [
                    (alpha, fmean(one["like"][at][index] for one in found))
                    for at, alpha in enumerate(found[0]["alphas"])
                ]
    lines(series, "α", "image alignment", out / "plots" / "ways.png")
    plot = ["![likeness to both subjects by α](../plots/ways.png)", ""] if series else []
    head = ["sum of", "alone", "in the sum", "the base's class", *PAIR_HEAD]
    return [*table(head, rows), *plot]


def styles(cells: Cells, find: Find, out: Path) -> list[str]:  # noqa: ARG001
    """Return (f): what the mix has of each parent."""
    found = _found(cells, find, _within("f", "-as-"))
    measures: Mapping[str, Callable[[Numbers], float]] = {
        "silhouettes in common with the geometry's parent": lambda one: float(one["shape"]["geometry"]),
        "silhouettes in common with the appearance's parent": lambda one: float(one["shape"]["appearance"]),
        "colours in common with the appearance's parent": lambda one: float(one["colour"]["appearance"]),
        "colours in common with the geometry's parent": lambda one: float(one["colour"]["geometry"]),
        "colours that the parents have in common": lambda one: float(one["parents"]),
    }
    rows = [[name, mean_shown([value(one) for one in found], 2, within=SHARE)] for name, value in measures.items()]
    return table([f"mean of {len(found)} mixes", "share"], rows if found else [])


def correlation(cells: Cells, find: Find, out: Path) -> list[str]:  # noqa: ARG001
    """Return (g): the cosines of every pair."""
    rows = [
        [cell.name.replace("-beside-", " beside ").replace("_", " "), f"{kept['own']:.3f}", f"{kept['other']:.3f}"]
        for cell in cells
        if cell.experiment == "g" and (kept := find(cell)) is not None
    ]
    return table(["shifts", "of one subject, two rates", "of two subjects"], rows)


def sweeps(cells: Cells, find: Find, out: Path) -> list[str]:
    """Return (h): ranks and scales."""
    rows = []
    for rank in (1, 4, 16, 64):
        found = _found(cells, find, _within("h", f"-rank-{rank}-"))
        if found:
            rows.append([str(rank), *_scores(found)])
    scaled = [one["scales"] for one in _found(cells, find, _within("h", "-scales-"))]
    series = {
        key: [(float(step["scale"]), fmean(float(run[at][key]) for run in scaled)) for at, step in enumerate(scaled[0])]
        for key in ("text", "image", "identity")
        if scaled
    }
    lines(series, "scale", "mean over runs", out / "plots" / "by-scale.png")
    plot = ["![text, image and identity by scale](../plots/by-scale.png)", ""] if series else []
    return [*table(["rank", *HEAD], rows), *plot]


TABLES: Final[Mapping[str, Callable[[Cells, Find, Path], list[str]]]] = {
    "a": singles, "b": pairs, "c": edits, "d": subsets, "e": combined, "f": styles,
    "g": correlation, "h": sweeps,
}  # fmt: skip
