"""What a long command prints on the way, and how its threads wait."""

from __future__ import annotations

import os
import time
from io import StringIO

import click
import pytest
import torch
from support.commands import Outcome, python, svdiff

from svdiff_cli import main as commands
from svdiff_cli.progress import RANK, Bar, first_process, hush
from svdiff_cli.references import open_to_paint
from svdiff_cli.threads import COUNT, WAITING, wait_quietly
from svdiff_delta._util import ticker
from svdiff_delta._util.ticker import EVERY, Ticker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_comes_every_ten_seconds() -> None:
    assert EVERY == 10


def test_a_line_says_what_is_done_and_what_is_left() -> None:
    clock = Clock()
    ticker = Ticker("loading", clock=clock)
    clock.now += 12
    assert ticker.line() == "loading: 12 s so far"
    ticker.stage("training")
    clock.now += 5
    ticker.tell(40, 200)  # a run that goes on
    clock.now += 10
    ticker.tell(60, 200, "loss 0.1")
    assert ticker.line() == "training: 30 %, 15 s so far, 70 s left, loss 0.1"


def test_without_a_pace_nothing_is_foretold() -> None:
    clock = Clock()
    ticker = Ticker("computing bases", clock=clock)
    ticker.tell(0, 10)
    clock.now += 20
    assert ticker.line() == "computing bases: 0 %, 20 s so far"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """`svdiff info` becomes a command that takes longer than the time between two lines, half of it in a Bar."""

    @click.command("info")
    @click.option("-q", "--quiet", is_flag=True, callback=hush)
    def info(quiet: bool) -> None:
        time.sleep(0.3)
        with Bar("looking", quiet=quiet) as bar:
            bar(1, 4)
            time.sleep(0.3)

    monkeypatch.setattr(commands.ErrorHandling, "get_command", _get(info))
    monkeypatch.setattr(ticker.Ticker.__init__, "__kwdefaults__", {**_KEYWORDS, "every": 0.1})


_KEYWORDS = dict(Ticker.__init__.__kwdefaults__ or {})


def _get(command: click.Command):  # type: ignore[no-untyped-def]
    def get_command(self: click.Group, ctx: click.Context, name: str) -> click.Command:
        ctx.obj.stage(name)
        return command

    return get_command


def lines(done: Outcome) -> list[str]:
    assert done.code == 0, done.err
    return [line.partition(":")[0] for line in done.err.splitlines()]


def test_every_command_prints_lines_where_there_is_no_terminal(slow: None) -> None:
    found = lines(svdiff("info"))
    assert found.count("info") >= 2
    assert found.count("looking") >= 2
    assert "looking: 25 %" in svdiff("info").err


def test_quiet_commands_print_no_lines(slow: None) -> None:
    assert lines(svdiff("info", "-q")) == []


@pytest.mark.parametrize("name", RANK)
def test_of_several_processes_the_first_one_speaks(name: str, slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_process()
    monkeypatch.setenv(name, "1")
    assert not first_process()
    assert lines(svdiff("info")) == []


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "lines"), [(Terminal, 0), (StringIO, 1)])
def test_on_a_terminal_there_are_no_lines(stream: type[StringIO], lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    written = stream()
    monkeypatch.setattr("sys.stderr", written)
    with Ticker("loading", every=0.02):
        time.sleep(0.2)
    assert min(1, written.getvalue().count("loading: 0 s so far")) == lines


def test_waiting_threads_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    wait_quietly()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "9"), ("KMP_BLOCKTIME", "9")]
)
def test_what_the_user_says_of_waiting_stays(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in WAITING:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "9")
    wait_quietly()
    assert {other: os.environ[other] for other in WAITING if other in os.environ} == {name: "9"}


@pytest.mark.parametrize(("said", "during"), [(None, 1), ("2", 2)])
def test_the_embedded_base_computes_on_one_thread_unless_the_user_says_otherwise(
    said: str | None, during: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(COUNT, raising=False) if said is None else monkeypatch.setenv(COUNT, said)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with click.Context(commands.main):
            open_to_paint("tiny")
            assert torch.get_num_threads() == during
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_are_told_before_torch_is_loaded() -> None:
    code = """
import os, sys
for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
    os.environ.pop(name, None)
import svdiff_cli.main as commands, svdiff_train, svdiff_delta
assert "OMP_WAIT_POLICY" not in os.environ, "an import changed the environment"
def told(name):
    if "torch" not in sys.modules:
        print(os.environ["OMP_WAIT_POLICY"], end="")
        raise SystemExit
commands.import_module = told
commands.main(["basis", "ls"])
"""
    environment = dict.fromkeys((), "")
    assert python(code, **environment).out == "PASSIVE"
