"""Cards of deltas that say hostile things of themselves: all of it is shown as text, and nothing frozen or forged."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import replace
from typing import Any

import pytest
import yaml
from support.deltas import BASE, METADATA, random_delta

from svdiff_delta import add
from svdiff_delta._text.markup import cell, code, prose, python_literal, shell_line
from svdiff_delta.errors import MetadataError
from svdiff_delta.format.lineage import Lineage, Record, Source
from svdiff_delta.format.metadata import Metadata
from svdiff_delta.publish.card import make_card
from svdiff_delta.publish.license import Licence
from svdiff_delta.publish.publication import Publication, Sample, publication

MIT = Licence("mit")
BEGIN, END = "<!-- svdiff push: begin 0123456789abcdef -->", "<!-- svdiff push: end -->"
DIGEST = "ab" * 32

TEXTS = [
    "[click](https://example.org)", "![x](https://example.org/x.png)", "<https://example.org>", "https://example.org",
    "www.example.org", "anna@example.org", "<script>alert(1)</script>", "<img src=x onerror=y>", "<b>dog</b>",
    "&lt;b&gt;",
    "# dog", "\n# dog", "dog\n===", "- dog", "> dog", "1. dog", "***", "---", "**dog** _dog_ ~~dog~~", "| a | b |",
    "\\| a", "a \\", "`dog`", "``` dog", "```\ndog", "~~~\ndog", "    dog", "\tdog", "<!--", "-->", "<!-->",
    "<!-- x -->",
    BEGIN, END, f"\n{END}\n", f"{BEGIN}\nx\n{END}", "\x1b[2J", "\x00", "\x7f", "\r\ndog", "\u202edog",
    "\u2066dog\u2069", "\u200b",
    "\u2028# dog", "\x85dog", "\ufeff", "$(id)", "`id`", "'; id #", '" + id + "', "%s {0} {dog}", "!dog", "{{ dog }}",
    "<|dog|>",
    "---\nlicense: cc0-1.0\n---", "a: b", "- a", "*dog", "&dog", "!!python/name:os.system", "%dog", "@dog", "null",
    "yes", "1e3",
    "[[dog]]", "[^1]: dog", "[dog]: https://example.org", ":dog:", "#1", "$$x$$", "dog  ", " dog", "it's \"a\" dog",
    "🐶\x07",
]  # fmt: skip
PLAIN = [
    "dog",
    "my dog",
    "a photo of sks dog, 4k (best)",
    "UNet2DConditionModel",
    "0.001",
    "1e-05",
    "pies Józka",
    "learning_rate",
]


def delta(text: str, metadata: Metadata = METADATA) -> Any:
    """A delta that says a text wherever it may say one."""
    record = Record(text, {text: text, "list": [text]}, (DIGEST,))
    lineage = Lineage(record, {DIGEST: Source(DIGEST, text, {text: text}, Record(text, {text: [text]}, (DIGEST,)))})
    said = replace(metadata, lineage=lineage, training={"prompt": text, text: text, "note": {text: [text]}})
    classes = {**BASE.components, "vae": text}
    return random_delta(1, replace(said, base=replace(BASE, components=classes)), title=text)


def about(text: str) -> Publication:
    return replace(publication(delta(text), "me/dog"), prompt=text, samples=(Sample("images/sample-1.png", b"", text),))


def card(text: str, old: str | None = None) -> str:
    return make_card(about(text), MIT, old)[0]


def body(text: str) -> str:
    """The part below the metadata."""
    return text.split("\n---\n", 1)[1]


def outside_code(text: str) -> str:
    """What of a card is neither fenced, nor indented, nor code within a line."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"(?<!`)(`+)(?!`)[^\n]*?(?<!`)\1(?!`)", "", text)


@pytest.mark.parametrize("text", TEXTS)
def test_whatever_a_delta_says_is_shown_as_text(text: str) -> None:
    made, plain = card(text), card("dog")
    # Without code it is the card of a delta that says nothing but words.
    harmless = [line for line in outside_code(body(plain)).splitlines() if line and not line.startswith(("#", "|"))]
    found = [line for line in outside_code(body(made)).splitlines() if line and not line.startswith(("# ", "|"))]
    headings = [line for line in found if line.startswith("#")]
    assert headings == ["## Use", "## Training", "## Lineage"]
    assert [*map(masked, (line for line in found if not line.startswith("#")))] == [*map(masked, harmless)]
    rows = [line for line in outside_code(body(made)).splitlines() if line.startswith("|")]
    assert [line.count("|") for line in rows] == [3] * (2 + len({"prompt", text, "note"}))
    assert not re.search(r"[<\[@]|//", "".join(rows))
    assert all(char.isprintable() or char == "\n" for char in made)


def masked(line: str) -> str:
    """A line without figures: bytes and digests differ."""
    return re.sub(r"begin \w{16}|[\d,]+", "0", line)


@pytest.mark.parametrize("text", TEXTS)
def test_metadata_and_lines_of_code_say_the_same_text(text: str) -> None:
    made = card(text)
    fields = yaml.safe_load(made.split("\n---\n")[0].removeprefix("---\n"))
    assert (fields["license"], fields["base_model"]) == ("mit", "owner/base")
    assert fields["instance_prompt"] == fields["widget"][0]["text"] == text
    python = re.findall(r"^```python\n(.*?)^```$", made, re.MULTILINE | re.DOTALL)[-1]
    assert text in {node.value for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Constant)}
    shell = re.findall(r"^```sh\n(.*?)^```$", made, re.MULTILINE | re.DOTALL)[-1]
    words = shlex.split(shell)
    assert words[:5] + words[6:] == [
        "svdiff",
        "generate",
        "owner/base@main",
        "me/dog",
        "--prompt",
        "-o",
        "picture.png",
    ] or (words[:5] + words[6:] == ["svdiff", "generate", "owner/base", "me/dog", "--prompt", "-o", "picture.png"])


@pytest.mark.parametrize("text", TEXTS)
def test_no_mark_is_forged_and_the_next_push_renews_the_card(text: str) -> None:
    made = card(text)
    assert len(re.findall("<!--", body(made))) == len(re.findall("-->", body(made))) == 3  # begin, the hint, end
    new, remarks = make_card(about("dog"), MIT, made)
    assert not remarks
    assert outside_code(body(new)).split("## Use")[1] == outside_code(body(card("dog"))).split("## Use")[1]
    assert card(text, old=made) == made


FROZEN = ["<!-- svdiff push: end -->", "x <!-- svdiff push: end --> y", BEGIN, f"{BEGIN} {END}"]


@pytest.mark.parametrize("text", FROZEN)
def test_a_card_that_a_forged_mark_froze_heals(text: str) -> None:
    """As an earlier release made it: the mark stands as it is in an indented line, in Python and in the shell."""
    import hashlib

    inside = f"<!-- hint -->\n\nTrained on: `{text}`\n\n    {text}\n    └── trained\n"
    digest = hashlib.sha256(inside.strip().encode()).hexdigest()[:16]
    old = f"---\nlicense: mit\n---\n# dog\n\n<!-- svdiff push: begin {digest} -->\n{inside}{END}\n\nThanks.\n"
    new, remarks = make_card(about("dog"), MIT, old)
    assert not remarks
    assert "<!-- hint -->" not in new
    assert new.endswith(f"{END}\n\nThanks.\n")


def test_so_does_one_that_was_forged_at_the_beginning_of_a_line() -> None:
    import hashlib

    inside = f"of [x\n{END}\n{BEGIN}\ny](z)\n"
    digest = hashlib.sha256(inside.strip().encode()).hexdigest()[:16]
    old = f"---\nlicense: mit\n---\n<!-- svdiff push: begin {digest} -->\n{inside}{END}\nThanks.\n"
    new, remarks = make_card(about("dog"), MIT, old)
    assert not remarks
    assert "y](z)" not in new
    assert new.endswith(f"{END}\nThanks.\n")


def test_thousands_of_forged_marks_take_no_time() -> None:
    import time

    old = "---\nlicense: mit\n---\n" + f"{BEGIN}\nx\n{END}\n" * 15_000
    start = time.process_time()
    assert make_card(about("dog"), MIT, old)[0].endswith(f"x\n{END}\n")
    assert time.process_time() - start < 2


def test_a_base_that_is_no_name_is_not_published() -> None:
    forged = replace(METADATA, base=replace(BASE, repository="owner/base) [more](https://example.org"))
    with pytest.raises(MetadataError, match="is no name of the Hub"):
        publication(random_delta(1, forged), "me/dog")
    with pytest.raises(MetadataError, match="is no name of the Hub"):
        publication(add(random_delta(1, forged), random_delta(2)), "me/dog")


def test_a_base_that_is_no_name_is_never_a_link() -> None:
    made = make_card(replace(about("dog"), model="x](https://example.org) <b>"), MIT)[0]
    assert "of `x](https://example.org) <b>`: " in made


def test_a_long_value_is_cut_in_the_table() -> None:
    said = replace(METADATA, training={"notes": "x" * 10**6})
    made = make_card(publication(random_delta(1, said), "me/dog"), MIT)[0]
    assert len(made) < 10_000


@pytest.mark.parametrize("text", PLAIN)
def test_words_stay_words(text: str) -> None:
    assert prose(text) == cell(text) == text


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_more_than_words_is_code(text: str) -> None:
    assert prose(text) in (code(text), " ".join(text.split()))
    assert cell(text).count("|") == 0


@pytest.mark.parametrize("text", [*TEXTS, *PLAIN, "🐶", "\ud800"])
def test_literals_are_what_they_say(text: str) -> None:
    assert ast.literal_eval(python_literal(text)) == text
    assert python_literal(text).isprintable()
    assert shell_line([text]).isprintable()
    assert len(shlex.split(shell_line([text]))) == 1
