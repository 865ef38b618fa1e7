"""The command that measures pictures: do they show what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options
from .devices import device, device_for
from .printing import echo
from .references import keep_apart, needs, open_deltas, open_to_paint, split_variant

if TYPE_CHECKING:
    from svdiff_delta import Base
    from svdiff_train.evaluate import MetricSuite, Scores

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
@device("evaluate")
@options.no_cuda_graphs
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
    from svdiff_delta._text.printable import ascii_json
    from svdiff_delta._util.atomic import check_output, replace_file
    from svdiff_delta._util.json import canonical_json

    check_output(output, overwrite=force, folder=False)
    if plot is not None:
        from .plot import check_plot

        check_plot(plot, overwrite=force)
    needs("diffusers", "train")
    places = [given["prompts"], given["lpips"], *given["images"], *given["pictures"], *given["deltas"]]
    places += [Path(split_variant(base)[0]), *(Path(concept.partition("=")[2]) for concept in given["concept"])]
    keep_apart((output, plot), *places)
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
        echo(ascii_json(text.decode()))
    elif not quiet:
        _print(results, output)


def _measure(base: str, given: dict[str, Any], *, quiet: bool) -> tuple[dict[str, Any], list[Scores]] | None:
    """Check everything, paint or read pictures, and measure them; None on a dry run."""
    from svdiff_train.evaluate import score

    from .evaluate_inputs import find_candidates
    from .evaluate_metrics import find_questions

    given = given | {"device": device_for("evaluate", given["device"])}
    opened, weights = open_deltas(given["deltas"])
    model = open_to_paint(base)
    settings, candidates, prompts = find_candidates(model, opened, weights, given, quiet=quiet)
    questions = find_questions(model, given, prompts, quiet=quiet)
    if given["dry_run"]:
        echo(f"would measure {len(prompts)} prompts by {len(questions.references)} pictures of the subject")
        return None
    results: list[Scores] = []
    facts: list[dict[str, Any]] = []
    for candidate in candidates:
        results.append(score(candidate.label, candidate.images, candidate.prompts, questions))
        facts.append(results[-1].facts(candidate.about))
    return {**settings, **_about(model, questions), "results": facts}, results


def _about(base: Base, questions: MetricSuite) -> dict[str, Any]:
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
        echo(line)
    echo(f"wrote {output}")
