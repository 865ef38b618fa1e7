"""Replacing: only what this program wrote, at one moment, and what killed processes left is cleared by the next one."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import python
from support.files import contents, listing

from svdiff_delta._util import atomic, system
from svdiff_delta._util.atomic import MARKER, WEEK, WORKING, check_output, replace_file, replace_folder
from svdiff_delta.errors import OutputError

IMPORTS = "import os, signal, sys; from pathlib import Path; from svdiff_delta._util import atomic, system\n"


def write(path: Path, name: str = "a", *, overwrite: bool = False) -> None:
    with replace_folder(path, overwrite=overwrite) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / name).write_bytes(name.encode())


def refused(path: Path, said: str) -> None:
    """Neither a check nor a writer takes this output; nothing is changed."""
    before = contents(path.parent), listing(path.parent)
    with pytest.raises(OutputError, match=said):
        check_output(path, overwrite=True, folder=True)
    with pytest.raises(OutputError, match=said):
        write(path, "new", overwrite=True)
    assert (contents(path.parent), listing(path.parent)) == before


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that can neither exchange folders nor rename without replacing."""
    monkeypatch.setattr(system, "_call", lambda name: None)


def test_the_marker_names_the_files_of_a_folder_and_is_the_same_every_time(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert json.loads((tmp_path / "a" / MARKER).read_bytes())["files"] == ["sub/a", MARKER]
    assert (tmp_path / "a" / MARKER).read_bytes() == (tmp_path / "b" / MARKER).read_bytes()


def test_a_folder_that_something_else_wrote_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_bytes(b"keep")
    refused(tmp_path / "out", f"no folder that this program wrote .*{MARKER}.*: choose another output, or remove the")


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", overwrite=True)
    assert listing(tmp_path / "out") == [MARKER, "sub"]


@pytest.mark.parametrize("name", ["notes.txt", "sub/notes.txt", "new/notes.txt", "sub/.hidden"])
def test_what_was_added_to_a_folder_keeps_it_from_being_replaced(tmp_path: Path, name: str) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_bytes(b"mine")
    refused(tmp_path / "out", f"holds what this program did not write there: {name}: move that elsewhere")


def test_a_link_that_was_added_is_seen_too(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    refused(tmp_path / "out", "did not write there: link:")


def test_what_systems_put_into_folders_stands_in_no_way(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "sub" / ".DS_Store").write_bytes(b"")
    write(tmp_path / "out", "b", overwrite=True)
    assert contents(tmp_path / "out").keys() == {MARKER, "sub/b"}


def test_a_folder_of_which_files_were_removed_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "sub" / "a").unlink()
    write(tmp_path / "out", "b", overwrite=True)
    assert contents(tmp_path / "out").keys() == {MARKER, "sub/b"}


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', "[" * 100_000, '{"files": [["a"]]}'])
def test_a_broken_marker_is_none(tmp_path: Path, text: str) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / MARKER).write_text(text)
    refused(tmp_path / "out", "no folder that this program wrote")


def test_a_link_to_a_marker_is_none(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / MARKER).rename(tmp_path / "else")
    (tmp_path / "out" / MARKER).symlink_to(tmp_path / "else")
    refused(tmp_path / "out", "no folder that this program wrote")


def test_what_is_added_while_the_new_folder_is_filled_is_not_lost(tmp_path: Path) -> None:
    write(tmp_path / "out")

    def fill() -> None:
        with replace_folder(tmp_path / "out", overwrite=True):
            (tmp_path / "out" / "notes").write_bytes(b"mine")

    with pytest.raises(OutputError, match="did not write there: notes"):
        fill()
    assert listing(tmp_path) == ["out"]
    assert contents(tmp_path / "out").keys() == {MARKER, "notes", "sub/a"}


def test_the_working_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out" / "sub")
    refused(tmp_path / "out", "the working folder is in it")
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(OutputError, match="the working folder is in it"):
        check_output(Path(), overwrite=True)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_pipe_is_refused_as_an_output(tmp_path: Path, overwrite: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OutputError, match=f"{name}: is a device, pipe or socket"):
            check_output(tmp_path / name, overwrite=overwrite)
    with pytest.raises(OutputError), replace_file(tmp_path / "pipe", overwrite=overwrite):
        pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_socket_and_a_device_are_refused_as_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
        for path in (Path("socket"), Path(os.devnull)):
            with pytest.raises(OutputError, match="is a device, pipe or socket"):
                write(path, overwrite=True)
            with pytest.raises(OutputError), replace_file(path, overwrite=True):
                pass


def test_a_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        check_output(tmp_path / "a\0b", overwrite=True)


@pytest.mark.parametrize("length", [201, 255])
def test_a_name_as_long_as_the_system_takes_is_written(tmp_path: Path, length: int) -> None:
    write(tmp_path / ("x" * length))
    write(tmp_path / ("x" * length), "b", overwrite=True)
    with replace_file(tmp_path / ("y" * length), overwrite=False) as stream:
        stream.write(b"new")
    assert listing(tmp_path) == ["x" * length, "y" * length]


def test_without_an_exchange_a_folder_is_replaced_too(tmp_path: Path, no_exchange: None) -> None:
    write(tmp_path / "out")
    write(tmp_path / "out", "b", overwrite=True)
    assert listing(tmp_path) == ["out"]
    assert contents(tmp_path / "out").keys() == {MARKER, "sub/b"}


def test_without_an_exchange_a_folder_that_appears_is_not_replaced(tmp_path: Path, no_exchange: None) -> None:
    def fill() -> None:
        with replace_folder(tmp_path / "out", overwrite=False):
            (tmp_path / "out").mkdir()

    with pytest.raises(OutputError, match="exists already"):
        fill()


def test_a_second_rename_that_fails_puts_the_old_folder_back(
    tmp_path: Path, no_exchange: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out")
    before = contents(tmp_path)
    rename = atomic.rename_new

    def fail(source: Path, target: Path) -> None:
        if source.name == "new":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(atomic, "rename_new", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        write(tmp_path / "out", "b", overwrite=True)
    assert contents(tmp_path) == before
    assert listing(tmp_path) == ["out"]


BETWEEN = f"""{IMPORTS}
system._call = lambda name: None
atomic.rename_new = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
with atomic.replace_folder(Path("out"), overwrite=True) as folder:
    (folder / "new").write_bytes(b"new")
"""


def test_a_kill_between_two_renames_is_mended_by_the_next_run(tmp_path: Path) -> None:
    write(tmp_path / "out")
    before = contents(tmp_path / "out")
    assert python(BETWEEN, folder=tmp_path).code == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="exists already"):
        write(tmp_path / "out")  # without being told to overwrite it
    assert contents(tmp_path / "out") == before
    assert listing(tmp_path) == ["out"]


KILLED = f"""{IMPORTS}
with atomic.replace_file(Path("file"), overwrite=True) as stream:
    stream.write(bytes(100)); stream.flush()
    with atomic.replace_folder(Path("out"), overwrite=True) as folder:
        (folder / "new").write_bytes(b"new")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path: Path) -> None:
    write(tmp_path / "out")
    assert python(KILLED, folder=tmp_path).code == -signal.SIGKILL
    assert len([name for name in listing(tmp_path) if name.endswith(WORKING)]) == 2
    with replace_file(tmp_path / "another", overwrite=False):
        pass
    assert listing(tmp_path) == ["another", "out"]
    assert contents(tmp_path / "out").keys() == {MARKER, "sub/a"}


ALIVE = f"""{IMPORTS}
with atomic.replace_folder(Path("out"), overwrite=False) as folder:
    (folder / "a").write_bytes(b"whole")
    print("begun", flush=True)
    sys.stdin.readline()
"""


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ALIVE], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "begun\n"
        write(tmp_path / "mine")
        other.communicate("\n", timeout=60)
    assert listing(tmp_path) == ["mine", "out"]
    assert contents(tmp_path / "out").keys() == {MARKER, "a"}


def test_where_there_are_no_locks_leftovers_go_after_a_week(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    for name, age in (("old", WEEK + 60), ("young", 60.0)):
        (tmp_path / f".{name}.0{WORKING}").mkdir()
        when = (tmp_path / f".{name}.0{WORKING}").stat().st_mtime - age
        os.utime(tmp_path / f".{name}.0{WORKING}", (when, when))
    write(tmp_path / "out")
    assert listing(tmp_path) == [f".young.0{WORKING}", "out"]


def test_nothing_else_is_ever_swept(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_bytes(b"")
    (tmp_path / f".link{WORKING}").symlink_to("mine")
    os.mkfifo(tmp_path / f".pipe{WORKING}")
    for name in (f"visible{WORKING}", f".out{WORKING}.txt", ".out.1234"):
        (tmp_path / name).write_bytes(b"")
    before = listing(tmp_path)
    write(tmp_path / "out")
    assert listing(tmp_path) == sorted([*before, "out"])
    assert listing(tmp_path / "mine") == ["a"]


def test_files_folders_and_their_names_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "out")
    names = [Path(path).name for path in synced]
    assert {"a", "sub", MARKER} <= set(names)
    assert names[-2:] == ["new", tmp_path.name]
    synced.clear()
    with replace_file(tmp_path / "file", overwrite=True):
        pass
    assert [Path(path).name for path in synced][1:] == [tmp_path.name]


def test_a_disk_that_fails_when_it_is_synced_is_said_and_the_old_folder_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out")
    before = contents(tmp_path)

    def fsync(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="Input/output error"):
        write(tmp_path / "out", "b", overwrite=True)
    assert contents(tmp_path) == before
