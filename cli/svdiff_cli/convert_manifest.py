"""The other form of `svdiff convert`: many files, as a manifest says."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from svdiff_delta._text.printable import printable

from . import options
from .printing import echo, echo_json
from .progress import Bar
from .references import needs
from .wording import spelled


class TwoForms(click.Command):
    """A command that is another one, with options of its own, where `--manifest` is among its words."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        """Parse the words by the form that they are in."""
        if any(word.partition("=")[0] == "--manifest" for word in args):
            return convert_many.make_context(info_name, args, *rest, **extra)
        return super().make_context(info_name, args, *rest, **extra)


@click.command("convert", epilog="Without --manifest this is another command: see svdiff convert --help.")
@click.option(
    "--manifest",
    required=True,
    type=click.Path(path_type=Path),
    help="A .jsonl file with one row per line, or a .yaml file with a list of them in `files`.",
)
@click.option(
    "--jobs", type=click.IntRange(1), help="How many processes [default: 1; with --ray, all CPUs of the cluster]."
)
@click.option("--ray", is_flag=True, help="On Ray Data: on the cluster RAY_ADDRESS names, else on one of its own.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="Where to note what became of each row, and to go on from [default: MANIFEST.report.jsonl].",
)
@click.option("--force", is_flag=True, help="Do every row anew, and overwrite its output.")
@options.dry_run
@options.as_json
@options.quiet
def convert_many(
    manifest: Path,
    jobs: int | None,
    ray: bool,
    report: Path | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert many files, as a manifest says.

    A row has input, output and base, and, where they are needed, variant (of the base's files, such as fp16), to,
    from, dtype, title, rank, energy, max_rank, min_energy, allow_unmatched, component, embeddings, calibrate,
    calibrate_steps, device, base_config, dequantize, direct and made_on, which mean what the options of svdiff
    convert do. From LoRA to LoRA a row needs no base where the keys tell the family. Paths are relative to the
    manifest. In YAML the keys beside `files` count for every row that does not give them itself.

    All rows are checked before the first one starts. A file that fails does not stop the rest. A second run passes over
    what is done, and goes on after a kill. Beside the report lies the same as a table, MANIFEST.report.txt.

    \b
        svdiff convert --manifest all.yaml --jobs 4
        svdiff convert --manifest all.jsonl --ray
    """
    needs("torch", "torch")
    if ray:
        needs("ray", "ray")
    from svdiff_train.batch import run_manifest, run_manifest_on_ray

    with Bar("converting", quiet=quiet or as_json) as bar:
        given: dict[str, Any] = {
            "overwrite": force,
            "dry_run": dry_run,
            "watch": lambda result, done, total: bar(done, total, printable(str(result.row["output"]))),
        }
        if ray:
            with redirect_stdout(sys.stderr):  # where Ray says which processes have died
                found = run_manifest_on_ray(manifest, report, jobs=jobs, **given)
        else:
            found = run_manifest(manifest, report, jobs=jobs or 1, **given)
    from svdiff_train.batch.table import COUNTED, complaints, render

    lines = [result.record() for result in found]
    failed = sum(result.status == "failed" for result in found)
    if as_json:
        counts = Counter(result.status for result in found)
        echo_json({**{name: counts[name] for name in COUNTED}, "rows": lines})
    elif dry_run and not quiet:
        echo(f"{manifest}: all rows can start")
    elif not quiet:
        echo(render(lines))
    for line in complaints(lines):
        if line.startswith("error: ") or not (quiet or as_json):
            echo(spelled(line), err=True)
    if failed:
        click.get_current_context().exit(1)
