"""Without a δ in between a low-rank copy is the best one of ΔW itself, and a full difference is ΔW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.adapters import kohya_changes, save_peft, save_tensors
from support.checkpoints import bert, changed
from support.commands import svdiff
from support.library_adapters import PATHS, llama, merged_by_peft, save_peft_method, unwarned
from support.method_table import read_changes
from support.models import base_delta
from support.readers import CONV, FLAT, WIDE, Q
from support.weights import normal, relative
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaModel

from svdiff_delta import convert, open_base, save
from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion import convert_directly
from svdiff_delta.errors import InputError, OutputError

NAME = f"model.{PATHS[0]}.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return llama(tmp_path_factory.mktemp("llama") / "base")


def best(change: Tensor, rank: int) -> float:
    """Return the least error that a matrix of this rank has, by NumPy."""
    sigma = np.linalg.svd(change.flatten(1).double().numpy(), compute_uv=False)
    return float(np.sqrt((sigma[rank:] ** 2).sum()))


def merged(folder: Path, base: Base) -> dict[str, Tensor]:
    """Return what PEFT makes of a low-rank copy in a live model."""
    with unwarned():
        live: Any = LlamaModel.from_pretrained(base.path, dtype=torch.float64)
        before = {key: value.clone() for key, value in live.state_dict().items()}
        after = PeftModel.from_pretrained(live, str(folder)).merge_and_unload().state_dict()
    return {f"model.{key}": after[key] - value for key, value in before.items() if not torch.equal(after[key], value)}


@pytest.mark.parametrize("method", ["LOHA", "LOKR", "LORA", "HRA", "VERA", "SHIRA"])
def test_a_low_rank_copy_has_the_least_error_of_its_rank(base: Base, tmp_path: Path, method: str) -> None:
    save_peft_method(method, base, tmp_path / "x", r=3 if method == "LOHA" else 2)
    true = read_changes(tmp_path / "x", "peft", base)
    found = convert_directly(tmp_path / "x", to="peft", base=base, rank=2, output=tmp_path / "lora")
    copies = merged(tmp_path / "lora", base)
    assert copies.keys() == true.keys()
    for name, change in true.items():
        least = best(change, 2)
        error = float((copies[name] - change).norm())
        # Factors are rounded to float32, which moves a product by at most 2⁻²³ of it
        assert error <= least + 2**-22 * float(change.norm())
        lost = found.layers[name].whole - found.layers[name].kept
        assert lost == pytest.approx(least**2, abs=1e-12 * float(change.norm()) ** 2)


@pytest.mark.parametrize("method", ["LOHA", "LOKR", "HRA"])
def test_a_share_of_the_energy_chooses_the_ranks(base: Base, tmp_path: Path, method: str) -> None:
    save_peft_method(method, base, tmp_path / "x")
    found = convert_directly(tmp_path / "x", to="peft", base=base, energy=0.9)
    for name, change in read_changes(tmp_path / "x", "peft", base).items():
        squares = np.cumsum(np.linalg.svd(change.numpy(), compute_uv=False) ** 2)
        assert found.ranks[name] == int(np.searchsorted(squares, 0.9 * squares[-1])) + 1
        assert found.layers[name].captured >= 0.9


@pytest.mark.parametrize("method", ["HRA", "LOHA", "GLORA"])
def test_a_full_difference_is_the_whole_change(base: Base, tmp_path: Path, method: str) -> None:
    save_peft_method(method, base, tmp_path / "x")
    path = tmp_path / "full.safetensors"
    found = convert_directly(tmp_path / "x", to="full", base=base, output=path)
    true = merged_by_peft(base, tmp_path / "x")
    written = load_file(path)
    assert written.keys() == true.keys()
    assert all(relative(written[name].double(), true[name]) < 1e-5 for name in true)
    assert found.size == path.stat().st_size
    again = convert(path, base=base, min_energy=0.0)
    assert [*again.delta] == sorted(true)


def test_the_same_input_gives_the_same_bytes(base: Base, tmp_path: Path) -> None:
    save_peft_method("BOFT", base, tmp_path / "x")
    for name in ("a", "b"):
        torch.rand(3)
        convert_directly(tmp_path / "x", to="lycoris", base=base, rank=4, output=tmp_path / f"{name}.safetensors")
        convert_directly(tmp_path / "x", to="full", base=base, output=tmp_path / f"{name}-full.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (tmp_path / "a-full.safetensors").read_bytes() == (tmp_path / "b-full.safetensors").read_bytes()


def test_factors_of_weights_that_are_stored_transposed_are_told_by_their_outputs(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=12, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    base = open_base(tmp_path / "base")
    path, a, b = "transformer.h.0.attn.c_attn", normal(2, 8), normal(24, 2)
    save_peft(tmp_path / "x", {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}, r=2, lora_alpha=2)
    convert_directly(tmp_path / "x", to="peft", base=base, rank=2, output=tmp_path / "lora")
    found = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    product = found[f"base_model.model.{path}.lora_B.weight"] @ found[f"base_model.model.{path}.lora_A.weight"]
    assert relative(product.double(), b.double() @ a.double()) < 1e-6


def test_kohya_s_file_of_the_embedded_base_has_the_change_of_layers_and_convolutions(
    tiny: Base, tmp_path: Path
) -> None:
    rows, inputs, *kernel = tiny.shape(f"unet.{CONV}.weight")
    pair = {"hada_w1_a": normal(WIDE, 2), "hada_w1_b": normal(2, WIDE, seed=1)}
    pair |= {"hada_w2_a": normal(WIDE, 2, seed=2), "hada_w2_b": normal(2, WIDE, seed=3), "alpha": torch.tensor(1.0)}
    tensors = {f"lycoris_{FLAT[Q]}.{key}": value for key, value in pair.items()}
    tensors |= {
        f"lycoris_{FLAT[CONV]}.lokr_w1": normal(4, 4),
        f"lycoris_{FLAT[CONV]}.lokr_w2": normal(rows // 4, inputs // 4, *kernel),
    }
    path = save_tensors(tmp_path / "x.safetensors", tensors, title="a dog")
    found = convert_directly(path, to="kohya", base=tiny, energy=1.0, output=tmp_path / "lora.safetensors")
    written = kohya_changes(tmp_path / "lora.safetensors")
    for name, change in read_changes(path, "lycoris", tiny).items():
        flat = f"lora_unet_{name.removeprefix('unet.').removesuffix('.weight').replace('.', '_')}"
        assert relative(written[flat], change) < 1e-6
    assert found.ranks[f"unet.{Q}.weight"] == 4
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        strings = file.metadata()
    assert strings["title"] == "a dog"
    assert strings["ss_network_module"] == "networks.lora"


def test_a_tuned_model_becomes_a_lora(tmp_path: Path) -> None:
    base = bert(tmp_path / "bert")
    query = "encoder.layer.0.attention.self.query.weight"
    update = normal(16, 2) @ normal(2, 16, seed=1) * 0.1
    tuned = changed(base.path, tmp_path / "tuned", {query: lambda weight: weight + update})
    found = convert_directly(tuned, to="peft", base=base, from_="full", rank=2, output=tmp_path / "lora")
    assert [*found.layers] == [f"model.{query}"]
    assert found.captured > 1 - 1e-9
    assert found.unchanged > 0


# --- What is refused ---


def test_a_delta_has_no_direct_way(tiny: Base, tmp_path: Path) -> None:
    save(base_delta(tiny, "mid", size=0.1), tmp_path / "delta.safetensors")
    with pytest.raises(InputError, match="is a delta, which has no direct way"):
        convert_directly(tmp_path / "delta.safetensors", to="kohya", base=tiny, rank=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "delta"}, "a delta is what the direct way goes around"),
        ({"to": "peft"}, "nothing says the rank"),
        ({"to": "full", "rank": 3}, "has no rank"),
        ({"to": "peft", "rank": 1, "min_energy": 0.999}, "of the change is retained"),
        ({"to": "svf"}, "can be read and not written|has no direct way"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    base: Base, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    save_peft_method("HRA", base, tmp_path / "x")
    with pytest.raises(InputError, match=message):
        convert_directly(tmp_path / "x", base=base, output=tmp_path / "y", **arguments)
    assert not (tmp_path / "y").exists()


def test_an_output_that_exists_stays(base: Base, tmp_path: Path) -> None:
    save_peft_method("HRA", base, tmp_path / "x")
    (tmp_path / "y.safetensors").write_text("mine")
    with pytest.raises(OutputError):
        convert_directly(tmp_path / "x", to="full", base=base, output=tmp_path / "y.safetensors")
    assert (tmp_path / "y.safetensors").read_text() == "mine"


def test_an_adapter_that_changes_nothing_is_refused(base: Base, tmp_path: Path) -> None:
    save_peft_method("LORA", base, tmp_path / "x")
    path = tmp_path / "x" / "adapter_model.safetensors"
    save_file({key: value * 0 for key, value in load_file(path).items()}, path)
    with pytest.raises(InputError, match="nothing changes"):
        convert_directly(tmp_path / "x", to="peft", base=base, rank=2)


# --- The command ---


def test_the_command_goes_directly_and_names_the_base_that_an_adapter_was_made_on(base: Base, tmp_path: Path) -> None:
    save_peft_method("PSOFT", base, tmp_path / "x")
    words = ["convert", tmp_path / "x", "--base", base.path, "--direct", "--to", "peft", "--rank", 8, "-o"]
    refused = svdiff(*words, tmp_path / "y")
    assert refused.code == 1
    assert "name the base that it was made on as --made-on" in refused.err
    done = svdiff(*words, tmp_path / "y", "--made-on", base.path)
    assert done.code == 0
    assert "on a copy of that in bfloat16 the change of model.layers." in done.err
    assert (tmp_path / "y" / "adapter_model.safetensors").exists()


def test_the_command_has_nothing_to_calibrate_on_the_direct_way(base: Base, tmp_path: Path) -> None:
    save_peft_method("HRA", base, tmp_path / "x")
    (tmp_path / "prompts.txt").write_text("a dog\n")
    words = [
        "convert",
        tmp_path / "x",
        "--base",
        base.path,
        "--direct",
        "--to",
        "full",
        "-o",
        tmp_path / "y.safetensors",
    ]
    assert svdiff(*words, "--calibrate", tmp_path / "prompts.txt").code == 2
