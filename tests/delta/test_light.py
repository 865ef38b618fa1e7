"""The light half stays light: nothing of it, and none of its commands, imports torch or what comes with it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from support.commands import python
from support.deltas import random_delta, saved

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "PIL", "matplotlib", "huggingface_hub", "svdiff_train"}
REPORT = (
    "import json, sys\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)"
)


def light_modules() -> list[str]:
    """All modules in the rooms that the import contract calls light."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rooms = next(contract["source_modules"] for contract in contracts if contract["type"] == "forbidden")
    paths = [ROOT.joinpath(*room.split(".")) for room in rooms]
    files = [file for path in paths for file in (sorted(path.rglob("*.py")) or [path.with_suffix(".py")])]
    return [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]


def command_modules() -> list[str]:
    return [f"svdiff_cli.{path.stem}" for path in (ROOT / "cli" / "svdiff_cli").glob("[a-z]*.py")]


def imported_by(code: str, folder: Path) -> set[str]:
    """The top-level modules in `sys.modules` once this code has run."""
    outcome = python(f"{code}\n{REPORT}", folder=folder)
    assert outcome.code == 0, outcome.err
    return set(json.loads(outcome.err.splitlines()[-1]))


def command(*arguments: str) -> str:
    """Code that runs `svdiff` and goes on."""
    return (
        "from contextlib import suppress\n"
        "from svdiff_cli.main import main\n"
        f"with suppress(SystemExit): main({list(arguments)})"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("light")
    saved(random_delta(1), folder / "a")
    saved(random_delta(2), folder / "b")
    return folder


COMMANDS = {
    "add": ["add", "a", "b:0.5", "-o", "added"],
    "interpolate": ["interpolate", "a", "b", "--alpha", "0.5", "-o", "between"],
    "scale": ["scale", "a", "--factor", "0.5", "-o", "scaled"],
    "slice": ["slice", "a", "unet-ca", "-o", "sliced"],
    "info": ["info", "a", "--layers"],
    "info --json": ["info", "a", "--json"],
    "verify": ["verify", "a"],
    "what": ["what", "a", "b"],
    "--help": ["--help"],
    "train --help": ["train", "--help"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_command_of_the_light_half_imports_nothing_heavy(folder: Path, arguments: list[str]) -> None:
    assert not imported_by(command(*arguments), folder) & HEAVY


@pytest.mark.parametrize("arguments", [COMMANDS["--help"], COMMANDS["train --help"]], ids=["--help", "train --help"])
def test_help_does_not_even_import_numpy(folder: Path, arguments: list[str]) -> None:
    assert "numpy" not in imported_by(command(*arguments), folder)


@pytest.mark.parametrize("module", ["svdiff_delta", *light_modules(), *command_modules()])
def test_a_light_module_imports_nothing_heavy(tmp_path: Path, module: str) -> None:
    assert not imported_by(f"import {module}", tmp_path) & HEAVY


def test_a_file_that_is_here_needs_nothing_of_the_hub(folder: Path) -> None:
    code = (
        "import sys\nfrom svdiff_delta import load\nload('a')\nprint('svdiff_delta.hub_client.download' in sys.modules)"
    )
    assert python(code, folder=folder).out == "False\n"


def test_the_whole_light_api_is_used_without_anything_heavy(folder: Path) -> None:
    use = (
        "from svdiff_delta import Delta, DeltaError, add, interpolate, load, save, scale, select\n"
        "a, b = load('a'), load('b')\n"
        "save(select(scale(interpolate(add(a, b), b, 0.5), 2), 'unet'), 'used')"
    )
    assert not imported_by(use, folder) & HEAVY


@pytest.mark.parametrize("name", ["add", "interpolate", "scale", "slice", "info"])
def test_a_command_of_the_light_half_leaves_no_threads(folder: Path, name: str) -> None:
    count = f"{command(*COMMANDS[name], '--force' if name != 'info' else '--json')}\nimport os, sys, time\n"
    # The one that prints a line every ten seconds has ended, which the system may see later; a library's would stay.
    count += "tasks = lambda: len(os.listdir('/proc/self/task'))\n"
    count += "end = time.monotonic() + 1\nwhile tasks() > 1 and time.monotonic() < end: time.sleep(0.01)\n"
    count += "print(tasks(), file=sys.stderr)"
    outcome = python(count, folder=folder, OMP_NUM_THREADS="4")
    assert outcome.err.splitlines()[-1] == "1"


def test_what_counts_as_heavy_is_seen_when_it_is_imported(tmp_path: Path) -> None:
    assert "PIL" in imported_by("import PIL", tmp_path)
