"""The unmix regularization: its formula, where it looks, and what its gradient does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.pipelines import PIPELINES
from torch import Tensor

from svdiff_delta import attach, zero_delta
from svdiff_delta.errors import SelectionError, TrainError
from svdiff_train.data import seeded_random
from svdiff_train.data.batches import Batch
from svdiff_train.data.cut_mix import Mix, Mixing
from svdiff_train.families import Family, family_of
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.settings.concept import Concept
from svdiff_train.settings.prompt_templates import ABOVE, BESIDE
from svdiff_train.tiny import open_tiny
from svdiff_train.training.unmix import Places, Unmix, choose_layers, unmix_loss

CONCEPTS = (
    Concept(Path(), "a photo of a V1 dog", "a photo of a dog"),
    Concept(Path(), "a photo of a V2 cat", "a photo of a cat"),
)
MIXING = Mixing(0.6, BESIDE, ABOVE)


def regularization(family: Family, **more: Any) -> Unmix:
    options: dict[str, Any] = {"layers": None, "resolutions": None, "resolution": family.resolution, **more}
    return Unmix(family, CONCEPTS, MIXING, **options)


def formula(maps: list[Tensor], mix: Mix, places: Places) -> float:
    """The mean over maps of both mean squares, number by number in float64."""
    total, counted = 0.0, 0
    for attention in maps:
        height, width, _ = attention.shape
        length = width if mix.beside else height
        if length < 2:
            continue
        counted += 1
        squares: dict[str, list[float]] = {"first": [], "second": []}
        for row in range(height):
            for column in range(width):
                middle = (column if mix.beside else row) + 0.5
                wrong = "second" if middle < length / 2 else "first" if middle > length / 2 else None
                if wrong is not None:  # whose token has no business here
                    tokens = places[0 if wrong == "first" else 1]
                    squares[wrong] += [float(attention[row, column, token].double()) ** 2 for token in tokens]
        total += sum(sum(own) / len(own) for own in squares.values())
    return total / counted


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("places", [((3,), (7,)), ((2, 3), (6, 7, 8))])
def test_the_loss_is_its_formula(beside: bool, places: Places) -> None:
    sizes = ((4, 6), (3, 5), (2, 3), (1, 1))  # even and odd, and one that has no halves
    maps = [seeded_random.noise((*size, 10), 0, index, 0).softmax(-1) for index, size in enumerate(sizes)]
    mix = Mix(0, 1, beside, 0)
    assert float(unmix_loss(maps, mix, places)) == pytest.approx(formula(maps, mix, places), rel=1e-5)


def share_formula(maps: list[Tensor], mix: Mix, places: Places) -> float:
    """The mean over maps of both mean squared shares, number by number in float64."""
    found = []
    for attention in maps:
        length = attention.shape[1 if mix.beside else 0]
        if length < 2:
            continue
        whole = attention.double() if mix.beside else attention.double().transpose(0, 1)
        total = 0.0
        for tokens, columns in ((places[0], range((length + 1) // 2, length)), (places[1], range(length // 2))):
            shares = [
                sum(float(whole[row, column, token]) for row in range(whole.shape[0]) for column in columns)
                / float(whole[..., token].sum())
                for token in tokens
            ]
            total += sum(share**2 for share in shares) / len(shares)
        found.append(total)
    return sum(found) / len(found)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("places", [((3,), (7,)), ((2, 3), (6, 7, 8))])
def test_the_loss_of_shares_is_its_formula(beside: bool, places: Places) -> None:
    sizes = ((4, 6), (3, 5), (2, 3), (1, 1))
    maps = [seeded_random.noise((*size, 10), 0, index, 0).softmax(-1) for index, size in enumerate(sizes)]
    mix = Mix(0, 1, beside, 0)
    assert float(unmix_loss(maps, mix, places, "share")) == pytest.approx(share_formula(maps, mix, places), rel=1e-5)


def test_a_share_stays_when_a_token_is_attended_to_less_everywhere() -> None:
    maps = seeded_random.noise((4, 4, 10), 0, 0, 0).softmax(-1)
    mix, places = Mix(0, 1, True, 0), ((3,), (7,))
    before, after = (float(unmix_loss([one], mix, places, "share")) for one in (maps, 0.1 * maps))
    assert after == pytest.approx(before, rel=1e-6)
    plain = [float(unmix_loss([one], mix, places)) for one in (maps, 0.1 * maps)]
    assert plain[1] == pytest.approx(0.01 * plain[0], rel=1e-6)


def test_attention_on_its_own_half_costs_nothing() -> None:
    attention = torch.zeros(4, 4, 5)
    attention[:, :2, 1], attention[:, 2:, 3] = 1, 1
    assert float(unmix_loss([attention], Mix(0, 1, True, 0), ((1,), (3,)))) == 0
    assert float(unmix_loss([attention], Mix(1, 0, True, 0), ((3,), (1,)))) == 2


def test_maps_without_halves_cost_nothing() -> None:
    assert float(unmix_loss([torch.ones(4, 1, 5)], Mix(0, 1, True, 0), ((1,), (3,)))) == 0


def batch(family: Family, mixes: tuple[Mix | None, ...], side: int) -> Batch:
    """A batch of noise with a sample of the class for each of the subjects."""
    count, phrases = len(mixes), [concept.noun for concept in CONCEPTS]
    said = tuple(CONCEPTS[0].prompt if mix is None else MIXING.prompt(mix, phrases) for mix in mixes)
    latents = seeded_random.noise((2 * count, family.pipeline.unet.config.in_channels, side, side), 0, 0, 0)
    times = torch.full((2 * count,), 300)
    return Batch(latents, latents, times, (*said, *["a dog"] * count), torch.zeros(2 * count, 6), count, mixes)


def passed(family: Family, unmix: Unmix, given: Batch) -> Tensor:
    states = family.encode_prompts(given.prompts)
    family.predict(family.denoiser, given.latents, given.timesteps, states)
    return unmix.loss(given)


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_the_loss_of_a_batch_is_the_mean_over_the_subjects_samples(name: str) -> None:
    family = family_of(PIPELINES[name]())
    mixes = (Mix(1, 0, True, 0), None, Mix(0, 1, False, 1))
    given, unmix = batch(family, mixes, 8), regularization(family)
    with unmix.watching(), unmix.on(given):
        found = float(passed(family, unmix, given).detach())
        maps = unmix.maps
        assert maps is not None
        expected = 0.0
        for row, (sample, mix) in enumerate((sample, mix) for sample, mix in enumerate(mixes) if mix is not None):
            own = [maps.taken[layer.name][row].unflatten(0, layer.size(8, 8)) for layer in unmix.layers]
            ids = family.pipeline.tokenizer(given.prompts[sample]).input_ids
            words = family.pipeline.tokenizer.convert_ids_to_tokens(ids)
            first, second = (words.index(f"v{number + 1}") for number in (mix.first, mix.second))
            expected += formula(own, mix, ((first,), (second,)))
    assert found == pytest.approx(expected / 3, rel=1e-5)


def test_a_batch_without_mixed_samples_costs_nothing_and_records_nothing() -> None:
    family = family_of(PIPELINES["sd2"]())
    given, unmix = batch(family, (None, None), 8), regularization(family)
    with unmix.watching(), unmix.on(given):
        assert float(passed(family, unmix, given)) == 0
        assert unmix.maps is not None
        assert not unmix.maps.taken


def test_its_gradient_lowers_attention_on_the_wrong_half() -> None:
    base = open_tiny()
    family = family_of(load_pipeline(base))
    for part in (family.pipeline.unet, family.pipeline.text_encoder):
        part.requires_grad_(False)
    given, unmix = batch(family, (Mix(0, 1, True, 0), Mix(1, 0, False, 0)), 16), regularization(family)
    losses = []
    with attach(family.pipeline, zero_delta(base, "unet-ca"), base=base, trainable=True) as handle:
        optimizer = torch.optim.AdamW([parameter for _, parameter in handle.parameters()], lr=0.1)
        with unmix.watching():
            for _ in range(5):
                with unmix.on(given):
                    loss = passed(family, unmix, given)
                    optimizer.zero_grad()
                    loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("layers", "sides", "expected"),
    [
        (None, None, 10),
        (("mid_block",), None, 1),
        (("down_blocks.*.attn2",), None, 3),
        (("mid_block", "up_blocks.0"), None, 3),
        (None, (16,), 3),
        (("down_blocks",), (16, 8), 2),
    ],
)
def test_layers_are_chosen_by_name_and_side(
    layers: tuple[str, ...] | None, sides: tuple[int, ...] | None, expected: int
) -> None:
    assert len(choose_layers(family_of(load_pipeline(open_tiny())), layers, sides, 16)) == expected


def test_what_chooses_nothing_is_refused() -> None:
    family = family_of(load_pipeline(open_tiny()))
    with pytest.raises(SelectionError, match=r"unmix_layers: 'attn1' matches no cross-attention: they are called like"):
        choose_layers(family, ["attn1"], None, 16)
    with pytest.raises(SelectionError, match="unmix_resolutions: no map has the side 7: there are 16, 8, 4"):
        choose_layers(family, None, [7], 16)
    with pytest.raises(SelectionError, match="have no map in common: leave out one of them"):
        choose_layers(family, ["mid_block"], [16], 16)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_models_without_cross_attention_are_refused_unless_told(name: str) -> None:
    family = family_of(PIPELINES[name]())
    with pytest.raises(TrainError, match=r"Pipeline: its transformer has no cross-attention .*: set unmix_weight to 0"):
        regularization(family)


def test_wordings_that_the_model_does_not_read_to_the_end_are_refused() -> None:
    family = family_of(load_pipeline(open_tiny()))
    long = replace(MIXING, above=("{first} " + "the " * 26 + "{second}",))
    with pytest.raises(TrainError, match="is longer than the model reads"):
        Unmix(family, CONCEPTS, long, layers=None, resolutions=None, resolution=64)


def test_a_loss_without_a_look_is_refused() -> None:
    family = family_of(PIPELINES["sd2"]())
    with pytest.raises(TrainError, match="do this inside of `watching`"):
        regularization(family).loss(batch(family, (None,), 8))
