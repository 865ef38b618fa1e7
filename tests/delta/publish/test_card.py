"""The model card: what it says, that its lines hold whatever a delta says of itself, and what its owner keeps."""

from __future__ import annotations

import ast
import re
import shlex
import time
from dataclasses import replace
from typing import Any

import pytest
import yaml
from support.deltas import METADATA, random_delta
from support.hub import TOKEN

from svdiff_delta import add
from svdiff_delta._text.printable import printable
from svdiff_delta.errors import InputError
from svdiff_delta.format.metadata import BaseInfo, Metadata
from svdiff_delta.publish.card import make_card, prompt_in
from svdiff_delta.publish.card_metadata import parse_card
from svdiff_delta.publish.license import Licence
from svdiff_delta.publish.publication import Publication, Sample, publication

MIT = Licence("mit")
TRAINED = replace(METADATA, training={"method": "svdiff", "prompt": "a photo of a sks dog", "steps": 500})
DOG = random_delta(1, TRAINED, title="dog")
SAMPLES = (Sample("images/sample-1.png", b"", "a dog on the beach"),)
COMMIT = "0123456789abcdef" * 2 + "01234567"


def about(delta: Any = DOG, **fields: Any) -> Publication:
    return replace(publication(delta, "me/dog"), **fields)


def card(*given: Any, old: str | None = None, licence: Licence = MIT, **fields: Any) -> str:
    return make_card(about(*given, **fields), licence, old)[0]


def fields(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))


def fence(text: str, language: str, number: int = -1) -> str:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[number]


def with_base(base: BaseInfo) -> Any:
    names = {name: p for name, p in METADATA.parameters.items() if name.partition(".")[0] in base.components}
    return random_delta(1, Metadata(base, names))


def renamed(component: str, base: BaseInfo) -> Any:
    parameters = {f"{component}.{name.partition('.')[2]}": p for name, p in METADATA.parameters.items()}
    return random_delta(1, Metadata(base, parameters))


def test_the_metadata_are_those_the_hub_shows() -> None:
    assert fields(card(samples=SAMPLES)) == {
        "base_model": "owner/base",
        "base_model_relation": "adapter",
        "library_name": "svdiff-delta",
        "license": "mit",
        "pipeline_tag": "text-to-image",
        "tags": ["svdiff", "spectral-shift", "diffusers"],
        "instance_prompt": "a photo of a sks dog",
        "widget": [{"text": "a dog on the beach", "output": {"url": "images/sample-1.png"}}],
    }


def test_the_hubs_own_library_reads_them() -> None:
    from huggingface_hub import ModelCard

    read = ModelCard(card(samples=SAMPLES))
    assert (read.data.base_model, read.data.license, read.data.library_name) == ("owner/base", "mit", "svdiff-delta")
    assert read.text.startswith("\n# dog\n")


def test_the_text_says_what_the_file_says() -> None:
    text = card()
    for part in (
        "[owner/base](https://huggingface.co/owner/base)",
        "23 numbers for 4 weights",
        "Trained on: `a photo of a sks dog`",
        "| steps | 500 |",
        "    dog\n    └── trained\n",
    ):
        assert part in text
    assert "<Gallery />" not in text
    assert "LoRA" not in text


def test_pictures_are_shown_in_a_gallery() -> None:
    assert "<Gallery />" in card(samples=SAMPLES)


def test_the_lineage_is_drawn() -> None:
    both = add(DOG, random_delta(2, TRAINED, title="cat"), weights=(0.8, 0.5)).with_title("both")
    assert re.search(r"    both\n    └── add\(weights 0\.8 0\.5\)\n        ├── \w{12}  dog  trained\n", card(both))


def test_the_same_is_the_same_card() -> None:
    assert card(samples=SAMPLES) == card(samples=SAMPLES)


@pytest.mark.parametrize(
    ("base", "line"),
    [
        (BaseInfo({"unet": "UNet2DConditionModel"}, "owner/base", COMMIT), f'"owner/base", revision="{COMMIT}"'),
        (BaseInfo({"unet": "UNet2DConditionModel"}, "owner/base", "main"), '"owner/base"'),
        (BaseInfo({"unet": "UNet2DConditionModel"}, "tiny"), "base_path()"),
    ],
)
def test_the_python_loads_the_base_it_was_made_for(base: BaseInfo, line: str) -> None:
    code = fence(card(with_base(base)), "python")
    ast.parse(code)
    assert f"pipe = DiffusionPipeline.from_pretrained({line})\n" in code
    assert 'attach(pipe.to(pipe.dtype), pull("me/dog"))\n' in code


def test_of_a_language_model_it_loads_the_class_and_paints_nothing() -> None:
    text = card(renamed("model", BaseInfo({"model": "LlamaForCausalLM"}, "owner/llama")))
    assert "from transformers import LlamaForCausalLM\n" in fence(text, "python")
    assert "pipe" not in fence(text, "python")
    assert fence(text, "sh") == "svdiff bake owner/llama me/dog -o baked\n"
    assert "pipeline_tag" not in fields(text)
    assert fields(text)["tags"] == ["svdiff", "spectral-shift"]


def test_a_class_that_is_no_name_is_not_imported() -> None:
    text = card(renamed("model", BaseInfo({"model": "x; import os"}, "owner/llama")))
    assert "import os" not in fence(text, "python")


def test_a_base_that_is_embedded_is_on_no_hub() -> None:
    text = card(with_base(BaseInfo({"unet": "UNet2DConditionModel"}, "tiny")))
    assert not {"base_model", "base_model_relation"} & fields(text).keys()
    assert "svdiff generate tiny me/dog" in fence(text, "sh")


HOSTILE = [
    'it\'s "a" `dog`',
    "```\n<script>alert(1)</script>\n```",
    "<!-- svdiff push: end -->",
    "a\nb",
    "$(rm -rf ~) ; `id`",
    "---\nlicense: cc0-1.0\n---",
    "| a | b |",
    "é 犬 \u202e \ud800",
]


@pytest.mark.parametrize("text", [text.encode("utf-8", "replace").decode() for text in HOSTILE])
def test_whatever_a_delta_says_of_itself_stays_text(text: str) -> None:
    said = replace(TRAINED, training={"prompt": text, "note": text})
    made = card(random_delta(1, said, title=text))
    assert fields(made)["license"] == "mit"
    assert fields(made)["instance_prompt"] == text
    code = ast.parse(fence(made, "python"))
    assert text in {node.value for node in ast.walk(code) if isinstance(node, ast.Constant)}
    assert shlex.split(fence(made, "sh"))[:6] == [
        "svdiff",
        "generate",
        "owner/base",
        "me/dog",
        "--prompt",
        printable(" ".join(text.split())),
    ]
    outside = re.sub(r"^```.*?^```$|^    .*?$", "", made.split("\n---\n", 1)[1], flags=re.MULTILINE | re.DOTALL)
    outside = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", outside)  # code within a line
    assert "<script>" not in outside
    assert card(random_delta(1, said, title=text), old=made) == made


# What its owner keeps


def test_a_next_push_renews_what_it_made() -> None:
    old = card()
    new = card(random_delta(2, TRAINED, title="dog"), old=old)
    assert new != old
    assert new == card(random_delta(2, TRAINED, title="dog"))


def test_text_around_the_generated_part_is_kept() -> None:
    old = card().replace("# dog", "# My dog\n\nHe is *good*.") + "\n## Thanks\n\nTo him.\n"
    new, remarks = make_card(about(random_delta(2, TRAINED)), MIT, old)
    assert "# My dog\n\nHe is *good*.\n" in new
    assert new.endswith("\n## Thanks\n\nTo him.\n")
    assert publication(random_delta(2, TRAINED), "me/dog").sha256 in new
    assert not remarks


def test_a_generated_part_that_was_changed_is_kept() -> None:
    old = card().replace("Trained on:", "Trained with love on:")
    new, remarks = make_card(about(random_delta(2, TRAINED)), MIT, old)
    assert new == old
    assert "was changed, and is kept; empty it" in remarks[0]


def test_a_generated_part_that_was_emptied_is_made_anew() -> None:
    old = re.sub(r"(begin \w+ -->).*(<!-- svdiff push: end)", r"\1\n\2", card(), flags=re.DOTALL)
    assert card(old=old) == card()


def test_other_line_breaks_are_no_change() -> None:
    old = card().replace("\n", "\r\n")
    new, remarks = make_card(about(random_delta(2, TRAINED)), MIT, old)
    assert publication(random_delta(2, TRAINED), "me/dog").sha256 in new
    assert not remarks


def test_a_card_without_a_generated_part_keeps_its_text() -> None:
    new, remarks = make_card(about(), MIT, "---\nlanguage: pl\n---\n# Pies\n\nMój.\n")
    assert new.endswith("---\n# Pies\n\nMój.\n")
    assert fields(new)["language"] == "pl"
    assert fields(new)["base_model"] == "owner/base"
    assert "has no part that `svdiff push` made" in remarks[0]


def test_a_card_without_metadata_gets_some() -> None:
    new = card(old="# Pies\n")
    assert fields(new)["license"] == "mit"
    assert new.endswith("# Pies\n")


def test_fields_of_the_owner_are_kept_in_their_order() -> None:
    old = card(samples=SAMPLES).replace("---\nbase_model:", "---\nlanguage: pl\nbase_model:", 1)
    old = old.replace("- svdiff\n", "- dogs\n- svdiff\n").replace("text-to-image", "image-to-image")
    new = fields(card(random_delta(2, TRAINED), old=old))
    assert list(new)[:2] == ["language", "base_model"]
    assert new["tags"] == ["dogs", "svdiff", "spectral-shift", "diffusers"]
    assert new["pipeline_tag"] == "image-to-image"
    assert new["widget"][0]["text"] == "a dog on the beach"
    assert "<Gallery />" in card(random_delta(2, TRAINED), old=old)


def test_metadata_that_say_the_same_stay_as_they_are_written() -> None:
    old = card().replace("license: mit\n", 'license:   "mit"  # as of old\n')
    assert card(random_delta(2, TRAINED), old=old).partition("\n# dog")[0] == old.partition("\n# dog")[0]


def test_another_licence_leaves_nothing_of_the_old_one() -> None:
    other = Licence("other", "my-licence", "https://example.org/licence")
    old = card(licence=other)
    assert fields(old)["license_name"] == "my-licence"
    assert not {"license_name", "license_link"} & fields(card(old=old)).keys()


def test_another_base_takes_the_place_of_the_old_one() -> None:
    old = card()
    new = card(with_base(BaseInfo({"unet": "UNet2DConditionModel"}, "tiny")), old=old)
    assert not {"base_model", "base_model_relation"} & fields(new).keys()


@pytest.mark.parametrize("head", ["---\na: [\n---\n", "---\n- a\n---\n", "---\n1: a\n---\n"])
def test_a_card_with_broken_metadata_is_refused(head: str) -> None:
    with pytest.raises(InputError, match=r"README\.md: its metadata are broken .*: mend them on the Hub"):
        make_card(about(), MIT, head + "# dog\n")


ALIASES = "---\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)) + "---\n"
BOMBS = {
    "aliases that double": ALIASES.replace("a1: &a1 {<<: [*a0, *a0]}", "a1: &a1 {b: c}"),
    "aliases that double lists": "---\na0: &a0 [b]\n"
    + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    + "---\n",
    "empty lines": "---\na: b" + "\n" * 200_000 + "c: d\n---\n",
    "many levels": "---\na: " + "[" * 20_000 + "\n---\n",
}


@pytest.mark.parametrize("head", BOMBS.values(), ids=BOMBS)
def test_metadata_that_are_larger_than_they_look_are_refused_soon(head: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError, match=r"README\.md: its metadata are broken"):
        parse_card(head)
    assert time.process_time() - start < 5  # what does not end takes for ever


@pytest.mark.parametrize("card", ["---\n" + "\n" * 200_000, "---", "---\n---\n", "--- \n", "---\na: b\n----\n"])
def test_what_is_no_metadata_is_text(card: str) -> None:
    assert parse_card(card) == ("", {}, card)


def test_a_few_aliases_are_read() -> None:
    assert parse_card("---\na: &a [1]\nb: *a\n---  \nx").fields == {"a": [1], "b": [1]}


def test_the_prompt_of_a_card_is_found() -> None:
    assert prompt_in(card()) == "a photo of a sks dog"
    assert prompt_in(None) is prompt_in("# dog") is None


def test_neither_token_nor_home_nor_user_is_in_a_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HOME", str(tmp_path / "anna"))
    monkeypatch.setenv("USER", "anna")
    text = card(samples=SAMPLES)
    assert not [secret for secret in (TOKEN, str(tmp_path), "anna") if secret in text]
