"""Read and write diffusers' `pytorch_lora_weights.safetensors`, in all its spellings (spec, section 7.10)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from svdiff_delta._util.json import JSON, canonical_json
from svdiff_delta.errors import InputError
from svdiff_delta.format.adapter_keys import spell
from svdiff_delta.format.parameter import Parameter

from .adapter_writer import adapter_writer
from .dialect import Changes, Dialect, Job
from .energy_limits import LEAST
from .key_map import EXPERT, Names
from .lazy_tensors import OpenedAdapter
from .peft_config import low_rank_config
from .spelled_reader import CONFIG, read_spelled
from .write_target import Keys, Target, plain_layer

WEIGHTS: Final = "pytorch_lora_weights.safetensors"
WEB: Final = (
    'web UIs (AUTOMATIC1111, Forge, ComfyUI) do not read this file, or not all of it: for them use `to="kohya"`'
)

SECOND: Final = "this file is for the second expert: diffusers loads it there with `load_into_transformer_2=True`"


def recognizes(source: OpenedAdapter) -> bool:
    """Tell whether this is diffusers' file, or the folder with it; so is any with a dotted module and two factors."""
    header = source.header(_file(source.path))
    found = (spell(key) for key in header.entries) if header is not None else ()
    return any(key and not key.flat and key.role != "alpha" for key in found)


def _file(path: Path) -> Path:
    return path / WEIGHTS if (path / WEIGHTS).is_file() else path


def read(source: OpenedAdapter, job: Job) -> Changes:
    """Return the changes of diffusers' file.

    Raises:
        InputError, FormatError: it cannot be read, or its tensors do not fit each other.
        BaseMismatchError: nothing in it fits the base.
        MissingExtraError: only the pipeline knows its names, and diffusers is not installed.
    """
    second = source.path / EXPERT / WEIGHTS
    if _file(source.path) != source.path and second.is_file():
        raise InputError(
            f"{source.name}: holds a file for each of two experts", fix=f"convert {WEIGHTS} and {EXPERT} one by one"
        )
    return read_spelled(source.file(_file(source.path)), source.name, Names(job.base, job.component)).changes(job)


class DiffusersTarget(Target):
    """The key of each weight in diffusers' file."""

    name = "diffusers"
    by_peft = True

    @property
    def remark(self) -> str:
        """A remark on programs that do not read the file, and on the second expert."""
        if self.denoiser == EXPERT:
            return SECOND
        return WEB if self.names.main == "unet" else ""

    def _called(self, component: str) -> str:
        """Return how keys call a component: the second expert as the first, whose names its file has."""
        return self.names.main if component == self.denoiser else component

    def place(self, name: str, parameter: Parameter) -> Keys | str:
        """Return where a parameter's update stands, or why it has no place."""
        if reason := plain_layer(parameter):
            return reason
        component, _, key = name.partition(".")
        if reason := self.second(component):
            return reason
        path = self._path(component, key)
        component = self._called(component)
        return Keys(f"{component}.{path}.lora_B.weight", f"{component}.{path}.lora_A.weight")

    def _path(self, component: str, key: str) -> str:
        return self.names.long(component, key).removesuffix(".weight")

    def strings(self, ranks: Mapping[str, int], alpha: int) -> dict[str, str]:  # noqa: ARG002 - others need it
        """Return each component's configuration: without it diffusers would guess scales from ranks."""
        fields: dict[str, JSON] = {}
        for component in sorted({name.partition(".")[0] for name in ranks}):
            mine = {
                self.names.short(name.partition(".")[2].removesuffix(".weight")): rank
                for name, rank in ranks.items()
                if name.startswith(f"{component}.")
            }
            config = low_rank_config(mine, [*map(self.names.short, self.names.paths(component))])
            fields |= {f"{self._called(component)}.{key}": value for key, value in config.items()}
        return {CONFIG: canonical_json(fields).decode()}


diffusers: Final = Dialect(
    "diffusers' pytorch_lora_weights.safetensors",
    recognizes,
    read,
    adapter_writer(DiffusersTarget),
    min_energy=LEAST,
    low_rank=True,
)
