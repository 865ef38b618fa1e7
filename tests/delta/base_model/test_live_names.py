"""Files whose library renames weights on loading: every way through the program finds them by the files' own names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DModel
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support.models import base_delta
from support.sizes import SMALL, TEXT
from torch import nn

from svdiff_delta import attach, bake, convert, zero_delta
from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.base_model.coverage import lost_weights, remarks
from svdiff_delta.base_model.kinds import shiftable
from svdiff_delta.base_model.live_names import LiveNames
from svdiff_delta.errors import BaseError

OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def rename(folder: Path, how: Callable[[str], str]) -> None:
    """Give the tensors of a saved model other names."""
    (path,) = folder.glob("*.safetensors")
    save_file({how(key): value for key, value in load_file(path).items()}, path, {"format": "pt"})


def deprecated(key: str) -> str:
    return re.sub(r"(?<=attentions\.0\.)(to_[qkv]|to_out\.0)", lambda found: OLD[found[0]], key)


def gpt_neox(folder: Path) -> nn.Module:
    """Its output layer has another name on the disk, by transformers itself."""
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SMALL))
    model.save_pretrained(folder)
    return model


def llava(folder: Path) -> nn.Module:
    """A vision-language model: all of its weights have other names on the disk, by transformers itself."""
    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes = {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    config = transformers.LlavaConfig(text_config={**TEXT, "model_type": "llama"}, vision_config={**vision, **sizes})
    model = transformers.LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    return model


def qwen_vl(folder: Path) -> nn.Module:
    """The text encoder of Qwen-Image."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, **ids, "rope_parameters": rope}, vision_config={**vision, "out_hidden_size": 16}
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    model.save_pretrained(folder)
    return model


def bert(folder: Path) -> nn.Module:
    """Norms with the names that TensorFlow gave them, as in the oldest files of the Hub."""
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    model.save_pretrained(folder)
    norm = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    rename(folder, lambda key: re.sub(r"LayerNorm\.\w+$", lambda found: norm[found[0]], key))
    return model


def gpt2(folder: Path) -> nn.Module:
    """Files of the bare model under the class with an output layer, without its prefix."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=48, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    )
    model.save_pretrained(folder)
    rename(folder, lambda key: key.removeprefix("transformer."))
    return model


def vae(folder: Path) -> nn.Module:
    """An autoencoder with the names of Stable Diffusion 1 and 2."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    model: nn.Module = AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, **blocks)
    model.save_pretrained(folder)
    rename(folder, deprecated)
    return model


def unet(folder: Path) -> nn.Module:
    """A UNet without text, of the first versions of diffusers."""
    model: nn.Module = UNet2DModel(
        block_out_channels=(8, 8),
        norm_num_groups=2,
        attention_head_dim=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    model.save_pretrained(folder)
    rename(folder, deprecated)
    return model


MAKERS = {maker.__name__: maker for maker in (gpt_neox, llava, qwen_vl, bert, gpt2, vae, unet)}
RENAMED = {
    "gpt_neox": "embed_out",
    "llava": "language_model.model.norm",
    "qwen_vl": "model.norm",
    "bert": "bert.embeddings.LayerNorm",
    "gpt2": "ln_f",
    "vae": "encoder.mid_block.attentions.0.query",
    "unet": "mid_block.attentions.0.proj_attn",
}


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module", params=MAKERS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, nn.Module, Base]:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    return request.param, MAKERS[request.param](folder), open_base(folder)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: model.get_parameter(key).detach().clone() for key, _, _ in shiftable(model)}


def test_every_weight_that_can_be_shifted_is_found_under_the_name_of_the_file(
    case: tuple[str, nn.Module, Base],
) -> None:
    name, model, base = case
    found = zero_delta(base)
    assert len(found) == len(weights(model))
    assert {*found} <= {*base.names()}
    assert not lost_weights(base)
    assert remarks(base, found) == []
    assert any(f".{RENAMED[name]}." in each for each in found)


def test_a_name_leads_to_the_tensor_that_the_library_loads(case: tuple[str, nn.Module, Base]) -> None:
    _, model, base = case
    ((slot, part),) = base.components.items()
    loaded = type(model).from_pretrained(base.path).state_dict()
    assert part.names is not None
    assert any(live != key for key, live in part.names.live.items())
    for key, live in part.names.live.items():
        assert torch.equal(base.read(f"{slot}.{key}"), loaded[live])


def test_a_live_model_and_a_baked_one_have_the_same_weights(case: tuple[str, nn.Module, Base], tmp_path: Path) -> None:
    _, model, base = case
    delta = base_delta(base)
    bake(base, [(delta, 1.0)], tmp_path / "baked")
    live = type(model).from_pretrained(base.path)
    before = weights(live)
    attach(live, delta, mode="fused")
    baked = weights(type(model).from_pretrained(tmp_path / "baked"))
    for key, weight in weights(live).items():
        assert torch.allclose(weight, baked[key], atol=1e-6)
        assert not torch.equal(weight, before[key])


def test_without_its_files_the_live_model_itself_says_the_names(case: tuple[str, nn.Module, Base]) -> None:
    _, model, base = case
    live = type(model).from_pretrained(base.path)
    build: Any = type(model) if isinstance(model, transformers.PreTrainedModel) else AutoencoderKL.from_config
    nameless = build(live.config) if not isinstance(model, UNet2DModel) else UNet2DModel.from_config(live.config)
    nameless.load_state_dict(live.state_dict())
    before = weights(nameless)
    attach(nameless, base_delta(base), mode="fused")
    assert not any(torch.equal(weight, before[key]) for key, weight in weights(nameless).items())


def test_a_delta_of_one_spelling_is_read_beside_files_of_the_other(tmp_path: Path) -> None:
    model = vae(tmp_path / "old")
    model.save_pretrained(tmp_path / "new")
    old, new = open_base(tmp_path / "old"), open_base(tmp_path / "new")
    delta = base_delta(old)
    bake(new, [(delta, 1.0)], tmp_path / "baked")
    bake(old, [(delta, 1.0)], tmp_path / "baked old")
    one, other = (load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("baked", "baked old"))
    assert {*one} != {*other}
    assert all(torch.equal(one[key], other[deprecated(key)]) for key in one)


def test_a_name_of_either_spelling_is_the_name_of_the_files_at_hand(tmp_path: Path) -> None:
    model = gpt_neox(tmp_path / "old")
    model.save_pretrained(tmp_path / "new", save_original_format=False)
    old, new = open_base(tmp_path / "old"), open_base(tmp_path / "new")
    assert old.stored_name("model.lm_head.weight") == "model.embed_out.weight"
    assert new.stored_name("model.embed_out.weight") == "model.lm_head.weight"
    assert {*zero_delta(new)} ^ {*zero_delta(old)} == {"model.lm_head.weight", "model.embed_out.weight"}


def test_a_tuned_copy_under_new_names_is_compared_weight_by_weight(tmp_path: Path) -> None:
    model = llava(tmp_path / "base")
    with torch.no_grad():
        model.lm_head.weight.mul_(1.1)
    model.save_pretrained(tmp_path / "tuned", save_original_format=False)
    done = convert(tmp_path / "tuned", from_="full", base=open_base(tmp_path / "base"))
    assert [*done.delta] == ["model.language_model.lm_head.weight"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers for it
def test_an_adapter_of_peft_has_the_live_names_and_comes_back_under_those_of_the_file(tmp_path: Path) -> None:
    model = llava(tmp_path / "base")
    base, name = open_base(tmp_path / "base"), "model.language_model.model.layers.0.mlp.up_proj.weight"
    delta = base_delta(base, name)
    convert(delta, to="peft", base=base, output=tmp_path / "lora", rank=16)
    layer = model.model.language_model.layers[0].mlp.up_proj
    before = layer.weight.detach().clone()
    PeftModel.from_pretrained(model, tmp_path / "lora").merge_and_unload()
    assert (layer.weight - before).norm() > 1e-3
    back = convert(tmp_path / "lora", base=base).delta
    assert [*back] == [name]
    assert np.allclose(back[name], delta[name], atol=1e-4)


def test_shards_of_diffusers_are_left_as_the_library_leaves_them(tmp_path: Path) -> None:
    vae(tmp_path)
    (part,) = open_base(tmp_path).components.values()
    key = "encoder.mid_block.attentions.0.query.weight"
    assert key in LiveNames(part.skeleton, part.location).live
    assert key not in LiveNames(part.skeleton, part.location, 2).live


def test_of_two_tensors_for_one_weight_the_one_that_the_library_loads_has_the_place(tmp_path: Path) -> None:
    gpt_neox(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["embed_out.weight"] + 1}, path, {"format": "pt"})
    base = open_base(tmp_path)
    loaded = transformers.GPTNeoXForCausalLM.from_pretrained(tmp_path)
    (name,) = {*zero_delta(base)} & {"model.embed_out.weight", "model.lm_head.weight"}
    assert torch.equal(base.read(name), loaded.lm_head.weight)
    assert remarks(base, [name]) == []


def test_a_name_of_no_file_is_still_refused(tmp_path: Path) -> None:
    gpt2(tmp_path)
    with pytest.raises(BaseError, match="has no such parameter"):
        open_base(tmp_path).locate("model.h.1.ln_1.weight")
