"""SIGTERM and SIGHUP: what is half written is removed, and the exit status is what shells expect."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from support.commands import SVDIFF, python
from support.files import listing

from svdiff_cli.signals import Ended, raised
from svdiff_train.training.signals import remember_signals

KILLED = """
import os, signal
signal.signal({number}, signal.default_int_handler if {number} == signal.SIGINT else signal.SIG_DFL)  # nohup ignores
from pathlib import Path
from svdiff_cli import demo
def run(folder, **given):
    (folder / "half").write_bytes(bytes(1000))
    os.kill(os.getpid(), {number})
    (folder / "never").write_bytes(b"")
import svdiff_train.demo.run
svdiff_train.demo.run.run_demo = run
"""


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGHUP", marks=pytest.mark.slow)])
def test_a_command_that_is_ended_cleans_up_and_says_by_what(tmp_path: Path, name: str) -> None:
    number = getattr(signal, name)
    done = python(KILLED.format(number=int(number)) + SVDIFF, "demo", "-o", "out", folder=tmp_path)
    assert done.code == 128 + number
    assert done.err.splitlines()[-1] == f"ended by {name}"
    assert listing(tmp_path) == []


MASKED = KILLED.replace(
    "os.kill(os.getpid(), {number})",
    """try:
        os.kill(os.getpid(), {number})
    finally:
        raise DeltaError("{{}}: is broken".format("a file"))""",
).replace("import os", "from svdiff_delta import DeltaError; import os")


@pytest.mark.slow
def test_an_error_on_the_way_out_is_told_and_the_exit_status_stays_that_of_the_signal(tmp_path: Path) -> None:
    for name in ("SIGTERM", "SIGINT"):
        number = int(getattr(signal, name))
        done = python(MASKED.format(number=number) + SVDIFF, "demo", "-o", "out", folder=tmp_path)
        said = {"SIGTERM": "ended by SIGTERM", "SIGINT": "interrupted"}[name]
        assert done.err.splitlines()[-1] == f"{said}; on the way out: a file: is broken"
        assert done.code == 128 + number


def test_a_signal_raises_once_and_the_next_one_waits_for_what_is_cleaned_up() -> None:
    cleaned = []
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            cleaned.append(True)

    with pytest.raises(Ended) as caught, raised():
        work()
    assert (caught.value.code, caught.value.name, cleaned) == (143, "SIGTERM", [True])
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("listen", [raised, remember_signals])
def test_a_signal_that_was_ignored_stays_so(listen: object, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listen():  # type: ignore[operator]
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_closed_ends_a_training_after_its_step() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        check_a_closed_terminal()
    finally:
        signal.signal(signal.SIGHUP, before)


def check_a_closed_terminal() -> None:
    with remember_signals() as asked:
        signal.raise_signal(signal.SIGHUP)
        assert asked() == signal.SIGHUP
