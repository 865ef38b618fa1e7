"""Read from PEFT's configuration which method an adapter is of, and what PEFT's layers of it are built from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from svdiff_delta.errors import InputError

from .layers import FAILURES, library
from .library_update import NAME, refusal
from .peft_methods import DECOMPOSED, DROPPED, FIELDS, LAYERS, NO_WEIGHT, REFUSED_FIELDS, TAKEN_OUT

MERGE: Final = 'merge it with PEFT, then `from_="full"`'


@dataclass(frozen=True)
class PeftMethod:
    """A method of PEFT, and the fields of its configuration.

    Attributes:
        name: PEFT's name of the method.
        fields: what its layers are built from.
        where: what errors call the configuration.
        anew: what PEFT takes out of the base at each load and the file lacks; empty where the file holds all.
    """

    name: str
    fields: Mapping[str, Any]
    where: str
    anew: str = ""

    @property
    def title(self) -> str:
        """An adapter of it, as errors call it."""
        return f"{self.where}: PEFT's method {self.name}"

    @property
    def shares(self) -> bool:
        """Tell whether its layers share tensors, so that they are built together."""
        tuner = library("peft.mapping", "train").PEFT_TYPE_TO_TUNER_MAPPING.get(self.name)
        return bool(getattr(tuner, "uses_shared_state", False))

    def config(self, layers: Iterable[str] | None) -> Any:
        """Return PEFT's configuration, for these layers, or for those that its fields name if None is given.

        Raises:
            InputError: the installed PEFT does not know the method, or refuses the fields.
        """
        cls = library("peft.mapping", "train").PEFT_TYPE_TO_CONFIG_MAPPING.get(self.name)
        if cls is None:
            raise InputError(f"{self.title} is not known to the installed PEFT", fix="install a newer one")
        try:
            config = cls(**self.fields)
        except FAILURES as error:
            raise refusal(self.title, error) from None
        if hasattr(config, "progressbar"):
            config.progressbar = False
        if layers is not None:
            config.target_modules, config.exclude_modules = set(layers), None
            config.layers_to_transform = config.layers_pattern = None
        return config


def check_method(fields: Mapping[str, Any], where: str, *, made_on: bool) -> PeftMethod | None:
    """Return the method of a configuration if PEFT's own layers are to read it; None for a LoRA.

    Args:
        fields: as in the file.
        where: what errors call it.
        made_on: whether the base is named that the adapter was made on.

    Raises:
        InputError: it changes no weight, or needs a base that is not named, or it or a field is not known.
    """
    method = str(fields.get("peft_type") or "LORA")
    anew = _taken_out(fields) if method == "LORA" else DECOMPOSED.get(method, "")
    if method == "LORA" and not (anew and made_on):
        return None
    if why := NO_WEIGHT.get(method):
        raise InputError(
            f"{where}: is of PEFT's method {method}, which changes no weight: {why}", fix="use it with PEFT"
        )
    if method not in FIELDS:
        raise InputError(f"{where}: is of PEFT's method {method[:60]}, which this program does not know", fix=MERGE)
    known = {*FIELDS[method], *DROPPED, *LAYERS}
    for key, value in sorted(fields.items()):
        if value and key not in known:
            why = REFUSED_FIELDS.get(key) or f"this program does not know what it means (it is {str(value)[:60]})"
            raise InputError(f"{where}: {key}: {why}", fix=MERGE)
    if anew and not made_on:
        raise InputError(f"{where}: is of PEFT's method {method}, whose file lacks {anew}", fix=NAME)
    passed = {key: value for key, value in fields.items() if key in known and key not in DROPPED}
    return PeftMethod(method, passed, where, anew)


def _taken_out(fields: Mapping[str, Any]) -> str:
    start = str(fields.get("init_lora_weights")).lower()
    return next((what for begin, what in TAKEN_OUT.items() if start.startswith(begin)), "")
