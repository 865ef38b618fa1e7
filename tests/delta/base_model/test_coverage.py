"""Bases whose files name weights otherwise than their class: said, refused where they would be left out, mended."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from support.commands import svdiff
from torch import nn

from svdiff_delta import convert, zero_delta
from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.base_model.coverage import count_values, lost_weights, remarks
from svdiff_delta.base_model.kinds import shiftable
from svdiff_delta.base_model.weight_selection import choose_kinds
from svdiff_delta.errors import BaseError, InputError, SelectionError
from svdiff_train.tiny import open_tiny

TEXT = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def renamed(folder: Path, rename: Callable[[str], str]) -> None:
    """Give the tensors of a saved model other names."""
    (path,) = folder.glob("*.safetensors")
    save_file({rename(key): value for key, value in load_file(path).items()}, path, {"format": "pt"})


def gpt_neox(folder: Path) -> nn.Module:
    """Its output layer has another name on the disk, by transformers itself."""
    model = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
        )
    )
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


def bert(folder: Path) -> nn.Module:
    """Norms with the names that TensorFlow gave them, as in the oldest files of the Hub."""
    config = transformers.BertConfig(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.BertForMaskedLM(config)
    model.save_pretrained(folder)
    norm = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed(folder, lambda key: re.sub(r"LayerNorm\.\w+$", lambda found: norm[found[0]], key))
    return model


def gpt2(folder: Path) -> nn.Module:
    """Files of the bare model under the class with an output layer, without its prefix."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=48, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    )
    model.save_pretrained(folder)
    renamed(folder, lambda key: key.removeprefix("transformer."))
    return model


def vae(folder: Path) -> nn.Module:
    """An autoencoder with the names of Stable Diffusion 1 and 2."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    model: nn.Module = AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, **blocks)
    model.save_pretrained(folder)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed(folder, lambda key: re.sub(r"(?<=attentions\.0\.)(to_[qkv]|to_out\.0)", lambda found: old[found[0]], key))
    return model


MAKERS = {maker.__name__: maker for maker in (gpt_neox, llava, bert, gpt2, vae)}
LOST = {"gpt_neox": 1, "llava": 24, "bert": 4, "gpt2": 7, "vae": 8}


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize("name", MAKERS)
def test_weights_that_would_be_left_out_are_refused_and_the_mend_mends(name: str, tmp_path: Path) -> None:
    model = MAKERS[name](tmp_path / "old")
    with pytest.raises(BaseError, match=r"\d+ of \d+ weights of \w+ ha(s|ve) no place in \w+: ") as caught:
        zero_delta(open_base(tmp_path / "old"))
    assert f"so {LOST[name]} weight" in caught.value.message
    assert f"`{type(model).__name__}.from_pretrained(FOLDER)`" in caught.value.fix
    (call,) = re.findall(r"save it again with `save_pretrained\(NEW(.*?)\)`", caught.value.fix)
    options = {"save_original_format": False} if call == ", save_original_format=False" else {}
    assert bool(options) == bool(call)
    type(model).from_pretrained(tmp_path / "old").save_pretrained(tmp_path / "new", **options)
    again = type(model).from_pretrained(tmp_path / "new")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    found = choose_kinds(open_base(tmp_path / "new"))
    assert [name.partition(".")[2] for name in found] == sorted(key for key, _, _ in shiftable(model))


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("neox")
    gpt_neox(folder)
    return open_base(folder)


def test_they_are_left_out_where_that_is_asked_for(neox: Base) -> None:
    assert list(lost_weights(neox)) == ["model.lm_head.weight"]
    chosen = zero_delta(neox, allow_missing=True)
    assert len(chosen) == 7
    assert "model.embed_out.weight" not in chosen


def test_selectors_that_name_only_weights_that_are_there_just_work(neox: Base) -> None:
    assert len(zero_delta(neox, "model.gpt_neox.layers.*")) == 6
    assert len(zero_delta(neox, "!model.lm_head.weight")) == 7


@pytest.mark.parametrize("selector", ["model.lm_head.weight", "model.lm_*", "!1d"])
def test_selectors_that_name_one_that_is_lost_are_refused(neox: Base, selector: str) -> None:
    with pytest.raises(BaseError, match=r"embed_out\.weight; .* so 1 weight that can .*: model\.lm_head\.weight"):
        zero_delta(neox, selector)


def test_nothing_is_left_where_only_lost_weights_are_named(neox: Base) -> None:
    with pytest.raises(SelectionError, match="matches none"):
        zero_delta(neox, "model.lm_*", allow_missing=True)


def test_a_lost_embedding_that_is_named_is_not_said_to_be_of_no_kind(tmp_path: Path) -> None:
    gpt2(tmp_path)
    with pytest.raises(BaseError, match="files hold nothing under this name"):
        choose_kinds(open_base(tmp_path), ["model.transformer.wpe.weight"])


def llama(folder: Path) -> None:
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, tie_word_embeddings=False)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("more", "less"),
    [
        (
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
                "model.position_ids": torch.ones(1, 4).long(),
            },
            (),
        ),
        ({"extra.weight": torch.ones(2, 2), "old_head.bias": torch.ones(3)}, ()),
        ({"a.running_mean": torch.ones(4), "a.num_batches_tracked": torch.tensor(1)}, ("lm_head.weight",)),
    ],
    ids=["tables", "tensors that no class reads", "a head that is made anew, and buffers"],
)
def test_what_the_library_makes_anew_or_passes_over_is_no_loss(
    tmp_path: Path, more: dict[str, torch.Tensor], less: tuple[str, ...]
) -> None:
    llama(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if key not in less} | more, path, {"format": "pt"})
    base = open_base(tmp_path)
    assert lost_weights(base) == {}
    assert len(choose_kinds(base)) == 11 - len(less)


def test_tied_heads_variants_and_the_level_that_clip_lost_are_no_loss() -> None:
    assert lost_weights(open_tiny()) == {}
    assert remarks(open_tiny(), ["unet.conv_in.weight", "text_encoder.x"]) == []


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("experts")
    config = transformers.MixtralConfig(**TEXT, num_local_experts=2)
    transformers.MixtralForCausalLM(config).save_pretrained(folder)
    return open_base(folder)


def test_stacked_experts_are_no_error_and_their_share_is_said(experts: Base) -> None:
    chosen = choose_kinds(experts)
    tensors = load_file(experts.path / "model.safetensors")
    covered = sum(tensors[name.partition(".")[2]].numel() for name in chosen)
    assert count_values(experts, chosen) == (covered, sum(tensor.numel() for tensor in tensors.values()))
    done = svdiff("basis", "build", str(experts.path))
    assert done.code == 0, done.err
    assert "weights of model have no place in MixtralForCausalLM: model.layers.0." in done.err
    whole = sum(tensor.numel() for tensor in tensors.values())
    assert f"the chosen weights cover {covered:,} of {whole:,} values ({covered / whole:.1%})" in done.out


def test_the_command_refuses_and_leaves_out_on_request(neox: Base) -> None:
    done = svdiff("basis", "build", str(neox.path))
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith("error: ")
    assert "--allow-missing" in done.err
    done = svdiff("basis", "build", str(neox.path), "--allow-missing", "--json")
    assert json.loads(done.out)["bases"] == 4


def test_a_change_of_a_lost_weight_says_why_it_cannot_be_converted(neox: Base, tmp_path: Path) -> None:
    model = transformers.GPTNeoXForCausalLM.from_pretrained(neox.path)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.1)
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(InputError, match=r"embed_out\.weight \(differs, and has no place in GPTNeoXForCausalLM, which"):
        convert(tmp_path / "tuned", from_="full", base=neox)


def test_a_build_of_norms_alone_is_an_error() -> None:
    done = svdiff("basis", "build", "tiny", "unet.mid_block.attentions.*norm*")
    assert done.code == 1
    assert re.fullmatch(r"error: .*none of the \d+ weights that are chosen has singular values, .*\n", done.err)
