"""Scripts in processes of their own, forked from one that has imported what they need.

Importing torch and diffusers takes a processor seven seconds, more than most scripts do after it. The server that
`multiprocessing` forks from computes nothing and has one thread, so what comes of it is like a process that has just
imported all that. What is about the start of a process, its hash seed or its memory, starts one:
`support.commands.python`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import types
import warnings
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Final
from unittest import mock

from support.commands import Outcome

LIBRARIES: Final = (
    *("torch", "torch.distributed.fsdp", "accelerate", "diffusers.schedulers", "peft"),
    *("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "diffusers.optimization"),
    *("transformers.models.clip.modeling_clip", "transformers.models.clip.tokenization_clip"),
)
OURS: Final = (
    *("svdiff_delta.baking.bake", "svdiff_delta.conversion", "svdiff_delta.runtime", "svdiff_cli.main"),
    *("svdiff_train.batch", "svdiff_train.sampling.gallery", "svdiff_train.training.loop"),
    *("svdiff_train.training.class_images", "svdiff_train.training.validation"),
)
TESTS: Final = Path(__file__).parent.parent
PRINTS: Final = ("out", "err")


def import_all() -> None:
    """Import what scripts and commands need; nothing is computed, so that no thread is lost in a fork."""
    for name in (*LIBRARIES, *OURS):
        import_module(name)


class Running:
    """A process that runs a script, from when it is forked.

    Args:
        code: what it does.
        request: the other arguments of `_run`.
    """

    def __init__(self, code: str, **request: Any) -> None:
        self._folder = tempfile.TemporaryDirectory()
        for name in PRINTS:
            Path(self._folder.name, name).touch()  # it may be killed before it has opened them
        self._process = _context().Process(target=_run, args=(code, Path(self._folder.name)), kwargs=request)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def ended(self) -> bool:
        """Tell whether it has ended."""
        return not self._process.is_alive()

    def wait(self, seconds: float = 600) -> Outcome:
        """Return what it left behind, once it has ended; kill it if that takes longer."""
        self._process.join(seconds)
        self._process.kill()
        self._process.join()
        with self._folder as folder:
            assert self._process.exitcode is not None
            return Outcome(self._process.exitcode, *(Path(folder, name).read_text("utf-8") for name in PRINTS))


def start(
    code: str, *arguments: str | Path, folder: Path | None = None, warn: bool = False, **environment: str
) -> Running:
    """Start Python code in a forked process.

    Args:
        code: what it does.
        arguments: its arguments.
        folder: where it works.
        warn: let warnings pass, which are errors otherwise.
        environment: variables to set.
    """
    return Running(
        code,
        arguments=[str(argument) for argument in arguments],
        folder=folder or Path.cwd(),
        environment=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        warn=warn,
    )


def forked(code: str, *arguments: str | Path, **how: Any) -> Outcome:
    """Run Python code in a forked process; return what it left behind."""
    return start(code, *arguments, **how).wait()


def together(count: int, code: str, *arguments: str | Path, **how: Any) -> list[Outcome]:
    """Run Python code in processes that know each other, as `torchrun` tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world: dict[str, Any] = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    ranks: list[dict[str, Any]] = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    running = [start(code, *arguments, **how, **world, **rank) for rank in ranks]
    return [each.wait() for each in running]


@cache
def _context() -> ForkServerContext:
    """Return what forks, with its server started: once for each process, with which it ends."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.imported"])
    # The server is given no search path before Python 3.12.
    paths = [str(TESTS), str(TESTS.parent), str(TESTS.parent / "cli"), os.environ.get("PYTHONPATH", "")]
    surroundings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with mock.patch.dict(os.environ, surroundings):
        first = context.Process()
        first.start()
    first.join()
    return context


def _run(
    code: str, prints: Path, *, arguments: list[str], folder: Path, environment: Mapping[str, str], warn: bool
) -> None:
    """Do in this process what `python -c` would."""
    os.setsid()
    for stream, name in enumerate(PRINTS, 1):
        descriptor = os.open(prints / name, os.O_WRONLY)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    warnings.resetwarnings()
    warnings.simplefilter("ignore" if warn else "error")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    exec(compile(code, "<string>", "exec"), vars(main))
