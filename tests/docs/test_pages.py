"""What the pages under docs/ show is so: each says what it is for, and all of it runs from top to bottom."""

from __future__ import annotations

import re
import shlex
import socket
from functools import partialmethod
from pathlib import Path

import click
import pytest
import yaml
from support.hub import TOKEN, Hub
from support.pages import (
    REASONS,
    ROOT,
    Block,
    blocks,
    command_lines,
    fences,
    links,
    parse,
    reason,
    run_page,
    shell_lines,
)
from support.served import server, service
from support.serving import serve_dog

from svdiff_cli.main import main
from svdiff_delta import scale
from svdiff_delta.format.file import dumps
from svdiff_serve.http.body import parse_request
from svdiff_serve.ray_app import RaySettings

DOCS = ROOT / "docs"
PAGES = {path.stem: path for path in sorted(DOCS.glob("*.md"))}
TEXTS = {name: path.read_text("utf-8") for name, path in PAGES.items()}
SHOWING_NOTHING = {"families", "limits", "writing", "threat-model", "reference"}
"""Pages with nothing to run."""

LINES = [line for text in TEXTS.values() for line in command_lines(text)]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pipelines take two steps where nothing else is said: whether lines run does not hang on it."""
    from diffusers import StableDiffusionPipeline

    paint = StableDiffusionPipeline.__call__
    monkeypatch.setattr(StableDiffusionPipeline, "__call__", partialmethod(paint, num_inference_steps=2))


MARKS = {
    "quantized": pytest.mark.quantized,
    "lora": pytest.mark.slow,
    "methods": pytest.mark.slow,
    "pictures": pytest.mark.slow,
    "several-subjects": pytest.mark.slow,
    "training": pytest.mark.slow,
}
"""Pages that need other libraries, or whose commands take long."""

APART = {"hub", "serving", "ray"}
"""Pages that need a server, and have a test of their own."""

RUN = [pytest.param(name, marks=MARKS.get(name, ())) for name in sorted(set(PAGES) - SHOWING_NOTHING - APART)]


@pytest.mark.parametrize("name", RUN)
def test_a_page_runs_offline_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the page needs the network, and does not say so")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    run_page(PAGES[name], tmp_path)


def test_the_page_of_the_hub_runs_on_a_hub(
    hub: Hub, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dog = serve_dog(hub)
    hub.add("alice/cat", {"svdiff.safetensors": dumps(scale(dog, -0.5))}, ref="v1")
    hub.rights[TOKEN].add("me")
    run_page(PAGES["hub"], tmp_path, skip=())
    assert {"svdiff.safetensors", "config.json", "README.md"} <= hub.files("me/both").keys()


def test_the_page_of_serving_runs_on_a_server(tmp_path: Path) -> None:
    """Its first block makes the deltas that the server, on a port of its own, then serves to the others."""
    making, rest = re.split(r"(?=In another process)", TEXTS["serving"])
    (tmp_path / "making.md").write_text(making, "utf-8")
    run_page(tmp_path / "making.md", tmp_path)
    with service(tmp_path / "deltas") as served, server(served) as (url, _, _):
        page = f"```python\nfrom pathlib import Path\n```\n{rest.replace('http://127.0.0.1:8000', url)}"
        (tmp_path / "rest.md").write_text(page, "utf-8")
        run_page(tmp_path / "rest.md", tmp_path)
    assert (tmp_path / "dog.png").is_file()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns of what it calls itself
def test_the_page_of_ray_runs_on_a_cluster(tmp_path: Path) -> None:
    run_page(PAGES["ray"], tmp_path)
    assert len(list(tmp_path.glob("dog-*.safetensors"))) == 2


def test_the_file_that_deploys_on_ray_has_settings_of_a_server() -> None:
    (file,) = [yaml.safe_load(block.text) for block in blocks(TEXTS["ray"]) if block.file == "server.yaml"]
    (application,) = file["applications"]
    assert RaySettings.read(application["args"]).gpus == 1


def test_what_the_page_of_serving_sends_by_other_programs_is_a_request() -> None:
    (curl,) = re.findall(r"-d '([^']*)'", TEXTS["serving"])
    (node,) = re.findall(r"images\.generate\((\{ [^)]*\})\)", TEXTS["serving"])
    for body in (curl, re.sub(r"(\w+):", r'"\1":', node)):
        assert parse_request(body.encode()).model == "dog"


@pytest.mark.parametrize("name", sorted(SHOWING_NOTHING))
def test_a_page_that_is_not_run_shows_nothing_to_run(name: str) -> None:
    assert [block.text for block in blocks(TEXTS[name]) if block.language != "yaml"] == []


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_begins_with_what_its_reader_can_do_after_it(name: str) -> None:
    assert re.match(r"# [^\n]+\n\nAfter this page you (can|know) ", TEXTS[name])


@pytest.mark.parametrize("line", sorted(set(LINES)))
def test_every_command_line_parses(line: str) -> None:
    parse(main, shlex.split(line, comments=True)[1:])


RUN_FILES = [(name, block) for name, text in TEXTS.items() for block in blocks(text) if block.language == "toml"]


@pytest.mark.parametrize(("name", "block"), RUN_FILES, ids=[block.file for _, block in RUN_FILES])
def test_every_run_file_to_copy_is_one(name: str, block: Block, tmp_path: Path) -> None:
    from svdiff_train.settings.config import TrainConfig
    from svdiff_train.settings.runfile import read_run

    (tmp_path / block.file).write_text(block.text, "utf-8")
    found = read_run(tmp_path / block.file)
    assert found.pop("base")
    assert found.pop("images")
    assert TrainConfig.from_facts(found).selectors == ("transformer-attn",)


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_link_leads_somewhere(name: str) -> None:
    assert [link for link in links(TEXTS[name]) if not (DOCS / link).exists()] == []


def test_lines_that_the_hub_is_asked_for_say_that_they_need_the_network() -> None:
    asked = [line for text in TEXTS.values() for sh in fences(text, "sh") for line in shell_lines(sh)]
    named = [line for line in asked if re.search(r"\b(me|alice|stable-diffusion-v1-5)/\w", line)]
    assert len(named) >= 5
    assert [line for line in named if reason(line) != "needs the network"] == []


def test_what_else_is_shown_exists() -> None:
    lines = [line for text in TEXTS.values() for sh in fences(text, "sh") for line in shell_lines(sh)]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = {word for line in lines if line.startswith("make ") for word in line.split()[1:2]}
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    paper = (ROOT / "reproduce" / "paper" / "__main__.py").read_text("utf-8")
    flags = {word for line in lines if " -m reproduce.paper" in line for word in line.split() if word.startswith("--")}
    assert flags
    assert [flag for flag in flags if f'"{flag}"' not in paper] == []


def test_what_does_not_run_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for line, match in [
        ("svdiff info nothing.safetensors", "nothing.safetensors"),
        ("curl example.org", "curl"),
        ("svdiff scale a.safetensors --by 2 -o b.safetensors  # needs the network", "--by"),
    ]:
        page.write_text(f"```sh\n{line}\n```\n")
        with pytest.raises((AssertionError, click.UsageError), match=match):
            run_page(page, tmp_path)
    assert reason("svdiff pull a/b  # needs the network") == REASONS[0]
    assert reason("svdiff pull a/b") is None


def test_a_bake_with_its_arguments_swapped_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.commands import svdiff

    from svdiff_delta import bake, save, zero_delta
    from svdiff_delta.errors import InputError
    from svdiff_train.tiny import open_tiny

    monkeypatch.chdir(tmp_path)
    save(zero_delta(open_tiny(), "mid-ca"), "dog.safetensors")
    for given in ("dog.safetensors", "dog.safetensors:0.5"):
        outcome = svdiff("bake", given, "tiny", "-o", "baked")
        why = f"{given}: is a delta, and BASE stands before the deltas"
        assert (outcome.code, outcome.err) == (1, f"error: {why}: write `svdiff bake BASE {given}`\n")
    with pytest.raises(InputError, match="`base` is a list, not an opened base"):
        bake([zero_delta(open_tiny(), "mid-ca")], open_tiny(), "baked")  # type: ignore[arg-type]
    assert not (tmp_path / "baked").exists()
