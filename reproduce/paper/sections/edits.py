"""Section (c): edits of one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from reproduce.paper.claim import SHARE, Claim, all_of, higher, shown, table
from reproduce.paper.experiments.edits import METHODS, SEEDS, WAYS
from reproduce.paper.subjects import SCENES

from .results import Results, Section

ABOUT: Final = """\
Five pictures with their descriptions, λ = 0 and no rare token, two seeds; three edits of each. *Faithful*: cosine
of the picture and what its own description gives. *Succeeded*: the ground has the asked colour, the object is gone
or another one, or the subject stands where it was asked to. *Survived*: nearer to the source's subject than to the
base's pictures of its class (not asked where it is the subject that is replaced). *Like*: cosine with the source.
Means over runs, with 95 % intervals, those of shares cut to 0 to 1. *Inverted* starts from the DDIM inversion of the
picture (Eq. 6).
"""
LABELS: Final = {"svdiff": "SVDiff", "full": "full", "lora": "LoRA, rank 4"}


def _names(method: str) -> list[str]:
    return [f"{scene.name}-{method}-{seed}" for seed in SEEDS for scene in SCENES]


def _share(way: str, key: str) -> Any:
    """Return a function of a cell's numbers: the mean over its edits and pictures."""

    def value(numbers: Any) -> float:
        found = [one for edit in numbers[way] for one in (edit[key] or ())]
        return float(sum(found) / len(found))

    return value


def _good(way: str) -> Any:
    """Return a function of a cell's numbers: the share of pictures edited as asked whose subject survived."""

    def value(numbers: Any) -> float:
        found = [
            done and kept
            for edit in numbers[way]
            for done, kept in zip(edit["succeeded"], edit["survived"] or [1] * len(edit["succeeded"]), strict=True)
        ]
        return float(sum(found) / len(found))

    return value


def edits(results: Results) -> Section:
    """Return section (c)."""
    rows = []
    for method in METHODS:
        faithful = results.values("c", _names(method), lambda numbers: float(numbers["faithful"]))
        for way in WAYS:
            *shares, like = (results.values("c", _names(method), value) for value in _values(way))
            shown_shares = (shown(values, 2, within=SHARE) for values in shares)
            rows.append([LABELS[method], way, shown(faithful), *shown_shares, shown(like, 2), str(len(faithful))])
    body = [
        ABOUT,
        *table(["method", "start", "faithful", "succeeded", "survived", "both", "like the source", "runs"], rows),
        "",
        "The source, then its three edits, seed 0.",
        "",
        *table(["", *(scene.name for scene in SCENES)], _pictures(results)),
    ]
    return Section("(c) Edits of a single picture", body, _claims(results))


def _values(way: str) -> Sequence[Any]:
    return (_share(way, "succeeded"), _share(way, "survived"), _good(way), _share(way, "like"))


def _pictures(results: Results) -> list[list[str]]:
    return [
        [
            f"{LABELS[method]}, {way}",
            *(results.row("c", f"{scene.name}-{method}-0", way, height=48) for scene in SCENES),
        ]
        for method in METHODS
        for way in WAYS
    ]


def _claims(results: Results) -> list[Claim]:
    pairs = {method: list(zip(_names("svdiff"), _names(method), strict=True)) for method in METHODS}
    full = {way: results.differences("c", pairs["full"], _good(way)) for way in WAYS}
    lora = results.differences("c", pairs["lora"], lambda numbers: float(numbers["faithful"]))
    gain = {
        method: [
            _share("inverted", "like")(numbers) - _share("plain", "like")(numbers)
            for name in _names(method)
            if (numbers := results.numbers("c", name))
        ]
        for method in ("svdiff", "full")
    }
    return [
        Claim(
            "4.3, Fig. 7",
            "SVDiff performs edits, its subject kept, where full fine-tuning fails more often.",
            f"share of good edits, SVDiff less full: plain {shown(full['plain'])}, inverted {shown(full['inverted'])}",
            higher(full["plain"]),
        ),
        Claim(
            "4.3, appendix",
            "DDIM inversion brings SVDiff's edits closer to the picture.",
            f"cosine with the source, inverted less plain: SVDiff {shown(gain['svdiff'])}, full {shown(gain['full'])}",
            all_of(higher(gain["svdiff"])),
        ),
        Claim(
            "4.5, appendix",
            "LoRA underfits the picture where SVDiff does not.",
            f"faithful, SVDiff less LoRA: {shown(lora)}",
            higher(lora),
        ),
    ]
