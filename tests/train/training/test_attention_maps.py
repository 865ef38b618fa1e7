"""Cross-attention maps: equal to a plain softmax, without a trace on what the denoiser does."""

from __future__ import annotations

import re
from typing import Any
from zlib import crc32

import pytest
import torch
from support.models import live_zero
from support.pipelines import PIPELINES, small_sd2, small_sdxl
from torch import Tensor

from svdiff_delta import attach
from svdiff_delta.errors import TrainError
from svdiff_train.data import seeded_random
from svdiff_train.families import Family, family_of
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.tiny import open_tiny
from svdiff_train.training.attention_maps import Layer, cross_attention, recorded
from svdiff_train.training.token_positions import token_places

PROMPTS = ["a photo of a cat", "a house", "a V1 dog on the left"]


def predicted(family: Family, height: int = 8, width: int = 12) -> Tensor:
    """What the denoiser makes of three prompts and noise."""
    noise = seeded_random.noise((3, 4, height, width), 0, 0, 0)
    return family.predict(family.denoiser, noise, torch.tensor([10, 500, 900]), family.encode_prompts(PROMPTS))


def plain(attn: Any, latents: Tensor, prompt: Tensor) -> Tensor:
    """softmax(QKᵀ/√d) of each head in float64, one head after the other, and their mean."""
    query, key = attn.to_q(latents).double(), attn.to_k(prompt).double()
    width = query.shape[-1] // attn.heads
    heads = [slice(head * width, (head + 1) * width) for head in range(attn.heads)]
    return torch.stack(
        [
            torch.softmax(torch.einsum("bpc,btc->bpt", query[..., head], key[..., head]) / width**0.5, dim=-1)
            for head in heads
        ]
    ).mean(0)


@pytest.mark.parametrize("build", [small_sd2, small_sdxl])
@pytest.mark.parametrize("shifted", [False, True])
def test_maps_are_a_plain_softmax_and_outputs_stay(build: Any, shifted: bool) -> None:
    family = family_of(build())
    denoiser: Any = family.denoiser
    if shifted:
        attach(family.pipeline, live_zero(denoiser, slot="unet"), trainable=True)
    layers = cross_attention(denoiser)
    inputs: dict[str, tuple[Tensor, Tensor]] = {}
    for layer in layers:
        denoiser.get_submodule(layer.name).register_forward_pre_hook(
            lambda module, args, kwargs, name=layer.name: inputs.__setitem__(
                name, (args[0], kwargs["encoder_hidden_states"])
            ),
            with_kwargs=True,
        )
    before = predicted(family)
    stock = dict(denoiser.attn_processors)
    with recorded(denoiser, layers) as maps, maps.recording([0, 2]):
        after = predicted(family)
        taken = dict(maps.taken)
    assert torch.equal(before, after)
    assert denoiser.attn_processors == stock
    assert sorted(taken) == [layer.name for layer in layers]
    for layer in layers:
        expected = plain(denoiser.get_submodule(layer.name), *(states[[0, 2]] for states in inputs[layer.name]))
        torch.testing.assert_close(taken[layer.name].double(), expected, rtol=0, atol=1e-6)
        height, width = layer.size(8, 12)
        assert taken[layer.name].shape[:2] == (2, height * width)


def test_processors_are_restored_after_an_error() -> None:
    denoiser: Any = family_of(small_sd2()).denoiser
    stock = dict(denoiser.attn_processors)
    with pytest.raises(ZeroDivisionError), recorded(denoiser, cross_attention(denoiser)):
        raise ZeroDivisionError
    assert denoiser.attn_processors == stock


def test_nothing_is_recorded_unless_it_is_asked_for() -> None:
    family = family_of(small_sd2())
    with recorded(family.denoiser, cross_attention(family.denoiser)) as maps:
        predicted(family)
        assert not maps.taken
        with maps.recording([1]):
            predicted(family)
            assert maps.taken
        assert not maps.taken
        with maps.recording([]):
            predicted(family)
            assert not maps.taken


def test_masked_tokens_are_not_attended_to() -> None:
    family = family_of(small_sd2())
    denoiser: Any = family.denoiser
    states = family.encode_prompts(PROMPTS)["states"]
    mask = torch.ones(states.shape[:2])
    mask[:, 5:] = 0
    with recorded(denoiser, cross_attention(denoiser)) as maps, maps.recording([1, 2]):
        denoiser(seeded_random.noise((3, 4, 8, 8), 0, 0, 0), 10, states, encoder_attention_mask=mask)
        for found in maps.taken.values():
            assert not found[..., 5:].any()
            torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:2]))


def test_maps_of_checkpointed_layers_have_the_same_gradients() -> None:
    family = family_of(small_sd2())
    denoiser: Any = family.denoiser
    denoiser.train()
    layers = cross_attention(denoiser)
    weight = denoiser.get_submodule(layers[0].name).to_q.weight.requires_grad_(True)
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            denoiser.enable_gradient_checkpointing()
        weight.grad = None
        with recorded(denoiser, layers) as maps, maps.recording([0]):
            output = predicted(family)
            loss = output.square().mean() + sum(one[..., 2].square().mean() for one in maps.taken.values())
            loss.backward()
        found.append(weight.grad.clone())
    assert found[0].any()
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-8)


def test_layers_of_the_embedded_base_and_the_sizes_of_their_maps() -> None:
    denoiser: Any = family_of(load_pipeline(open_tiny())).denoiser
    layers = cross_attention(denoiser)
    assert all(layer.name.endswith("attn2") for layer in layers)
    assert {layer.name.partition(".attentions")[0]: layer.size(16, 32) for layer in layers} == {
        "down_blocks.0": (16, 32),
        "down_blocks.1": (8, 16),
        "down_blocks.2": (4, 8),
        "mid_block": (4, 8),
        "up_blocks.0": (4, 8),
        "up_blocks.1": (8, 16),
        "up_blocks.2": (16, 32),
    }


def test_joint_attention_has_no_maps() -> None:
    found = {name: bool(cross_attention(family_of(build()).denoiser)) for name, build in PIPELINES.items()}
    assert {name for name, has in found.items() if has} == {"sd2", "sdxl"}


def test_a_layer_knows_the_size_of_its_map() -> None:
    assert Layer("mid_block", 4).size(12, 20) == (3, 5)


class Halves:
    """A tokenizer that reads two letters at a time, and punctuation by itself, between two special tokens."""

    model_max_length = 12

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        ids = [2 + crc32(part.encode()) for part in re.findall(r"\w\w?|[^\w\s]", text)]

        class Read:
            input_ids = [0, *ids, 1] if add_special_tokens else ids

        return Read


class Two:
    """The tokenizers of a pipeline."""

    def __init__(self, tokenizer: Any, tokenizer_2: Any = None) -> None:
        self.tokenizer, self.tokenizer_2 = tokenizer, tokenizer_2


def test_a_word_stands_where_all_of_its_tokens_do() -> None:
    assert token_places(Two(Halves()), ["text_encoder"], "a zwx cat", "zwx") == (2, 3)
    assert token_places(Two(Halves()), ["text_encoder"], "zwx, azwx zwx", "zwx") == (1, 2, 6, 7)
    tokenizer: Any = load_pipeline(open_tiny())
    assert token_places(tokenizer, ["text_encoder"], "photo of a V2 dog, V1.", "V1") == (7,)


def test_words_that_are_not_read_are_refused() -> None:
    with pytest.raises(TrainError, match="does not have the token 'zw': put it into the prompt"):
        token_places(Two(Halves()), ["text_encoder"], "a zwx cat", "zw")
    with pytest.raises(TrainError, match="is longer than the model reads: 'zwx' is cut off: use shorter wordings"):
        token_places(Two(Halves()), ["text_encoder"], "a b c d e f g h i j zwx", "zwx")


def test_tokenizers_that_disagree_are_refused() -> None:
    other: Any = load_pipeline(open_tiny())
    with pytest.raises(TrainError, match=r"put 'V1' in different places of .*: set unmix_weight to 0"):
        token_places(Two(Halves(), other.tokenizer), ["text_encoder", "text_encoder_2"], "a photo of V1", "V1")


def test_a_tokenizer_that_reads_across_words_is_refused() -> None:
    class Joined(Halves):
        def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
            return super().__call__(text.replace(" ", ""), add_special_tokens)

    with pytest.raises(TrainError, match="Joined: does not read 'a cat V1' word by word: set unmix_weight to 0"):
        token_places(Two(Joined()), ["text_encoder"], "a cat V1", "V1")
