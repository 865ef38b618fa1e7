"""Scripts in processes of their own, forked from one that has imported what they need.

Importing torch and diffusers takes a processor seven seconds, more than most scripts do after it. The server computes
nothing and has one thread, so what is forked from it is like a process that has just imported all that. What is about
the start of a process, its hash seed or its memory, starts one: `support.commands.python`.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import types
import warnings
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

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


def import_all() -> None:
    """Import what scripts and commands need; nothing is computed, so that no thread is lost in a fork."""
    for name in (*LIBRARIES, *OURS):
        import_module(name)


class Running:
    """A process that runs a script.

    Args:
        asked: the connection to what waits for it.
        folder: where what it prints is kept.
    """

    def __init__(self, asked: socket.socket, folder: tempfile.TemporaryDirectory[str]) -> None:
        self._lines, self._folder = asked.makefile("r"), folder
        self.pid = int(self._lines.readline())

    def ended(self) -> bool:
        """Tell whether it has ended."""
        return bool(select.select([self._lines], [], [], 0)[0])

    def wait(self, seconds: float = 600) -> Outcome:
        """Return what it left behind, once it has ended; kill it if that takes longer."""
        if not select.select([self._lines], [], [], seconds)[0]:
            os.kill(self.pid, signal.SIGKILL)
        code = int(self._lines.readline())
        with self._lines, self._folder as folder:
            return Outcome(code, *(Path(folder, name).read_text("utf-8") for name in ("out", "err")))


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
    prints = tempfile.TemporaryDirectory()
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(_server())
        request = {
            "code": code,
            "arguments": [str(argument) for argument in arguments],
            "folder": str(folder or Path.cwd()),
            "prints": prints.name,
            "environment": os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            "warn": warn,
        }
        asked.sendall(json.dumps(request).encode() + b"\n")
        return Running(asked, prints)


def forked(code: str, *arguments: str | Path, **how: Any) -> Outcome:
    """Run Python code in a forked process; return what it left behind."""
    return start(code, *arguments, **how).wait()


def together(count: int, code: str, *arguments: str | Path, **how: Any) -> list[Outcome]:
    """Run Python code in processes that know each other, as `torchrun` tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count))
    running = [start(code, *arguments, **how, **{**world, "MASTER_PORT": str(port)}, **rank) for rank in ranks]
    return [each.wait() for each in running]


@cache
def _server() -> str:
    """Start the server, once for each process; return where it listens. It ends with this process."""
    folder = tempfile.TemporaryDirectory(prefix="forks-")
    paths = [TESTS, TESTS.parent, TESTS.parent / "cli", *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", "support.forked", f"{folder.name}/socket"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"

    def end() -> None:
        process.communicate()
        folder.cleanup()

    atexit.register(end)
    return f"{folder.name}/socket"


def _serve(path: str) -> None:
    """Fork a process for each connection, until what started this ends."""
    import_all()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            ready, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            asked, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _answer(asked)
            asked.close()
            while True:
                try:
                    if os.waitpid(-1, os.WNOHANG) == (0, 0):
                        break
                except ChildProcessError:
                    break


def _answer(asked: socket.socket) -> None:
    """Run a script in one more process, and say which that is and how it ended."""
    with asked, asked.makefile("r") as lines:
        request = json.loads(lines.readline())
        child = os.fork()
        if child:
            asked.sendall(f"{child}\n".encode())
            _, status = os.waitpid(child, 0)
            asked.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
    _run(request)


def _run(request: Mapping[str, Any]) -> None:
    """Do in this process what `python -c` would."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for stream, descriptor in enumerate(
        (nothing, *(os.open(f"{request['prints']}/{name}", os.O_WRONLY | os.O_CREAT, 0o600) for name in ("out", "err")))
    ):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["-c", *request["arguments"]]
    warnings.resetwarnings()
    if request["warn"]:
        warnings.simplefilter("ignore")
    else:
        warnings.simplefilter("error")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    try:
        exec(compile(request["code"], "<string>", "exec"), vars(main))
    except SystemExit:
        raise
    except BaseException:  # noqa: BLE001 - as Python does at its end
        traceback.print_exc()
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
