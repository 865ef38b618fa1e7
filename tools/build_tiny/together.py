"""`python -m tools.build_tiny.together`: make the embedded base on one device within minutes, all stages at once.

The stages run side by side where they can: scenes are painted on the CPU's cores while the UNet is compiled; the
autoencoder and the CLIP share the device; the decoder goes on while the UNet begins. Stages that are done in the work
folder are not run again, and the UNet goes on from its checkpoint there: to train on, run it once more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from . import build
from .bank import CALM_SCENES

ENDS: Final[Mapping[str, float]] = {"clip": 0.16, "vae": 0.215, "decoder": 0.30, "unet": 0.905}
"""Ends of the stages that train, as shares of the time; the rest is for exporting."""

LATE: Final = 0.25
"""Share of the time, after the autoencoder's end, by which compiling the UNet may be late."""

TRIES: Final = 3
FIXED: Final = ("vae", "clip", "decoder")
"""What stays as it is where the UNet of a finished base is trained on."""


class Process(Protocol):
    """A stage at work, as `subprocess.Popen` has it."""

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""

    def kill(self) -> None:
        """End it."""

    def wait(self) -> int:
        """Wait for its end."""


class Stage:
    """One stage in a process of its own; started again, more plainly each time, where it dies.

    Args:
        name: of the stage.
        launch: starts it with more arguments.
    """

    def __init__(self, name: str, launch: Callable[[Sequence[str]], Process]) -> None:
        self.name, self.launch, self.tries = name, launch, 0
        self._start()

    def _start(self) -> None:
        plain = () if self.tries == 0 or self.name == "paint" else ("--plain", str(self.tries))
        self.process = self.launch(plain)
        self.tries += 1

    def over(self) -> bool:
        """Return whether it is done; one that died is started again.

        Raises:
            RuntimeError: it died for the third time.
        """
        code = self.process.poll()
        if code is None or code == 0:
            return code == 0
        if self.tries == TRIES:
            raise RuntimeError(f"the stage {self.name} died {TRIES} times, at last with exit code {code}")
        self._start()
        return False

    def again(self) -> None:
        """Start it once more, more plainly, though it has not died."""
        self.stop()
        self._start()

    def stop(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def watch(running: dict[str, Stage], ready: Callable[[], bool], late: Callable[[], bool]) -> None:
    """Start again what dies, and a UNet that is not compiled in time, until the UNet is done; then stop the others.

    Args:
        running: the stages by name, "unet" among them.
        ready: whether the UNet is compiled.
        late: whether it should be by now.
    """
    try:
        while not running["unet"].over():
            for name in [name for name, stage in running.items() if name != "unet" and stage.over()]:
                del running[name]
            if late() and not ready() and running["unet"].tries == 1:
                running["unet"].again()
            time.sleep(0.2)
    finally:
        for stage in running.values():
            stage.stop()


def _launcher(args: argparse.Namespace, name: str, threads: int, *more: str) -> Callable[[Sequence[str]], Process]:
    """Return what starts a stage; scenes are painted by many processes of one thread, and politely."""
    alone = name == "paint" or args.device == "cpu"
    command = [sys.executable, "-m", "tools.build_tiny.build", "--work", str(args.work), "--stage", name]
    command += ["--threads", str(threads), "--scenes", str(args.scenes), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1" if alone else str(threads)}

    def launch(plain: Sequence[str]) -> Process:
        polite = ["nice", "-n", "5"] if name == "paint" else []
        return subprocess.Popen([*polite, *command, *plain], env=environment)  # noqa: S603 - our own module

    return launch


def _train(args: argparse.Namespace) -> None:
    """Run all stages, to the UNet's end."""
    begun, runs, cores = time.time(), args.work / "runs", os.cpu_count() or 2
    for name in ("ready", "done"):
        (runs / f"unet.{name}").unlink(missing_ok=True)
    ends = {name: begun + share * args.seconds for name, share in ENDS.items()}
    threads = {"paint": max(2, cores - 2), "unet": max(1, cores // 2)}
    running = {}
    for name in ("paint", "unet", *FIXED):
        if (runs / f"{name}.done").exists():
            continue
        more = ["--device", args.device, "--wait", "--until", f"{ends[name]:.1f}"] if name in ends else []
        more += ["--batch", str(args.batch)] if args.batch and name in ends else []
        more += ["--judged", str(args.judged)] if name == "unet" else []
        more += ["--rate", str(args.rate)] if name == "unet" and args.rate else []
        count = 1 if args.device == "cpu" and name != "paint" else threads.get(name, 2)
        running[name] = Stage(name, _launcher(args, name, count, *more))
    last = ends["vae"] + LATE * args.seconds
    watch(running, (runs / "unet.ready").exists, lambda: time.time() > last)


def _adopt(args: argparse.Namespace) -> None:
    """Let the work folder begin with the parts of a finished base; only its UNet is trained on."""
    shutil.rmtree(args.work / "runs")
    build.main(["--work", str(args.work), "--stage", "adopt", "--base", str(args.base)])
    for name in FIXED:
        (args.work / "runs" / f"{name}.done").touch()


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch, train, export; the card tells figures once `benchmarks/tiny_base.py` has run (stage `card`)."""
    parser = argparse.ArgumentParser(prog="python -m tools.build_tiny.together", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of downloads, banks and runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished base")
    parser.add_argument("--seconds", type=float, default=480, help="time in all, after downloads")
    parser.add_argument("--base", type=Path, help="go on with the UNet of this finished base; its other parts stay")
    parser.add_argument("--device", default="cuda", help="where to train")
    parser.add_argument("--rate", type=float, help="the UNet's highest learning rate [default: the recipe's]")
    parser.add_argument("--scenes", type=int, default=CALM_SCENES, help="at most so many of a bank, for trials")
    parser.add_argument("--batch", type=int, default=0, help="rows of every batch, for trials")
    parser.add_argument("--judged", type=int, default=60, help="single prompts of each measurement of the UNet")
    args = parser.parse_args(argv)
    (args.work / "runs").mkdir(parents=True, exist_ok=True)
    build.main(["--work", str(args.work), "--stage", "fetch"])
    if args.base is not None:
        _adopt(args)
    _train(args)
    for stage in ("export", "card"):
        build.main(["--work", str(args.work), "--out", str(args.out), "--stage", stage])


if __name__ == "__main__":
    main()
