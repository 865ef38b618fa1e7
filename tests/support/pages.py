"""Pages of Markdown that are run: their fences of code, command lines and links, and all of a page in one folder.

A page is one session: its Python blocks share their names, its shell lines the folder, and they run from top to bottom.
A shell line whose comment gives one of `REASONS` is parsed, and not run.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from svdiff_cli.main import main

from .commands import svdiff

ROOT = Path(__file__).parents[2]
REASONS = ("needs the network", "needs files of your own", "needs two processes", "takes hours")
"""What a line's comment says where it cannot run here."""

PLAIN = ("mkdir", "cp", "rm", "printf")
"""Commands of the system that pages use, and that run as they stand."""

ELSEWHERE = ("make", "pip", "git", "hf", "torchrun", "python")
"""Commands that a page may show and that are not run."""

FEWER = {"steps": 2, "class_images": 1, "seeds": 1, "calibrate_steps": 2, "jobs": 1}
"""What a command is told beside what its line says: whether it runs does not hang on how long it takes."""


@dataclass(frozen=True)
class Block:
    """One fence of a page: Python, shell, or a file by its name."""

    language: Literal["python", "sh", "yaml", "toml"]
    text: str
    file: str = ""


def fences(page: str, language: str) -> list[str]:
    """Return the contents of all fences in a language."""
    return [block.text for block in blocks(page) if block.language == language]


def blocks(page: str) -> list[Block]:
    """Return the fences that run or name the file that they are, in their order."""
    found = re.findall(r'^```(python|sh|yaml|toml)(?: title="([^"]+)")?\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
    return [Block(language, text, file) for language, file, text in found]


def shell_lines(text: str) -> list[str]:
    """Return the lines of a shell fence, with continued ones joined, without empty ones and plain comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def command_lines(page: str) -> list[str]:
    """Return every `svdiff` command line in a shell fence, and those in the text that have arguments."""
    shown = [line for text in fences(page, "sh") for line in shell_lines(text)]
    return [line for line in [*shown, *re.findall(r"`(svdiff [^`]* -[^`]*)`", page)] if line.startswith("svdiff ")]


def links(page: str) -> list[str]:
    """Return where links and pictures lead that stay in the repository, without what follows a #."""
    return [link for link in re.findall(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)", page) if "://" not in link]


def leaves(group: click.Group, path: str = "svdiff") -> Iterator[str]:
    """Yield every command of a group that is not a group itself, by its whole name."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path} {name}")
        else:
            yield f"{path} {name}"


def parse(group: click.Group, words: list[str], parent: click.Context | None = None) -> click.Context:
    """Let click parse a command line without running it."""
    command = group.get_command(click.Context(group), words[0])
    assert command is not None, f"there is no command {words[0]!r}"
    if isinstance(command, click.Group):
        return parse(command, words[1:], parent)
    return command.make_context(words[0], words[1:], parent)


def reason(line: str) -> str | None:
    """Return why a line is not run, as its comment says; None if it is run."""
    comment = line.rpartition(" # ")[2] if " # " in line else ""
    return next((why for why in REASONS if why in comment), None)


def fewer(words: list[str]) -> list[str]:
    """Return the words of a command that runs, told to take few steps and pictures where it takes any."""
    context = parse(main, words)
    options = {param.name: param for param in context.command.params if isinstance(param, click.Option)}
    told = ((options[name], number) for name, number in FEWER.items() if name in options)
    given = [(option, number) for option, number in told if option.name != "seeds" or "--seeds" in words]
    return [*words, *(str(word) for option, number in given for word in (option.opts[0], number))]


def run_line(line: str, skip: tuple[str, ...] = REASONS) -> None:
    """Run one line of a shell fence in the current folder, or parse it where its comment gives a reason to skip it."""
    words = shlex.split(line, comments=True)
    if words[0] == "svdiff":
        parse(main, words[1:])
        if reason(line) not in skip:
            outcome = svdiff(*fewer(words[1:]))
            assert outcome.code == 0, f"{line}\n{outcome.err}"
    elif words[0] in PLAIN:
        subprocess.run(["sh", "-euc", line], check=True)
    else:
        assert words[0] in ELSEWHERE, f"a page shows {words[0]}, which nothing runs or checks"


def run_page(path: Path, folder: Path, skip: tuple[str, ...] = REASONS) -> None:
    """Run all blocks of a page in a folder, from top to bottom, but for the lines that give a reason to skip them."""
    names: dict[str, Any] = {"__name__": path.stem}
    with chdir(folder):
        for block in blocks(path.read_text("utf-8")):
            if block.file:
                (folder / block.file).write_text(block.text, "utf-8")
            elif block.language == "python":
                exec(compile(block.text, path.name, "exec"), names)
            elif block.language == "sh":
                for line in shell_lines(block.text):
                    run_line(line, skip)
