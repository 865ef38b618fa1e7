"""The command that measures pictures: do they show what was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svdiff_delta.errors import InputError

from . import options
from .progress import Bar
from .references import needs, open_deltas, open_reference, say, split_weight

if TYPE_CHECKING:
    from svdiff_delta import Base, Delta
    from svdiff_train.evaluate import Candidate, Clip, Detector, Questions, Scores

_folder: Any = click.Path(path_type=Path)


@click.command()
@click.argument("base", metavar="BASE")
@click.argument("deltas", metavar="[DELTA[:WEIGHT]]...", nargs=-1)
@click.option("--images", multiple=True, required=True, type=_folder, help="A folder of pictures of the subject.")
@click.option("--prompt", multiple=True, help="What to paint; may be given several times.")
@click.option("--prompts", type=_folder, help="A text file with one prompt per line.")
@click.option("--seeds", type=click.IntRange(1), default=4, show_default=True, help="Pictures of each prompt.")
@options.seed
@click.option("--steps", default=50, show_default=True, help="Denoising steps.")
@click.option("--guidance", default=7.5, show_default=True, help="Classifier-free guidance scale.")
@click.option("--each", is_flag=True, help="Measure every delta on its own, not their sum.")
@click.option("--pictures", multiple=True, type=_folder, help="Measure the pictures in this folder; paint none.")
@click.option("--token", multiple=True, help="A rare word to leave out of prompts when they are compared.")
@click.option("--clip", help="The CLIP, a folder or owner/repo [default: the base's own, else openai's ViT-L/14].")
@click.option("--dino", help="Also compare pictures by this DINO, a folder or owner/repo.")
@click.option("--lpips", type=_folder, help="Also compare pictures by LPIPS, with these safetensors weights.")
@click.option("--region", multiple=True, metavar="REGION=NAME", help="What a part should show: left=dog.")
@click.option("--among", multiple=True, metavar="NAME", help="Another name that a region could be taken for.")
@click.option("--concept", multiple=True, metavar="NAME=FOLDER", help="Know NAME by these pictures, not by its word.")
@click.option("--skip-bad", is_flag=True, help="Go on without pictures that cannot be read.")
@options.device
@options.output("The JSON to write.")
@click.option("--plot", type=_folder, help="Also draw text and image alignment as this PNG.")
@options.force
@options.dry_run
@options.as_json
@options.quiet
def evaluate(base: str, output: Path, plot: Path | None, force: bool, as_json: bool, quiet: bool, **given: Any) -> None:
    """Measure how well pictures follow their prompts, and how much they look like other pictures.

    \b
        svdiff evaluate tiny dog.safetensors --images dog/ --prompt 'a photo of a sks dog' -o dog.json
        svdiff evaluate tiny --pictures painted/ --images dog/ -o painted.json

    Text alignment is CLIP's cosine of a picture with its prompt. Image alignment is the mean over all pictures of the
    subject: CLIP's cosine, with --dino DINO's, with --lpips 1 - LPIPS. This is Fig. 9b of the paper.

    A REGION is whole, left, right, top, bottom, or its edges as shares of width and height, such as 0,0,0.5,1. It shows
    the NAME whose words, or with --concept whose pictures, are nearest.
    """
    from svdiff_delta._atomic import check_output, replace_file
    from svdiff_delta._json import canonical_json

    check_output(output, overwrite=force)
    if plot is not None:
        from .plot import check_plot

        check_plot(plot, overwrite=force)
    needs("diffusers", "train")
    found = _measure(base, given, quiet=quiet or as_json)
    if found is None:
        return
    facts, results = found
    text = canonical_json(facts)
    with replace_file(output, overwrite=force) as stream:
        stream.write(text + b"\n")
    if plot is not None:
        _draw(results, plot, overwrite=force)
    if as_json:
        click.echo(text)
    elif not quiet:
        _print(results, output)


def _measure(base: str, given: dict[str, Any], *, quiet: bool) -> tuple[dict[str, Any], list[Scores]] | None:
    """Check everything, paint or read pictures, and measure them; None on a dry run."""
    from svdiff_train.evaluate import score

    opened, weights = open_deltas(given["deltas"])
    model = open_reference(base)
    settings, candidates, prompts = _candidates(model, opened, weights, given, quiet=quiet)
    questions = _questions(model, given, prompts, quiet=quiet)
    if given["dry_run"]:
        click.echo(f"would measure {len(prompts)} prompts by {len(questions.references)} pictures of the subject")
        return None
    results, facts = list[Scores](), list[dict[str, Any]]()
    for candidate in candidates:
        results.append(score(candidate.label, candidate.images, candidate.prompts, questions))
        facts.append(results[-1].facts(candidate.about))
    return {**settings, **_about(model, questions), "results": facts}, results


def _candidates(
    base: Base, deltas: Sequence[Delta], weights: Sequence[float], given: dict[str, Any], *, quiet: bool
) -> tuple[dict[str, Any], Iterable[Candidate], list[str]]:
    """Return what results say of how pictures were made, the pictures (painted when asked for), and all prompts."""
    from svdiff_train.evaluate import paint_candidates, read_candidates
    from svdiff_train.sample import Sampling

    asked = [*given["prompt"], *(_lines(given["prompts"]) if given["prompts"] else [])]
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
            yield from paint_candidates(base, subjects, jobs, sampling, device=given["device"], progress=bar)

    return {"steps": sampling.steps, "guidance": sampling.guidance}, painted(), asked


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: could not be read ({error.strerror})", fix="name a text file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start})", fix="save it as UTF-8") from None
    if not (lines := [line.strip() for line in text.splitlines() if line.strip()]):
        raise InputError(f"{path}: holds no prompts", fix="write one per line")
    return lines


def _subjects(
    base: Base, deltas: Sequence[Delta], weights: Sequence[float], written: Sequence[str], *, each: bool
) -> dict[str, Delta | None]:
    """Return what is put on the base, by label."""
    from svdiff_delta.ops import add

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


def _questions(base: Base, given: dict[str, Any], prompts: Sequence[str], *, quiet: bool) -> Questions:
    from svdiff_train.evaluate import Clip, Dino, Lpips, Questions, find_clip, read_references, without_tokens

    for token in given["token"]:
        if all(without_tokens(prompt, [token]) == " ".join(prompt.split()) for prompt in prompts):
            raise InputError(f"{token}: stands in no prompt", fix="mend --token, or leave it out")
    references, remarks = read_references(given["images"], skip_bad=given["skip_bad"])
    reference, name = (given["clip"], None) if given["clip"] else find_clip(base)
    clip = Clip.load(reference, device=given["device"], name=name)
    scorers: dict[str, Any] = {"clip": clip}
    if given["dino"]:
        scorers = {"dino": Dino.load(given["dino"], device=given["device"]), **scorers}
    if given["lpips"]:
        scorers = {"lpips": Lpips.load(given["lpips"], device=given["device"]), **scorers}
    regions, asked, detector = _regions(clip, given)
    for text in clip.too_long([without_tokens(prompt, given["token"]) for prompt in dict.fromkeys(prompts)]):
        remarks.append(f"too long for {clip.name}, only its beginning is compared: {text}")
    for remark in remarks:
        say(remark, quiet=quiet)
    return Questions(clip, scorers, references, given["token"], regions, asked, detector)


def _regions(clip: Clip, given: dict[str, Any]) -> tuple[list[Any], list[str], Detector | None]:
    """Return where to look, what should be there, and what tells it."""
    from svdiff_train.evaluate import Detector, parse_region, read_references

    pairs = [_split(text, "--region", "left=dog") for text in given["region"]]
    if not pairs:
        if given["among"] or given["concept"]:
            raise InputError("there are no regions to look at", fix="add --region left=NAME")
        return [], [], None
    regions, asked = [parse_region(region) for region, _ in pairs], [name for _, name in pairs]
    if not given["concept"]:
        return regions, asked, Detector.from_names(clip, [*dict.fromkeys([*asked, *given["among"]])])
    if given["among"]:
        raise InputError("names and pictures are not compared with each other", fix="use --among or --concept")
    folders = dict(_split(text, "--concept", "dog=FOLDER") for text in given["concept"])
    if lacking := [name for name in asked if name not in folders]:
        raise InputError(f"{lacking[0]}: has no pictures", fix=f"add --concept {lacking[0]}=FOLDER")
    pictures = {name: read_references([Path(path)], skip_bad=given["skip_bad"])[0] for name, path in folders.items()}
    return regions, asked, Detector.from_pictures(clip, pictures)


def _split(text: str, option: str, example: str) -> tuple[str, str]:
    first, _, second = text.partition("=")
    if not first.strip() or not second.strip():
        raise InputError(f"{option} {text}: names one thing", fix=f"write it as {option} {example}")
    return first.strip(), second.strip()


def _about(base: Base, questions: Questions) -> dict[str, Any]:
    return {
        "base": base.repository or base.path.resolve().name,
        "clip": questions.clip.name,
        "measures": {name: scorer.name for name, scorer in questions.scorers.items()},
        "references": len(questions.references),
        "tokens": list(questions.tokens),
        "regions": {region.name: name for region, name in zip(questions.regions, questions.asked, strict=True)},
    }


def _draw(results: Sequence[Scores], output: Path, *, overwrite: bool) -> None:
    from .plot import Mark, scatter

    measure = next(iter(results[0].image))
    axis = "1 − LPIPS" if measure == "lpips" else f"{measure.upper()} cosine"
    marks = []
    for found in results:
        text, image = found.text_mean, found.image_mean(measure)
        marks.append(Mark(found.label, (text.mean, text.low, text.high), (image.mean, image.low, image.high)))
    scatter(marks, "text alignment (CLIP cosine)", f"image alignment ({axis})", output, overwrite=overwrite)


def _print(results: Sequence[Scores], output: Path) -> None:
    from svdiff_train.evaluate import render

    for line in render(results):
        click.echo(line)
    click.echo(f"wrote {output}")
