"""Which weights of a base can be chosen, and what is said about the others: tied, quantized, batched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.base_model.kinds import base_kinds
from svdiff_delta.base_model.weight_selection import choose_kinds
from svdiff_delta.errors import BaseError, SelectionError
from svdiff_train.tiny import open_tiny

QUERY = "model.model.layers.0.self_attn.q_proj"
SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def saved(model: transformers.PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def llama(folder: Path, *, tied: bool) -> Path:
    torch.manual_seed(1)
    return saved(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, tie_word_embeddings=tied)), folder)


def rewritten(folder: Path, change: dict[str, Tensor], *, drop: tuple[str, ...] = ()) -> Base:
    """Open a model after some of its tensors were replaced, or added, or dropped."""
    path = folder / "model.safetensors"
    tensors = {key: value.clone() for key, value in load_file(path).items() if key not in drop}
    save_file(tensors | change, path, {"format": "pt"})
    return open_base(folder)


def refused(base: Base, *selectors: str) -> str:
    with pytest.raises(BaseError) as caught:
        choose_kinds(base, selectors)
    return str(caught.value)


def test_without_selectors_all_that_can_be_shifted_is_chosen() -> None:
    assert choose_kinds(open_tiny()) == base_kinds(open_tiny())


def test_selectors_choose_as_they_do_for_deltas() -> None:
    chosen = choose_kinds(open_tiny(), ["unet.mid_block.*"])
    assert chosen
    assert all(name.startswith("unet.mid_block.") for name in chosen)


def test_an_unknown_selector_is_refused() -> None:
    with pytest.raises(SelectionError, match="neither a subset nor a parameter"):
        choose_kinds(open_tiny(), ["nothing"])


def test_an_output_layer_that_is_tied_has_the_name_in_the_file(tmp_path: Path) -> None:
    base = open_base(llama(tmp_path, tied=True))
    assert "model.lm_head.weight" not in set(base.names())
    assert base.stored_name("model.lm_head.weight") == "model.model.embed_tokens.weight"
    assert torch.equal(base.read("model.lm_head.weight"), base.read("model.model.embed_tokens.weight"))


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_tied_weight_is_chosen_only_when_one_of_its_names_is_given(tmp_path: Path, name: str) -> None:
    base = open_base(llama(tmp_path, tied=True))
    assert "model.model.embed_tokens.weight" not in choose_kinds(base)
    assert choose_kinds(base, [f"model.{name}"]) == {"model.model.embed_tokens.weight": ("spectral", 0)}


def test_an_output_layer_of_its_own_is_a_linear_layer(tmp_path: Path) -> None:
    base = open_base(llama(tmp_path, tied=False))
    assert choose_kinds(base)["model.lm_head.weight"] == ("spectral", 0)
    assert base.twins("model.lm_head.weight") == ("lm_head.weight",)


def test_a_tied_weight_that_the_file_holds_twice_has_the_name_of_its_source(tmp_path: Path) -> None:
    embeddings = load_file(llama(tmp_path, tied=True) / "model.safetensors")["model.embed_tokens.weight"]
    base = rewritten(tmp_path, {"lm_head.weight": embeddings.clone()})
    assert base.stored_name("model.lm_head.weight") == "model.model.embed_tokens.weight"
    assert base.twins("model.lm_head.weight") == ("model.embed_tokens.weight", "lm_head.weight")


def test_weights_that_differ_are_not_tied_whatever_the_class_says(tmp_path: Path) -> None:
    embeddings = load_file(llama(tmp_path, tied=True) / "model.safetensors")["model.embed_tokens.weight"]
    base = rewritten(tmp_path, {"lm_head.weight": embeddings + 1})
    assert base.stored_name("model.lm_head.weight") == "model.lm_head.weight"


def test_a_tied_weight_that_the_file_holds_under_its_other_name_is_found(tmp_path: Path) -> None:
    embeddings = load_file(llama(tmp_path, tied=True) / "model.safetensors")["model.embed_tokens.weight"]
    base = rewritten(tmp_path, {"lm_head.weight": embeddings.clone()}, drop=("model.embed_tokens.weight",))
    assert base.stored_name("model.model.embed_tokens.weight") == "model.lm_head.weight"
    assert choose_kinds(base, ["model.model.embed_tokens.weight"]) == {"model.lm_head.weight": ("spectral", 0)}


def test_both_embeddings_of_t5_are_one(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    base = open_base(saved(transformers.T5EncoderModel(config), tmp_path))
    assert base.stored_name("text_encoder_3.encoder.embed_tokens.weight") == "text_encoder_3.shared.weight"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_16_bits_or_more_are_chosen(tmp_path: Path, dtype: torch.dtype) -> None:
    """F64 among them, whose name begins as those of 6 bits do."""
    base = rewritten(llama(tmp_path, tied=False), {f"{QUERY[6:]}.weight": torch.ones(32, 32).to(dtype)})
    assert choose_kinds(base)[f"{QUERY}.weight"] == ("spectral", 0)
    base.check_format(f"{QUERY}.weight")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_weights_are_refused_by_name_and_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    base = rewritten(llama(tmp_path, tied=False), {f"{QUERY[6:]}.weight": torch.ones(32, 32).to(dtype)})
    message = refused(base)
    assert f"{QUERY}.weight: is quantized" in message
    assert {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}[dtype] in message
    assert "use the unquantized base" in message


def four_bit(key: str) -> dict[str, Tensor]:
    """What bitsandbytes writes for a weight of 32 × 32."""
    state = torch.zeros(80, dtype=torch.uint8)
    return {
        key: torch.zeros(512, 1, dtype=torch.uint8),
        f"{key}.absmax": torch.zeros(16),
        f"{key}.quant_map": torch.zeros(16),
        f"{key}.quant_state.bitsandbytes__nf4": state,
    }


def packed(stem: str) -> dict[str, Tensor]:
    """What GPTQ writes for a weight of 32 × 32."""
    integers = torch.zeros(4, 32, dtype=torch.int32)
    return {f"{stem}.qweight": integers, f"{stem}.qzeros": integers.clone(), f"{stem}.scales": torch.ones(1, 32).half()}


def test_four_bit_weights_are_refused_by_name_dtype_and_scheme(tmp_path: Path) -> None:
    base = rewritten(llama(tmp_path, tied=False), four_bit(f"{QUERY[6:]}.weight"))
    message = refused(base, f"{QUERY}.weight")
    assert f"{QUERY}.weight: is quantized (dtype U8, bitsandbytes 4-bit nf4)" in message
    assert "use the unquantized base" in message


def test_eight_bit_weights_are_refused_by_name_dtype_and_scheme(tmp_path: Path) -> None:
    stem = QUERY[6:]
    change = {f"{stem}.weight": torch.zeros(32, 32, dtype=torch.int8), f"{stem}.SCB": torch.ones(32)}
    assert "(dtype I8, bitsandbytes 8-bit)" in refused(rewritten(llama(tmp_path, tied=False), change))


@pytest.mark.parametrize("method", ["gptq", "awq", None])
@pytest.mark.parametrize("selectors", [(), (f"{QUERY}.weight",), ("model.*",)])
def test_packed_weights_are_refused_by_name_and_scheme(
    tmp_path: Path, method: str | None, selectors: tuple[str, ...]
) -> None:
    folder = llama(tmp_path, tied=False)
    if method:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    base = rewritten(folder, packed(QUERY[6:]), drop=(f"{QUERY[6:]}.weight",))
    message = refused(base, *selectors)
    assert f"{QUERY}.weight: is quantized ({(method or 'gptq or awq').upper().replace(' OR ', ' or ')}" in message
    assert "use the unquantized base" in message


def torchao(stem: str) -> dict[str, Tensor]:
    """What torchao 0.18 writes for a weight of 32 × 32 in 8 bits, through transformers and diffusers alike."""
    numbers = torch.zeros(32, 32, dtype=torch.int8)
    points = torch.zeros(32, 1, dtype=torch.int8)
    return {
        f"{stem}._weight_qdata": numbers,
        f"{stem}._weight_scale": torch.ones(32, 1),
        f"{stem}._weight_zero_point": points,
    }


def quanto(stem: str) -> dict[str, Tensor]:
    """What optimum-quanto writes for it."""
    return {f"{stem}.weight._data": torch.zeros(32, 32, dtype=torch.int8), f"{stem}.weight._scale": torch.ones(32, 1)}


def half_quadratic(stem: str) -> dict[str, Tensor]:
    """What a scheme that is not known by its keys may write: only the configuration names it."""
    return {f"{stem}.W_q": torch.zeros(16, 32, dtype=torch.uint8), f"{stem}.scale": torch.ones(32, 1)}


@pytest.mark.parametrize(
    ("write", "method", "said"),
    [
        (torchao, "torchao", "torchao, in {}._weight_qdata as I8"),
        (torchao, None, "torchao, in {}._weight_qdata as I8"),
        (quanto, None, "quanto, in {}.weight._data as I8"),
        (half_quadratic, "hqq", "hqq, in {}."),
    ],
)
@pytest.mark.parametrize("selectors", [(), (f"{QUERY}.weight",), ("2d",)])
def test_weights_in_parts_are_refused_by_name_and_scheme(
    tmp_path: Path,
    write: Callable[[str], dict[str, Tensor]],
    method: str | None,
    said: str,
    selectors: tuple[str, ...],
) -> None:
    folder = llama(tmp_path, tied=False)
    if method:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    base = rewritten(folder, write(QUERY[6:]), drop=(f"{QUERY[6:]}.weight",))
    message = refused(base, *selectors)
    assert f"{QUERY}.weight: is quantized ({said.format(QUERY[6:])}" in message
    assert "use the unquantized base" in message


def test_other_weights_of_a_quantized_base_can_be_shifted(tmp_path: Path) -> None:
    base = rewritten(llama(tmp_path, tied=False), packed(QUERY[6:]), drop=(f"{QUERY[6:]}.weight",))
    assert list(choose_kinds(base, ["*.o_proj.weight"])) == [QUERY.replace("q_proj", "o_proj.weight")]


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Base:
    config = transformers.Qwen3MoeConfig(
        **SIZES, head_dim=16, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2
    )
    return open_base(saved(transformers.Qwen3MoeForCausalLM(config), tmp_path_factory.mktemp("experts")))


def test_experts_that_stand_one_by_one_are_among_what_can_be_shifted(experts: Base) -> None:
    name = "model.model.layers.0.mlp.experts.1.up_proj.weight"
    assert choose_kinds(experts)[name] == ("spectral", 0)
    assert choose_kinds(experts, [name]) == {name: ("spectral", 0)}
    assert experts.shape(name) == (8, 32)


def test_a_stack_of_experts_is_refused_by_the_name_it_has_in_the_model_and_told_how_to_name_them(experts: Base) -> None:
    message = refused(experts, "model.model.layers.0.mlp.experts.gate_up_proj")
    assert "model.model.layers.0.mlp.experts.gate_up_proj: cannot be shifted as a whole" in message
    assert "as in `model.model.layers.0.mlp.experts.0.gate_proj.weight`" in message


def test_a_weight_whose_class_has_no_kind_is_refused_by_name(experts: Base) -> None:
    message = refused(experts, "model.model.layers.0.mlp.gate.weight")
    assert "Qwen3MoeTopKRouter is not of a class whose weights have a kind" in message


def test_a_bias_is_refused_by_name() -> None:
    assert "biases are never shifted" in refused(open_tiny(), "unet.conv_in.bias")


def test_a_tensor_that_the_class_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    base = rewritten(llama(tmp_path, tied=False), {"extra.weight": torch.ones(2, 2)})
    assert "LlamaForCausalLM has no weight of this name" in refused(base, "model.extra.weight")


def test_what_is_not_floating_point_is_refused_by_dtype(tmp_path: Path) -> None:
    base = rewritten(llama(tmp_path, tied=False), {f"{QUERY[6:]}.weight": torch.ones(32, 32, dtype=torch.int32)})
    assert f"{QUERY}.weight: is not floating-point (dtype I32)" in refused(base)


def test_quantized_weights_say_so_when_they_are_located(tmp_path: Path) -> None:
    base = rewritten(llama(tmp_path, tied=False), packed(QUERY[6:]), drop=(f"{QUERY[6:]}.weight",))
    with pytest.raises(BaseError, match=r"is quantized \(GPTQ or AWQ, packed in .*qweight as I32\)"):
        base.read(f"{QUERY}.weight")
