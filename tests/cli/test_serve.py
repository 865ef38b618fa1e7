"""The command that serves: what it refuses before a model is loaded, and a whole life of it in a process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import click
import httpx
import pytest
from support.commands import svdiff
from support.served import fill

from svdiff_cli.progress import ticker_of
from svdiff_serve.http.server import bind


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deltas").mkdir()
    return tmp_path / "deltas"


def test_a_port_in_use_is_refused(folder: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        found = svdiff("serve", "tiny", "--deltas", str(folder), "--port", str(port))
    assert (found.code, f"127.0.0.1:{port}: is in use" in found.err, "--port" in found.err) == (1, True, True)


def test_without_keys_other_machines_are_not_served(folder: Path) -> None:
    found = svdiff("serve", "tiny", "--deltas", str(folder), "--host", "0.0.0.0", "--port", "0")
    assert found.code == 1
    assert "--keys" in found.err
    assert "--no-auth" in found.err


def test_a_folder_and_a_file_of_keys_that_are_not_there_are_refused(folder: Path, tmp_path: Path) -> None:
    none = str(tmp_path / "none")
    assert "is no folder" in svdiff("serve", "tiny", "--deltas", none, "--port", "0").err
    assert "none" in svdiff("serve", "tiny", "--deltas", str(folder), "--keys", none, "--port", "0").err


def test_more_steps_than_it_allows_are_refused_before_a_model_is_loaded(folder: Path) -> None:
    found = svdiff("serve", "tiny", "--deltas", str(folder), "--steps", "150", "--port", "0")
    assert (found.code, "--steps 150 is more than --max-steps 100" in found.err) == (1, True)


def test_a_file_that_is_no_index_is_refused_and_stays(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine.txt"
    other.write_text("mine")
    found = svdiff("serve", "tiny", "--deltas", str(folder), "--index", str(other), "--port", "0")
    assert (found.code, "is another file" in found.err, other.read_text()) == (1, True, "mine")


@pytest.mark.slow
def test_it_serves_until_it_is_ended_and_then_ends_well(tmp_path: Path) -> None:
    fill(tmp_path / "deltas")
    command = [sys.executable, "-m", "svdiff_cli", "serve", "tiny", "--deltas", "deltas", "--port", "0", "--steps", "2"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            url = next(line for line in process.stderr if line.startswith("serving on ")).split()[-1]
            answer = httpx.post(f"{url}/v1/images/generations", json={"prompt": "a", "model": "dog"}, timeout=60)
            assert answer.status_code == 200
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert '"event": "ended", "by": "SIGTERM", "finished": true' in rest


def test_no_line_says_how_long_it_has_been_served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet: list[bool] = []
    monkeypatch.setattr(
        "svdiff_cli.server_command.ServerCommand._state", lambda *_: SimpleNamespace(service=MagicMock())
    )

    def serve(state: object, listening: object, seconds: float) -> None:
        ticker = ticker_of(click.get_current_context())
        assert ticker is not None
        quiet.append(ticker.quiet)

    monkeypatch.setattr("svdiff_serve.http.server.serve", serve)
    assert svdiff("serve", "tiny", "--deltas", str(folder), "--port", "0").code == 0
    assert quiet == [True]
