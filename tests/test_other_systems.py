"""Systems without POSIX: nothing that only Linux or macOS has is needed; hidden here, since the tests run on one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import SVDIFF, python
from support.deltas import random_delta, saved
from support.files import listing

HIDE = """
import os, signal, sys
for name in ("fcntl", "resource", "termios", "pwd", "grp", "posix_ipc"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGCHLD", "SIGQUIT", "SIGXFSZ",
             "SIGXCPU", "SIGWINCH", "SIGTSTP", "setitimer", "alarm", "pthread_kill", "pthread_sigmask", "sigwait"):
    if hasattr(signal, name):
        delattr(signal, name)
for name in ("O_DIRECTORY", "O_NOFOLLOW", "fchmod", "fchown", "chown", "getuid", "geteuid", "fork", "forkpty",
             "sched_getaffinity", "statvfs", "pread", "killpg", "getpgid", "sysconf", "mkfifo"):
    if hasattr(os, name):
        delattr(os, name)
import ctypes
class NoLibrary:
    def __init__(self, *_, **__):
        raise TypeError("no C library goes by that name")
ctypes.CDLL = NoLibrary
"""

OTHERS = "import filelock, platformdirs.unix, torch\n"
"""What chooses its own way by the system when it is imported: hiding things afterwards leaves it as it is here."""

LIGHT = {
    "add": ["add", "a", "b:0.5", "-o", "out"],
    "interpolate": ["interpolate", "a", "b", "--alpha", "0.5", "-o", "out"],
    "scale": ["scale", "a", "--factor", "0.5", "-o", "out"],
    "slice": ["slice", "a", "unet", "-o", "out"],
    "truncate": ["truncate", "a", "--rank", "1", "-o", "out"],
    "quantize": ["quantize", "a", "--dtype", "f16", "-o", "out"],
    "merge": ["merge", "a", "b", "--method", "ties", "--density", "0.5", "-o", "out"],
    "over another": ["add", "a", "b", "-o", "b", "--force"],
    "info": ["info", "a"],
    "verify": ["verify", "a"],
    "lineage": ["lineage", "a"],
    "diff": ["diff", "a", "b"],
    "correlate": ["correlate", "a", "b"],
    "interfere": ["interfere", "a", "b"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("systems")
    saved(random_delta(1), folder / "a")
    saved(random_delta(2), folder / "b")
    return folder


def test_the_light_commands_need_nothing_of_posix(folder: Path) -> None:
    """All in one process, as starting one takes longer than they do."""
    code = (
        f"{HIDE}import json\nfrom svdiff_cli.main import main\nfound = {{}}\n"
        "for name, arguments in json.loads(sys.argv[1]).items():\n"
        "    try:\n        main(arguments, prog_name='svdiff')\n"
        "    except SystemExit as stop:\n        found[name] = stop.code\n"
        "    os.path.exists('out') and os.remove('out')\n"
        "print(json.dumps(found), file=sys.stderr)"
    )
    done = python(code, json.dumps(LIGHT), folder=folder)
    assert done.code == 0, done.err
    assert json.loads(done.err.splitlines()[-1]) == dict.fromkeys(LIGHT, 0)
    assert listing(folder) == ["a", "b"]


def test_a_folder_is_written_and_replaced_without_locks_and_exchange(tmp_path: Path) -> None:
    code = (
        f"{HIDE}from pathlib import Path\nfrom svdiff_delta._util.atomic import replace_folder\n"
        "for name in ('one', 'two'):\n"
        "    with replace_folder(Path('out'), overwrite=True) as folder:\n"
        "        (folder / name).write_bytes(b'')\n"
    )
    done = python(code, folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert listing(tmp_path) == ["out"]
    assert listing(tmp_path / "out") == [".svdiff-output", "two"]


@pytest.mark.parametrize(
    "module", ["svdiff_train.training.callbacks", "svdiff_train.training.signals", "svdiff_train.batch.process_pool"]
)
def test_modules_that_measure_and_listen_are_imported_without_posix(module: str, tmp_path: Path) -> None:
    code = f"{OTHERS}{HIDE}import importlib; importlib.import_module({module!r})"
    done = python(code, folder=tmp_path)
    assert (done.code, done.err) == (0, "")


def test_what_no_system_lacks_is_enough_to_know_the_most_memory_or_to_say_nothing(tmp_path: Path) -> None:
    code = (
        f"{OTHERS}{HIDE}from pathlib import Path\nexists = Path.exists\n"
        "Path.exists = lambda self: False if str(self).startswith('/proc') else exists(self)\n"
        "from svdiff_train.training.callbacks import peak_memory; print(peak_memory())"
    )
    assert python(code, folder=tmp_path).out == "0\n"


def test_the_end_of_a_command_is_listened_to_where_there_is_no_sighup(folder: Path) -> None:
    done = python(f"{HIDE}{SVDIFF}", "scale", "a", "--factor", "2", "-o", "out", "--dry-run", folder=folder)
    assert (done.code, done.err) == (0, "")
