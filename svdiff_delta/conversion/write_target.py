"""Define the target of an adapter writer: the key of each weight, and what stands beside the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import IO, ClassVar, Final, Literal

from svdiff_delta._util.atomic import replace_file
from svdiff_delta.base_model.experts import ExpertPart
from svdiff_delta.base_model.opened import component_of
from svdiff_delta.format.original_names import is_known
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.format.stacked import slice_of

from .convolutions import Convolutions
from .dialect import Job
from .key_map import EXPERT, Names
from .low_rank_factors import Factors, LayerRows, StackPlace, joined, stacked
from .model_family import Family, find_family
from .tensor_spool import Spool


@dataclass(frozen=True)
class Keys:
    """The keys under which the update of a weight is written.

    Attributes:
        up: (rows, r, 1, …).
        down: (r, columns), or (r, in, k, …).
        alpha: a number whose ratio to the rank is the scale; empty where the dialect keeps it elsewhere.
        whole: ΔW itself, for norms; then there is nothing else.
        transposed: whether `up` and `down` are stored transposed.
        groups: into how many groups of inputs and outputs the factors are divided, as PEFT divides them.
        rows: the rows that the weight has in the layer of these keys, where that holds several weights; else None.
        stack: the place of one expert's weight, where those of all are stacked under these keys; else None.
        file: the name of the file; empty for the only one.
    """

    up: str = ""
    down: str = ""
    alpha: str = ""
    whole: str = ""
    transposed: bool = False
    groups: int = 1
    rows: LayerRows | None = None
    stack: StackPlace | None = None
    file: str = ""


def of_layer(factors: Mapping[str, Factors], places: Mapping[str, Keys]) -> tuple[Factors, int]:
    """Return the factors of one layer of a file, which may hold several weights, and their rank in its configuration.

    Args:
        factors: of each of its weights that changes, by parameter.
        places: of all weights.
    """
    keys = places[next(iter(factors))]
    if keys.stack is not None:
        whole = stacked([(found, stack) for name, found in factors.items() if (stack := places[name].stack)])
        return whole, whole.rank // keys.stack.count
    if keys.rows is not None:
        whole = joined([(found, rows) for name, found in factors.items() if (rows := places[name].rows)])
        return whole, whole.rank
    ((_, found),) = factors.items()
    return found, found.rank


@dataclass(frozen=True)
class Part:
    """One file of an adapter, ready to be written.

    Attributes:
        spool: its tensors.
        strings: its metadata.
        ranks: the rank of each parameter in it.
    """

    spool: Spool
    strings: Mapping[str, str]
    ranks: Mapping[str, int]

    @cached_property
    def header(self) -> bytes:
        """The header of the file."""
        return self.spool.header(self.strings)

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return len(self.header) + self.spool.size

    def copy(self, stream: IO[bytes]) -> None:
        """Write the file."""
        stream.write(self.header)
        self.spool.copy(stream)


class Target(ABC):
    """A dialect that adapters are written in.

    Args:
        names: the base's names.

    Raises:
        InputError: the dialect has no names for the base's layers.
    """

    name: ClassVar[str]
    common_alpha: ClassVar[bool] = False
    """Whether all weights get one alpha, and those of another rank factors that make up for it. Else each one's alpha
    is its rank, its scale 1. diffusers 0.42 loses those of attention where alphas differ within one kohya file."""

    grouped: ClassVar[Literal["", "whole", "divided"]] = ""
    """How the factors of a grouped convolution are shaped: of its weight (out, in/groups · k) as a whole, or divided,
    as in PEFT. Empty where the readers of the dialect do not agree, or refuse the file: diffusers 0.42 takes the
    rank of one group for the layer's where it does not read the metadata, and older ones never read it."""

    by_peft: ClassVar[bool] = False
    """Whether PEFT builds the layers that the factors are put into."""

    stacks: ClassVar[bool] = False
    """Whether it has places for the weights of stacked experts."""

    def __init__(self, names: Names) -> None:
        self.names: Final = names
        self.changed: frozenset[str] = frozenset(names.base.components)
        """The components that the delta changes; the writer says it."""
        self.weights: frozenset[str] = frozenset()
        """The parameters that it changes, if the writer says it."""
        self.convolutions: Final = Convolutions(names.base)

    @cached_property
    def family(self) -> Family | None:
        """The family of models that the base is, if its structure tells."""
        return find_family(self.names.base)

    @property
    def denoiser(self) -> str:
        """The component that keys mean which say none: the main one, or the second expert where that alone changes."""
        alone = EXPERT in self.changed and self.names.main not in self.changed
        return EXPERT if alone else self.names.main

    def second(self, component: str) -> str:
        """Return why a weight of a second expert has no place beside those of the first; empty if it is of none."""
        if component != EXPERT or self.denoiser == EXPERT:
            return ""
        return f"is of {EXPERT}, for which programs take a file of its own: convert a slice of each component"

    @property
    def remark(self) -> str:
        """A remark on the programs that read the file; empty if there is none."""
        return ""

    def group(self, keys: Keys, name: str, parameter: Parameter, most: int) -> Keys | str:
        """Return where a convolution's update stands, with its groups, or why it has no place; others stay as they are.

        Args:
            keys: where it would stand if it had no groups.
            name: the parameter's name.
            parameter: the parameter.
            most: the largest rank that it may have.
        """
        if len(parameter.shape) < 3:
            return keys
        if self.by_peft and (reason := self.convolutions.unlike(name)):
            return reason
        groups = self.convolutions.groups(name, parameter)
        if groups == 1 or self.grouped == "whole":
            return keys
        if groups is None:
            return "may be a depthwise convolution, and no config.json beside the weights says it"
        if not self.grouped:
            return f"is a convolution of {groups} groups, of which not all readers of {self.name} take the same shape"
        if groups > most:
            return f"is a convolution of {groups} groups, and PEFT takes no rank below that"
        return replace(keys, groups=groups)

    def find(self, name: str, parameter: Parameter) -> Keys | str:
        """Return where a parameter's update stands, or why it has no place, whatever kind of weight it is."""
        if not self.stacks and self.expert(name):
            return "is one of several experts whose weights are stacked, for which only peft has a place"
        return self.place(name, parameter)

    def expert(self, name: str) -> ExpertPart | None:
        """Return where the class has the weight of one of several stacked experts; None for any other weight."""
        slot, _, key = name.partition(".")
        part, indexed = component_of(self.names.base, slot), slice_of(key)
        if part is None:
            return ExpertPart(*indexed) if indexed else None
        return ExpertPart(part.live(indexed.stack), indexed.number) if indexed else part.expert_part(key)

    @abstractmethod
    def place(self, name: str, parameter: Parameter) -> Keys | str:
        """Return where a parameter's update stands, or why it has no place."""

    def strings(self, ranks: Mapping[str, int], alpha: int) -> dict[str, str]:  # noqa: ARG002 - others need them
        """Return the metadata that the dialect's programs look for; none if they look for none.

        Args:
            ranks: the rank of each parameter of a file.
            alpha: the common alpha.
        """
        return {}

    def write(self, job: Job, parts: Mapping[str, Part]) -> int:
        """Write the files if there is an output; return their size in all.

        Raises:
            OutputError: the output exists, or the disk refused.
        """
        (part,) = parts.values()
        if job.output is not None:
            with replace_file(job.output, overwrite=job.overwrite) as stream:
                part.copy(stream)
        return part.size


def unknown_names(names: Names, program: str) -> str:
    """Return a remark on a denoiser whose names in a program are not known; empty if they are."""
    kind = names.base.components[names.main].class_name
    if not names.is_transformer or is_known(kind):
        return ""
    return f"what {program} call the layers of {kind} is not known here: diffusers' names are written"


def plain_layer(parameter: Parameter) -> str:
    """Return why a weight has no place beside linear layers and convolutions; empty if it has one."""
    if parameter.kind == "elementwise":
        return "is a norm, for which only lycoris has a place"
    if parameter.axis != 0:
        return "is stored transposed, for which this dialect has no place"
    return ""
