"""Read PEFT's configuration of a LoRA: ranks, alphas, and the layers they are for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

from svdiff_delta._util.json import as_object, check_nodes, strict_json
from svdiff_delta._util.limits import CONFIGURATION, STATES
from svdiff_delta._util.patterns import check_pattern, expression
from svdiff_delta._util.reading import read_bytes
from svdiff_delta._util.typed import build, keys_of
from svdiff_delta.errors import InputError, MetadataError

from .library_methods.peft_method import PeftMethod, check_method
from .peft_fields import MERGE, check_fields

ALPHA: Final = 8.0
"""PEFT's default of `lora_alpha`."""


@dataclass(frozen=True)
class PeftConfig:
    """The ranks and scales in a configuration.

    Attributes:
        alpha: `lora_alpha`; None if it is not given.
        r: the rank; None if it is not given.
        ranks, alphas: `rank_pattern` and `alpha_pattern`: values by regular expression of the layer's path.
        root: `use_rslora`, alpha is divided by √rank.
        dora: `use_dora`, each layer has magnitudes.
        default: the alpha if none is given; None for the rank.
        parameters: `target_parameters`, the ends of the names of parameters that have factors of their own.
        version: of the PEFT that wrote it, the first two numbers; None if it does not say, or of one in between.
    """

    alpha: float | None = None
    r: float | None = None
    ranks: Mapping[str, float] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    root: bool = False
    dora: bool = False
    default: float | None = ALPHA
    parameters: tuple[str, ...] = ()
    version: tuple[int, int] | None = None

    @property
    def has_alpha(self) -> bool:
        """True if an alpha is given."""
        return self.alpha is not None

    def rank(self, path: str) -> float | None:
        """Return the rank that a layer should have; None if nothing says it."""
        found = pattern_value(self.ranks, path)
        return self.r if found is None else found

    def scale(self, path: str, rank: int) -> float:
        """Return the factor of a layer with this rank."""
        alpha = pattern_value(self.alphas, path)
        if alpha is None:
            alpha = self.alpha if self.alpha is not None else self.default
        if alpha is None:
            return 1.0
        return alpha / (max(1, rank) ** 0.5 if self.root else max(1, rank))


def pattern_value(patterns: Mapping[str, float], path: str) -> float | None:
    """Return the value of the first pattern that a path matches from some dot on, as PEFT matches; None if none does.

    Raises:
        InputError: a pattern is no regular expression.
    """
    return next((value for pattern, value in patterns.items() if _matcher(pattern)(path)), None)


_PLAIN: Final = re.compile(r"(?:[A-Za-z0-9_.^|-]|\\[^A-Za-z0-9])*")
"""Names, and alternatives of them: without repetitions Python's own matcher takes no time."""


@lru_cache(maxsize=4096)
def _matcher(pattern: str) -> Callable[[str], object]:
    """Return what tells whether a path ends in what a pattern says, from some dot on."""
    whole = rf"(.*\.)?({pattern})"
    return re.compile(rf"{whole}$").match if _PLAIN.fullmatch(pattern) else expression(whole).matches


def read_config(path: Path, *, parameters: bool = False) -> PeftConfig:
    """Read the ranks and scales from a configuration file.

    Args:
        path: the file.
        parameters: whether factors of parameters that are no layer's `weight` may be among them.

    Raises:
        InputError: it cannot be read, is of another method than LoRA, or says what the factors alone do not tell.
        MetadataError: it is not valid, the message names the field.
    """
    return parse_config(_read_fields(path), str(path), parameters=parameters)


def read_method_config(path: Path, *, made_on: bool) -> PeftMethod | None:
    """Read a configuration of another method than LoRA, or of a LoRA that PEFT's own layers are to read.

    Args:
        path: the file.
        made_on: whether the base is named that the adapter was made on.

    Raises:
        InputError: it cannot be read, changes no weight, is not known, or needs a base that is not named.
        MetadataError: it is not valid.
    """
    return check_method(_read_fields(path), str(path), made_on=made_on)


def _read_fields(path: Path) -> Mapping[str, Any]:
    raw = read_bytes(path, CONFIGURATION.bytes)
    check_nodes(raw, str(path), CONFIGURATION, InputError)
    return as_object(strict_json(raw, str(path), MetadataError), str(path))


class _Fields(msgspec.Struct):
    """The fields of a configuration that are read."""

    lora_alpha: float | None = None
    r: float | None = None
    rank_pattern: dict[str, float] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    target_parameters: list[str] | None = None
    peft_version: str | None = None


_READ: Final = keys_of(_Fields)


def parse_config(
    fields: Mapping[str, Any], where: str, default: float | None = ALPHA, *, parameters: bool = False
) -> PeftConfig:
    """Return what the fields of a configuration say of scales, all others being without meaning for ΔW.

    Args:
        fields: as in the file.
        where: what errors call it.
        default: the alpha if none is given.
        parameters: as for `read_config`.

    Raises:
        InputError: it is of another method than LoRA, or a field says what the factors alone do not tell.
        MetadataError: a field has a wrong type.
    """
    check_fields(fields, where, parameters=parameters)
    said = build(_Fields, {key: fields[key] for key in _READ if key in fields}, where, MetadataError)
    _check_patterns([*(said.rank_pattern or {}), *(said.alpha_pattern or {})], where)
    return PeftConfig(
        alpha=said.lora_alpha,
        r=said.r,
        ranks=said.rank_pattern or {},
        alphas=said.alpha_pattern or {},
        root=bool(said.use_rslora),
        dora=bool(said.use_dora),
        default=default,
        parameters=tuple(said.target_parameters or ()),
        version=_version(said.peft_version or ""),
    )


def _version(said: str) -> tuple[int, int] | None:
    match = re.match(r"([0-9]{1,6})\.([0-9]{1,6})(?![0-9])", said)
    return (int(match[1]), int(match[2])) if match and "dev" not in said else None


def _check_patterns(patterns: Iterable[str], where: str) -> None:
    """Raise InputError if patterns are broken, or so many and long that to match them would take its time."""
    steps = 0
    for pattern in dict.fromkeys(patterns):
        check_pattern(pattern)
        if not _PLAIN.fullmatch(pattern):
            try:
                steps += len(expression(pattern))
            except InputError as error:
                raise InputError(f"{where}: {error.message}", fix=MERGE) from None
        if steps > STATES:
            raise InputError(f"{where}: its patterns have more than {STATES:,} steps", fix=MERGE)


def low_rank_config(
    ranks: Mapping[str, int], paths: Sequence[str], stacks: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return the fields for layers of these ranks, each with alpha = rank, so that every scale is 1.

    Args:
        ranks: the rank by path of the layer.
        paths: all layers of the model, so that a path that others end in is not taken for them.
        stacks: the rank by state-dict key of parameters that are named by themselves, such as stacked experts.
    """
    every = {**ranks, **(stacks or {})}
    common = Counter(sorted(every.values())).most_common(1)[0][0]
    others = {_pattern_of(path, paths): rank for path, rank in sorted(every.items()) if rank != common}
    return {
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "target_modules": _targets(sorted(ranks), paths),
        "bias": "none",
        **({"target_parameters": sorted(stacks)} if stacks else {}),
    }


def _pattern_of(path: str, paths: Iterable[str]) -> str:
    """Return the pattern of one layer; PEFT matches from any dot on, and `^` holds it to the whole path."""
    ambiguous = any(other.endswith(f".{path}") for other in paths)
    return f"{'^' if ambiguous else ''}{re.escape(path)}"


def _targets(wanted: list[str], paths: Iterable[str]) -> list[str] | str:
    """Return the layers' paths, or one pattern of them if PEFT would take other layers for them."""
    chosen = set(wanted)
    for path in paths:
        if path not in chosen and any(path[i + 1 :] in chosen for i, char in enumerate(path) if char == "."):
            return "|".join(map(re.escape, wanted))
    return wanted
