"""What pictures are measured by, as the options of `svdiff evaluate` say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdiff_delta.errors import InputError

from .references import say

if TYPE_CHECKING:
    from svdiff_delta import Base
    from svdiff_train.evaluate import Clip, Detector, MetricSuite, Region


def find_questions(base: Base, given: dict[str, Any], prompts: Sequence[str], *, quiet: bool) -> MetricSuite:
    """Return what to measure by; everything that can be wrong is looked at.

    Args:
        base: what paints, or painted.
        given: the options by name.
        prompts: of all pictures.
        quiet: whether to keep remarks.
    """
    from svdiff_train.evaluate import Clip, Dino, Lpips, MetricSuite, find_clip, read_references, without_tokens

    for token in given["token"]:
        if all(without_tokens(prompt, [token]) == " ".join(prompt.split()) for prompt in prompts):
            raise InputError(f"{token}: stands in no prompt", fix="mend --token, or leave it out")
    texts = [without_tokens(prompt, given["token"]) for prompt in dict.fromkeys(prompts)]
    if not all(texts):
        raise InputError("a prompt is empty, or has nothing but tokens", fix="describe more, or keep the tokens")
    references, remarks = read_references(given["images"], skip_bad=given["skip_bad"])
    reference, name = (given["clip"], None) if given["clip"] else find_clip(base)
    clip = Clip.load(reference, device=given["device"], name=name)
    scorers: dict[str, Any] = {"clip": clip}
    if given["dino"]:
        scorers = {"dino": Dino.load(given["dino"], device=given["device"]), **scorers}
    if given["lpips"]:
        scorers = {"lpips": Lpips.load(given["lpips"], device=given["device"]), **scorers}
    regions, asked, detector, said = _regions(clip, given)
    remarks += said
    for text in clip.too_long(texts):
        remarks.append(f"too long for {clip.name}, only its beginning is compared: {text}")
    for remark in remarks:
        say(remark, quiet=quiet)
    return MetricSuite(clip, scorers, references, given["token"], regions, asked, detector)


def _regions(clip: Clip, given: dict[str, Any]) -> tuple[list[Region], list[str], Detector | None, list[str]]:
    """Return where to look, what should be there, what tells it, and remarks."""
    from svdiff_train.evaluate import Detector, parse_region, read_references

    pairs = [_split(text, "--region", "left=dog") for text in given["region"]]
    if not pairs:
        if given["among"] or given["concept"]:
            raise InputError("there are no regions to look at", fix="add --region left=NAME")
        return [], [], None, []
    regions, asked = [parse_region(region) for region, _ in pairs], [name for _, name in pairs]
    if not given["concept"]:
        return regions, asked, Detector.from_names(clip, [*dict.fromkeys([*asked, *given["among"]])]), []
    if given["among"]:
        raise InputError("names and pictures are not compared with each other", fix="use --among or --concept")
    concepts, remarks = dict[str, list[Any]](), list[str]()
    for text in given["concept"]:
        name, folder = _split(text, "--concept", "dog=FOLDER")
        if name in concepts:
            raise InputError(f"the concept {name} stands there twice", fix="put its pictures into one folder")
        concepts[name], said = read_references([Path(folder)], skip_bad=given["skip_bad"])
        remarks += said
    if lacking := [name for name in asked if name not in concepts]:
        raise InputError(f"{lacking[0]}: has no pictures", fix=f"add --concept {lacking[0]}=FOLDER")
    return regions, asked, Detector.from_pictures(clip, concepts), remarks


def _split(text: str, option: str, example: str) -> tuple[str, str]:
    first, _, second = text.partition("=")
    if not first.strip() or not second.strip():
        raise InputError(f"{option} {text}: names one thing", fix=f"write it as {option} {example}")
    return first.strip(), second.strip()
