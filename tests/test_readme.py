"""What the README shows is so: its example runs, its commands parse, its table and its links are complete."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from PIL import Image

from svdiff_cli.main import main
from svdiff_delta import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def fences(language: str) -> list[str]:
    """Return the contents of all fences in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    """Return every `svdiff` command line in a shell fence, and those in the text that have arguments."""
    shown = [line for text in fences("sh") for line in text.replace("\\\n", "").splitlines()]
    return [line for line in [*shown, *re.findall(r"`(svdiff [^`]* -[^`]*)`", README)] if line.startswith("svdiff ")]


def leaves(group: click.Group, path: str = "svdiff") -> Iterator[str]:
    """Yield every command of a group that is not a group itself, by its whole name."""
    for name, command in group.commands.items():
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


def test_the_library_example_runs_offline_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the example needs the network")

    (example,) = fences("python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert load("dog.safetensors").metadata.base.repository == "tiny"
    with Image.open("both.png") as picture:
        assert picture.size == (64, 64)
    assert (tmp_path / "baked" / "model_index.json").is_file()


def test_the_library_example_has_about_ten_lines() -> None:
    (example,) = fences("python")
    lines = [line for line in example.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 12


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_parses(line: str) -> None:
    parse(main, shlex.split(line, comments=True)[1:])


def test_a_wrong_command_line_would_be_noticed() -> None:
    with pytest.raises(click.UsageError):
        parse(main, ["scale", "dog.safetensors", "--by", "0.5", "-o", "half.safetensors"])
    with pytest.raises(AssertionError, match="no command"):
        parse(main, ["conjure", "dog.safetensors"])


def test_the_table_lists_every_command_and_no_other() -> None:
    assert sorted(re.findall(r"^\| `(svdiff [a-z ]+)` \| \S", README, re.MULTILINE)) == sorted(leaves(main))


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(fences("sh"))))
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "spec/v1/spec.md", "spec/CHANGELOG.md"]
)
def test_every_link_to_a_page_leads_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text("utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []
