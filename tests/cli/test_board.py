"""The command board: it listens on this machine alone, takes files and folders, and opens a browser if it is to."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
from support.commands import svdiff
from support.served import fill, until

from svdiff_serve.store.sources import FileSource, FolderSource


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A command that loads no model and ends at once; what it was asked to serve, and the addresses it opened."""
    fill(tmp_path / "deltas")
    monkeypatch.chdir(tmp_path)
    found = SimpleNamespace(sources=[], opened=[], address=None, browser=True)

    def state(command: Any, model: object, name: str, sources: list[Any], *rest: object) -> Any:
        found.command, found.sources = command, sources
        return SimpleNamespace(service=MagicMock())

    def serve(state: object, listening: Any, seconds: float) -> None:
        found.address = listening.getsockname()
        if not found.quiet:
            until(lambda: found.opened)

    def browse(address: str) -> bool:
        found.opened.append(address)
        return bool(found.browser)

    found.quiet = False
    monkeypatch.setattr("svdiff_cli.server_command.ServerCommand._state", state)
    monkeypatch.setattr("svdiff_serve.http.server.serve", serve)
    monkeypatch.setattr("webbrowser.open", browse)
    return found


def test_it_listens_on_loopback_at_a_free_port_and_opens_the_browser_there(served: SimpleNamespace) -> None:
    found = svdiff("board", "tiny", "deltas", "deltas/dog.safetensors")
    assert found.code == 0, found.err
    host, port = served.address
    assert (host, port > 0) == ("127.0.0.1", True)
    assert served.opened == [f"http://127.0.0.1:{port}"]
    assert found.err.startswith(f"board on http://127.0.0.1:{port}\n")
    assert [type(source) for source in served.sources] == [FolderSource, FileSource]
    assert (served.command.own, served.command.board, served.command.keys) == (True, True, None)


def test_it_paints_as_many_steps_as_were_asked_for(served: SimpleNamespace) -> None:
    assert svdiff("board", "tiny", "--steps", "150").code == 0
    assert served.command.limits().steps == 150
    assert svdiff("board", "tiny").code == 0
    assert served.command.limits().steps == 100


def test_it_opens_no_browser_where_none_is_wanted(served: SimpleNamespace) -> None:
    served.quiet = True
    found = svdiff("board", "tiny", "--no-browser")
    assert (found.code, served.opened, served.sources) == (0, [], [])
    assert found.err.startswith("board on http://127.0.0.1:")


def test_where_there_is_no_browser_it_says_the_address(served: SimpleNamespace) -> None:
    served.browser = False
    found = svdiff("board", "tiny", "deltas")
    assert "open http://127.0.0.1:" in found.err


@pytest.mark.parametrize(
    ("deltas", "said"),
    [
        (["nothing"], "nothing: is no file of δ"),
        (["deltas/dog.safetensors", "pets/dog.safetensors"], "dog.safetensors: two files have this name"),
        (["notes.txt"], "notes.txt: is no file of δ"),
    ],
)
def test_what_is_no_delta_is_refused(served: SimpleNamespace, deltas: list[str], said: str) -> None:
    Path("pets").mkdir()
    Path("pets/dog.safetensors").write_bytes(Path("deltas/dog.safetensors").read_bytes())
    Path("notes.txt").write_text("no delta")
    found = svdiff("board", "tiny", *deltas)
    assert (found.code, said in found.err) == (1, True), found.err


@pytest.mark.slow
def test_it_serves_the_board_until_it_is_ended(tmp_path: Path) -> None:
    fill(tmp_path / "deltas")
    command = [sys.executable, "-m", "svdiff_cli", "board", "tiny", "deltas", "--no-browser", "--steps", "2"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            url = next(line for line in process.stderr if line.startswith("board on ")).split()[-1]
            rows = httpx.get(f"{url}/board/deltas", timeout=60).json()["deltas"]
            assert [row["name"] for row in rows] == ["cat", "dog", "pets/bird"]
            mix = {"terms": [{"name": "pets/bird", "weight": 0.5}]}
            answer = httpx.post(f"{url}/board/export", json={"mix": mix, "form": "command"}, timeout=60)
            assert answer.text == "svdiff merge deltas/pets/bird.safetensors:0.5 -o bird-mix.safetensors\n"
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert '"event": "request"' not in rest
