"""Turn what the Hub and its library refuse into one line that says how to mend it."""

from __future__ import annotations

import json
import logging
from typing import Any, Final

from svdiff_delta._text.printable import printable
from svdiff_delta._text.tokens import strike
from svdiff_delta.errors import HubError

LOGIN: Final = "log in with `hf auth login`, or set HF_TOKEN"
AGAIN: Final = "try again later"
LONGEST: Final = 200
"""Characters of what a server says that are passed on."""


def client_errors() -> tuple[type[BaseException], ...]:
    """Return what the Hub's library raises, and the HTTP client under it, which differs between its versions."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    # RuntimeError: an upload that failed, with its reason as the cause
    return (OSError, ValueError, RuntimeError, EntryNotFoundError, *HfHubHTTPError.__bases__)


class _Harmless(logging.Filter):
    """Strikes tokens and control characters out of what the Hub's library logs: it repeats what servers say."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record, and let it pass."""
        lines = strike(record.getMessage()).split("\n")
        record.msg, record.args = "\n".join(map(printable, lines)), ()
        return True


_HARMLESS: Final = _Harmless()


def guard_logs() -> None:
    """Let the Hub's library log no token and no control character."""
    from huggingface_hub.utils import logging as theirs

    for handler in theirs.get_logger().handlers:
        handler.addFilter(_HARMLESS)  # a second time does nothing


def is_unreachable(error: BaseException) -> bool:
    """Tell whether the Hub was not reached, so that the local cache has to do."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    return isinstance(error, LocalEntryNotFoundError) or not isinstance(error, ValueError | RuntimeError)


def answered(error: BaseException) -> bool:
    """Tell whether the Hub answered, if only with an error."""
    return _status(error) is not None


def explain(what: object, error: BaseException, *, sending: bool = False) -> HubError:
    """Return an error in one line for an exception of the Hub's library, which takes many.

    Args:
        what: the reference or repository that was asked for.
        error: what the library raised.
        sending: whether something was to be written there.
    """
    from huggingface_hub import errors

    while isinstance(error, RuntimeError | errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, errors.GatedRepoError):
        return HubError(f"{what}: access to it is restricted", fix=f"ask for it on the model's page, and {LOGIN}")
    if isinstance(error, errors.RevisionNotFoundError):
        revision = getattr(what, "revision", None)
        return HubError(f"{what}: the repository has no revision {revision!r}", fix="name a branch, tag or commit")
    if isinstance(error, errors.RepositoryNotFoundError):
        return _no_repository(what, sending=sending)
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return HubError(f"{what}: the repository has no such file", fix="name a file that is there")
    status = _status(error)
    if status is not None:
        return _explain_status(what, status, error)
    return _explain_local(what, error, sending=sending)


def not_here(what: object) -> HubError:
    """Return the error for a reference that the local cache lacks and that cannot be fetched."""
    return HubError(
        f"{what}: there is no such file or folder, it is not in the local Hub cache, and the Hub was not reached",
        fix="go online without HF_HUB_OFFLINE, or name a local file or folder",
    )


def _no_repository(what: object, *, sending: bool) -> HubError:
    if sending:
        return HubError(f"{what}: the Hub shows no such repository to this token", fix=f"check the name, and {LOGIN}")
    return HubError(
        f"{what}: there is no such file or folder, and no such repository on the Hub",
        fix=f"check the name; for a private repository {LOGIN}",
    )


def _explain_status(what: object, status: int, error: Any) -> HubError:
    said = _said(error)
    if status == 401:
        return HubError(f"{what}: the Hub does not accept the token (401{said})", fix=LOGIN)
    if status == 403:
        return HubError(
            f"{what}: the token has no right to do this (403{said})",
            fix="use a token that may write to this owner's repositories, or name a repository of your own",
        )
    if status == 429:
        wait = error.response.headers.get("Retry-After", "")
        fix = f"try again in {int(wait)} s" if wait.isdecimal() else AGAIN
        return HubError(f"{what}: the Hub was asked too often (429)", fix=fix)
    if status in (409, 412):
        return HubError(f"{what}: it was changed meanwhile ({status}{said})", fix="do it again")
    if status >= 500:
        return HubError(f"{what}: the Hub has a problem of its own ({status})", fix=AGAIN)
    return HubError(f"{what}: the Hub refused this ({status}{said})", fix="mend what it names")


def _explain_local(what: object, error: BaseException, *, sending: bool) -> HubError:
    from huggingface_hub import errors

    if isinstance(error, errors.FileMetadataError | json.JSONDecodeError):
        return HubError(f"{what}: the server does not answer as a Hub does", fix="check HF_ENDPOINT and the proxy")
    if isinstance(error, errors.HFValidationError):
        return HubError(f"{what}: there is no such file or folder, and this names no repository")
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return HubError(f"{what}: the Hub refused this ({_line(str(error))})", fix="mend what it names")
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return HubError(f"{what}: the download has another size than the Hub said", fix="fetch it again")
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return HubError(f"{what}: could not be fetched ({error.strerror})", fix="free some space")
    if type(error).__name__ == "TooManyRedirects":
        return HubError(f"{what}: the server sends on and on, from one address to another", fix="check HF_ENDPOINT")
    if isinstance(error, OSError) or type(error).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError"):
        return _not_reached(what) if sending else not_here(what)
    return HubError(f"{what}: the connection to the Hub broke off ({type(error).__name__})", fix="do it again")


def _not_reached(what: object) -> HubError:
    return HubError(f"{what}: the Hub was not reached", fix="go online without HF_HUB_OFFLINE")


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _said(error: Any) -> str:
    message = getattr(error, "server_message", None)
    return f": {_line(message)}" if message else ""


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
