"""The `svdiff` command: its groups, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import sys
from typing import Any

import click

from svdiff_delta.errors import DeltaError

from . import bake, basis, calculate, compare, convert, demo, generate, hub, look, merge, plot, train

INTERRUPTED = 130


class ErrorHandling(click.Group):
    """A group that prints a DeltaError as one line and exits with 1, and exits with 130 after Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except DeltaError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()
            ctx.exit(1)


@click.group(cls=ErrorHandling, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="svdiff-delta", prog_name="svdiff")
def main() -> None:
    """Spectral shifts (SVDiff) as files: look at them, calculate with them, bake, train and see them.

    A DELTA is a delta file, or owner/repo[@revision][/file] on the Hub. A BASE is a diffusers pipeline's folder, a
    model's folder, a safetensors file, owner/repo[@revision] on the Hub, or the word `tiny`, the embedded base;
    BASE:fp16 opens a variant's files. What exists as a path is one; hf:// in front forces the Hub.
    """


for command in (
    look.info,
    look.verify,
    look.lineage,
    calculate.add,
    calculate.interpolate,
    calculate.scale,
    calculate.slice_,
    calculate.truncate,
    calculate.quantize,
    merge.merge,
    compare.diff,
    compare.correlate,
    compare.interfere,
    plot.plot,
    basis.basis,
    bake.bake,
    convert.convert,
    convert.rebase,
    hub.push,
    hub.pull,
    train.train,
    generate.generate,
    demo.demo,
):
    main.add_command(command)
