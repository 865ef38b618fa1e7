"""Tell what a file is from its header: kind, method, dialect, family, base, ranks, and which command takes it on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

from svdiff_delta.format.metadata import KEY

from .header_facts import Facts
from .layout import KeyLayout, family, layout_of, ranks_of
from .model_kinds import other_kind
from .origin import LONGEST, program, told_base

DIFFERENCE: Final = "svdiff.difference"
"""Key of the metadata of a file of ΔW that this program wrote."""


@dataclass(frozen=True)
class Description:
    """What a file or folder is, as far as it tells.

    Attributes:
        path: the file, the folder, or the reference on the Hub.
        kind: "adapter", "delta", "model", "embedding", "shifts", "pickle", "unknown", or "broken".
        method: LoRA, DoRA, LoHa, LoKr, another method by name, or what sort of model it is.
        dialect: the spelling of its keys, as `svdiff convert` calls it; empty where it has none.
        family: the family of models that it is for; empty if nothing tells.
        base: what it says that its base is.
        program: the program that wrote it.
        ranks: each rank with the number of its modules, most modules first.
        alpha: what its metadata say of alpha; "in the file" where each module has one there; else empty.
        dtypes: its number formats, most tensors first.
        layers: how many modules it changes, or how many weights a model has.
        size: its bytes.
        note: what else there is to say, such as how to mend it.
        error: what is wrong with it; empty if nothing is.
    """

    path: str
    kind: str
    method: str = ""
    dialect: str = ""
    family: str = ""
    base: str = ""
    program: str = ""
    ranks: tuple[tuple[int, int], ...] = ()
    alpha: str = ""
    dtypes: tuple[str, ...] = ()
    layers: int = 0
    size: int = 0
    note: str = ""
    error: str = ""

    def record(self) -> dict[str, Any]:
        """Return it for JSON: without what there is nothing to say of."""
        return {key: value for key, value in asdict(self).items() if value not in ("", (), 0)}


def describe(path: str, facts: Facts, config: Mapping[str, Any] | None = None) -> Description:
    """Return what a safetensors file is.

    Args:
        path: what it is called.
        facts: of its header.
        config: of PEFT's `adapter_config.json` beside it.
    """
    common = {"path": path, "size": facts.size, "dtypes": _dtypes(facts), "base": _base(facts, config)}
    if KEY in facts.metadata:
        return _delta(facts, common)
    if DIFFERENCE in facts.metadata:
        return _own("adapter", "full difference", "full", facts, common)
    layout = layout_of(frozenset(facts.tensors))
    if layout.spelled is None and not layout.methods:
        return _other(facts, common)
    return _adapter(facts, layout, config, common)


def _dtypes(facts: Facts) -> tuple[str, ...]:
    counts = Counter([tensor.dtype for tensor in facts.tensors.values()])
    return tuple(name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _base(facts: Facts, config: Mapping[str, Any] | None) -> str:
    said = (config or {}).get("base_model_name_or_path")
    return said[:LONGEST] if isinstance(said, str) and said else told_base(facts.metadata)


def _adapter(
    facts: Facts, layout: KeyLayout, config: Mapping[str, Any] | None, common: Mapping[str, Any]
) -> Description:
    dialect = layout.dialect if config is None else "peft"
    return Description(
        kind="adapter",
        method=_config_method(config) or " + ".join(layout.methods),
        dialect=dialect,
        family=family(layout, facts.tensors),
        program=program(facts.metadata, layout.spelled),
        ranks=ranks_of(layout, facts.tensors),
        alpha=_alpha(facts.metadata, config, own=layout.alphas),
        layers=len(layout.modules),
        **common,
    )


def _config_method(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return ""
    if config.get("use_dora"):
        return "DoRA"
    said = str(config.get("peft_type") or "")[:LONGEST]
    return {"LORA": "LoRA", "LOHA": "LoHa", "LOKR": "LoKr"}.get(said, said)


def _alpha(metadata: Mapping[str, str], config: Mapping[str, Any] | None, *, own: bool) -> str:
    said = (config or {}).get("lora_alpha", metadata.get("ss_network_alpha"))
    if said is not None:
        return str(said)[:LONGEST]
    return "in the file" if own else ""


def _delta(facts: Facts, common: Mapping[str, Any]) -> Description:
    fields: Any = {}
    with suppress(ValueError, RecursionError):
        fields = json.loads(facts.metadata[KEY])
    base = fields.get("base") if isinstance(fields, dict) else None
    repository = base.get("repository") if isinstance(base, dict) else None
    told = {"base": repository[:LONGEST] if isinstance(repository, str) else common["base"]}
    return _own("delta", "δ", "delta", facts, {**common, **told})


def _own(kind: str, method: str, dialect: str, facts: Facts, common: Mapping[str, Any]) -> Description:
    """Return what a file of this program is."""
    program = "svdiff-delta"
    return Description(kind=kind, method=method, dialect=dialect, program=program, layers=len(facts.tensors), **common)


def _other(facts: Facts, common: Mapping[str, Any]) -> Description:
    """Return what a file is that is no adapter and no delta."""
    shapes = {key: tensor.shape for key, tensor in facts.tensors.items()}
    kind, sort, family = other_kind(shapes)
    return Description(
        kind=kind,
        method=sort,
        family=family,
        program=program(facts.metadata),
        layers=len(facts.tensors),
        **common,
    )
