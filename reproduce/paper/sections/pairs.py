"""Section (b): several subjects in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from reproduce.paper.claim import Claim, Verdict, ends, interval_shown, table
from reproduce.paper.experiments.pairs import FASTER, MIX, SEEDS, STEPS_OF_PAIRS, UNMIX, cell_name, wins
from reproduce.paper.sight import SEAM
from reproduce.paper.subjects import PAIRS, SIMILAR, TRIPLE
from svdiff_train.evaluate.statistics import Interval, wilson_interval

from .results import Results, Section

PAPER_WINS: Final = 0.609
"""How often the paper's raters preferred SVD to full weights."""
ABOUT: Final = """\
Four pairs ({pairs}), two seeds, one run of {steps} steps for both
subjects, at {rates} of (a); twelve pictures each, by prompts that no training sample had.
*Both appear*: of ten held-out subjects, one half of the picture is nearest to the one that was asked for, by its
pictures, and the other half to the other. *Crossed over*: both halves are nearest to the same subject. *Stitched*: the
ground's colour jumps by {seam:g} of 255 or more at the middle. Mixed samples have a probability of {mix:g}; the unmix
regularization a weight of {unmix:g}. Shares with 95 % (Wilson) intervals.
"""
LABELS: Final = {"svdiff": "SVDiff", "full": "full"}
ROWS: Final = (
    ("without Cut-Mix-Unmix", "plain", "positive"),
    ("with Cut-Mix-Unmix", "mix", "positive"),
    ("… and a negative prompt", "mix", "negative"),
    ("… and unmix regularization", "unmix", "positive"),
)


class _Judged:
    """Pictures of some cells, one after the other."""

    def __init__(
        self, results: Results, groups: Sequence[tuple[str, ...]], method: str, variant: str, kind: str
    ) -> None:
        names = [cell_name(names, method, variant, seed) for names in groups for seed in SEEDS]
        found: list[Any] = [
            numbers[kind] for name in names if (numbers := results.numbers("b", name)) and kind in numbers
        ]
        self.both = [value for one in found for value in one["both"]]
        self.crossed = [value for one in found for value in one["crossed"]]
        self.stitched = [int(value >= SEAM) for one in found for value in one["seam"]]

    def shares(self) -> list[str]:
        """Return the three shares with their intervals, and the number of pictures."""
        if not self.both:
            return ["–", "–", "–", "0"]
        return [*(_share(values) for values in (self.both, self.crossed, self.stitched)), str(len(self.both))]


def _interval(values: Sequence[int]) -> Interval:
    return wilson_interval(sum(values), len(values))


def _share(values: Sequence[int]) -> str:
    return interval_shown(_interval(values), 2)


def more_often(ours: Sequence[int], theirs: Sequence[int]) -> Verdict:
    """Judge "ours is more often" by two 95 % intervals that do not overlap."""
    if not ours or not theirs:
        return "not measured"
    first, second = ends(_interval(ours)), ends(_interval(theirs))
    if first[0] > second[1]:
        return "agrees"
    return "differs" if first[1] < second[0] else "undecided"


def pairs(results: Results) -> Section:
    """Return section (b)."""
    body = [
        ABOUT.format(
            pairs="; ".join(" and ".join(pair) for pair in PAIRS),
            steps=STEPS_OF_PAIRS,
            rates="the learning rates" if FASTER == 1 else f"{FASTER:g} times the learning rates",
            seam=SEAM,
            mix=MIX,
            unmix=UNMIX,
        ),
    ]
    for title, groups in (
        ("Pairs of similar class", SIMILAR),
        ("All pairs", PAIRS),
        ("Three subjects, one seed", (TRIPLE,)),
    ):
        rows = [
            [f"{LABELS[method]} {label}", *_Judged(results, groups, method, variant, kind).shares()]
            for method in LABELS
            for label, variant, kind in ROWS
            if groups != (TRIPLE,) or variant != "unmix"
        ]
        body += [f"**{title}**", "", *table(["", "both appear", "crossed over", "stitched", "pictures"], rows), ""]
    body += [
        "One picture of each prompt, seed 0.",
        "",
        *table(["", *(" + ".join(pair) for pair in PAIRS)], _pictures(results)),
    ]
    return Section("(b) Several subjects in one picture", body, _claims(results))


def _pictures(results: Results) -> list[list[str]]:
    rows = []
    for method in LABELS:
        for label, variant, kind in ROWS:
            row = "painted" if kind == "positive" else "negative"
            shown = (results.row("b", cell_name(pair, method, variant, 0), row, height=48) for pair in PAIRS)
            rows.append([f"{LABELS[method]} {label}", *shown])
    return rows


def _claims(results: Results) -> list[Claim]:
    claims = []
    for method, label in LABELS.items():
        mixed = _Judged(results, SIMILAR, method, "mix", "positive").both
        plain = _Judged(results, SIMILAR, method, "plain", "positive").both
        ratio = f", {sum(mixed) / len(mixed) * len(plain) / sum(plain):.1f} times" if mixed and sum(plain) else ""
        claims.append(
            Claim(
                "3.3, 4.2, Fig. 6",
                f"Cut-Mix-Unmix lets {label} show both subjects of similar class more often.",
                f"with {_or_dash(mixed)}, without {_or_dash(plain)}{ratio}",
                more_often(mixed, plain),
            )
        )
    stitched = {label: _Judged(results, PAIRS, "svdiff", variant, kind).stitched for label, variant, kind in ROWS[1:]}
    mixed, negative, unmix = stitched.values()
    claims += [
        Claim(
            "3.3, appendix",
            "A negative prompt can lessen stitching.",
            f"stitched {_or_dash(negative)} with, {_or_dash(mixed)} without",
            more_often(mixed, negative),
        ),
        Claim(
            "3.3, appendix",
            "The unmix regularization lessens stitching.",
            f"stitched {_or_dash(unmix)} with, {_or_dash(mixed)} without",
            more_often(mixed, unmix),
        ),
        _preference(results),
        _separated(results),
    ]
    return claims


def _preference(results: Results) -> Claim:
    """Return the same-seed wins of SVD over full."""
    won: list[int] = []
    for pair in PAIRS:
        for seed in SEEDS:
            ours, theirs = (results.numbers("b", cell_name(pair, method, "mix", seed)) for method in ("svdiff", "full"))
            if ours and theirs:
                won += wins(ours["positive"], theirs["positive"])
    verdict: Verdict = "not measured"
    if won:
        low, high = ends(_interval(won))
        verdict = "agrees" if low > 0.5 else "differs" if high < 0.5 else "undecided"
    return Claim(
        "4.2",
        f"With Cut-Mix-Unmix, SVD is preferred to full weights (by {PAPER_WINS:.1%} of the paper's raters).",
        f"same prompt and seed: {_or_dash(won)} of {len(won)} pictures are SVD's",
        verdict,
    )


def _separated(results: Results) -> Claim:
    """Return whether well separated concepts do without."""
    apart = _Judged(results, PAIRS[3:], "svdiff", "plain", "positive").both
    similar = _Judged(results, SIMILAR, "svdiff", "plain", "positive").both
    return Claim(
        "4.2",
        "Without Cut-Mix-Unmix, well separated concepts succeed more often than similar ones.",
        f"both appear: {' and '.join(PAIRS[3])} {_or_dash(apart)}, similar pairs {_or_dash(similar)}",
        more_often(apart, similar),
    )


def _or_dash(values: Sequence[int]) -> str:
    return _share(values) if values else "–"
