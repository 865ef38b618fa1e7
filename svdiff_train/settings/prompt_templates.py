"""Word the prompts of Cut-Mix samples: a noun phrase of each concept, put into a template (section 3.3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import Formatter
from typing import Final

from svdiff_delta.errors import InputError

BESIDE: Final = ("photo of {first} on the left and {second} on the right", "photo of {second} and {first}")
"""The paper's two wordings, where `first` is left of `second`."""

ABOVE: Final = ("photo of {first} at the top and {second} at the bottom", "photo of {second} and {first}")
"""The same where `first` is above `second`."""

PARTS: Final = ("first", "second")
_PHOTO: Final = re.compile(r"\s*(?:(?:a|the)\s+)?(?:photo|picture)\s+of\s+(.*\S)\s*", re.IGNORECASE | re.DOTALL)


def phrase_of(prompt: str) -> str:
    """Return a prompt's noun phrase: of "a photo of a V1 dog" it is "a V1 dog"; of what is worded otherwise, all."""
    match = _PHOTO.fullmatch(prompt)
    return match[1] if match else prompt.strip()


def mixed_prompt(template: str, first: str, second: str) -> str:
    """Return a template with the noun phrases of two concepts in it."""
    return template.format(first=first, second=second)


def check_templates(name: str, templates: Sequence[str]) -> None:
    """Check templates of mixed prompts.

    Args:
        name: of the setting they are, for errors.
        templates: format strings with {first} and {second}.

    Raises:
        InputError: there is none, or one does not have both fields once, or has another.
    """
    if not templates:
        raise InputError(f"{name} has no template", fix="leave it out to take the paper's")
    for template in templates:
        try:
            parsed = [*Formatter().parse(template)]
        except ValueError as error:
            raise InputError(f"{name}: {template!r} is no format string ({error})") from None
        fields = [field for _, field, _, _ in parsed if field is not None]
        plain = all(not spec and conversion is None for _, _, spec, conversion in parsed)
        if sorted(fields) != sorted(PARTS) or not plain:
            raise InputError(
                f"{name}: {template!r} must have {{first}} and {{second}} once each, and nothing else in braces",
                fix="write it like 'photo of {first} and {second}'",
            )
