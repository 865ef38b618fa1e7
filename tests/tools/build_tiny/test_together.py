"""All stages at once: what dies is started again more plainly, and what is late too."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tools.build_tiny.together import ENDS, Stage, watch


class Fake:
    """A process that says its exit codes one after the other; the last one stays."""

    def __init__(self, codes: Sequence[int | None]) -> None:
        self.codes, self.killed = list(codes), False

    def poll(self) -> int | None:
        return self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]

    def kill(self) -> None:
        self.killed = True
        self.codes = [-9]

    def wait(self) -> int:
        return 0


def stage(name: str, *lives: Sequence[int | None]) -> tuple[Stage, list[Sequence[str]], list[Fake]]:
    """A stage whose processes end as `lives` say, what each was launched with, and the processes."""
    launched: list[Sequence[str]] = []
    processes: list[Fake] = []

    def launch(plain: Sequence[str]) -> Fake:
        processes.append(Fake(lives[len(launched)]))
        launched.append(plain)
        return processes[-1]

    return Stage(name, launch), launched, processes


def test_what_dies_is_started_again_more_plainly() -> None:
    one, launched, _ = stage("vae", [1], [1], [0])
    assert [one.over(), one.over(), one.over()] == [False, False, True]
    assert launched == [(), ("--plain", "1"), ("--plain", "2")]


def test_painting_knows_no_plainer_way() -> None:
    one, launched, _ = stage("paint", [1], [0])
    assert [one.over(), one.over()] == [False, True]
    assert launched == [(), ()]


def test_what_dies_three_times_ends_all_and_stops_the_others() -> None:
    unet, _, _ = stage("unet", [1], [1], [7])
    clip, _, processes = stage("clip", [None])
    with pytest.raises(RuntimeError, match="the stage unet died 3 times, at last with exit code 7"):
        watch({"unet": unet, "clip": clip}, ready=lambda: True, late=lambda: False)
    assert processes[0].killed


@pytest.mark.parametrize(("ready", "late", "again"), [(False, True, 1), (True, True, 0), (False, False, 0)])
def test_a_unet_that_is_not_compiled_in_time_is_started_plainly(ready: bool, late: bool, again: int) -> None:
    unet, launched, processes = stage("unet", [None, None, 0], [0])
    watch({"unet": unet}, ready=lambda: ready, late=lambda: late)
    assert launched == [(), ("--plain", "1")][: again + 1]
    assert processes[0].killed == bool(again)


def test_the_decoder_begins_after_the_autoencoder_and_the_unet_ends_last() -> None:
    assert ENDS["vae"] < ENDS["decoder"] < ENDS["unet"] < 1
