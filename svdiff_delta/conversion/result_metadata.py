"""The metadata of a conversion's result: the base's facts, the input's, and what was done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from svdiff_delta._util.json import JSON
from svdiff_delta.base_model.opened import Base
from svdiff_delta.format.lineage import Lineage, Record, bounded
from svdiff_delta.format.metadata import BaseInfo, Metadata
from svdiff_delta.format.modelspec import known_modelspec, portable_modelspec
from svdiff_delta.format.parameter import Parameter

from .dialect import Changes, Job


def conversion_metadata(
    changes: Changes, parameters: Mapping[str, Parameter], arguments: dict[str, JSON], job: Job
) -> Metadata:
    """Return the metadata of the result: the base's, the input's, and the conversion as the last operation."""
    said, sources = changes.metadata, changes.sources()
    files = {**(said.lineage.files if said.lineage else {}), **dict(sources)}
    if job.dtype != "F32":
        arguments["dtype"] = job.dtype
    if job.embeddings:
        arguments["embeddings"] = True
    record = Record("convert", arguments, tuple(sha256 for sha256, _ in sources))
    base = _base_info(job.base, parameters, said.base)
    title = said.title if job.title is None else job.title
    spec = {**portable_modelspec(said.modelspec), **known_modelspec(base.components)}
    return Metadata(
        base=base,
        parameters=parameters,
        lineage=bounded(Lineage(record, files)),
        training=said.training,
        modelspec=spec if title is None else {**spec, "title": title},
        extra=said.extra,
        foreign=said.foreign,
    )


def _base_info(base: Base, parameters: Mapping[str, Parameter], told: BaseInfo) -> BaseInfo:
    """Return the facts of the opened base, completed by those in the input: the weights of both are the same."""
    info, used = base.info, {name.partition(".")[0] for name in parameters}
    classes = {name: info.components[name] or told.components.get(name, "") for name in sorted(used)}
    if info.repository is None:
        info = replace(info, repository=told.repository, revision=told.revision)
    return replace(
        info,
        components=classes,
        sample_size=info.sample_size or told.sample_size,
        attentions=info.attentions or told.attentions,
        extra=told.extra,
    )
