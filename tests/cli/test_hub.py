"""`svdiff push` and `svdiff pull`, and references to the Hub wherever a DELTA stands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.utils import logging
from PIL import Image
from support.commands import SVDIFF, Outcome, python, svdiff
from support.deltas import METADATA, random_delta, saved
from support.hub import TOKEN, Hub, folder_files

from svdiff_delta import load
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps
from svdiff_delta.svd.build import zero_delta
from svdiff_train.tiny import base_path, open_tiny

TRAINED = replace(METADATA, training={"prompt": "a photo of a sks dog"})
DOG = random_delta(1, TRAINED, title="dog")
CAT = random_delta(2, TRAINED, title="cat")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two deltas and a picture."""
    monkeypatch.chdir(tmp_path)
    saved(DOG, tmp_path / "dog.safetensors")
    saved(CAT, tmp_path / "cat.safetensors")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("dog.png")
    return tmp_path


@pytest.fixture
def ours(hub: Hub, token: str, folder: Path) -> Hub:
    hub.add("owner/base", {"README.md": b"---\nlicense: mit\n---\n"})
    return hub


@pytest.fixture
def full(hub: Hub, folder: Path) -> Hub:
    """A hub with two deltas, and nobody's token."""
    hub.add("alice/dog", {"svdiff.safetensors": dumps(DOG)})
    hub.add("alice/cat", {"svdiff.safetensors": dumps(CAT)}, ref="v1")
    return hub


def of_tiny(*selectors: str) -> Delta:
    """A delta of a few weights of the embedded base."""
    zero = zero_delta(open_tiny(), *selectors)
    return Delta({name: shift + np.float32(0.1) for name, shift in zero.items()}, zero.metadata)


def one_line(outcome: Outcome) -> str:
    assert outcome.code == 1
    assert not outcome.out
    assert outcome.err.count("\n") == 1
    return outcome.err


# push


def test_push_says_what_was_sent_and_where_to_see_it(ours: Hub) -> None:
    outcome = svdiff("push", "dog.safetensors", "owner/dog", "--sample", "dog.png")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == "sent to owner/dog, a new repository:"
    sizes = {name: len(raw) for name, raw in ours.files("owner/dog").items() if name != ".gitattributes"}
    assert {line.split()[1]: int(line.split()[0].replace(",", "")) for line in lines[1:-1]} == sizes
    assert lines[-1] == f"see {ours.url}/owner/dog/commit/{ours.refs['owner/dog']['main']}"


def test_a_push_that_changes_nothing_says_so(ours: Hub) -> None:
    svdiff("push", "dog.safetensors", "owner/dog")
    assert svdiff("push", "dog.safetensors", "owner/dog").out == "owner/dog: nothing has changed\n"


def test_a_card_that_is_there_is_printed_without_control_characters_and_tokens(ours: Hub) -> None:
    ours.add("owner/dog", {"README.md": f"# dog\n\x1b[2J {TOKEN}\n".encode()})
    outcome = svdiff("push", "dog.safetensors", "owner/dog", "--dry-run")
    assert "# dog\n\\x1b[2J ***\n" in outcome.out
    assert TOKEN not in outcome.out


def test_a_dry_run_prints_files_and_card_and_sends_nothing(ours: Hub) -> None:
    outcome = svdiff("push", "dog.safetensors", "owner/dog", "--dry-run")
    assert outcome.out.startswith("would send to owner/dog, a new repository:\n")
    assert "# dog\n" in outcome.out
    assert "license: mit\n" in outcome.out
    assert not [asked for asked in ours.asked if asked.startswith(("POST", "PUT"))]


def test_push_prints_json(ours: Hub) -> None:
    found = json.loads(svdiff("push", "dog.safetensors", "owner/dog", "--json").out)
    assert (found["repository"], found["revision"]) == ("owner/dog", ours.refs["owner/dog"]["main"])
    assert (found["created"], found["changed"], found["sent"], found["deleted"]) == (True, True, True, [])
    assert set(found["files"]) == {"svdiff.safetensors", "config.json", "README.md"}
    assert json.loads(svdiff("push", "dog.safetensors", "owner/dog", "--json", "--dry-run").out)["sent"] is False


def test_a_quiet_push_prints_nothing(ours: Hub) -> None:
    assert svdiff("push", "dog.safetensors", "owner/dog", "--quiet") == Outcome(0, "", "")
    assert "svdiff.safetensors" in ours.files("owner/dog")


def test_what_is_kept_is_remarked_on(ours: Hub) -> None:
    ours.add("owner/dog", {"README.md": b"# Mine\n"})
    outcome = svdiff("push", "dog.safetensors", "owner/dog")
    assert outcome.err == "note: README.md has no part that `svdiff push` made: its text is kept as it is\n"


def test_a_sample_has_its_own_prompt_or_the_subjects(ours: Hub, folder: Path) -> None:
    (folder / "a:b.png").write_bytes((folder / "dog.png").read_bytes())
    samples = ["dog.png", "dog.png:at night: late", "a:b.png"]
    svdiff("push", "dog.safetensors", "owner/dog", *(word for sample in samples for word in ("--sample", sample)))
    card = ours.files("owner/dog")["README.md"].decode()
    assert card.count("- text: a photo of a sks dog\n") == 2
    assert "- text: 'at night: late'\n" in card


def test_a_sample_without_a_prompt_is_refused(ours: Hub, folder: Path) -> None:
    saved(random_delta(3), folder / "untrained.safetensors")
    message = one_line(svdiff("push", "untrained.safetensors", "owner/dog", "--sample", "dog.png"))
    assert message == "error: --sample dog.png: has no prompt: write it as FILE:PROMPT, or give --prompt\n"


def test_every_option_of_push_arrives(ours: Hub) -> None:
    svdiff("push", "dog.safetensors", "owner/dog", "--private", "--license", "cc0-1.0", "--prompt", "sks")
    svdiff(
        "push", "cat.safetensors", "owner/dog", "--revision", "v2", "--message", "Cat", "--base-model", "owner/other"
    )
    svdiff("push", "cat.safetensors", "owner/dog", "--create-pr")
    assert "owner/dog" in ours.private
    assert set(ours.refs["owner/dog"]) == {"main", "v2", "refs/pr/1"}
    main, other = (ours.files("owner/dog", ref)["README.md"].decode() for ref in ("main", "v2"))
    assert "license: cc0-1.0\n" in main
    assert "instance_prompt: sks\n" in main
    assert "base_model: owner/other\n" in other
    assert ours.summaries[1] == "Cat"


def test_a_lora_copy_is_made_and_sent(hub: Hub, token: str, folder: Path) -> None:
    saved(of_tiny("unet.mid_block.*.attn2.to_k.weight", "unet.conv_norm_out.weight"), folder / "tiny.safetensors")
    arguments = ["push", "tiny.safetensors", "owner/dog", "--license", "mit", "--lora-rank", "4"]
    outcome = svdiff(*arguments, "--base", "tiny")
    assert outcome.code == 0, outcome.err
    assert "note: the LoRA copy of rank 4 retains " in outcome.err
    assert "note: the LoRA copy lacks 1 weight, such as unet.conv_norm_out.weight" in outcome.err
    assert b"lora_A" in hub.files("owner/dog")["pytorch_lora_weights.safetensors"]
    assert "give --base too" in one_line(svdiff(*arguments))
    assert "give --lora-rank too" in one_line(svdiff(*arguments[:-2], "--base", "tiny"))


def test_without_a_token_push_is_one_line(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "none"))
    message = one_line(svdiff("push", "dog.safetensors", "owner/dog"))
    assert message.startswith("error: owner/dog: pushing needs a token, and there is none: log in")


def test_a_model_is_pushed_over_on_force_only(ours: Hub) -> None:
    ours.add("owner/dog", {"config.json": b"{}"})
    assert "with --force" in one_line(svdiff("push", "dog.safetensors", "owner/dog"))
    assert svdiff("push", "dog.safetensors", "owner/dog", "--force").code == 0


# pull


def test_pull_says_what_it_fetched(full: Hub, folder: Path) -> None:
    commit = full.refs["alice/cat"]["v1"]
    outcome = svdiff("pull", "alice/cat@v1", "-o", "mine.safetensors")
    assert outcome.out.splitlines() == [
        f"alice/cat@{commit}/svdiff.safetensors: fetched, {len(dumps(CAT)):,} bytes",
        "valid: 4 parameters, 23 numbers",
        "wrote mine.safetensors",
    ]
    assert (folder / "mine.safetensors").read_bytes() == dumps(CAT)
    assert "is in the cache" in svdiff("pull", "alice/cat@v1").out


def test_a_dry_pull_fetches_nothing(full: Hub, folder: Path) -> None:
    outcome = svdiff("pull", "alice/dog", "-o", "mine.safetensors", "--dry-run")
    assert "would be fetched" in outcome.out
    assert "would write mine.safetensors" in outcome.out
    assert not full.sent
    assert not (folder / "mine.safetensors").exists()


def test_pull_prints_json(full: Hub) -> None:
    found = json.loads(svdiff("pull", "alice/dog", "-o", "mine", "--json").out)
    assert found == {
        "reference": f"alice/dog@{full.refs['alice/dog']['main']}/svdiff.safetensors",
        "bytes": len(dumps(DOG)),
        "fetched": True,
        "output": "mine",
        "parameters": 4,
        "numbers": 23,
        "written": True,
    }


def test_a_quiet_pull_prints_nothing(full: Hub) -> None:
    before = logging.get_verbosity()
    assert svdiff("pull", "alice/dog", "-q") == Outcome(0, "", "")
    assert logging.get_verbosity() == before


def test_pull_overwrites_on_force_only(full: Hub) -> None:
    assert "exists already" in one_line(svdiff("pull", "alice/dog", "-o", "cat.safetensors"))
    assert svdiff("pull", "alice/dog", "-o", "cat.safetensors", "--force").code == 0
    assert load(Path("cat.safetensors")).metadata.title == "dog"


# A reference wherever a DELTA stands


def test_commands_take_deltas_of_the_hub_with_weights(full: Hub) -> None:
    assert svdiff("add", "alice/dog:0.5", "hf://alice/cat@v1:0.25", "-o", "sum").code == 0
    assert svdiff("add", "dog.safetensors:0.5", "cat.safetensors:0.25", "-o", "same").code == 0
    assert Path("sum").read_bytes() == Path("same").read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "alice/dog"],
        ["lineage", "alice/dog"],
        ["verify", "alice/dog"],
        ["diff", "alice/dog", "alice/cat@v1/svdiff.safetensors"],
        ["correlate", "alice/dog", "alice/cat@v1"],
        ["interfere", "alice/dog", "alice/cat@v1"],
        ["interpolate", "alice/dog", "alice/cat@v1", "--alpha", "0.5", "-o", "out"],
        ["scale", "alice/dog", "--factor", "0.5", "-o", "out"],
        ["slice", "alice/dog", "unet", "-o", "out"],
        ["truncate", "alice/dog", "--rank", "2", "-o", "out"],
        ["quantize", "alice/dog", "--max-error", "1", "-o", "out"],
        ["merge", "alice/dog:2", "alice/cat@v1", "-o", "out"],
        ["plot", "alice/dog", "-o", "out.png"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_delta_of_the_hub_stands_wherever_a_delta_does(full: Hub, arguments: list[str]) -> None:
    outcome = svdiff(*arguments)
    assert outcome.code == 0, outcome.err
    assert full.sent


def test_a_lineage_of_the_hub_is_replayed(full: Hub, folder: Path) -> None:
    svdiff("add", "dog.safetensors", "cat.safetensors", "-o", "sum.safetensors")
    full.add("alice/sum", {"svdiff.safetensors": (folder / "sum.safetensors").read_bytes()})
    assert "the same bytes when replayed from 2 inputs" in svdiff("verify", "alice/sum", "--replay", folder).out


def test_a_recipe_takes_deltas_of_the_hub(full: Hub, folder: Path) -> None:
    inputs = "inputs: [{delta: alice/dog, weight: 0.5}, {delta: cat.safetensors}]\n"
    (folder / "recipe.yaml").write_text(inputs)
    assert svdiff("merge", "--recipe", "recipe.yaml", "-o", "out").code == 0
    (folder / "recipe.yaml").write_text(inputs.replace("alice/dog", "dog.safetensors"))
    assert svdiff("merge", "--recipe", "recipe.yaml", "-o", "same").code == 0
    assert Path("out").read_bytes() == Path("same").read_bytes()


def test_a_path_that_exists_is_no_repository(full: Hub, folder: Path) -> None:
    (folder / "alice").mkdir()
    saved(CAT, folder / "alice" / "dog")
    assert "title       cat" in svdiff("info", "alice/dog").out
    assert not full.asked
    assert "title       dog" in svdiff("info", "hf://alice/dog").out


def test_a_repository_without_a_delta_is_one_line(full: Hub) -> None:
    full.add("alice/base", {"README.md": b"", "model.safetensors": b""})
    assert one_line(svdiff("info", "alice/base")) == (
        "error: alice/base: has no svdiff.safetensors; it has README.md, model.safetensors: "
        "name one of its files, such as alice/base/model.safetensors\n"
    )


def test_a_delta_and_a_base_of_the_hub_are_converted_row_by_row(full: Hub, folder: Path) -> None:
    full.add("alice/tiny", {"svdiff.safetensors": dumps(of_tiny("unet.mid_block.*.attn2.to_k.weight"))})
    full.add("alice/base", folder_files(base_path()))
    assert svdiff("convert", "alice/tiny", "--to", "full", "--base", "alice/base", "-o", "one.safetensors").code == 0
    row = {"input": "alice/tiny", "output": "two.safetensors", "to": "full", "base": "alice/base"}
    (folder / "all.jsonl").write_text(json.dumps(row) + "\n")
    outcome = svdiff("convert", "--manifest", "all.jsonl")
    assert outcome.code == 0, outcome.err
    assert Path("one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()


# As users run it


def test_push_and_pull_work_in_processes_of_their_own(hub: Hub, folder: Path) -> None:
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
    }
    hub.large = (".safetensors",)
    push = ["push", "dog.safetensors", "owner/dog", "--license", "mit"]
    code = f"import warnings\nwarnings.filterwarnings('ignore', \"Use 'content=\", DeprecationWarning)\n{SVDIFF}"
    sent = python(code, *push, folder=folder, **environment)
    assert (sent.code, sent.err) == (0, "")
    pulled = python(SVDIFF, "pull", "owner/dog", "-o", "again", folder=folder, **environment)
    assert (pulled.code, pulled.err) == (0, "")
    assert (folder / "again").read_bytes() == dumps(DOG)
    offline = python(SVDIFF, "info", "owner/dog", folder=folder, **environment | {"HF_HUB_OFFLINE": "1"})
    assert offline.code == 0
