"""Adapters that are not read say what they are: another method, another layout, a pointer; never another base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.adapters import save_peft, save_tensors
from support.readers import WIDE, Q, factors
from support.weights import normal

from svdiff_delta import convert, open_base
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import BaseMismatchError, DeltaError, HeaderError
from svdiff_delta.format.foreign import adapter_in, beginning, method_of, module_of

FLAT = Q.replace(".", "_")
UP, DOWN = factors(WIDE, 2, WIDE)
NEW = {"lora_A.weight": DOWN, "lora_B.weight": UP}
OLD = {"lora_down.weight": DOWN, "lora_up.weight": UP, "alpha": torch.tensor(2.0)}


def said(path: Path, base: Base) -> str:
    """Return the line that refuses an adapter, whatever may be left out."""
    with pytest.raises(DeltaError) as refusal:
        convert(path, base=base, min_energy=0.0, allow_unmatched=True, embeddings=True)
    return str(refusal.value)


LAYOUTS = {
    "DiffSynth": ("pipe.unet.", Q, NEW, "rename them to begin with `unet.`"),
    "a compiled model": ("_orig_mod.", Q, NEW, "rename them to begin with `unet.`"),
    "with kohya's ends": ("_orig_mod.", Q, OLD, "merge it with"),
    "flat names behind another prefix": ("lora_prior_", FLAT, OLD, "merge it with"),
}


@pytest.mark.parametrize(("prefix", "path", "parts", "fix"), LAYOUTS.values(), ids=LAYOUTS)
def test_the_base_s_own_names_behind_a_prefix_are_a_layout_that_is_not_known(
    tiny: Base, tmp_path: Path, prefix: str, path: str, parts: dict[str, torch.Tensor], fix: str
) -> None:
    tensors = {f"{prefix}{path.replace('to_q', to)}.{part}": parts[part] for to in ("to_q", "to_k") for part in parts}
    line = said(save_tensors(tmp_path / "x.safetensors", tensors), tiny)
    assert f"this layout is not known, its keys begin with `{prefix}`: {fix}" in line


def test_what_was_renamed_as_told_is_read(tiny: Base, tmp_path: Path) -> None:
    path = save_tensors(tmp_path / "x.safetensors", {f"unet.{Q}.{part}": NEW[part] for part in NEW})
    assert [*convert(path, base=tiny, min_energy=0.0).delta] == [f"unet.{Q}.weight"]


OTHERS = {
    "another model's layers": "diffusion_model.layers.0.attention.to_q",
    "another component's": "text_encoder_2.encoder.layers.1.mlp.fc1",
    "one name that many models have": "diffusion_model.blocks.0.conv_out",
}


@pytest.mark.parametrize("path", OTHERS.values(), ids=OTHERS)
def test_names_that_are_not_the_base_s_are_those_of_another_base(tiny: Base, tmp_path: Path, path: str) -> None:
    tensors = {f"{path}.{part}": NEW[part] for part in NEW}
    assert said(save_tensors(tmp_path / "x.safetensors", tensors), tiny).endswith(
        ": name the base that it was made for"
    )


METHODS = {
    "OFT": {"oft_blocks": normal(4, 4, 4), "alpha": torch.tensor(0.0)},
    "BOFT": {"boft_R": normal(1, 4, 4, 4), "boft_s": normal(WIDE, 1)},
    "GLoRA": {"a1.weight": DOWN.T, "a2.weight": DOWN, "b1.weight": UP, "b2.weight": DOWN, "alpha": torch.tensor(4.0)},
    "(IA)³": {"weight": normal(WIDE), "on_input": torch.tensor(False)},
    "HRA": {"hra_u": DOWN},
}


OF_LYCORIS = ("OFT", "GLoRA", "(IA)³")
"""Methods that LyCORIS' own layers read, under its flat names."""


@pytest.mark.parametrize(
    ("module", "method"),
    [
        *((Q, method) for method in METHODS),
        *(
            (f"{start}_{FLAT}", each)
            for start in ("lycoris", "lora_unet")
            for each in METHODS
            if each not in OF_LYCORIS
        ),
    ],
)
def test_another_method_is_called_by_its_name(tiny: Base, tmp_path: Path, method: str, module: str) -> None:
    tensors = {f"{module}.{part}": value for part, value in METHODS[method].items()}
    line = said(save_tensors(tmp_path / "x.safetensors", tensors), tiny)
    assert f": holds {method} factors (`" in line
    assert line.endswith(
        'which this program does not read here: merge it with the program that made it, then `from_="full"`'
    )


def test_dylora_is_told_from_lora_by_what_its_trainer_says(tiny: Base, tmp_path: Path) -> None:
    tensors = {f"lora_unet_{FLAT}.{part}": OLD[part] for part in OLD}
    path = save_tensors(tmp_path / "x.safetensors", tensors, ss_network_args=json.dumps({"algo": "dylora"}))
    assert "LyCORIS' method DyLoRA: lora_unet_" in said(path, tiny)  # ranks of 2, in blocks of 4
    for text in ('{"algo": "locon"}', "no JSON", "[]"):
        path = save_tensors(tmp_path / "y.safetensors", tensors, ss_network_args=text)
        assert [*convert(path, base=tiny, min_energy=0.0).delta] == [f"unet.{Q}.weight"]


METHOD_OF = {"tinylora_v": "TinyLoRA", "ia3_l": "(IA)³", "vera_lambda_b": "VeRA", "oft_R.weight": "OFT"}


@pytest.mark.parametrize("part", METHOD_OF)
def test_peft_s_other_methods_are_called_by_their_name(model: Base, tmp_path: Path, part: str) -> None:
    folder = save_peft(tmp_path / "x", {f"encoder.layer.0.attention.self.query.{part}": normal(4)}, lora_alpha=2)
    line = said(folder, model)
    assert f"holds {METHOD_OF[part]} factors" in line


def test_a_lora_on_embeddings_alone_is_not_said_to_be_of_another_base(model: Base, tmp_path: Path) -> None:
    path = "embeddings.word_embeddings"
    tensors = {f"{path}.lora_embedding_A": normal(2, 40), f"{path}.lora_embedding_B": normal(16, 2)}
    folder = save_peft(tmp_path / "x", tensors, r=2, lora_alpha=2)
    with pytest.raises(BaseMismatchError, match="of no kind that can be shifted: give `embeddings=True`"):
        convert(folder, base=model, min_energy=0.0)


def test_a_lora_on_a_layer_that_the_base_ties_says_so(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=12, n_positions=8, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    tensors = {"lm_head.lora_A.weight": normal(2, 8), "lm_head.lora_B.weight": normal(12, 2)}
    folder = save_peft(tmp_path / "x", tensors, r=2, lora_alpha=2)
    assert "the base ties it to model.transformer.wte.weight" in said(folder, open_base(tmp_path))


# --- Keys ---


@pytest.mark.parametrize(
    ("key", "module", "method"),
    [
        ("a.b.lora_A.weight", "a.b", None),
        ("a.b.lora_A.default.weight", "a.b", None),
        ("a.processor.to_q_lora.down.weight", "a.processor.to_q", None),
        ("lora_unet_a_b.lora_mid.weight", "lora_unet_a_b", None),
        ("a.b.alpha", "a.b", None),
        ("a.b.weight", "a.b", None),
        ("a.b.dora_scale", "a.b", ("DoRA", "dora_scale")),
        ("a.b.lokr_w2_a", "a.b", ("LoKr", "lokr_w2_a")),
        ("a.b.hada_t1", "a.b", ("LoHa", "hada_t1")),
        ("a.b.token_adapter.trainable_tokens_delta", "a.b", ("trained tokens", "token_adapter.trainable_tokens_delta")),
        ("a.b.shira_weight", "a.b", ("SHiRA", "shira_weight")),
    ],
)
def test_a_key_is_taken_apart(key: str, module: str, method: tuple[str, str] | None) -> None:
    assert (module_of(key), method_of(key)) == (module, method)


def test_an_adapter_is_told_from_other_weights() -> None:
    assert adapter_in(["conv_in.weight", "a.bias"]) == ""
    assert adapter_in(["a.b.lora_B.weight", "a.b.dora_scale"]) == "LoRA"
    assert adapter_in(["a.oft_R.weight"]) == "OFT"


def test_how_keys_begin() -> None:
    assert beginning(["blocks.0.a.lora_A.weight", "blocks.1.b.lora_A.weight"]) == "blocks."
    assert beginning(["model.a.lora_A.weight"]) == "model."
    assert beginning(["a.lora_A.weight", "b.lora_A.weight"]) == ""


# --- Pointers ---

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PULL = "this is a pointer of Git LFS, not the file itself: fetch the file with `git lfs pull`"


@pytest.mark.parametrize("name", ["x.safetensors", "x", "pytorch_lora_weights.safetensors"])
@pytest.mark.parametrize("dialect", [None, "kohya", "full"])
def test_a_pointer_in_the_place_of_an_adapter_is_called_so(
    tiny: Base, tmp_path: Path, name: str, dialect: str | None
) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(DeltaError, match=PULL):
        convert(tmp_path / name, base=tiny, from_=dialect)


def test_a_pointer_in_a_folder_of_peft_or_of_a_base_is_called_so(tmp_path: Path, model: Base) -> None:
    folder = save_peft(tmp_path / "x", {"a": normal(2)}, lora_alpha=2)
    (folder / "adapter_model.safetensors").write_bytes(POINTER)
    with pytest.raises(HeaderError, match=rf"adapter_model\.safetensors: {PULL}"):
        convert(folder, base=model)
    (model.path / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(DeltaError, match=rf"model\.safetensors: {PULL}"):
        [*open_base(model.path).names()]
