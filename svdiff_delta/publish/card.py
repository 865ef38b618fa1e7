"""The model card of a delta: made from what its file says, and around what its owner wrote."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

from svdiff_delta._text.markup import cell, code, inert, link, prose
from svdiff_delta.hub_client.download import WEIGHTS
from svdiff_delta.hub_client.names import EMBEDDED, is_repository
from svdiff_delta.ops.lineage_tree import draw

from .card_metadata import ParsedCard, parse_card, write_card
from .card_snippet import paints, python_usage, shell_usage
from .license import Licence
from .publication import Publication

LIBRARY: Final = "svdiff-delta"
LORA: Final = "pytorch_lora_weights.safetensors"
"""The name under which diffusers looks for LoRA in a repository."""

_BEGIN: Final = re.compile(r"^<!-- svdiff push: begin(?: (?P<digest>[0-9a-f]{16}))? -->\r?\n", re.MULTILINE)
_END: Final = re.compile(r"^<!-- svdiff push: end -->", re.MULTILINE)
# Only at the beginning of a line, where nothing that a file says ever stands.
_MOST_ENDS: Final = 64
"""Ends that are looked at: a card has one, and another where somebody forged it."""

_HINT: Final = "<!-- Made by `svdiff push`. If you change it, it stays yours; empty it to have it made anew. -->"


def make_card(about: Publication, licence: Licence, old: str | None = None) -> tuple[str, tuple[str, ...]]:
    """Return a card, and remarks about what of the old one was kept.

    What the owner wrote stays: fields that are not made here, a licence, a prompt, tags, pictures where no new ones
    come, all text outside the marks of the generated part, and that part too if it was changed.

    Args:
        about: what is published.
        licence: under which.
        old: the card that is there.

    Raises:
        InputError: the metadata of the old card are broken.
    """
    before = parse_card(old) if old is not None and old.strip() else None
    fields = _fields(about, licence, {} if before is None else before.fields)
    body = "\n".join(_lines(about, gallery="widget" in fields)) + "\n"
    section = f"<!-- svdiff push: begin {_digest(body)} -->\n{body}<!-- svdiff push: end -->"
    if before is None:
        return write_card(fields, f"\n# {prose(about.title)}\n\n{section}\n"), ()
    text, remarks = _renew(before, section)
    return write_card(fields, text, before), remarks


def prompt_in(card: str | None) -> str | None:
    """Return the prompt that a card names, if it does."""
    prompt = parse_card(card or "").fields.get("instance_prompt")
    return prompt if isinstance(prompt, str) and prompt else None


def _renew(old: ParsedCard, section: str) -> tuple[str, tuple[str, ...]]:
    """Return the text of a card with its generated part replaced, unless that was changed or is not there."""
    found = _sections(old.text)
    if len(found) != 1:
        return old.text, ("README.md has no part that `svdiff push` made: its text is kept as it is",)
    ((first, last, own),) = found
    if not own:
        return old.text, ("the generated part of README.md was changed, and is kept; empty it to have it made anew",)
    return old.text[:first] + section + old.text[last:], ()


def _sections(text: str) -> list[tuple[int, int, bool]]:
    """Return where generated parts begin and end, and whether each is as it was made, or empty.

    A part ends where its digest says, whatever end of one stands in it: earlier releases let titles forge one.
    """
    ends, found, position = [*islice(_END.finditer(text), _MOST_ENDS)], [], 0
    for begin in islice(_BEGIN.finditer(text), _MOST_ENDS):
        below = [end for end in ends if end.start() >= begin.end()]
        if begin.start() < position or not below:
            continue
        bodies = ((end, text[begin.end() : end.start()]) for end in below)
        own = next((end for end, body in bodies if begin["digest"] == _digest(body)), None)
        last = own or below[0]
        empty = not text[begin.end() : last.start()].strip()
        position = last.end()
        found.append((begin.start(), position, own is not None or empty))
    return found


def _digest(body: str) -> str:
    return hashlib.sha256(body.replace("\r\n", "\n").strip().encode()).hexdigest()[:16]


def _fields(about: Publication, licence: Licence, old: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata: those of the old card in their order, with what is known now."""
    from huggingface_hub import ModelCardData

    components = about.delta.metadata.base.components
    painter = paints(components)
    known = old.get("tags") or []
    tags = [*(known if isinstance(known, list) else [known])]
    tags += [tag for tag in ["svdiff", "spectral-shift", *(["diffusers"] if painter else [])] if tag not in tags]
    extra: dict[str, Any] = {}
    if about.base_model is not None:
        extra["base_model_relation"] = "adapter"
    if about.prompt is not None:
        extra["instance_prompt"] = about.prompt
    if about.samples:
        extra["widget"] = [{"text": sample.prompt, "output": {"url": sample.name}} for sample in about.samples]
    made: dict[str, Any] = ModelCardData(
        license=licence.identifier,
        license_name=licence.name,
        license_link=licence.link,
        base_model=about.base_model,
        library_name=LIBRARY,
        pipeline_tag="text-to-image" if painter else None,
        tags=tags,
        **extra,
    ).to_dict()
    if "pipeline_tag" in old:
        made["pipeline_tag"] = old["pipeline_tag"]
    replaced = {"license_name", "license_link", "base_model", "base_model_relation"} - made.keys()
    return {key: value for key, value in old.items() if key not in replaced} | made


def _lines(about: Publication, *, gallery: bool) -> Iterator[str]:
    """Yield the lines of the generated part."""
    metadata, model = about.delta.metadata, about.model
    yield _HINT
    yield ""
    if gallery:
        yield from ("<Gallery />", "")
    yield (
        f"Spectral shifts ([SVDiff](https://arxiv.org/abs/2303.11305)) of {_link(model)}: {metadata.numbers:,} numbers "
        f"for {len(about.delta)} weights, in a file of {len(about.content):,} bytes. The file knows the base's weights "
        "by their fingerprints: on any other it is refused."
    )
    if about.prompt is not None:
        yield from ("", f"Trained on: {code(about.prompt)}")
    yield from ("", "## Use", "", "```sh", "pip install 'svdiff-delta[train]'", "```", "", "```python")
    yield python_usage(about.repository, metadata.base, model, about.prompt)
    yield from ("```", "", "```sh", shell_usage(about.repository, metadata.base, model, about.prompt), "```")
    if about.lora is not None:
        yield ""
        yield f"`{LORA}` is a low-rank copy for programs that know LoRA only; the delta itself is exact."
    if metadata.training:
        yield from ("", "## Training", "", "| | |", "| --- | --- |")
        for key, value in metadata.training.items():
            yield f"| {cell(key)} | {cell(value)} |"
    # Indented, not fenced: a title in it may hold a fence.
    yield from ("", "## Lineage", "", *(f"    {inert(line)}" for line in draw(metadata, title=about.title)))
    yield from ("", f"SHA-256 of `{WEIGHTS}`: `{about.sha256}`")


def _link(model: str) -> str:
    if model == EMBEDDED:
        return "the base that is embedded in svdiff-delta"
    return link(model, f"https://huggingface.co/{model}") if is_repository(model) else code(model)
