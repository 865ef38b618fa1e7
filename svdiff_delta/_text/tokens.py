"""Access tokens in text: known by their form, or as the one that is in use on this machine."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

STRUCK: Final = "***"
SHORTEST: Final = 8
"""Characters that the token in use has at least; a shorter one would be found in any text."""

LONGEST: Final = 4_096
"""Characters of a file with a token that are read."""

VARIABLES: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN")

_FORMS: Final = (
    r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{16,}",  # the Hub's
    r"(?<![A-Za-z0-9])hf_(?:oauth|jwt|app)_[\w.-]{8,}",
    r"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{20,}",  # GitHub's
    r"(?<![A-Za-z0-9])github_pat_\w{20,}",
    r"(?<![A-Za-z0-9])gl(?:pat|ptt|dt|rt)-[\w-]{16,}",  # GitLab's
    r"(?<![\w-])sk-(?=[\w-]{0,200}\d)(?=[\w-]{0,200}[A-Za-z])[\w-]{20,}",  # OpenAI's, Anthropic's and like ones
    r"(?<![\w-])sk_(?:live|test)_[A-Za-z0-9]{16,}",
    r"(?<![A-Za-z0-9])r8_[A-Za-z0-9]{30,}",  # Replicate's
    r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS's
    r"(?i:aws_(?:secret_access_key|session_token))[\"']?\s{0,9}[=:]\s{0,9}\S{8,}",
    r"(?<![\w-])AIza[\w-]{35}",  # Google's
    r"(?<![\w-])ya29\.[\w-]{20,}",
    r"(?<![\w-])xox[abeoprs]-[\w-]{10,}",  # Slack's
    r"(?<![\w-])(?:pypi-AgE[\w-]{20,}|npm_[A-Za-z0-9]{30,}|dop_v1_[0-9a-f]{40,})",
    r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",  # JSON Web Tokens
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----",
    r"(?i:\bauthorization)[\"']?\s{0,9}[=:]\s{0,9}[\"']?(?:[A-Za-z]{1,20}\s{1,9})?[^\s\"',]{6,}",
    r"(?i:\bbearer)\s{1,9}(?=[^\s\d]{0,200}\d)[\w.~+/-]{12,}=*",
    r"(?i:[?&](?:access_token|token|sig|signature|x-amz-(?:signature|credential|security-token)))=[^\s&\"']{8,}",
    r"\b[A-Z0-9_]{0,60}(?:TOKEN|SECRET|API_KEY|PASSWORD|PASSWD)=[^\s\"']{8,}",  # as shells set them
    r"(?<=://)[^\s/:@\"']{1,200}:[^\s/@\"']{1,200}(?=@)",  # in addresses
)
_TOKEN: Final = re.compile("|".join(_FORMS))


def find_token(text: str) -> str | None:
    """Return the first access token in a text, None if there is none."""
    own = next((token for token in _own() if token in text), None)
    match = _TOKEN.search(text)
    return own if own is not None else match[0] if match else None


def strike(text: str) -> str:
    """Return a text with `***` for every access token in it."""
    for token in _own():
        text = text.replace(token, STRUCK)
    return _TOKEN.sub(STRUCK, text)


def _own() -> list[str]:
    """Return the tokens in use, the longest first; that of a file only once the Hub's library is there to send it."""
    found = [os.environ.get(name, "") for name in VARIABLES]
    if (constants := sys.modules.get("huggingface_hub.constants")) is not None:
        # Not by its `get_token`, which in a notebook may ask the user.
        with suppress(OSError, ValueError), Path(constants.HF_TOKEN_PATH).open(encoding="utf-8") as stream:
            found.append(stream.read(LONGEST))
    return sorted({token.strip() for token in found if len(token.strip()) >= SHORTEST}, key=len, reverse=True)
