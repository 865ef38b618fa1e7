"""Bases whose files name weights otherwise than their class: said, refused where they would be left out, mended."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.commands import svdiff
from support.sizes import SMALL, TEXT
from torch import nn

from svdiff_delta import convert, zero_delta
from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.base_model.coverage import count_values, lost_weights, remarks
from svdiff_delta.base_model.kinds import shiftable
from svdiff_delta.base_model.weight_selection import choose_kinds
from svdiff_delta.errors import BaseError, InputError, SelectionError
from svdiff_train.tiny import open_tiny


def nomic(folder: Path) -> nn.Module:
    """Query, key and value are one weight on the disk, which transformers splits."""
    model = transformers.NomicBertModel(transformers.NomicBertConfig(**SMALL))
    model.save_pretrained(folder)
    return model


def dino(folder: Path) -> nn.Module:
    """Both input layers of the feed-forward are one weight on the disk."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, use_swiglu_ffn=True))
    model.save_pretrained(folder)
    return model


def odd(folder: Path) -> None:
    """Give a tensor a name that nothing maps."""
    llama(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["odd.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, path, {"format": "pt"})


MAKERS = {maker.__name__: maker for maker in (nomic, dino)}
LOST = {"nomic": 3, "dino": 2}


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
def merged(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("nomic")
    nomic(folder)
    return open_base(folder)


def test_they_are_left_out_where_that_is_asked_for(merged: Base) -> None:
    assert {*lost_weights(merged)} == {f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"}
    chosen = zero_delta(merged, allow_missing=True)
    assert len(chosen) == 7
    assert "model.encoder.layers.0.attn.Wqkv.weight" not in chosen


def test_selectors_that_name_only_weights_that_are_there_just_work(merged: Base) -> None:
    assert len(zero_delta(merged, "model.encoder.layers.*")) == 6
    assert len(zero_delta(merged, "!model.layers.*")) == 7


@pytest.mark.parametrize("selector", ["model.layers.0.self_attn.q_proj.weight", "model.layers.*q_*", "!1d"])
def test_selectors_that_name_one_that_is_lost_are_refused(merged: Base, selector: str) -> None:
    with pytest.raises(BaseError, match=r"Wqkv\.weight; its class has them split.* that can .*\.q_proj\.weight"):
        zero_delta(merged, selector)


def test_nothing_is_left_where_only_lost_weights_are_named(merged: Base) -> None:
    with pytest.raises(SelectionError, match="matches none"):
        zero_delta(merged, "model.layers.*", allow_missing=True)


def test_the_merged_weight_by_its_own_name_is_refused_with_what_becomes_of_it(merged: Base) -> None:
    with pytest.raises(BaseError, match=r"transformers makes other weights of it on loading \(Chunk\)"):
        choose_kinds(merged, ["model.encoder.layers.0.attn.Wqkv.weight"], allow_missing=True)


def test_a_name_that_nothing_maps_is_refused_where_its_weight_would_be_lost(tmp_path: Path) -> None:
    odd(tmp_path)
    with pytest.raises(BaseError, match=r"odd\.weight; its class names them otherwise, so 1 weight that"):
        zero_delta(open_base(tmp_path))


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


def test_experts_that_a_library_stacks_count_as_covered(experts: Base) -> None:
    chosen = choose_kinds(experts)
    tensors = load_file(experts.path / "model.safetensors")
    covered = sum(tensors[name.partition(".")[2]].numel() for name in chosen)
    assert count_values(experts, chosen) == (covered, sum(tensor.numel() for tensor in tensors.values()))
    done = svdiff("basis", "build", str(experts.path))
    assert done.code == 0, done.err
    assert "no place" not in done.err
    assert "not shifted" not in done.err
    assert sum("experts" in name for name in chosen) == 2 * 3
    whole = sum(tensor.numel() for tensor in tensors.values())
    assert f"the chosen weights cover {covered:,} of {whole:,} values ({covered / whole:.1%})" in done.out


@pytest.mark.parametrize("known", [True, False])
def test_experts_that_are_stacked_in_a_way_not_known_are_said(
    tmp_path: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another size where they are not known: what is known of a class is kept for its next base.
    experts = {"moe_intermediate_size": 8 if known else 10, "num_experts": 2, "num_experts_per_tok": 1}
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**TEXT, **experts, head_dim=8))
    model.save_pretrained(tmp_path, save_original_format=False)
    base = open_base(tmp_path)
    if known:
        assert remarks(base, choose_kinds(base)) == []
        return
    monkeypatch.setattr("svdiff_delta.base_model.kinds.stacks", lambda _: iter(()))
    (line,) = remarks(base, chosen := choose_kinds(base))
    covered, whole = count_values(base, chosen)
    assert line == (
        "the experts of model are stacked in tensors of many matrices, which are not shifted: what is chosen covers "
        f"{covered / whole:.1%} of its values"
    )


def test_a_model_without_experts_has_no_such_line(merged: Base) -> None:
    (line,) = remarks(merged, zero_delta(merged, allow_missing=True))
    assert "has no place" in line


def test_the_command_refuses_and_leaves_out_on_request(merged: Base) -> None:
    done = svdiff("basis", "build", str(merged.path))
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith("error: ")
    assert "--allow-missing" in done.err
    done = svdiff("basis", "build", str(merged.path), "--allow-missing", "--json")
    assert json.loads(done.out)["bases"] == 4


def test_a_change_of_a_lost_weight_says_why_it_cannot_be_converted(merged: Base, tmp_path: Path) -> None:
    model = transformers.NomicBertModel.from_pretrained(merged.path)
    with torch.no_grad():
        model.layers[0].self_attn.q_proj.weight.mul_(1.1)
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(InputError, match=r"Wqkv\.weight \(differs, and has no place in NomicBertModel: transf"):
        convert(tmp_path / "tuned", from_="full", base=merged)


def test_a_build_of_norms_alone_is_an_error() -> None:
    done = svdiff("basis", "build", "tiny", "unet.mid_block.attentions.*norm*")
    assert done.code == 1
    assert re.fullmatch(r"error: .*none of the \d+ weights that are chosen has singular values, .*\n", done.err)
