"""Kill every command that writes a folder, again and again: old or new is there, never neither, and nothing is left.

    python tests/kills.py [--kills 300] [--terms 100] [--seed 0] [--only bake,demo]
    python tests/kills.py --asked  (lines in: kills, terms, seed and a name; lines out: how it went)

Each command runs with two settings in turn, so that one result replaces the other. A run is ended by SIGKILL or
SIGTERM: half of them by the clock, half at one of the calls that change files, which Python's audit hooks count. Then
each output is the one before or the one of this run, to the byte. The next run ends well, gives what it gives
undisturbed, and beside what it writes nothing is left. Processes are forked, since starting one takes longer than
most commands.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

CHANGES = frozenset({"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "ctypes.dlsym"})
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PATIENCE = 600.0

CONVERT = ("convert", "--base", "tiny", "--to", "peft", "--rank", "2", "--allow-unmatched", "-o", "out", "--force")
SPELL = ("convert", "--base", "tiny", "--to", "peft", "-o", "out", "--force")
PAINT = ("generate", "tiny", "--steps", "1", "--seeds", "3", "-o", "x.png", "--separate", "out", "--force", "--prompt")
KEEP = ("--save-every", "1", "--keep-every", "1")
TRAIN = ("train", "tiny", "pictures", "--prompt", "a photo of a sks dog", "--resolution", "32", *KEEP)
CLASS = ("--class-prompt", "a photo of a dog", "--class-images", "2", "--class-folder", "class")


@dataclass(frozen=True)
class Command:
    """A command that writes a folder.

    Attributes:
        settings: its arguments, two times if one result replaces another; once if it is built up in the end.
        outputs: what is the old one or the new one, each as a whole.
        kept: what a killed run may leave, all of it whole, for the next run to go on with.
        share: how many rounds it gets, of those that a quick one gets.
    """

    settings: Sequence[Sequence[str]]
    outputs: Sequence[str] = ("out",)
    kept: Sequence[str] = ()
    share: float = 1.0


def trained(method: str) -> Command:
    """Return training by a method that gives a folder."""
    begin = (*TRAIN, "--steps", "1", "--method", method, "-o", "out", "--force")
    settings = [(*begin, "--seed", seed, "--run-folder", f"run{seed}") for seed in ("0", "1")]
    return Command(settings, ("out", "out.toml"), ("run0", "run1"), 0.5)


COMMANDS = {
    "bake": Command([("bake", "tiny", f"a.safetensors:{weight}", "-o", "out", "--force") for weight in (0.5, 1)]),
    "bake with links": Command(
        [
            ("bake", "own", "a.safetensors", "-o", "out", "--force", "--unchanged", how)
            for how in ("hardlink", "symlink")
        ]
    ),
    "convert": Command([(*CONVERT, "a.safetensors"), (*CONVERT, "b.safetensors")]),
    "convert from LoRA to LoRA": Command([(*SPELL, "a.kohya.safetensors"), (*SPELL, "b.kohya.safetensors")]),
    "convert many": Command(
        [("convert", "--manifest", f"{name}.jsonl", "--force") for name in ("a", "b")],
        ("out1", "out2", "out3"),
        ("a.report.jsonl", "a.report.txt", "b.report.jsonl", "b.report.txt"),
    ),
    "generate": Command([(*PAINT, "a dog"), (*PAINT, "a cat")], ("out", "x.png")),
    "basis build": Command([("basis", "build", "tiny", "mid")], (), ("home",)),
    "train": Command(
        [(*TRAIN, *CLASS, "--select", "mid", "--steps", "2", "-o", "x.safetensors", "--resume")],
        ("x.safetensors", "x.toml"),
        ("x.run", "class"),
        0.5,
    ),
    "train a LoRA": trained("lora"),
    "train all weights": trained("full"),
    "demo": Command(
        [("demo", "--steps", "1", "--seed", seed, "-o", "out", "--force") for seed in ("0", "1")], share=0.1
    ),
}


class Place:
    """Where a process works, and what it said.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.work, self.log = folder / "work", folder / "log"
        self.home = self.work / "home"

    def said(self) -> str:
        return self.log.read_text()[-2_000:]


class Rounds(Place):
    """A command in a folder of its own.

    Args:
        command: which.
        folder: an empty folder.
        inputs: a folder with what the commands read.
        draw: where moments are drawn from.
    """

    def __init__(self, command: Command, folder: Path, inputs: Path, draw: random.Random) -> None:
        super().__init__(folder)
        self.command, self.draw = command, draw
        shutil.copytree(inputs, self.work, symlinks=True)
        self.inputs = {path.name for path in self.work.iterdir()}
        self.took = (0.0, 0)
        if len(command.settings) == 1:
            self.finish(0)  # so that bases are there: the time is that of later runs
            self.clear()
        self.expected = []
        for number in range(len(command.settings)):
            begun = time.monotonic()
            self.finish(number)  # both settings do as much, and the last has the first's bases
            self.took = time.monotonic() - begun, int((folder / "log.events").read_text())
            self.expected.append(self.outputs())
        self.current = len(command.settings) - 1
        self.ends: Counter[str] = Counter()

    def clear(self) -> None:
        """Begin anew where a result is built up."""
        if len(self.command.settings) == 1:
            for name in (*self.command.outputs, *self.command.kept):
                remove(self.work / name)

    def outputs(self) -> dict[str, str]:
        """Return a digest of each output that is there."""
        return {name: digest(self.work / name) for name in self.command.outputs if (self.work / name).exists()}

    def finish(self, number: int) -> None:
        """Run a setting to its end."""
        code = run(self, lambda: call(self.command.settings[number]))
        assert code == 0, f"a run after a kill failed ({code}): {self.said()}"

    def play(self, number: signal.Signals) -> None:
        """End one run, look at what is there, and run it again."""
        self.clear()
        before = self.outputs()
        setting = (self.current + 1) % len(self.command.settings)
        code = self.end(setting, number)
        self.ends["finished" if code == 0 else "ended"] += 1
        allowed = {0, -number} if number == signal.SIGKILL else {0, -number, 128 + number}
        assert code in allowed, f"exit status {code}: {self.said()}"
        if code <= 0:  # a training that is told to end writes what it has
            for name in self.command.outputs:
                found, known = self.outputs().get(name), (before.get(name), self.expected[setting].get(name))
                assert found in known, f"{name} is neither the old nor the new one, but {found}"
        if code == 128 + number:
            assert not leftovers(self.work), f"left by {number.name}: {leftovers(self.work)}"
        self.finish(setting)
        assert self.outputs() == self.expected[setting], "the run after a kill gave something else"
        assert not leftovers(self.work), f"left after the next run: {leftovers(self.work)}"
        names = {path.name for path in self.work.iterdir()}
        strange = names - self.inputs - {*self.command.outputs, *self.command.kept}
        assert not strange, f"left after the next run: {strange}"
        self.current = setting

    def end(self, setting: int, number: signal.Signals) -> int:
        """Begin a run and end it at a moment; return its exit status."""
        seconds, events = self.took
        arguments = self.command.settings[setting]
        if self.draw.random() < 0.5:
            moment = self.draw.uniform(0, seconds)
            return run(self, lambda: call(arguments), after=moment, number=number)
        event = self.draw.randint(1, events)
        return run(self, lambda: call(arguments), event=event, number=number)


def make_inputs(work: Path) -> int:
    """Write what the commands read."""
    from support.models import base_delta

    from svdiff_delta import convert, save
    from svdiff_train.tiny import base_path, open_tiny, pictures_path

    for name, seed in (("a", 0), ("b", 1)):
        delta = base_delta(open_tiny(), "mid", seed=seed)
        save(delta, work / f"{name}.safetensors")
        spelled = work / f"{name}.kohya.safetensors"
        convert(delta, to="kohya", base=open_tiny(), rank=2, allow_unmatched=True, output=spelled)
        rows = [
            {"input": f"{name}.safetensors", "output": output, "base": "tiny", **how}
            for output, how in (
                ("out1", {"to": "peft", "rank": 2, "allow_unmatched": True}),
                ("out2", {"to": "peft", "rank": 1, "allow_unmatched": True}),
                ("out3", {"to": "full"}),
            )
        ]
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(base_path(), work / "own")
    shutil.copytree(pictures_path("poodle"), work / "pictures")
    return 0


def call(arguments: Sequence[str]) -> int:
    """Run a command in this process."""
    from svdiff_cli.main import main

    try:
        main(list(arguments), prog_name="svdiff")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def run(
    place: Place,
    function: Callable[[], int],
    *,
    after: float | None = None,
    event: int | None = None,
    number: signal.Signals = signal.SIGKILL,
) -> int:
    """Return the exit status of a function in a process of its own; that a signal ended it is a negative one.

    Args:
        place: says where.
        function: what to do.
        after: send the signal after these seconds.
        event: or at this call that changes files.
        number: the signal.
    """
    child = os.fork()
    if child == 0:
        os._exit(serve(place, function, event, number))
    begun, told = time.monotonic(), after is None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        spent = time.monotonic() - begun
        if not told and spent >= (after or 0):
            os.kill(child, number)
            told = True
        if spent > PATIENCE:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def serve(place: Place, function: Callable[[], int], event: int | None, number: int) -> int:
    """Do it, in the folder, with a log in place of a terminal."""
    code, counted = 70, 0

    def count(name: str, arguments: tuple[object, ...]) -> None:
        nonlocal counted
        changes = name in CHANGES or (name == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING)
        if changes:
            counted += 1
            if counted == event:
                os.kill(os.getpid(), number)

    try:
        os.chdir(place.work)
        os.environ["SVDIFF_HOME"] = str(place.home)
        descriptor = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.addaudithook(count)
        code = function()
        total = counted
        Path(f"{place.log}.events").write_text(str(total))
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - a process of its own
        traceback.print_exc()
        sys.stderr.flush()
    return code


def leftovers(folder: Path) -> list[str]:
    """Return what looks like something half done: hidden files, parts, locks."""
    from svdiff_delta._util.atomic import MARKER

    found = (path for path in folder.rglob("*") if path.name != MARKER)
    odd = (path for path in found if path.name.startswith(".") or path.suffix in (".lock", ".part", ".old"))
    return sorted(str(path.relative_to(folder)) for path in odd)


def digest(path: Path) -> str:
    """Return a digest of a file, or of all that is in a folder: names, links and bytes."""
    found = hashlib.sha256()
    for each in [path] if path.is_file() else sorted(path.rglob("*")):
        found.update(f"{each.relative_to(path)}\0{each.is_symlink()}\0{each.is_dir()}\0".encode())
        if each.is_file():
            found.update(hashlib.sha256(each.read_bytes()).digest())
    return found.hexdigest()[:16]


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def shared_out(names: Sequence[str], count: int) -> dict[str, int]:
    """Return how many of the rounds each command gets: by its share, and one at least."""
    whole = sum(COMMANDS[name].share for name in names)
    found = {name: max(1, int(count * COMMANDS[name].share / whole)) for name in names}
    quick = max(names, key=lambda name: COMMANDS[name].share)
    found[quick] += max(0, count - sum(found.values()))
    return found


def kill(
    names: Sequence[str], kills: int, terms: int, seed: int, inputs: Path
) -> Iterator[tuple[str, int, int, Counter[str]]]:
    """Yield the name of each command, how often it was killed and told to end, and how many runs were faster.

    Args:
        names: of commands.
        kills: how often in all.
        terms: the same, with SIGTERM.
        seed: what moments are drawn by.
        inputs: a folder with what the commands read.

    Raises:
        AssertionError: something was lost, or left.
    """
    many, told = shared_out(names, kills), shared_out(names, terms)
    for name in names:
        draw = random.Random(f"{seed} {name}")
        with tempfile.TemporaryDirectory() as folder:
            rounds = Rounds(COMMANDS[name], Path(folder), inputs, draw)
            ends = [signal.SIGKILL] * many[name] + [signal.SIGTERM] * told[name]
            draw.shuffle(ends)
            for number, end in enumerate(ends):
                try:
                    rounds.play(end)
                except AssertionError as error:
                    raise AssertionError(f"{name}, round {number}, {end.name}: {error}") from None
            yield name, many[name], told[name], rounds.ends


def prepare() -> None:
    """Import what the commands need, once for all processes; nothing is computed, so that no thread is lost."""
    import torch
    from support.forked import import_all

    import svdiff_train.demo.rows
    import svdiff_train.demo.run
    import svdiff_train.training.class_images
    from svdiff_cli.main import PLACES

    import_all()
    for command in COMMANDS.values():
        import_module(f"svdiff_cli.{PLACES[command.settings[0][0]]}")
    torch.set_num_threads(1)
    demo = svdiff_train.demo.run
    quick = replace(demo.SAMPLING, steps=1)  # pictures do not matter here, nor what is learned
    for module in (demo, svdiff_train.demo.rows, svdiff_train.training.class_images):
        module.SAMPLING = quick
    demo.CLASS_IMAGES, demo.sections = 1, lambda *_: []
    settings = demo.settings
    demo.settings = lambda *given, **named: replace(settings(*given, **named), selectors=("mid",), resolution=32)


@contextmanager
def inputs() -> Iterator[Path]:
    """Make what the commands read, in a process of its own, and yield its folder."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        place.work.mkdir()
        assert run(place, lambda: make_inputs(place.work)) == 0, place.said()
        yield place.work


def answer(made: Path) -> None:
    """Do what is asked, line by line, and say of each how it went; a loss ends nothing but its own line."""
    for line in sys.stdin:
        kills, terms, seed, name = line.rstrip("\n").split(" ", 3)
        try:
            for _, _, _, ends in kill([name], int(kills), int(terms), int(seed), made):
                told = f"old or new every time, nothing left; {ends['finished']} runs were faster"
        except AssertionError as error:
            told = " ".join(str(error).split())
        print(told, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--terms", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(COMMANDS), help="names of commands, with commas")
    parser.add_argument("--asked", action="store_true", help="answer what each line of the input asks")
    given = parser.parse_args()
    begun = time.monotonic()
    prepare()
    with inputs() as made:
        if given.asked:
            answer(made)
            return
        for name, kills, terms, ends in kill(given.only.split(","), given.kills, given.terms, given.seed, made):
            print(f"{name:<18} {kills:>4} SIGKILL {terms:>4} SIGTERM, {ends['finished']} runs were faster", flush=True)
    print(f"old or new every time, nothing left; {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
