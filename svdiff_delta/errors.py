"""Every error the library raises on purpose.

    DeltaError
    ├── FormatError            the bytes are not a valid delta file
    │   ├── HeaderError        the safetensors container is broken (spec, section 3)
    │   ├── MetadataError      the `svdiff` document is broken (spec, section 5)
    │   ├── TensorError        a tensor has a wrong dtype, length or value (spec, section 4)
    │   └── VersionError       another major version, or a feature this reader does not know
    ├── InputError             a path or argument that cannot work
    ├── OutputError            nothing could be written: it exists, no right, no space
    ├── SelectionError         a selector that is unknown or matches nothing
    ├── HubError               the Hub refused, was not reached, or has not what was asked for
    │   └── SlowError          the Hub answers, and too slowly to wait for
    ├── BaseError              the base cannot be opened, or a weight in it cannot be used
    │   └── BaseMismatchError  the delta was made for another base
    ├── CacheError             the basis cache is unusable
    ├── AttachError            shifts cannot be put on this live model
    ├── TrainError             training cannot start or go on
    └── MissingExtraError      an optional dependency is not installed

Each says *what* is wrong and *why* in its message, and in `fix` the argument or command that mends it. Only these
leave the library; the command line turns them into one line and exit code 1.
"""

from __future__ import annotations

from typing import Final

from ._text.printable import printable
from ._text.tokens import strike

LONGEST: Final = 1_500
"""Characters of a message; a longer one, which quotes a broken file, loses its middle."""


class DeltaError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what is wrong and why, naming the parameter and the file; access tokens in it are struck out.
        fix: the argument or command that mends it, as a clause without a full stop.
    """

    def __init__(self, message: str, *, fix: str = "") -> None:
        message = _one_line(message)
        super().__init__(message)
        self.message = message
        self.fix = _one_line(fix)

    def __str__(self) -> str:
        return f"{self.message}: {self.fix}" if self.fix else self.message


def _one_line(text: str) -> str:
    """Return a text as one line that shows no token: servers, and files that they send, may repeat one."""
    text = strike(text)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    return printable(text)


class FormatError(DeltaError):
    """The bytes are not a valid delta file."""


class HeaderError(FormatError):
    """The safetensors container is broken."""


class MetadataError(FormatError):
    """The `svdiff` metadata document is broken."""


class TensorError(FormatError):
    """A tensor has a wrong dtype, length or value."""


class VersionError(FormatError):
    """The file has another major version, or needs a feature this reader does not know."""


class InputError(DeltaError):
    """A path or argument that cannot work."""


class OutputError(DeltaError):
    """Nothing could be written."""


class SelectionError(DeltaError):
    """A selector that is unknown or matches nothing."""


class HubError(DeltaError):
    """The Hub refused, was not reached, or has not what was asked for."""


class SlowError(HubError):
    """The Hub answers, and too slowly to wait for."""


class BaseError(DeltaError):
    """The base cannot be opened, or a weight in it cannot be used."""


class BaseMismatchError(BaseError):
    """The delta was made for another base."""


class CacheError(DeltaError):
    """The basis cache is unusable."""


class AttachError(DeltaError):
    """Shifts cannot be put on this live model."""


class TrainError(DeltaError):
    """Training cannot start or go on."""


class MissingExtraError(DeltaError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs {package}, which is not installed", fix=f"pip install 'svdiff-delta[{extra}]'")
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), (self.package, self.extra)


EXHAUSTED: Final = (
    "allocate memory",
    "not enough memory",
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "valid cuDNN algorithm",
)
"""What RuntimeErrors say where memory is not enough: torch on the CPU, of Linux and of Windows, the driver, cuBLAS and
cuSOLVER, cuDNN, and cuDNN where no algorithm finds the memory that it works in.
"""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of torch, of a library below it or of Python says that memory is not enough.

    So does an error of this library that one of them caused.
    """
    if isinstance(error, DeltaError):
        return error.__cause__ is not None and is_out_of_memory(error.__cause__)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in EXHAUSTED)


def refusal(what: object, error: BaseException, doing: str = "read") -> str:
    """Return the line for what the system refused.

    Args:
        what: the path that is named where the error names none.
        error: an OSError, or a ValueError of a path that no system takes.
        doing: what could not be done.
    """
    if isinstance(error, OSError):
        name, why = error.filename, error.strerror or str(error) or type(error).__name__
        named = name if isinstance(name, str) and name else what
        return f"{named}: could not be {doing} ({why})"
    why = "its name cannot be written on this system" if isinstance(error, UnicodeError) else "its name has a NUL"
    return f"{what}: could not be {doing} ({why})"
