"""What becomes of a family's δ as a LoRA in each dialect, and back; read by the programs that are installed."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import diffusers
import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support.adapters import taken
from support.weights import relative
from torch import Tensor

from svdiff_delta import Delta, convert, select
from svdiff_delta.conversion.result import Conversion
from svdiff_delta.conversion.sgm_names import SgmNames
from svdiff_delta.format.original_names import original_of

from .cell import LackingError
from .rows import Made

FULL: Final = 100_000
"""A rank that is no limit."""

COMFY_TEXT: Final = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""What ComfyUI calls the encoders of SD 1 and SDXL."""


def matrices(made: Made) -> Delta:
    """Return δ on all weights that a LoRA has a place for: those that are no vectors."""
    return select(made.delta, *(name for name in made.delta if len(made.base.shape(name)) > 1))


def slices(made: Made) -> list[Delta]:
    """Return δ for each file: programs take that of a second expert from a file of its own."""
    delta = matrices(made)
    if "transformer_2" not in made.base.components:
        return [delta]
    return [select(delta, f"{slot}.*") for slot in made.base.components]


def written(made: Made, dialect: str, index: int, delta: Delta) -> tuple[Path, Conversion]:
    """Write a LoRA at full rank in F32, once; return where, and what was written."""
    if (dialect, index) in made.files:
        return made.files[dialect, index]
    path = made.folder / f"{dialect}-{index}{'' if dialect == 'peft' else '.safetensors'}"
    arguments: dict[str, Any] = {"to": dialect, "base": made.base, "rank": FULL, "allow_unmatched": True}
    made.files[dialect, index] = path, convert(delta, output=path, overwrite=True, **arguments)
    return made.files[dialect, index]


def lora_out(made: Made, dialect: str) -> str:
    """Every layer stands in the file under the dialect's own key with its ΔW, and programs take what they take."""
    total, seen, lost = 0, 0, dict[str, str]()
    for index, delta in enumerate(slices(made)):
        path, done = written(made, dialect, index, delta)
        assert {*done.layers} | {*done.left_out} == {*delta}
        changes = {name: made.changes[name] for name in delta if name in done.layers}
        check_file(path, expected_layers(made, dialect, changes))
        seen += read_by_program(made, dialect, path, changes)
        total, lost = total + len(done.layers), lost | dict(done.left_out)
    if lost:
        name, reason = next(iter(lost.items()))
        raise LackingError(f"{len(lost)} of {total + len(lost)} layers, {name}: {reason}")
    return f"{total} ({PROGRAMS[dialect]} {'all' if seen == total else seen or 'none'})"


def lora_in(made: Made, dialect: str) -> str:
    """What was written comes back as the same δ, to 1e-6."""
    count = 0
    for index, delta in enumerate(slices(made)):
        path, done = written(made, dialect, index, delta)
        back = convert(path, base=made.base)
        assert back.delta.keys() == done.layers.keys()
        assert not back.left_out
        for name, shift in back.delta.items():
            expected = delta[name].astype("f8")
            assert np.linalg.norm(shift.astype("f8") - expected) <= 1e-6 * np.linalg.norm(expected), name
        count += len(back.delta)
    return str(count)


# --- The file by its keys ---

DOWN: Final = (".lora_A.weight", ".lora_down.weight")
UP: Final = (".lora_B.weight", ".lora_up.weight")


def file_changes(path: Path) -> dict[str, Tensor]:
    """Return the products in a file, by module, in float64."""
    files = [*path.rglob("*.safetensors")] if path.is_dir() else [path]
    found = {}
    for file in files:
        prefix = "" if not path.is_dir() or file.parent == path else f"{file.parent.name}/"
        tensors = {key: value.double() for key, value in load_file(file).items()}
        for key, down in tensors.items():
            if end := next((end for end in DOWN if key.endswith(end)), None):
                module = key.removesuffix(end)
                up = tensors[module + UP[DOWN.index(end)]]
                scale = float(tensors.get(f"{module}.alpha", torch.tensor(len(down)))) / len(down)
                module = module.replace("text_model.", "") if path.is_dir() else module  # PEFT takes either
                found[prefix + module] = product(up, down, scale)
    return found


def product(up: Tensor, down: Tensor, scale: float) -> Tensor:
    """Return scale · up · down as a matrix; PEFT divides the factors of a grouped convolution.

    There each group of outputs has rows of `down` of its own, which see the inputs of that group alone.
    """
    groups = len(down) // up.shape[1]
    if groups == 1:
        return up.flatten(1) @ down.flatten(1) * scale
    rows = []
    for index, (one, other) in enumerate(zip(up.flatten(1).chunk(groups), down.chunk(groups), strict=True)):
        inputs = other.reshape(len(other), groups, -1)
        assert not inputs[:, [each for each in range(groups) if each != index]].any()
        rows.append(one @ inputs[:, index] * scale)
    return torch.cat(rows)


def check_file(path: Path, expected: Mapping[str, Tensor]) -> None:
    """See to it that a file has these modules and no other, each with its ΔW to 1e-6."""
    found = file_changes(path)
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())[:4]
    for module, change in expected.items():
        assert relative(found[module], change.flatten(1)) < 1e-6, module


def expected_layers(made: Made, dialect: str, changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ΔW by the module that a dialect has it under."""
    slots = {name.partition(".")[0] for name in changes}
    found: dict[str, Tensor] = {}
    for slot in sorted(slots):
        mine = {
            name.partition(".")[2].removesuffix(".weight"): change
            for name, change in changes.items()
            if name.startswith(f"{slot}.")
        }
        if slot.startswith("text_encoder"):
            found |= {text_module(made, dialect, slot, path): change for path, change in mine.items()}
            continue
        if dialect in ("kohya", "comfyui"):
            mine = original(made, dialect, slot, mine)
        found |= {denoiser_module(dialect, slot, path, several=len(slots) > 1): change for path, change in mine.items()}
    return found


def denoiser_module(dialect: str, slot: str, path: str, *, several: bool) -> str:
    """Return the module of a denoiser's layer; the second expert is called as the first."""
    folder = f"{slot}/" if several else ""
    return {
        "diffusers": f"{slot.removesuffix('_2')}.{path}",
        "peft": f"{folder}base_model.model.{path}",
        "kohya": f"lora_unet_{path.replace('.', '_')}",
        "comfyui": f"diffusion_model.{path}",
        "lycoris": f"lycoris_{path.replace('.', '_')}",
    }[dialect]


def text_module(made: Made, dialect: str, slot: str, path: str) -> str:
    """Return the module of a CLIP's layer, which all but PEFT's folders call as transformers 4 did."""
    short = path.removeprefix("text_model.")
    long = short if short == "text_projection" else f"text_model.{short}"
    if dialect == "peft":
        return f"{slot}/base_model.model.{short}"
    if dialect == "diffusers":
        return f"{slot}.{long}"
    if dialect == "comfyui":
        encoder = "clip_h" if made.name == "SD 2" else COMFY_TEXT[slot]
        return f"text_encoders.{encoder}.transformer.{long}"
    alone = "text_encoder_2" not in made.base.components
    number = "" if alone else "2" if slot.endswith("_2") else "1"
    return f"lora_te{number}_{long.replace('.', '_')}"


def original(made: Made, dialect: str, slot: str, changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ΔW by the original code's name of the layer, in which several weights may be one."""
    kind = made.base.components[slot].class_name
    if slot == "unet":
        if dialect == "kohya" and not made.name.startswith("SDXL"):
            return dict(changes)
        names = SgmNames(path for path, module in made.models[slot].named_modules() if hasattr(module, "weight"))
        return {names.name(path) or "": change for path, change in changes.items()}
    if made.name == "Z-Image" and dialect == "comfyui":
        return dict(changes)
    found = {}
    for path, change in changes.items():
        layer = original_of(kind, path)
        parts = (path,) if layer is None else layer.parts
        whole = torch.cat([changes[part].flatten(1) for part in parts]) if len(parts) > 1 else change
        turned = layer is not None and (
            layer.swap == "always" or (layer.swap == "continuous" and whole.shape[0] == 2 * whole.shape[1])
        )
        found[path if layer is None else layer.name] = torch.cat([*reversed(whole.chunk(2))]) if turned else whole
    return found


# --- The programs ---

PROGRAMS: Final = {
    "diffusers": "diffusers",
    "peft": "PEFT",
    "kohya": "diffusers",
    "comfyui": "diffusers",
    "lycoris": "lycoris",
}
"""The installed program that reads files of a dialect."""

OTHERWISE: Final = {("Flux.2 dev", "comfyui"): 1, ("Flux.2 klein", "comfyui"): 1}
"""How many layers diffusers 0.42 takes as something else than ComfyUI: it does not turn the halves of the last norm."""


def read_by_program(made: Made, dialect: str, path: Path, changes: Mapping[str, Tensor]) -> int:
    """Return how many layers a program takes, each of them with its ΔW to 1e-6."""
    reader = {"peft": by_peft, "lycoris": by_lycoris}.get(dialect, by_diffusers)
    with quiet():
        found = reader(made, path, {name.partition(".")[0] for name in changes})
    assert found.keys() <= changes.keys(), sorted(found.keys() - changes.keys())[:4]
    wrong = [
        name for name, value in found.items() if relative(value.reshape(changes[name].shape), changes[name]) > 1e-6
    ]
    assert len(wrong) == (OTHERWISE.get((made.name, dialect), 0)), wrong
    whole = dialect in ("diffusers", "peft") or (dialect == "lycoris" and "text_encoder" not in made.base.components)
    assert not whole or len(found) == len(changes), sorted(changes.keys() - found.keys())[:4]
    return len(found) - len(wrong)


def by_diffusers(made: Made, path: Path, slots: set[str]) -> dict[str, Tensor]:
    """Load a file by the pipeline's `load_lora_weights`; nothing if it refuses the file."""
    kind: Any = getattr(diffusers, made.family.pipeline)
    needed = inspect.signature(kind.__init__).parameters
    models = {slot: made.loaded(slot) for slot in made.models}
    pipeline = kind(
        **{
            name: models.get(name)
            for name in needed
            if name != "self" and (name in models or needed[name].default is inspect.Parameter.empty)
        }
    )
    second = {"load_into_transformer_2": True} if slots == {"transformer_2"} else {}
    try:
        pipeline.load_lora_weights(str(path), **second)
    except (ValueError, KeyError, RuntimeError, IndexError, AssertionError, NotImplementedError, AttributeError):
        return {}
    return {name: change for slot, model in models.items() for name, change in wrapped(made, slot, model).items()}


def by_peft(made: Made, path: Path, slots: set[str]) -> dict[str, Tensor]:
    """Load each component's folder by PEFT."""
    found: dict[str, Tensor] = {}
    for slot in slots:
        model = PeftModel.from_pretrained(made.loaded(slot), str(path / slot if len(slots) > 1 else path))
        found |= wrapped(made, slot, model)
    return found


def wrapped(made: Made, slot: str, model: Any) -> dict[str, Tensor]:
    """Return ΔW of each layer that PEFT has wrapped, by parameter name."""
    live = {
        made.base.components[slot].live(name.partition(".")[2]): name
        for name in made.delta
        if name.startswith(f"{slot}.")
    }
    found = {}
    for path, module in model.named_modules():
        if hasattr(module, "lora_A"):
            (adapter,) = module.lora_A
            name = live[f"{path.removeprefix('base_model.model.')}.weight"]
            factors = module.lora_B[adapter].weight, module.lora_A[adapter].weight
            grouped = len(factors[1]) != factors[0].shape[1]  # which PEFT cannot merge
            change = product(*factors, module.scaling[adapter]) if grouped else module.get_delta_weight(adapter)
            found[name] = change.detach()
    assert len(found) == taken(model)
    return found


def by_lycoris(made: Made, path: Path, slots: set[str]) -> dict[str, Tensor]:
    """Load a file by lycoris-lora, which puts it on the denoiser."""
    from lycoris import create_lycoris_from_weights

    (slot,) = (slot for slot in slots if not slot.startswith("text_encoder"))
    network, _ = create_lycoris_from_weights(1.0, str(path), made.loaded(slot))
    flat = {
        f"lycoris_{name.partition('.')[2].removesuffix('.weight').replace('.', '_')}": name
        for name in made.delta
        if name.startswith(f"{slot}.")
    }
    return {flat[layer.lora_name]: layer.get_diff_weight(1.0)[0].detach() for layer in network.loras}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' remarks on what they do not take to themselves: it is counted here."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
