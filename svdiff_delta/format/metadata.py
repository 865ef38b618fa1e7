"""Hold the metadata of a delta file as frozen dataclasses, and read and write them as JSON (spec, section 5)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, cast

from svdiff_delta._util.json import JSON, as_object, canonical_json, strict_json, take
from svdiff_delta.errors import MetadataError, VersionError
from svdiff_delta.hub_client.names import REPOSITORY, REVISION, is_repository, is_revision
from svdiff_delta.selectors.addresses import Layout

from .lineage import Lineage, dump_lineage, parse_lineage
from .parameter import Parameter, Table, dump_columns, parse_columns
from .stacked import FEATURE, misplaced_index, slice_of

FORMAT: Final = "svdiff-delta"
VERSION: Final = 1
KEY: Final = "svdiff"
"""Key of the document in the container's `__metadata__`."""

FEATURES: Final = frozenset({FEATURE})
"""Features that this reader understands (spec, section 9)."""

MOST_BLOCKS: Final = 99
"""Bound of the numbers in `base.attentions`, and of its levels."""

_COMPONENT = re.compile(r"[A-Za-z0-9_]+")


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """The model whose weights are shifted.

    Attributes:
        components: class name by component.
        repository: where it came from, if that was given.
        revision: the commit, if that was given.
        sample_size: the width of the latents that the denoiser was made for, if known.
        attentions: where the UNet has cross-attention, if known.
        extra: unknown fields, kept as they are.
    """

    components: Mapping[str, str] = field(default_factory=dict)
    repository: str | None = None
    revision: str | None = None
    sample_size: int | None = None
    attentions: Layout | None = None
    extra: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Metadata:
    """Everything a delta file says about itself.

    Attributes:
        base: the model it belongs to.
        parameters: one `Parameter` per shifted weight, in sorted-name order; not to be changed.
        lineage: the operations that made it; None for one that was trained.
        training: facts of the training run; None where there was none or they are unknown.
        modelspec: the ModelSpec fields, without their `modelspec.` prefix; `hash_sha256` is filled in when a file is
            written.
        extra: unknown fields of the document, kept as they are.
        foreign: unknown keys of the container's `__metadata__`, kept as they are.
    """

    base: BaseInfo
    parameters: Mapping[str, Parameter]
    lineage: Lineage | None = None
    training: Mapping[str, JSON] | None = None
    modelspec: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, JSON] = field(default_factory=dict)
    foreign: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.parameters, Table):
            object.__setattr__(self, "parameters", Table(sorted(self.parameters.items())))

    @property
    def numbers(self) -> int:
        """The length of all δ together."""
        return cast("Table", self.parameters).numbers

    @property
    def title(self) -> str | None:
        """The title that model browsers show."""
        return self.modelspec.get("title")

    def with_title(self, title: str | None) -> Metadata:
        """Return a copy with this title, or without one."""
        return self.with_modelspec("title", title)

    def with_modelspec(self, key: str, value: str | None) -> Metadata:
        """Return a copy with another value of a ModelSpec field, or without the field."""
        spec = {name: text for name, text in self.modelspec.items() if name != key}
        return replace(self, modelspec=spec if value is None else {**spec, key: value})


def dump(metadata: Metadata, *, key: str = KEY, form: str = FORMAT) -> dict[str, str]:
    """Return the strings of the container's `__metadata__`.

    Args:
        metadata: what to say.
        key: the key of the document; another one where the file is not a delta (section 7.9).
        form: what the document's `format` says, likewise.

    Raises:
        MetadataError: a parameter is badly named or its component is missing, or JSON has no place for something.
    """
    _check_components(metadata.base, metadata.parameters)
    document: dict[str, JSON] = {
        **metadata.extra,
        "format": form,
        "version": VERSION,
        "base": _dump_base(metadata.base),
        "parameters": dump_columns(metadata.parameters),
    }
    if features := _features(metadata.parameters):
        document["must_understand"] = features
    if metadata.lineage is not None:
        document["lineage"] = dump_lineage(metadata.lineage)
    if metadata.training is not None:
        document["training"] = dict(metadata.training)
    spec = {f"modelspec.{key}": value for key, value in metadata.modelspec.items()}
    return {**metadata.foreign, **spec, key: canonical_json(document).decode()}


def parse(strings: Mapping[str, str], names: Sequence[str], *, key: str = KEY, form: str = FORMAT) -> Metadata:
    """Check and read the container's `__metadata__` for tensors of these names; key and form as in `dump`.

    Raises:
        MetadataError: the document is missing or breaks a rule of section 5; the message names the field.
        VersionError: another major version, or a feature that must be understood and is not.
    """
    if key not in strings:
        raise MetadataError(
            "this is a safetensors file without `svdiff` metadata, not a delta file",
            fix="name a delta file",
        )
    document = as_object(strict_json(strings[key].encode("utf-8", "surrogatepass"), f"`{key}`", MetadataError), key)
    features = _check_version(document, form)
    base = _parse_base(as_object(take(document, "base"), "base"))
    parameters = parse_columns(as_object(take(document, "parameters"), "parameters"), sorted(names))
    _check_components(base, parameters)
    _check_features(features, parameters)
    return Metadata(
        base=base,
        parameters=parameters,
        lineage=parse_lineage(as_object(document.pop("lineage"), "lineage")) if "lineage" in document else None,
        training=as_object(document.pop("training"), "training") if "training" in document else None,
        modelspec={k.removeprefix("modelspec."): v for k, v in strings.items() if k.startswith("modelspec.")},
        extra=document,
        foreign={k: v for k, v in strings.items() if k != key and not k.startswith("modelspec.")},
    )


def _check_version(document: dict[str, JSON], form: str) -> list[str]:
    """Return the features that the file needs, once this program is one that reads it."""
    if (name := take(document, "format")) != form:
        raise MetadataError(f"format: must be {form!r}, is {name!r}")
    version = take(document, "version")
    if type(version) is not int or version < 1:
        raise MetadataError(f"version: must be a whole number from 1, is {version!r}")
    if version != VERSION:
        raise VersionError(
            f"version: the file has format version {version}, this program reads version {VERSION}",
            fix=f"use a release of svdiff-delta that reads version {version}",
        )
    features = document.pop("must_understand", [])
    if not isinstance(features, list) or not all(isinstance(feature, str) for feature in features):
        raise MetadataError("must_understand: must be a list of strings")
    if unknown := sorted(set(features) - FEATURES):
        raise VersionError(
            f"must_understand: the file needs {', '.join(unknown)}, which this program does not know",
            fix="use a newer release of svdiff-delta",
        )
    return features


def _features(parameters: Mapping[str, Parameter]) -> list[JSON]:
    return [FEATURE] if any(map(slice_of, parameters)) else []


def _check_features(given: Sequence[str], parameters: Mapping[str, Parameter]) -> None:
    """Raise MetadataError if a file says that it has no stacked weights, and has some, or the other way round."""
    if FEATURE in given and not _features(parameters):
        raise MetadataError(f"must_understand: names {FEATURE!r}, and no parameter's name has an index")
    if FEATURE not in given and (name := next(filter(slice_of, parameters), None)):
        raise MetadataError(f"{name}: has an index, and must_understand does not name {FEATURE!r}")


def _dump_base(base: BaseInfo) -> dict[str, JSON]:
    fields: dict[str, JSON] = {**base.extra, "components": dict(base.components)}
    for key, value in (("repository", base.repository), ("revision", base.revision)):
        if value is not None:
            fields[key] = _hub_name(key, value)
    if base.sample_size is not None:
        fields["sample_size"] = base.sample_size
    if base.attentions is not None:
        layout = base.attentions
        fields["attentions"] = {"down": list(layout.down), "mid": layout.mid, "up": list(layout.up)}
    return fields


def _parse_base(fields: dict[str, JSON]) -> BaseInfo:
    components = as_object(take(fields, "components", "base."), "base.components")
    for name, class_name in components.items():
        if not _COMPONENT.fullmatch(name) or name == KEY or not isinstance(class_name, str):
            raise MetadataError(f"base.components: {name!r} is not a component name with a class name")
    names = {key: _hub_name(key, fields.pop(key)) for key in ("repository", "revision") if key in fields}
    given = "sample_size" in fields
    size = fields.pop("sample_size", 1)
    if type(size) is not int or size < 1:
        raise MetadataError(f"base.sample_size: must be a whole number from 1, is {size!r}")
    attentions = _parse_layout(fields.pop("attentions")) if "attentions" in fields else None
    return BaseInfo(components, **names, sample_size=size if given else None, attentions=attentions, extra=fields)


def _hub_name(key: str, value: JSON) -> str:
    """Return the base's repository or revision, if it is a name that the Hub allows."""
    is_name, allowed = (is_repository, REPOSITORY) if key == "repository" else (is_revision, REVISION)
    if not isinstance(value, str) or not value:
        raise MetadataError(f"base.{key}: must be a non-empty string")
    if not is_name(value):
        raise MetadataError(f"base.{key}: {str(value)[:100]!r} is no name of the Hub", fix=f"allowed is {allowed}")
    return value


def _parse_layout(value: JSON) -> Layout:
    where = "base.attentions"
    fields = as_object(value, where)
    counts = {key: take(fields, key, f"{where}.") for key in ("down", "mid", "up")}
    down, mid, up = counts["down"], counts["mid"], counts["up"]
    if fields or not isinstance(down, list) or not isinstance(up, list) or len(down) != len(up):
        raise MetadataError(f"{where}: must have down and up, lists of equal length, and mid")
    numbers = [*down, mid, *up]
    if not all(type(number) is int and 0 <= number <= MOST_BLOCKS for number in numbers) or len(down) > MOST_BLOCKS:
        raise MetadataError(f"{where}: must hold whole numbers from 0 to {MOST_BLOCKS}")
    return Layout(tuple(down), mid, tuple(up))


def _check_components(base: BaseInfo, parameters: Mapping[str, Parameter]) -> None:
    for name in parameters:
        component, _, key = name.partition(".")
        if not component or not key or not key.isascii() or not key.isprintable():
            raise MetadataError(f"{name!r}: is not a parameter name (component, dot, state-dict key)")
        if wrong := misplaced_index(key):
            raise MetadataError(f"{name!r}: is not a parameter name: {wrong}")
        if slice_of(key) and (parameters[name].kind != "spectral" or len(parameters[name].shape) != 2):
            raise MetadataError(f"{name}: a name with an index is of a spectral parameter with two dimensions")
        if component not in base.components:
            raise MetadataError(f"{name}: base.components does not name {component!r}")
