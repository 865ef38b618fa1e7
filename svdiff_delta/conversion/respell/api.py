"""Convert an adapter to another dialect directly: factors, alphas, ranks and number formats stay as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import IO, Any, Final

from svdiff_delta._util.atomic import check_output, replace_file, replace_folder
from svdiff_delta._util.json import canonical_json
from svdiff_delta._util.paths import below, check_apart
from svdiff_delta._util.reading import system_errors
from svdiff_delta.adapters.folders import PEFT_CONFIG as CONFIG
from svdiff_delta.adapters.folders import PEFT_WEIGHTS as WEIGHTS
from svdiff_delta.base_model.opened import Base
from svdiff_delta.conversion.adapter_reader import KEY as DOCUMENT
from svdiff_delta.conversion.key_map import Names
from svdiff_delta.conversion.lazy_tensors import Modules, OpenedAdapter
from svdiff_delta.conversion.model_family import find_family
from svdiff_delta.conversion.registry import DIALECTS
from svdiff_delta.conversion.result import check_left_out
from svdiff_delta.errors import InputError
from svdiff_delta.format.adapter_families import family_of
from svdiff_delta.format.container import header_bytes
from svdiff_delta.format.metadata import KEY

from .config import config_of
from .fused import ALPHA, DOWN
from .layers import Layers
from .raw import Raw
from .source import RECORD, Source, configs_of, open_source
from .spelling import CONFIGURED, ORIGINAL, TARGETS, spelled
from .told_base import KINDS, told_base

STRUCTURE: Final = ("lora_adapter_metadata", RECORD, DOCUMENT, "sshs_model_hash", "sshs_legacy_hash")
"""Keys of `__metadata__` that say how the input is built, or what its bytes are: the result says it of itself."""

KEEPS_FORMATS: Final = (
    "an adapter that is spelled anew keeps its number formats",
    "leave `dtype` away, or give `rank` to convert it through a delta",
)
"""What is wrong with a number format beside it, and the mend."""

ROOT: Final = "its configuration divides alpha by √r (`use_rslora`): alpha · √r is written, rounded once"

HASH: Final = "modelspec.hash_sha256"
READ: Final = frozenset({*TARGETS, "flux"})
"""Dialects that an adapter may be in."""


@dataclass(frozen=True)
class Respelled:
    """An adapter in another dialect.

    Attributes:
        modules: how many modules of the input were taken, all of it but what is left out.
        layers: how many modules it has in the result, where several may be one layer.
        tensors: how many tensors it has there.
        size: the bytes of what is written.
        output: where it was written; None if nothing was.
        left_out: modules that have no place, with the reason.
        remarks: what to know of the result.
    """

    modules: int
    layers: int
    tensors: int
    size: int
    output: Path | None
    left_out: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def is_respelling(source: str | PathLike[str], to: str, from_: str | None = None) -> bool:
    """Tell whether an input is an adapter that another dialect can spell without a delta in between.

    Args:
        source: the path of the input.
        to: the dialect that it is to become.
        from_: its own dialect; None finds it from the input.

    Raises:
        InputError: there is no such file or folder, or it cannot be read.
    """
    if to not in TARGETS or (from_ is not None and from_ not in READ):
        return False
    opened = OpenedAdapter(source)
    with system_errors(opened.name, InputError):
        if not opened.path.exists():
            raise InputError(f"{opened.path}: there is no such file or folder")
        header = opened.header()
        if header is not None and KEY in header.metadata:
            return False
        found = from_ or next((name for name, dialect in DIALECTS.items() if dialect.recognizes(opened)), "")
    return found in READ


def respell(
    source: str | PathLike[str],
    *,
    to: str,
    base: Base | None = None,
    output: str | PathLike[str] | None = None,
    component: str | None = None,
    title: str | None = None,
    allow_unmatched: bool = False,
    overwrite: bool = False,
) -> Respelled:
    """Spell an adapter anew in another dialect.

    Names change, and numbers do not: factors, alphas, ranks and number formats are those of the input, bit for bit.
    Where a layer is one in one dialect and several in the other, its rows are shared out, or put together: with the
    factor that they share, or as blocks. Everything is checked before anything is written.

    Args:
        source: the path of a file, or of PEFT's or diffusers' folder.
        to: "diffusers", "peft", "kohya", "lycoris" or "comfyui".
        base: whose layers the names are of; not needed where the keys tell the family.
        output: where to write, atomically; without it nothing is written.
        component: the component of the base that keys mean which name none; the denoiser if not given.
        title: a title for the result; that of the input if not given.
        allow_unmatched: whether what has no place may be left out; it is listed in the result.
        overwrite: whether an existing output may be replaced.

    Raises:
        InputError: the dialect is unknown, the keys do not tell the family, a module has no place, or a fused layer
            cannot be taken apart or put together.
        FormatError: the input is broken.
        OutputError: the output exists, or the disk refused.
    """
    if to not in TARGETS:
        raise InputError(f"{to!r}: no adapter is spelled so", fix=f"known are {', '.join(TARGETS)}")
    opened, target = OpenedAdapter(source), None if output is None else Path(output)
    if target is not None:
        check_output(target, overwrite=overwrite, folder=to == "peft")
        check_apart(target, [Path(source), *(base.files if base else [])])
    with system_errors(opened.name, InputError):
        files = open_source(opened)
    names = Names(base or told_base(_all(files), opened.name, original=to in ORIGINAL, kind=files[0].kind), component)
    if component is not None and component not in names.base.components:
        known = ", ".join(sorted(names.base.components))
        raise InputError(f"the base has no component {component!r}", fix=f"name one of {known}")
    layers = Layers(names, TARGETS[to](names))
    layers.target.changed = _changed(files, names)
    for file in files:
        layers.add(file)
    layers.join_parts()
    check_left_out(layers.left_out, opened.name, allow_unmatched=allow_unmatched, hint=_hint(_all(files), base))
    if not layers.whole:
        raise InputError(f"{opened.name}: nothing of it has a place in {to}", fix="name the base that it is for")
    work = _Writer(layers, to, _metadata(files, title))
    parts = work.files(base)
    size = sum(len(head) + sum(len(raw.data) for raw in tensors.values()) for head, tensors, _ in parts.values())
    if target is not None:
        _write(target, parts, to, overwrite=overwrite)
    return Respelled(
        modules=sum(len(file.modules) for file in files) - len(layers.left_out),
        layers=len(layers.whole),
        tensors=sum(len(tensors) for _, tensors, _ in parts.values()),
        size=size + sum(len(config) for _, _, config in parts.values()),
        output=target,
        left_out=layers.left_out,
        remarks=(*work.remarks(), *([ROOT] if _by_root(files, names) else [])),
    )


def _all(files: Sequence[Source]) -> Modules:
    found = Modules()
    for file in files:
        prefix = f"{file.component}." if file.component.startswith("text_encoder") else ""
        for module, refs in file.modules.items():
            for role, ref in refs.items():
                found.take(f"{prefix}{module}", role, ref)
    return found


def _by_root(files: Sequence[Source], names: Names) -> bool:
    return any(config.root for file in files for config in configs_of(file, names).values())


def _hint(modules: Modules, base: Base | None) -> str:
    """Return what an adapter and its base look like, where they do not look alike."""
    shapes = {ref.key: ref.shape for refs in modules.values() for ref in refs.values()}
    mine, kinds = family_of(shapes), {part.class_name for part in base.components.values()} if base else set()
    return f" (it looks like an adapter of {mine})" if mine in KINDS and kinds and KINDS[mine] not in kinds else ""


def _changed(files: Sequence[Source], names: Names) -> frozenset[str]:
    """Return the components that an adapter changes, as far as that tells how the second denoiser is called."""
    experts = {module.partition(".")[0] for file in files for module in file.modules} & {"transformer_2"}
    return frozenset(experts & {*names.base.components} or {names.main})


def _metadata(files: Sequence[Source], title: str | None) -> dict[str, str]:
    found = {key: value for file in reversed(files) for key, value in file.file.header.metadata.items()}
    found = {key: value for key, value in found.items() if key not in STRUCTURE}
    return found if title is None else {**found, "modelspec.title": title}


Part = tuple[bytes, dict[str, Raw], bytes]
"""The header of a file, its tensors, and the configuration that stands beside it."""


@dataclass
class _Writer:
    """Writes the layers of an adapter in a dialect."""

    layers: Layers
    to: str
    metadata: Mapping[str, str]

    def files(self, base: Base | None) -> dict[str, Part]:
        """Return header, tensors and configuration of each file."""
        found: dict[str, dict[str, dict[str, Raw]]] = {}
        for (file, module), own in sorted(self.layers.whole.items()):
            found.setdefault(file, {})[module] = own
        return {file: self._file(file, modules, base) for file, modules in found.items()}

    def _file(self, file: str, modules: Mapping[str, dict[str, Raw]], base: Base | None) -> Part:
        tensors: dict[str, Raw] = {}
        for module, own in modules.items():
            kept = {role: raw for role, raw in own.items() if role != ALPHA or self.to not in CONFIGURED}
            tensors |= spelled(module, kept, self.to)
        config = self._config(file, modules, base) if self.to in CONFIGURED else {}
        strings = {"format": "pt", **self.metadata, **self._strings(modules, base), **self._record(modules)}
        if self.to == "diffusers":
            strings["lora_adapter_metadata"] = canonical_json(config).decode()
        ordered = dict(sorted(tensors.items()))
        strings |= self._hashes(ordered)
        sizes = {key: len(raw.data) for key, raw in ordered.items()}
        head = header_bytes([(key, raw.dtype, raw.shape) for key, raw in ordered.items()], strings, sizes)
        beside = json.dumps(config, indent=2, sort_keys=True).encode() + b"\n" if self.to == "peft" else b""
        return head, ordered, beside

    def _config(self, file: str, modules: Mapping[str, dict[str, Raw]], base: Base | None) -> dict[str, Any]:
        names = self.layers.names
        by_component: dict[str, dict[str, dict[str, Raw]]] = {}
        for module, own in modules.items():
            component, _, key = self.layers.places[file, module].partition(".")
            by_component.setdefault(component, {})[key.removesuffix(".weight")] = own
        fields: dict[str, Any] = {}
        for component, layers in by_component.items():
            paths = [*names.paths(component)]
            if base is None and not component.startswith("text_encoder"):
                paths += [f"x.{path}" for path in paths]  # of a base that is not known: only whole paths are sure
            short = names.short if self.to == "diffusers" else str
            found = config_of({short(path): raws for path, raws in layers.items()}, [*map(short, paths)])
            if self.to == "peft":
                info = names.base.info if base else None
                told = {"base_model_name_or_path": info.repository, "revision": info.revision} if info else {}
                return {"peft_type": "LORA", "task_type": None, "inference_mode": True, **told, **found}
            called = names.main if component == self.layers.target.denoiser else component
            fields |= {f"{called}.{key}": value for key, value in found.items()}
        return fields

    def _strings(self, modules: Mapping[str, dict[str, Raw]], base: Base | None) -> dict[str, str]:
        """Return what programs of the dialect look for, where the input does not say it."""
        if self.to in CONFIGURED:
            return {}
        family = find_family(self.layers.names.base) if base or "unet" in self.layers.names.base.components else None
        found = family.strings() if family else {}
        ranks = {raws[DOWN].shape[0] for raws in modules.values() if DOWN in raws}
        if self.to == "kohya" and ranks:
            found |= {"ss_network_module": "networks.lora", "ss_network_dim": str(max(ranks))}
        return {key: value for key, value in found.items() if key not in self.metadata}

    def _record(self, modules: Mapping[str, dict[str, Raw]]) -> dict[str, str]:
        """Return what the way back needs: formats of alphas that a configuration does not keep, ranks of blocks."""
        record: dict[str, Any] = {}
        if joined := {module: self.layers.joined[module] for module in modules if module in self.layers.joined}:
            record["joined"] = joined
        if (kind := self._kind()) in KINDS.values():
            record["kind"] = kind
        if self.to in CONFIGURED:
            said = {module: _format(own) for module, own in modules.items() if DOWN in own}
            texts = [json.dumps(value) for value in said.values()]
            common = max(sorted(set(texts)), key=texts.count, default="null")
            others = {module: value for module, value in said.items() if json.dumps(value) != common}
            if common != "null" or others:
                record["alphas"] = {**({"": json.loads(common)} if common != "null" else {}), **others}
            elif said:
                record["alphas"] = dict.fromkeys(said, None)
        return {RECORD: canonical_json(record).decode()} if record else {}

    def _kind(self) -> str:
        """Return the class of the denoiser, which the result's own keys may not tell; empty if it is not known."""
        names = self.layers.names
        return names.base.components[names.main].class_name

    def _hashes(self, tensors: Mapping[str, Raw]) -> dict[str, str]:
        """Return the hashes of the data that kohya's scripts and ModelSpec keep, in files that have such."""
        digest = hashlib.sha256()
        for raw in tensors.values():
            digest.update(raw.data)
        found = {HASH: f"0x{digest.hexdigest()}"} if HASH in self.metadata else {}
        return {**found, "sshs_model_hash": digest.hexdigest()} if self.to == "kohya" else found

    def remarks(self) -> tuple[str, ...]:
        """Return what to know of the result."""
        remark = self.layers.target.remark
        return (remark,) if remark else ()


def _format(own: Mapping[str, Raw]) -> list[Any] | None:
    return [own[ALPHA].dtype, list(own[ALPHA].shape)] if ALPHA in own else None


def _write(target: Path, parts: Mapping[str, Part], to: str, *, overwrite: bool) -> None:
    if to != "peft":
        ((head, tensors, _),) = parts.values()
        with replace_file(target, overwrite=overwrite) as stream:
            stream.write(head)
            _copy(tensors, stream)
        return
    with replace_folder(target, overwrite=overwrite) as folder:
        for name, (head, tensors, config) in parts.items():
            place = folder if len(parts) == 1 else below(folder, name, source="the adapter")
            place.mkdir(exist_ok=True)
            (place / CONFIG).write_bytes(config)
            with (place / WEIGHTS).open("wb") as stream:
                stream.write(head)
                _copy(tensors, stream)


def _copy(tensors: Mapping[str, Raw], stream: IO[bytes]) -> None:
    for raw in tensors.values():
        stream.write(raw.data)
