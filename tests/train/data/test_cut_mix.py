"""Cut-Mix: how often and how two concepts are drawn, what their picture is made of, and how it is described."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from svdiff_train.data import seeded_random
from svdiff_train.data.concept_batches import ConceptBatches
from svdiff_train.data.cut_mix import Mix, Mixing, half
from svdiff_train.data.image_sets import ClassPictures, Pictures, open_pictures
from svdiff_train.families import Family, family_of
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.settings.concept import Concept
from svdiff_train.settings.config import TrainConfig
from svdiff_train.settings.prompt_templates import ABOVE, BESIDE
from svdiff_train.tiny import open_tiny

DRAWN = 2_000
MIXING = Mixing(0.6, BESIDE, ABOVE)
COLOURS = ("red", "green", "blue")


def drawn(concepts: int, mixing: Mixing = MIXING) -> list[Mix | int]:
    return [mixing.draw(concepts, 0, step, sample) for step in range(DRAWN // 4) for sample in range(4)]


def near(count: int, share: float, total: int) -> bool:
    """Whether a count is within three standard deviations of what is expected."""
    return abs(count - share * total) < 3 * sqrt(total * share * (1 - share))


@pytest.mark.parametrize("probability", [0.6, 0.25])
def test_samples_are_mixed_with_the_probability(probability: float) -> None:
    mixed = [shows for shows in drawn(2, Mixing(probability, BESIDE, ABOVE)) if isinstance(shows, Mix)]
    assert near(len(mixed), probability, DRAWN)


def test_zero_and_one_are_never_and_always() -> None:
    assert not any(isinstance(shows, Mix) for shows in drawn(2, Mixing(0.0, BESIDE, ABOVE)))
    assert all(isinstance(shows, Mix) for shows in drawn(2, Mixing(1.0, BESIDE, ABOVE)))


@pytest.mark.parametrize("concepts", [2, 3])
def test_pairs_orders_layouts_and_wordings_are_equally_likely(concepts: int) -> None:
    mixed = [shows for shows in drawn(concepts) if isinstance(shows, Mix)]
    pairs = Counter((mix.first, mix.second) for mix in mixed)
    assert sorted(pairs) == [(a, b) for a in range(concepts) for b in range(concepts) if a != b]
    assert all(near(count, 1 / len(pairs), len(mixed)) for count in pairs.values())
    for name in ("beside", "template"):
        assert near(sum(getattr(mix, name) for mix in mixed), 0.5, len(mixed))


@pytest.mark.parametrize("concepts", [2, 3])
def test_what_is_not_mixed_shows_each_concept_equally_often(concepts: int) -> None:
    single = [shows for shows in drawn(concepts) if isinstance(shows, int)]
    assert all(near(count, 1 / concepts, len(single)) for count in Counter(single).values())


def test_prompts_are_the_papers() -> None:
    phrases = ["a V1 dog", "a V2 sculpture"]
    said = [MIXING.prompt(mix, phrases) for mix in MIXING.every(2) if mix.first == 0]
    assert said == [
        "photo of a V1 dog on the left and a V2 sculpture on the right",
        "photo of a V2 sculpture and a V1 dog",
        "photo of a V1 dog at the top and a V2 sculpture at the bottom",
        "photo of a V2 sculpture and a V1 dog",
    ]


def test_everything_that_can_be_drawn_is_listed() -> None:
    found = {shows for shows in drawn(3) if isinstance(shows, Mix)}
    assert found == set(MIXING.every(3))
    assert Mixing(0.0, BESIDE, ABOVE).every(3) == []


def test_halves_fill_the_whole() -> None:
    assert half((48, 80), beside=True) == (48, 40)
    assert half((48, 80), beside=False) == (24, 80)


@pytest.fixture(scope="module")
def family() -> Family:
    return family_of(load_pipeline(open_tiny()))


@pytest.fixture(scope="module")
def concepts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Concept, Concept]:
    """Two concepts whose pictures have several sizes, noisy on the edges and in the middle."""
    found = []
    for number, sizes in enumerate((((96, 48), (50, 100)), ((64, 64), (40, 30), (31, 77))), 1):
        folder = tmp_path_factory.mktemp(f"V{number}")
        for index, size in enumerate(sizes):
            pixels = np.random.default_rng(10 * number + index).integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / "0.txt").write_text(f"a V{number} cat, sitting")
        found.append(Concept(folder, f"a photo of a V{number} cat", f"a photo of a kind {number} cat"))
    return found[0], found[1]


def batches(
    family: Family,
    concepts: tuple[Concept, ...],
    probability: float,
    *,
    prior: bool = False,
    flip: bool = False,
    buckets: bool = False,
) -> ConceptBatches:
    config = TrainConfig(concepts=concepts, buckets=buckets)
    sets: list[list[Pictures]] = []
    for concept, colour in zip(concepts, COLOURS, strict=False):
        subject = open_pictures(concept.images, config, 64, family.unit, skip_bad=False, concept=concept)
        painted = ClassPictures([Image.new("RGB", (64, 64), colour)] * 2, concept.class_prompt or "")
        sets.append([subject, painted] if prior else [subject])
    mixing = Mixing(probability, BESIDE, ABOVE)
    return ConceptBatches(family, concepts, sets, mixing, seed=0, crop=True, flip=flip)


@pytest.fixture
def pixels(family: Family, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the autoencoder is given, picture by picture."""
    seen: list[torch.Tensor] = []
    encode = family.encode_images

    def watched(images: torch.Tensor) -> torch.Tensor:
        seen.extend(images)
        return encode(images)

    monkeypatch.setattr(family, "encode_images", watched)
    return seen


def centre(path: Path, height: int, width: int, *, mirrored: bool = False) -> torch.Tensor:
    """A picture scaled to cover a size and cut at its centre, by a crop box in the coordinates of the picture."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    if mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = max(height / picture.height, width / picture.width)
    across, down = (picture.width - width / scale) / 2, (picture.height - height / scale) / 2
    box = (across, down, picture.width - across, picture.height - down)
    scaled = picture.resize((width, height), Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.array(scaled, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def composed(
    family: Family, concepts: tuple[Concept, ...], pixels: list[torch.Tensor], *, flip: bool = False
) -> Iterator[tuple[Mix, list[torch.Tensor]]]:
    """What mixed samples show, and the two halves of their pictures."""
    for step in range(12):
        (mix,) = batches(family, concepts, 1.0, flip=flip).batch(step, [0]).mixes
        assert mix is not None
        yield mix, [*pixels.pop().split(32, dim=2 if mix.beside else 1)]


def test_both_halves_are_the_centres_of_pictures_of_their_concepts(
    family: Family, concepts: tuple[Concept, Concept], pixels: list[torch.Tensor]
) -> None:
    layouts = set()
    for mix, halves in composed(family, concepts, pixels):
        for part, number in zip(halves, (mix.first, mix.second), strict=True):
            paths = sorted(concepts[number].images.glob("*.png"))
            assert sum(torch.equal(part, centre(path, *part.shape[1:])) for path in paths) == 1
        layouts.add((mix.first, mix.beside))
    assert len(layouts) == 4


def test_each_half_is_mirrored_by_itself(
    family: Family, concepts: tuple[Concept, Concept], pixels: list[torch.Tensor]
) -> None:
    seen = set()
    for mix, halves in composed(family, concepts, pixels, flip=True):
        states = [
            mirrored
            for part, number in zip(halves, (mix.first, mix.second), strict=True)
            for path in sorted(concepts[number].images.glob("*.png"))
            for mirrored in (False, True)
            if torch.equal(part, centre(path, *part.shape[1:], mirrored=mirrored))
        ]
        assert len(states) == 2
        seen.add(tuple(states))
    assert len(seen) == 4


def test_samples_of_the_classes_are_mixed_in_the_same_way(
    family: Family, concepts: tuple[Concept, Concept], pixels: list[torch.Tensor]
) -> None:
    drawn = batches(family, concepts, 0.6, prior=True)
    colours = [torch.tensor([1.0, -1, -1]), torch.tensor([-1, 128 / 127.5 - 1, -1])]
    both = 0
    for step in range(10):
        pixels.clear()
        batch = drawn.batch(step, [0])
        (mix,), (subject, prior) = batch.mixes, batch.prompts
        painted = pixels[-1] if pixels else None
        assert batch.subjects == 1
        if mix is None:
            number = next(index for index, concept in enumerate(concepts) if f"V{index + 1}" in subject)
            assert prior == concepts[number].class_prompt
            continue
        both += 1
        assert prior == subject.replace("V1", "kind 1").replace("V2", "kind 2")
        assert painted is not None
        corner = painted[:, -1, 0] if mix.beside else painted[:, 0, -1]
        assert torch.allclose(corner, colours[mix.first], atol=1e-6)
        assert torch.allclose(painted[:, -1, -1], colours[mix.second], atol=1e-6)
    assert 0 < both < 10


def test_samples_do_not_depend_on_who_else_is_in_the_batch(family: Family, concepts: tuple[Concept, Concept]) -> None:
    drawn = batches(family, concepts, 0.6, prior=True, flip=True)
    whole, part = drawn.batch(3, [0, 1, 2]), batches(family, concepts, 0.6, prior=True, flip=True).batch(3, [1, 2])
    rows = [1, 2, 4, 5]
    for name in ("noise", "timesteps", "sizes"):
        assert torch.equal(getattr(whole, name)[rows], getattr(part, name))
    torch.testing.assert_close(whole.latents[rows], part.latents, rtol=1e-5, atol=1e-5)
    assert [whole.prompts[row] for row in rows] == list(part.prompts)
    assert whole.mixes[1:] == part.mixes


def test_captions_stand_in_single_samples_only(family: Family, concepts: tuple[Concept, Concept]) -> None:
    drawn = batches(family, concepts, 0.6)
    said = {(mix is None, prompt) for step in range(16) for mix, prompt in _said(drawn, step)}
    single, mixed = ({prompt for alone, prompt in said if alone is kind} for kind in (True, False))
    assert single == {"a V1 cat, sitting", "a photo of a V1 cat", "a V2 cat, sitting", "a photo of a V2 cat"}
    assert mixed <= {MIXING.prompt(mix, ["a V1 cat", "a V2 cat"]) for mix in MIXING.every(2)}


def _said(drawn: ConceptBatches, step: int) -> Iterator[tuple[Mix | None, str]]:
    batch = drawn.batch(step, [0, 1, 2])
    return zip(batch.mixes, batch.prompts, strict=True)


def test_with_buckets_a_step_has_one_size_and_shows_any_concept(
    family: Family, concepts: tuple[Concept, Concept]
) -> None:
    drawn, shown = batches(family, concepts, 0.3, buckets=True), set[tuple[torch.Size, str]]()
    for step in range(20):
        batch = drawn.batch(step, [0, 1, 2, 3])
        assert torch.equal(batch.sizes[:, 4:], batch.sizes[:1, 4:].expand(4, 2))
        assert tuple(batch.sizes[0, 4:].tolist()) == tuple(4 * side for side in batch.latents.shape[2:])
        shown |= {
            (batch.latents.shape[2:], token)
            for mix, prompt in zip(batch.mixes, batch.prompts, strict=True)
            for token in ("V1", "V2")
            if mix is None and token in prompt
        }
    sizes = {size for size, _ in shown}
    assert len(sizes) == 3  # no picture of the first concept is square
    assert shown == {(size, token) for size in sizes for token in ("V1", "V2")}


def test_mixed_pictures_are_encoded_once(
    family: Family, concepts: tuple[Concept, Concept], pixels: list[torch.Tensor]
) -> None:
    drawn = batches(family, concepts, 1.0)
    first = drawn.batch(5, [0])
    count = len(pixels)
    assert torch.equal(drawn.batch(5, [0]).latents, first.latents)
    assert len(pixels) == count == 1


def test_chances_are_from_zero_to_one() -> None:
    found = [seeded_random.share(0, step, 0, "mix") for step in range(200)]
    assert 0 <= min(found) < 0.05
    assert 0.95 < max(found) < 1
