"""Collect the updates of an adapter by the base's own parameter names, and say what became of all other keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from svdiff_delta._text.printable import counted
from svdiff_delta._util.json import as_object, strict_json
from svdiff_delta.base_model.coverage import misnamed
from svdiff_delta.base_model.kinds import base_kinds
from svdiff_delta.errors import BaseMismatchError, DeltaError, InputError, MetadataError
from svdiff_delta.format.foreign import method_of
from svdiff_delta.format.lineage import Source
from svdiff_delta.format.metadata import Metadata, parse

from .architecture import looks_like
from .dialect import Changes, Job, WeightChange
from .key_map import Names
from .lazy_tensors import Ref, TensorFile
from .library_methods.library_update import bind, rounding_remark
from .provenance import foreign_facts, name_source
from .reasons import NO_ALPHA, NO_KIND, NO_LAYOUT, NO_MODULE, NO_RULE
from .unread_adapters import MERGE, unread
from .weight_updates import Update

KEY: Final = "svdiff.adapter"
"""Key of the document in an adapter's `__metadata__`; a delta file has `svdiff` (spec, section 7.10)."""

FORMAT: Final = "svdiff-adapter"

OWN_MEMBERS: Final = ("names", "retained")
"""Members of the document that delta files do not have."""


@dataclass
class Adapter:
    """The updates of an adapter that was read, and the keys that were left out.

    Attributes:
        what: what errors call it, its file or folder.
        files: the weight files, in order.
        updates: by the base's parameter names.
        left_out: keys that are no update, with the reason.
        remarks: what was assumed.
        widths: the number of inputs (0 if unknown) of each layer by the file's own name, for guesses at what it is.
        prefix: how keys may begin that are read without it.
        extra: unknown members for the lineage entries of its files.
        keys: the file's keys by the parameter that they change.
        spoiled: by parameter a key of its module that is not understood: nothing of that module is taken.
        unscaled: modules that say no scale, by what is missing.
    """

    what: str
    files: list[TensorFile]
    updates: dict[str, Update] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    prefix: str = ""
    extra: dict[str, str] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)
    spoiled: dict[str, str] = field(default_factory=dict)
    unscaled: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, update: Update, keys: Iterable[str] = ()) -> None:
        """Take an update of a parameter, which these keys make.

        Raises:
            InputError: there is one already.
            TensorError: its tensors do not fit each other.
        """
        update.check()
        if name in self.updates:
            raise InputError(f"{self.what}: two sets of keys change {name}", fix="keep one of them")
        self.updates[name], self.keys[name] = update, sorted(keys)

    def assume_scale(self, module: str, missing: str = NO_ALPHA) -> None:
        """Note that a module says no scale, for which 1 is taken."""
        self.unscaled.setdefault(missing, []).append(module)

    def leave(self, keys: Iterable[str], reason: str) -> None:
        """Leave keys out that change no parameter of the base."""
        self.left_out |= dict.fromkeys(keys, reason)

    def spoil(self, unknown: Iterable[str], name: str | None, keys: Iterable[str] = ()) -> None:
        """Leave a module out of which some keys are not understood: the others alone could be another change.

        Args:
            unknown: those keys.
            name: the parameter that the module's other keys change, wherever they stand; None if the base has none.
            keys: further keys of the module.
        """
        for key in unknown:
            self.left_out[key] = unexplained(key)
            if name is not None:
                self.spoiled.setdefault(name, key)
            self.left_out |= {other: _beside(key) for other in keys if other not in self.left_out}

    def _drop_spoiled(self) -> None:
        for name, key in self.spoiled.items():
            if self.updates.pop(name, None) is not None:
                self.left_out |= {other: _beside(key) for other in self.keys[name] if other not in self.left_out}

    def changes(self, job: Job) -> Changes:
        """Return the changes that the adapter makes in the base, each made when it is asked for.

        Raises:
            InputError: it holds no update, or only such as are not read: of another method, or under other names.
            BaseMismatchError: nothing in it fits the base, whatever may be left out.
            BaseError: the base does not say the classes of its layers.
        """
        self._drop_spoiled()
        self.updates = bind(self.updates, job.made_on, self.what)
        kinds = base_kinds(job.base, on_request=job.embeddings)
        left_out, fitting = dict(self.left_out), {}
        reasons = misnamed(job.base) if self.updates.keys() - kinds.keys() else {}
        for name, update in sorted(self.updates.items()):
            if reason := update.misfit(job.base.shape(name)):
                left_out[name] = reason
            elif name in kinds:
                fitting[name] = kinds[name]
            else:
                left_out[name] = f"changes, and {reasons[name]}" if name in reasons else NO_KIND
        hint = self._hint(job)
        if not fitting:
            if not left_out and not self.updates:
                raise InputError(f"{self.what}: holds no update of a weight", fix="name an adapter with weights")
            raise self._nothing_fits(left_out, hint, Names(job.base))
        said = self._said()
        return Changes(
            kinds=fitting,
            read=self._reader(job),
            sources=self._sources,
            expected={name: known for name, known in said.parameters.items() if name in fitting},
            left_out=dict(sorted(left_out.items())),
            metadata=said,
            remarks=(*self.remarks, *self._scales_of_one(), *rounding_remark(self.updates, job.base)),
            hint=hint,
            updates={name: self.updates[name] for name in fitting},
        )

    def _nothing_fits(self, left_out: Mapping[str, str], hint: str, names: Names) -> DeltaError:
        """Return the error that says why nothing can be taken: the method, the layout, or another base."""
        lost = [key for key, reason in left_out.items() if reason == unexplained(key)]
        known = [key.removeprefix(self.prefix) for key, reason in left_out.items() if reason in (NO_MODULE, NO_RULE)]
        if error := unread(self.what, methods=lost, layers=known, names=names):
            return error
        if {*left_out.values()} <= {NO_LAYOUT} and (error := unread(self.what, layers=left_out)):
            return error
        example, reason = next(iter(sorted(left_out.items())))
        fix = MERGE
        if {*left_out.values()} <= {NO_KIND}:
            fix = "give `embeddings=True`, if what it changes are embeddings"
        elif hint or any(reason == NO_MODULE or reason.startswith("has ") for reason in left_out.values()):
            fix = "name the base that it was made for"
        return BaseMismatchError(f"{self.what}: nothing in it fits the base{hint}; {example}: {reason}", fix=fix)

    def _reader(self, job: Job) -> Callable[[str], WeightChange]:
        return lambda name: WeightChange(self.updates[name].change(job.base.read(name)))

    def _hint(self, job: Job) -> str:
        """Return what the adapter and the base look like, where they do not look alike."""
        mine, base = looks_like(self.widths), looks_like(_base_widths(job))
        if mine == base or not mine:
            return ""
        return f" (it looks like an adapter of {mine}, the base like {base or 'something else'})"

    def _said(self) -> Metadata:
        """Return what the files say of themselves, as a delta file would."""
        facts = foreign_facts([file.header for file in self.files])
        documents = [parsed for file in self.files if (parsed := document(file))]
        if not documents:
            return facts
        first = documents[0]
        return replace(
            facts,
            base=first.base,
            parameters={name: known for said in documents for name, known in said.parameters.items()},
            lineage=first.lineage,
            training=first.training,
            extra={key: value for key, value in first.extra.items() if key not in OWN_MEMBERS},
        )

    def _scales_of_one(self) -> Iterator[str]:
        """Yield what to remark of modules for which a scale of 1 is taken."""
        for what, modules in sorted(self.unscaled.items()):
            yield f"{what} in {counted(len(modules), 'module')} ({modules[0]}, …): taken to be the rank, a scale of 1"

    def _sources(self) -> list[tuple[str, Source]]:
        found = []
        for file in self.files:
            sha256, source = name_source(file, document(file) or foreign_facts([file.header]))
            found.append((sha256, replace(source, extra={**source.extra, **self.extra})))
        return found


def unexplained(key: str) -> str:
    """Return why a key is left out that no rule explains: it is of another method, if that is known."""
    method = method_of(key)
    return f"is of {method[0]}, which is not read here" if method else NO_RULE


def _beside(key: str) -> str:
    return f"its module also has {key}, which is not understood"


def document(file: TensorFile) -> Metadata | None:
    """Return the document that `svdiff convert` writes into an adapter; None if another program wrote it.

    Raises:
        MetadataError: it breaks the rules; the message names the file.
    """
    strings = file.header.metadata
    if KEY not in strings:
        return None
    try:
        fields = as_object(strict_json(strings[KEY].encode("utf-8", "surrogatepass"), f"`{KEY}`", MetadataError), KEY)
        names = fields.get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise MetadataError("names: must be a list of strings")
        return parse(strings, names, key=KEY, form=FORMAT)
    except DeltaError as error:
        raise type(error)(f"{file.path}: {error.message}", fix=error.fix) from None


def _base_widths(job: Job) -> dict[str, int]:
    """Return the number of inputs of each layer of a base (0 if it has none)."""
    found, names = {}, Names(job.base)
    for component in job.base.components:
        for path in names.paths(component):
            name = names.dotted(component, path)
            shape = job.base.shape(name) if name else ()
            found[f"{component}.{path}"] = shape[1] if len(shape) > 1 else 0
    return found


def width(ref: Ref) -> int:
    """Return the number of inputs of a layer by the tensor that takes them, (r, inputs, …); 0 if that is not known."""
    return ref.shape[1] if len(ref.shape) > 1 else 0
