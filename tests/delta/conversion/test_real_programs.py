"""Real programs load what is written, for every family that they know: each layer is counted, and each ΔW compared."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.adapters import taken, true_changes
from support.commands import python
from support.models import base_delta
from support.weights import relative
from torch import Tensor

from svdiff_delta import Delta, convert, open_base, select
from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion.library_names import _loader
from svdiff_delta.conversion.respell import respell
from svdiff_delta.format.original_names import original_of

from .test_spellings import FAMILIES, LOST, folder_of

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # Chroma's own

Made = Callable[[str], tuple[Base, Delta, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return what makes a small model of a family, a δ on each of its matrices, and ΔW of each."""
    root = tmp_path_factory.mktemp("families")

    @cache
    def make(family: str) -> tuple[Base, Delta, dict[str, Tensor]]:
        base = open_base(folder_of(family, root))
        delta = base_delta(base, size=0.1)
        matrices = select(delta, *(name for name in delta if len(base.shape(name)) > 1))
        return base, matrices, true_changes(base, matrices)

    return make


def some(delta: Delta, *patterns: str) -> Delta:
    return select(delta, *(name for name in delta if any(fnmatchcase(name, pattern) for pattern in patterns)))


def live(base: Base) -> Any:
    kind = base.components["transformer"].class_name
    return getattr(diffusers, kind).from_pretrained(base.path / "transformer")


def delta_weights(model: Any) -> dict[str, Tensor]:
    """Return ΔW of each layer that PEFT has wrapped, by parameter name."""
    found = {}
    for path, module in model.named_modules():
        if hasattr(module, "lora_A"):
            (adapter,) = module.lora_A
            found[f"transformer.{path.removeprefix('base_model.model.')}.weight"] = module.get_delta_weight(
                adapter
            ).detach()
    return found


def check(found: dict[str, Tensor], changes: dict[str, Tensor]) -> None:
    """See to it that all of these weights change, each as it should."""
    assert found.keys() == changes.keys()
    for name, change in changes.items():
        assert relative(found[name].double().reshape(change.shape), change) < 1e-6, name


BLOCKS = "transformer.*transformer_blocks.*"
DOUBLE = ("transformer.transformer_blocks.*.attn.*", "transformer.transformer_blocks.*.ff*")
LOADED = {
    # What of a model diffusers 0.42.1 can take from such a file, and how many layers that is.
    ("Flux", "diffusers"): (["*"], 30),
    ("Flux", "kohya"): ([*DOUBLE, "*.single_transformer_blocks.*.proj_out.*"], 13),  # linear1: the true width only
    ("Chroma", "diffusers"): ([BLOCKS], 17),
    ("Chroma", "kohya"): (DOUBLE, 12),
    ("Flux2", "diffusers"): (["*"], 25),
    ("Flux2", "kohya"): ([BLOCKS], 14),
    ("Flux2", "comfyui"): ([BLOCKS, "*embed*", "*modulation*", "transformer.proj_out.*"], 24),  # norm_out is not turned
    ("SD3", "diffusers"): (["*"], 37),
    ("QwenImage", "diffusers"): (["*"], 20),
    ("QwenImage", "kohya"): (["*"], 20),
    ("QwenImage", "comfyui"): (["*"], 20),
    ("ZImage", "diffusers"): (["*"], 29),
    ("ZImage", "kohya"): (["transformer.[!a]*"], 26),  # not all_x_embedder and all_final_layer
    ("ZImage", "comfyui"): (["*"], 29),
    ("Wan", "diffusers"): (["*"], 17),
    ("Wan", "kohya"): (["transformer.blocks.*"], 10),
    ("Wan", "comfyui"): (["transformer.blocks.*"], 10),  # the whole file is refused for patch_embedding
    ("Lumina2", "diffusers"): (["*"], 29),
    ("HiDreamImage", "diffusers"): (["*"], 45),
    ("HiDreamImage", "comfyui"): (["*"], 45),
    ("LTX", "diffusers"): (["*"], 17),
    ("LTX", "comfyui"): ([BLOCKS, "*caption*", "transformer.proj_out.*"], 13),  # not patchify_proj and adaln_single
    ("AuraFlow", "diffusers"): (["*"], 30),
    ("Sana", "diffusers"): (["*"], 19),
    ("Krea2", "diffusers"): (["*"], 32),
    ("Krea2", "comfyui"): (["*"], 32),
}


@pytest.mark.parametrize(("family", "dialect"), LOADED)
def test_diffusers_takes_every_layer(tmp_path: Path, made: Made, family: str, dialect: str) -> None:
    base, delta, changes = made(family)
    patterns, count = LOADED[family, dialect]
    path, wanted = tmp_path / "x.safetensors", some(delta, *patterns)
    done = convert(wanted, to=dialect, base=base, rank=100_000, output=path, allow_unmatched=True)
    assert [*done.left_out] == LOST.get((family, dialect), [])
    loader, model = _loader(base.components["transformer"].class_name, ""), live(base)
    alphas = {"return_alphas": True} if family in ("Flux", "Chroma") else {}
    state, *networks, metadata = loader.lora_state_dict(str(path), return_lora_metadata=True, **alphas)
    given = {"network_alphas": networks[0]} if networks else {}
    loader.load_lora_into_transformer(state, transformer=model, metadata=metadata, **given)
    assert taken(model) == len(done.layers) == count
    check(delta_weights(model), {name: changes[name] for name in done.layers})


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_takes_every_layer(tmp_path: Path, made: Made, family: str) -> None:
    base, whole, changes = made(family)
    delta = some(whole, "*[!h].weight")  # a depthwise convolution PEFT cannot merge
    done = convert(delta, to="peft", base=base, rank=100_000, output=tmp_path / "x", allow_unmatched=True)
    assert not done.left_out
    model = PeftModel.from_pretrained(live(base), str(tmp_path / "x"))
    assert taken(model) == len(delta)
    check(delta_weights(model), {name: changes[name] for name in delta})


@pytest.mark.parametrize("family", FAMILIES)
def test_lycoris_takes_every_layer(tmp_path: Path, made: Made, family: str) -> None:
    from lycoris import create_lycoris_from_weights

    base, delta, changes = made(family)
    path, model = tmp_path / "x.safetensors", live(base)
    convert(delta, to="lycoris", base=base, rank=100_000, output=path)
    network, _ = create_lycoris_from_weights(1.0, str(path), model)
    assert len(network.loras) == len(delta)
    flat = {f"lycoris_{name[12:-7].replace('.', '_')}": name for name in delta}
    found = {flat[layer.lora_name]: layer.get_diff_weight(1.0)[0].detach() for layer in network.loras}
    check(found, changes)


# --- Programs that are only read from, in a process and a folder of their own ---

INVOKE = {
    ("Flux", "kohya"): "flux_kohya_lora_conversion_utils:lora_model_from_flux_kohya_state_dict",
    ("Flux", "comfyui"): "flux_bfl_peft_lora_conversion_utils:lora_model_from_flux_bfl_peft_state_dict",
    ("Flux2", "comfyui"): "flux_bfl_peft_lora_conversion_utils:lora_model_from_flux2_bfl_peft_state_dict",
    ("QwenImage", "kohya"): "qwen_image_lora_conversion_utils:lora_model_from_qwen_image_state_dict",
    ("QwenImage", "diffusers"): "qwen_image_lora_conversion_utils:lora_model_from_qwen_image_state_dict",
    ("ZImage", "comfyui"): "z_image_lora_conversion_utils:lora_model_from_z_image_state_dict",
    ("ZImage", "diffusers"): "z_image_lora_conversion_utils:lora_model_from_z_image_state_dict",
    ("Wan", "kohya"): "wan_lora_conversion_utils:lora_model_from_wan_state_dict",
    ("Wan", "comfyui"): "wan_lora_conversion_utils:lora_model_from_wan_state_dict",
    ("Krea2", "kohya"): "krea2_lora_conversion_utils:lora_model_from_krea2_state_dict",
    ("Krea2", "comfyui"): "krea2_lora_conversion_utils:lora_model_from_krea2_state_dict",
}
"""InvokeAI 6.14's readers."""

SYNTH = [(family, dialect) for family in ("QwenImage", "ZImage", "Wan", "Krea2") for dialect in ("comfyui",)]
"""What DiffSynth 2.1's loader puts on layers with the original code's names, which its own models have."""

PARTIAL = {
    "Flux": ("transformer.*transformer_blocks.*.attn.*", "transformer.*transformer_blocks.*.ff*", "*blocks.0.proj_*"),
    "Wan": ("transformer.blocks.*",),
    "Flux2": (BLOCKS,),
    "QwenImage": ("transformer.transformer_blocks.*.attn.*", "transformer.transformer_blocks.*_mlp.*"),
}
"""The layers of a family that InvokeAI knows."""


def fused(base: Base, changes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ΔW by the original code's names of layers, in which several weights may be one."""
    kind, found = base.components["transformer"].class_name, {}
    for name in changes:
        path = name.removeprefix("transformer.").removesuffix(".weight")
        layer = original_of(kind, path)
        if layer is None:
            found[path] = changes[name]
            continue
        whole = torch.cat([changes[f"transformer.{part}.weight"] for part in layer.parts])
        found[layer.name] = torch.cat([*reversed(whole.chunk(2))]) if layer.swap == "always" else whole
    return found


RANK, ALPHA = 4, 6

CASES = [("invokeai", *case, reader) for case, reader in INVOKE.items()] + [("diffsynth", *case, "") for case in SYNTH]


def wanted_of(program: str, family: str, delta: Delta) -> Delta:
    """Return δ of the layers that a program knows."""
    return some(delta, *PARTIAL.get(family, ("*",))) if program == "invokeai" else delta


def by_peft(base: Base, names: Iterable[str], folder: Path) -> dict[str, Tensor]:
    """Let PEFT save a LoRA on the linear layers among these weights; return ΔW of each."""
    linear = [name for name in names if len(base.shape(name)) == 2]
    paths = (re.escape(name.removeprefix("transformer.").removesuffix(".weight")) for name in linear)
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="|".join(paths), init_lora_weights=False)
    model: Any = get_peft_model(live(base), config)
    model.save_pretrained(str(folder))
    found = delta_weights(model)
    assert found.keys() == {*linear}
    return {name: change.double() for name, change in found.items()}


@pytest.fixture(scope="module")
def written(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Tensor]]]:
    """LoRAs that PEFT wrote on the layers that a program knows, and ΔW of each, by program and family."""
    root, found = tmp_path_factory.mktemp("written"), {}
    for program, family in sorted({case[:2] for case in CASES}):
        base, delta, _ = made(family)
        folder = root / f"{program} {family}"
        found[f"{program} {family}"] = folder, by_peft(base, wanted_of(program, family, delta), folder)
    return found


@pytest.fixture(scope="module")
def loaded(
    made: Made, written: dict[str, tuple[Path, dict[str, Tensor]]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Tensor]]:
    """What other programs make of files: ΔW by their names of layers, by program, family and dialect.

    Files are those that a δ becomes, and those that PEFT wrote and that were spelled anew, without a base.
    """
    folder, jobs = tmp_path_factory.mktemp("programs"), {}
    for program, family, dialect, reader in CASES:
        base, delta, changes = made(family)
        name = f"{program} {family} {dialect}"
        path, weights = folder / f"{name}.safetensors", folder / f"{name} base.safetensors"
        convert(wanted_of(program, family, delta), to=dialect, base=base, rank=100_000, output=path)
        anew = folder / f"{name} anew.safetensors"
        assert not respell(written[f"{program} {family}"][0], to=dialect, output=anew).left_out
        jobs[f"{name} anew"] = [program, reader, str(anew), str(weights)]
        own = family in ("QwenImage", "ZImage")
        whole = {key: base.read(key).float() for key in changes}
        named = {key.removeprefix("transformer.").removesuffix(".weight"): value for key, value in whole.items()}
        named = named if own else fused(base, whole)
        save_file({f"{key}.weight": value.contiguous() for key, value in named.items()}, weights)
        jobs[name] = [program, reader, str(path), str(weights)]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).parents[2] / "support/witness.py"
    code = "import runpy, sys, warnings; warnings.simplefilter('ignore'); "
    code += f"sys.path.insert(0, {os.environ['WITNESSES']!r}); "
    code += f"sys.argv = ['', 'jobs.json', 'found.safetensors']; runpy.run_path({str(script)!r}, run_name='__main__')"
    outcome = python(code, folder=folder)
    assert outcome.code == 0, outcome.err
    found: dict[str, dict[str, Tensor]] = {name: {} for name in jobs}
    for key, value in load_file(folder / "found.safetensors").items():
        name, _, layer = key.partition("|")
        found[name][layer.removeprefix("lora_transformer-").removeprefix("transformer.")] = value
    return found


UNSCALED = {("QwenImage", "diffusers"), ("ZImage", "diffusers"), ("ZImage", "comfyui")}
"""Where InvokeAI's readers look for no alpha beside `lora_A` and `lora_B`, and so take the scale of any file for 1."""


@pytest.mark.witness
@pytest.mark.parametrize(("program", "family", "dialect"), [case[:3] for case in CASES])
def test_they_take_every_layer_that_peft_wrote_once_it_is_spelled_anew(
    made: Made,
    written: dict[str, tuple[Path, dict[str, Tensor]]],
    loaded: dict[str, dict[str, Tensor]],
    program: str,
    family: str,
    dialect: str,
) -> None:
    base, _, _ = made(family)
    _, changes = written[f"{program} {family}"]
    if program == "invokeai" and (family, dialect) in UNSCALED:
        changes = {name: change * RANK / ALPHA for name, change in changes.items()}
    named = {name.removeprefix("transformer.").removesuffix(".weight"): change for name, change in changes.items()}
    original = family == "Flux" or (program == "diffsynth" and family not in ("QwenImage", "ZImage"))
    check(loaded[f"{program} {family} {dialect} anew"], fused(base, changes) if original else named)


@pytest.mark.witness
@pytest.mark.parametrize(("family", "dialect"), INVOKE)
def test_invokeai_takes_every_layer(
    made: Made, loaded: dict[str, dict[str, Tensor]], family: str, dialect: str
) -> None:
    base, delta, changes = made(family)
    wanted = some(delta, *PARTIAL.get(family, ("*",)))
    expected = {name: changes[name] for name in wanted}
    found = loaded[f"invokeai {family} {dialect}"]
    if family == "Flux":  # InvokeAI's Flux has the original names
        check(found, fused(base, expected))
    else:
        check({f"transformer.{name}.weight": value for name, value in found.items()}, expected)


@pytest.mark.witness
@pytest.mark.parametrize(("family", "dialect"), SYNTH)
def test_diffsynth_takes_every_layer(
    made: Made, loaded: dict[str, dict[str, Tensor]], family: str, dialect: str
) -> None:
    base, _, changes = made(family)
    own = family in ("QwenImage", "ZImage")
    names = {name.removeprefix("transformer.").removesuffix(".weight"): change for name, change in changes.items()}
    expected = names if own else fused(base, changes)
    linear = {name: change for name, change in expected.items() if change.dim() == 2}
    check(loaded[f"diffsynth {family} {dialect}"], linear)
