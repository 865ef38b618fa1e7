"""Writing: the old file or the new one, never a part, nothing left over."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.commands import python
from support.files import contents, listing

from svdiff_delta._util.atomic import MARKER, check_output, replace_file, replace_folder
from svdiff_delta.errors import OutputError


class StopError(Exception):
    """What goes wrong in the middle of writing."""


def fail_to_write(path: Path, *, overwrite: bool) -> None:
    with replace_file(path, overwrite=overwrite) as stream:
        stream.write(b"half")
        raise StopError


def fail_to_fill(path: Path, *, overwrite: bool) -> None:
    with replace_folder(path, overwrite=overwrite) as folder:
        (folder / "a").write_bytes(b"half")
        raise StopError


def write_while_another_does(path: Path) -> None:
    with replace_file(path, overwrite=False):
        path.write_bytes(b"somebody else's")


def fill_while_another_does(path: Path) -> None:
    with replace_folder(path, overwrite=False):
        path.mkdir()
        (path / "a").write_bytes(b"somebody else's")


def write_folder(path: Path, name: str = "old", *, overwrite: bool = False) -> None:
    with replace_folder(path, overwrite=overwrite) as folder:
        (folder / name).write_bytes(name.encode())


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_a_file_gets_its_content(tmp_path: Path) -> None:
    with replace_file(tmp_path / "out", overwrite=False) as stream:
        stream.write(b"new")
    assert contents(tmp_path) == {"out": b"new"}


def test_there_is_no_file_before_all_is_written(tmp_path: Path) -> None:
    with replace_file(tmp_path / "out", overwrite=False) as stream:
        stream.write(b"new")
        assert not (tmp_path / "out").exists()


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        fail_to_write(tmp_path / "out", overwrite=False)
    assert listing(tmp_path) == []


def test_an_error_while_overwriting_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(StopError):
        fail_to_write(tmp_path / "out", overwrite=True)
    assert contents(tmp_path) == {"out": b"old"}


def test_a_process_killed_while_overwriting_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    outcome = python(
        "import os, signal; from pathlib import Path; from svdiff_delta._util.atomic import replace_file\n"
        "with replace_file(Path('out'), overwrite=True) as stream:\n"
        "    stream.write(bytes(100_000)); stream.flush(); os.kill(os.getpid(), signal.SIGKILL)",
        folder=tmp_path,
    )
    assert outcome.code == -9
    assert (tmp_path / "out").read_bytes() == b"old"


def test_a_file_that_exists_is_not_overwritten_unless_told_so(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with (
        pytest.raises(OutputError, match=r"out: exists already: .*`overwrite=True`"),
        replace_file(tmp_path / "out", overwrite=False),
    ):
        pass
    assert (tmp_path / "out").read_bytes() == b"old"


def test_a_file_is_overwritten_when_told_so(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with replace_file(tmp_path / "out", overwrite=True) as stream:
        stream.write(b"new")
    assert (tmp_path / "out").read_bytes() == b"new"


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists already"):
        write_while_another_does(tmp_path / "out")
    assert contents(tmp_path) == {"out": b"somebody else's"}


def test_where_there_are_no_hard_links_a_file_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with replace_file(tmp_path / "out", overwrite=False) as stream:
        stream.write(b"new")
    assert (tmp_path / "out").read_bytes() == b"new"
    assert listing(tmp_path) == ["out"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_has_the_rights_that_any_new_file_has(tmp_path: Path, mask: int) -> None:
    with umask(mask), replace_file(tmp_path / "out", overwrite=False) as stream:
        stream.write(b"new")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o666 & ~mask


def test_a_folder_has_the_rights_that_any_new_folder_has(tmp_path: Path) -> None:
    with umask(0o022), replace_folder(tmp_path / "out", overwrite=False):
        pass
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


def test_a_folder_in_the_way_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="could not be written"), replace_file(tmp_path / "out", overwrite=True):
        pass
    assert listing(tmp_path) == ["out"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"the folder {tmp_path}/there does not exist: create it first"):
        check_output(tmp_path / "there" / "out", overwrite=False)


def test_a_file_where_a_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"")
    with pytest.raises(OutputError, match="there does not exist"):
        check_output(tmp_path / "there" / "out", overwrite=False)


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="could not be written \\(File name too long\\)"):
        check_output(tmp_path / ("x" * 300), overwrite=False)


def test_a_relative_path_is_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with replace_file(Path("out"), overwrite=False) as stream:
        stream.write(b"new")
    assert (tmp_path / "out").read_bytes() == b"new"


def test_a_folder_gets_its_content(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "out", overwrite=False) as folder:
        (folder / "a").write_bytes(b"new")
        assert not (tmp_path / "out").exists()
    assert listing(tmp_path) == ["out"]
    assert listing(tmp_path / "out") == [MARKER, "a"]
    assert (tmp_path / "out" / "a").read_bytes() == b"new"


def test_an_error_while_filling_a_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        fail_to_fill(tmp_path / "out", overwrite=False)
    assert listing(tmp_path) == []


def test_an_error_while_replacing_a_folder_leaves_the_old_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(StopError):
        fail_to_fill(tmp_path / "out", overwrite=True)
    assert contents(tmp_path) == before
    assert listing(tmp_path) == ["out"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_folder(tmp_path / "out")
    write_folder(tmp_path / "out", "new", overwrite=True)
    assert listing(tmp_path) == ["out"]
    assert listing(tmp_path / "out") == [MARKER, "new"]


def test_a_file_gives_way_to_a_folder_when_told_so(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with replace_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_bytes(b"")
    assert listing(tmp_path / "out") == [MARKER, "new"]


def test_a_folder_that_exists_is_not_replaced_unless_told_so(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"), replace_folder(tmp_path / "out", overwrite=False):
        pass


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists already"):
        fill_while_another_does(tmp_path / "out")
    assert listing(tmp_path) == ["out"]
    assert contents(tmp_path / "out") == {"a": b"somebody else's"}
