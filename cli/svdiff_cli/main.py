"""The `svdiff` command: its groups, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

import click

from svdiff_delta._util.interrupted import interruptions_kept
from svdiff_delta._util.ticker import Ticker
from svdiff_delta.errors import DeltaError, refusal

from .devices import told
from .printing import abandon, echo, prepare_streams, telling_warnings
from .progress import first_process
from .signals import Ended, raised
from .threads import wait_quietly
from .wording import spelled

INTERRUPTED = 130

COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "inspect": ("info", "verify", "lineage"),
    "calculate": ("add", "interpolate", "scale", "slice", "truncate", "quantize"),
    "merge": ("merge",),
    "compare": ("diff", "correlate", "interfere"),
    "plot": ("plot",),
    "basis": ("basis",),
    "bake": ("bake",),
    "convert": ("convert", "rebase"),
    "hub": ("push", "pull"),
    "what": ("what", "find"),
    "train": ("train",),
    "generate": ("generate",),
    "evaluate": ("evaluate",),
    "morph": ("morph",),
    "edit": ("edit",),
    "demo": ("demo",),
    "serve": ("serve",),
    "board": ("board",),
}
"""The commands by the module they are in, which is imported when one of them is asked for."""

PLACES: Final = {name: module for module, names in COMMANDS.items() for name in names}


class ErrorHandling(click.Group):
    """A group that prints a DeltaError as one line and exits with 1, and as shells expect after a signal."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line; printing help may be refused too."""
        prepare_streams()
        try:
            return super().main(*args, **extra)
        except OSError as error:
            tell_refusal(error)
            sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of all commands."""
        return sorted(PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, imported now; None if there is none of this name."""
        if cmd_name not in PLACES:
            return None
        if isinstance(ctx.obj, Ticker):
            ctx.obj.stage(cmd_name)
        module = import_module(f"svdiff_cli.{PLACES[cmd_name]}")
        found = (value for value in vars(module).values() if isinstance(value, click.Command))
        return next((command for command in found if command.name == cmd_name), None)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        wait_quietly()
        ctx.obj = Ticker("svdiff", quiet=not first_process())
        try:
            with telling_warnings(), raised(), interruptions_kept(), ctx.obj:
                return super().invoke(ctx)
        except DeltaError as error:
            echo(f"error: {spelled(told(error, ctx.invoked_subcommand) or str(error))}", err=True)
            ctx.exit(1)
        except (MemoryError, RuntimeError, TypeError) as error:
            line = told(error, ctx.invoked_subcommand)
            if line is None:
                raise
            echo(f"error: {spelled(line)}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt as stop:
            echo(f"interrupted{meanwhile(stop)}", err=True)
            ctx.exit(INTERRUPTED)
        except Ended as end:
            with suppress(OSError):  # the terminal may be what is gone
                echo(f"ended by {end.name}{meanwhile(end)}", err=True)
            raise
        except BrokenPipeError:
            abandon(sys.stdout)
            sys.stderr.close()
            ctx.exit(1)
        except (OSError, UnicodeEncodeError) as error:
            tell_refusal(error)
            ctx.exit(1)


def meanwhile(stop: BaseException) -> str:
    """Return what went wrong in the course of an interruption, as the end of its line; nothing, as a rule."""
    return f"; on the way out: {spelled(str(stop.__cause__))}" if stop.__cause__ else ""


def tell_refusal(error: OSError | UnicodeEncodeError) -> None:
    """Print the line for what the system refused and no function expected: such as to take more output."""
    if isinstance(error, OSError) and error.errno is None:  # of a library, in words
        line = " ".join(str(error).split())
    elif isinstance(error, OSError) and error.filename is not None:
        line = refusal("", error, "read or written")
    else:
        abandon(sys.stdout)
        line = refusal("the output", error, "written")
    with suppress(OSError):
        echo(f"error: {line}", err=True)


@click.group(cls=ErrorHandling, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="svdiff-delta", prog_name="svdiff")
def main() -> None:
    """Spectral shifts (SVDiff) as files: look at them, calculate with them, bake, train and see them.

    A DELTA is a delta file, or owner/repo[@revision][/file] on the Hub. A BASE is a diffusers pipeline's folder, a
    model's folder, a safetensors file, owner/repo[@revision] on the Hub, or the word `tiny`, the embedded base;
    BASE:fp16 opens a variant's files. What exists as a path is one; hf:// in front forces the Hub.
    """
