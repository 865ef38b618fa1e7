"""Save a mix: as a δ, as its recipe, as a command, as Python, or as LoRA for other programs."""

from __future__ import annotations

import re
import shlex
import tempfile
import threading
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec

from svdiff_delta.errors import DeltaError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import StoredDtype
from svdiff_delta.format.file import dumps
from svdiff_delta.ops.merge import merge
from svdiff_delta.ops.merge.recipe_text import recipe_text
from svdiff_delta.ops.weights import Weight
from svdiff_serve.errors import BusyError, RefusedError

from .listing import LORA
from .mix import Mix, check_mix
from .shelf import Shelf

Form = Literal["delta", "recipe", "command", "python", "kohya", "comfyui"]

SAFETENSORS: Final = "application/octet-stream"
TEXT: Final = "text/plain; charset=utf-8"

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
LONGEST_NAME: Final = 80
"""Characters of a file's name, without its ending."""

RESERVED: Final = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})
"""Names that Windows has no files of."""


class Export(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What is to be saved, and how.

    Attributes:
        mix: what.
        form: how.
        title: of the result.
        dtype: number format of the result.
        rank: of a LoRA.
        leave_out: whether a LoRA may lack what LoRA has no place for, such as norms.
    """

    NOUN: ClassVar[str] = "what is to be saved"

    mix: Mix
    form: Form
    title: Annotated[str, msgspec.Meta(max_length=200)] | None = None
    dtype: StoredDtype = "F32"
    rank: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 16
    leave_out: bool = False


@dataclass(frozen=True)
class Saved:
    """A file that is downloaded.

    Attributes:
        name: of ASCII letters, digits, dots, hyphens and underscores.
        kind: its media type.
        content: its bytes.
        facts: headers that say more.
    """

    name: str
    kind: str
    content: bytes
    facts: Mapping[str, str] = field(default_factory=dict)


class WaysOut:
    """Saves the mixes of a shelf; one LoRA is made at a time.

    Args:
        shelf: the deltas.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf, self._converting = shelf, threading.Lock()

    def save(self, asked: Export) -> Saved:
        """Return a mix in the form that is asked for.

        Raises:
            UnknownDeltaError: a δ is not there.
            RefusedError: the mix is empty, cannot be summed, or has no place in that form.
            BusyError: another LoRA is being made.
        """
        check_mix(asked.mix)
        if not asked.mix.terms:
            raise RefusedError("the mix has no δ", fix="add one to it first", field="mix")
        if asked.title is not None and not asked.title.isprintable():
            raise RefusedError("the title has characters that cannot be shown", fix="leave them out", field="title")
        try:
            return self._forms[asked.form](self, asked)
        except (RefusedError, BusyError):
            raise
        except DeltaError as error:
            path = str(self._shelf.service.base.path)
            raise RefusedError(error.message.replace(path, self._shelf.service.name), fix=error.fix) from None

    def merged(self, asked: Export) -> Delta:
        """Return the δ that `svdiff merge` makes of the mix's recipe."""
        pairs = self._shelf.terms(asked.mix)
        weights = [self._weight(term.weights(), opened.named) for opened, term in pairs]
        result = merge([opened.delta for opened, _ in pairs], weights=weights, dtype=asked.dtype)
        return result if asked.title is None else result.with_title(asked.title)

    @staticmethod
    def _weight(weight: Weight, named: Callable[[str], object]) -> Weight:
        """Return a weight, when all of its selectors name something."""
        for selector in weight.where:
            named(selector)
        return weight

    def _delta(self, asked: Export) -> Saved:
        return Saved(f"{_stem(asked)}.safetensors", SAFETENSORS, dumps(self.merged(asked)))

    def _named(self, asked: Export) -> list[tuple[str, Weight]]:
        """Return how recipes call each δ, and its weight."""
        pairs = self._shelf.terms(asked.mix)
        return [(op.entry.reference, self._weight(term.weights(), op.named)) for op, term in pairs]

    def _recipe(self, asked: Export) -> Saved:
        stem = _stem(asked)
        command = shlex.join([*_by_recipe(stem), "-o", f"{stem}.safetensors"])
        remark = f"{command}, in the folder that names are relative to"
        text = recipe_text(self._named(asked), title=asked.title, dtype=asked.dtype, remark=remark)
        return Saved(f"{stem}.yaml", "application/yaml; charset=utf-8", text.encode())

    def _command(self, asked: Export) -> Saved:
        inputs, stem = self._named(asked), _stem(asked)
        if any(weight.where for _, weight in inputs):
            text = recipe_text(inputs, title=asked.title, dtype=asked.dtype)
            end = "RECIPE"
            while f"\n{end}\n" in text:
                end += "_"
            command = f"cat > {stem}.yaml <<'{end}'\n{text}{end}\n{shlex.join(_by_recipe(stem))}"
        else:
            words = ["svdiff", "merge", *(f"{_as_path(name)}:{weight.default!r}" for name, weight in inputs)]
            words += ["--title", asked.title] if asked.title is not None else []
            words += ["--dtype", asked.dtype] if asked.dtype != "F32" else []
            command = shlex.join(words)
        return Saved(f"{stem}.sh", TEXT, f"{command} -o {stem}.safetensors\n".encode())

    def _python(self, asked: Export) -> Saved:
        inputs, stem = self._named(asked), _stem(asked)
        loads = "".join(f"    load({name!r}),\n" for name, _ in inputs)
        weights = "".join(f"    {_spelled(weight)},\n" for _, weight in inputs)
        dtype = "" if asked.dtype == "F32" else f", dtype={asked.dtype!r}"
        title = "" if asked.title is None else f".with_title({asked.title!r})"
        text = (
            "from svdiff_delta import Weight, load, merge, save\n\n"
            f"deltas = [\n{loads}]\nweights = [\n{weights}]\n"
            f"mix = merge(deltas, weights=weights{dtype}){title}\n"
            f"save(mix, {stem + '.safetensors'!r})\n"
        )
        return Saved(f"{stem}.py", TEXT, text.encode())

    def _lora(self, asked: Export) -> Saved:
        if asked.dtype == "I8":
            raise RefusedError("no LoRA is stored as I8", fix="choose F32, F16 or BF16", field="dtype")
        from svdiff_delta.conversion import convert
        from svdiff_delta.svd.energy import total_energy

        if not self._converting.acquire(blocking=False):
            raise BusyError("another LoRA is being made", retry_after=5)
        service, stem = self._shelf.service, f"{_stem(asked)}-{asked.form}"
        try:
            delta = self.merged(msgspec.structs.replace(asked, dtype="F32"))
            with tempfile.TemporaryDirectory(prefix="svdiff-board-") as folder:
                output = Path(folder) / f"{stem}.safetensors"
                found = convert(
                    delta,
                    to=asked.form,
                    base=service.base,
                    output=output,
                    dtype=asked.dtype,
                    rank=asked.rank,
                    allow_unmatched=asked.leave_out,
                    cache=service.live.cache,
                )
                content = output.read_bytes()
        finally:
            self._converting.release()
        facts = {"x-retained-energy": f"{total_energy(found.layers.values()).captured:.4f}"}
        return Saved(output.name, SAFETENSORS, content, facts | {"x-left-out": str(len(found.left_out))})

    _forms: Final[Mapping[str, Callable[[WaysOut, Export], Saved]]] = {
        "delta": _delta,
        "recipe": _recipe,
        "command": _command,
        "python": _python,
        **dict.fromkeys(LORA, _lora),
    }


def _by_recipe(stem: str) -> list[str]:
    """Return the words of the command that carries out a recipe."""
    return ["svdiff", "merge", "--recipe", f"{stem}.yaml"]


def _stem(asked: Export) -> str:
    """Return the name of a file, without its ending: of its title, or of the deltas in it."""
    text = asked.title or "-".join([*(term.name.rpartition("/")[2] for term in asked.mix.terms[:3]), "mix"])
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    stem = _UNSAFE.sub("-", plain).strip("-._")[:LONGEST_NAME].strip("-._")
    return f"mix-{stem}".rstrip("-") if not stem or stem.partition(".")[0].lower() in RESERVED else stem


def _as_path(name: str) -> str:
    """Return a path that no command takes for an option."""
    return f"./{name}" if name.startswith("-") else name


def _spelled(weight: Weight) -> str:
    where: dict[str, Any] = dict(weight.where)
    return f"Weight({weight.default!r}, {where!r})" if where else f"Weight({weight.default!r})"


def headers_of(saved: Saved) -> dict[str, str]:
    """Return the headers of a download."""
    return {**saved.facts, "content-disposition": f'attachment; filename="{saved.name}"'}
