"""What is measured, as the options of `svdiff evaluate` say: pictures to paint, or pictures that exist."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdiff_delta.errors import InputError

from .progress import Bar
from .references import say, split_weight

if TYPE_CHECKING:
    from svdiff_delta import Base, Delta
    from svdiff_train.evaluate import Candidate


def find_candidates(
    base: Base, deltas: Sequence[Delta], weights: Sequence[float], given: dict[str, Any], *, quiet: bool
) -> tuple[dict[str, Any], Iterable[Candidate], list[str]]:
    """Return what results say of how pictures were made, the pictures (painted when asked for), and all prompts."""
    from svdiff_train.evaluate import paint_candidates, read_candidates
    from svdiff_train.sampling.prompts import read_prompts
    from svdiff_train.sampling.sample import Sampling

    asked = [*given["prompt"], *(read_prompts(given["prompts"]) if given["prompts"] else [])]
    if given["pictures"]:
        if asked or deltas:
            raise InputError("with --pictures nothing is painted", fix="leave out prompts and deltas, or --pictures")
        read, remarks = read_candidates(given["pictures"], skip_bad=given["skip_bad"])
        for remark in remarks:
            say(remark, quiet=quiet)
        return {}, read, [prompt for candidate in read for prompt in candidate.prompts]
    if not asked:
        raise InputError(
            "there are no prompts", fix="give some with --prompt or --prompts, or pictures with --pictures"
        )
    seeds = [given["seed"] + number for number in range(given["seeds"])]
    sampling = Sampling(steps=given["steps"], guidance=given["guidance"])
    jobs = [(prompt, seed) for prompt in asked for seed in seeds]
    subjects = _subjects(base, deltas, weights, given["deltas"], each=given["each"])

    def painted() -> Iterable[Candidate]:
        with Bar("painting", quiet=quiet) as bar:
            yield from paint_candidates(
                base,
                subjects,
                jobs,
                sampling,
                device=given["device"],
                progress=bar,
                cuda_graphs=not given["no_cuda_graphs"],
                say=None if quiet else say,
            )

    return {"steps": sampling.steps, "guidance": sampling.guidance}, painted(), asked


def _subjects(
    base: Base, deltas: Sequence[Delta], weights: Sequence[float], written: Sequence[str], *, each: bool
) -> dict[str, Delta | None]:
    """Return what is put on the base, by label."""
    from svdiff_delta.ops.arithmetic import add

    if not deltas:
        return {base.repository or base.path.resolve().name: None}
    labels = [_label(*pair) for pair in zip(written, deltas, weights, strict=True)]
    if not each:
        return {" + ".join(labels): add(*deltas, weights=weights)}
    if len(set(labels)) < len(labels):
        labels = list(written)
    if len(set(labels)) < len(labels):
        raise InputError("a delta is named twice", fix="name it once, or with another weight")
    return {label: add(delta, weights=[w]) for label, delta, w in zip(labels, deltas, weights, strict=True)}


def _label(written: str, delta: Delta, weight: float) -> str:
    name = delta.metadata.title or Path(split_weight(written)[0]).stem
    return name if weight == 1 else f"{name}:{weight:g}"
