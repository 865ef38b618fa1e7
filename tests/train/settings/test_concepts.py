"""Concepts: what each is called, how they are told apart, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from svdiff_delta.errors import InputError
from svdiff_train.settings.concept import Concept
from svdiff_train.settings.config import TrainConfig
from svdiff_train.settings.prompt_templates import phrase_of
from svdiff_train.settings.runfile import read_run, write_run

DOG = Concept(Path("dog"), "a photo of a V1 dog", "a photo of a dog")
CAT = Concept(Path("cat"), "a photo of a V2 cat", "a photo of a cat")
CONFIG = TrainConfig(concepts=(DOG, CAT), steps=7)


@pytest.mark.parametrize(
    ("prompt", "phrase"),
    [
        ("a photo of a V1 dog", "a V1 dog"),
        ("photo of a V1 dog", "a V1 dog"),
        ("A picture of a V1 dog ", "a V1 dog"),
        ("a V1 dog in a photo of a house", "a V1 dog in a photo of a house"),
    ],
)
def test_the_phrase_is_what_a_photo_is_of(prompt: str, phrase: str) -> None:
    assert phrase_of(prompt) == Concept(Path(), prompt, token="V1").noun == phrase


def test_a_phrase_that_is_given_wins_and_has_the_token() -> None:
    assert replace(DOG, phrase="the V1 beast").noun == "the V1 beast"
    with pytest.raises(InputError, match="the phrase 'the beast' does not have the token 'V1': say a `phrase`"):
        replace(DOG, phrase="the beast")
    with pytest.raises(InputError, match="the phrase for 'a photo of a V1 dog' is empty"):
        replace(DOG, phrase=" ")


def test_the_phrase_of_one_of_several_has_its_token() -> None:
    odd = Concept(Path(), "a photo of a V3 dog", "a picture of a dog")  # its token is "photo"
    with pytest.raises(InputError, match="the phrase 'a V3 dog' does not have the token 'photo'"):
        replace(CONFIG, concepts=(odd, CAT))


def test_every_concept_has_the_token_that_its_class_lacks() -> None:
    assert CONFIG.tokens() == ("V1", "V2")
    assert replace(CONFIG, concepts=(replace(DOG, class_prompt=None), replace(CAT, class_prompt=None))).tokens() == (
        None,
        None,
    )
    with pytest.raises(InputError, match="several concepts: ask for `tokens`"):
        CONFIG.find_token()


def test_a_token_that_is_not_in_its_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="'a photo of a V1 dog' does not have the token 'V3': put it into the prompt"):
        replace(DOG, token="V3")


@pytest.mark.parametrize("token", ["V1", "v1"])
def test_two_concepts_with_one_token_are_refused(token: str) -> None:
    other = Concept(Path(), f"a photo of a {token} cat", "a photo of a cat")
    with pytest.raises(InputError, match=r"is in 'a photo of a .*1 (dog|cat)' too: give each a token of its own"):
        replace(CONFIG, concepts=(DOG, other))


def test_one_prompt_for_two_concepts_is_refused() -> None:
    plain = Concept(Path("a"), "a photo of a dog")
    with pytest.raises(InputError, match="two concepts have the prompt 'a photo of a dog'"):
        replace(CONFIG, concepts=(plain, replace(plain, images=Path("b"))))


def test_all_concepts_have_a_class_or_none() -> None:
    with pytest.raises(InputError, match="'a photo of a V2 cat' has no class prompt, and others have one"):
        replace(CONFIG, concepts=(DOG, replace(CAT, class_prompt=None)))


def test_there_may_be_any_number_of_concepts() -> None:
    many = tuple(Concept(Path(), f"a photo of a V{number} dog", "a photo of a dog") for number in range(1, 6))
    assert len(replace(CONFIG, concepts=many).tokens()) == 5
    assert TrainConfig(concepts=(DOG,)).mixing == 0
    with pytest.raises(InputError, match="concepts is empty"):
        TrainConfig(concepts=())


def test_concepts_and_a_prompt_are_not_given_together() -> None:
    with pytest.raises(InputError, match="class_prompt and concepts are both given: let each concept say its own"):
        replace(CONFIG, class_prompt="a photo of a dog")


def test_mixing_is_the_papers_unless_it_is_said() -> None:
    assert (CONFIG.mixing, replace(CONFIG, mix_probability=0.25).mixing) == (0.6, 0.25)
    assert replace(CONFIG, mix_probability=0.0).mixing == 0
    assert TrainConfig(prompt="a dog").mixing == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mix_probability", 0.6),
        ("mix_beside", ("{first}, {second}",)),
        ("mix_above", ("{first}, {second}",)),
        ("unmix_weight", 0.1),
        ("unmix_maps", "share"),
        ("unmix_layers", ("mid_block",)),
        ("unmix_resolutions", (16,)),
    ],
)
def test_settings_of_mixing_need_two_concepts(field: str, value: Any) -> None:
    for config in (TrainConfig(prompt="a photo of a V1 dog", token="V1"), TrainConfig(concepts=(DOG,))):
        with pytest.raises(InputError, match=f"{field} is for several concepts, and there is one: give two"):
            replace(config, **{field: value})


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"mix_probability": 1.5}, "mix_probability must be from 0 to 1, is 1.5"),
        ({"mix_probability": float("nan")}, "mix_probability must be from 0 to 1, is nan"),
        ({"unmix_weight": -1.0}, "unmix_weight must be a finite number from 0"),
        ({"unmix_weight": 0.1, "mix_probability": 0.0}, "unmix_weight is for mixed samples, and mix_probability is 0"),
        ({"unmix_maps": "share"}, "unmix_maps without unmix_weight does nothing: give it too"),
        ({"unmix_weight": 0.1, "unmix_maps": "shares"}, "unmix_maps 'shares' is unknown: use attention, share"),
        ({"unmix_layers": ("mid",)}, "without unmix_weight does nothing: give it too"),
        ({"unmix_weight": 0.1, "unmix_resolutions": (0,)}, "unmix_resolutions must be at least 1"),
        ({"unmix_weight": 0.1, "compile": True}, "unmix reads what goes on inside the denoiser: leave out compile"),
        ({"mix_beside": ()}, "mix_beside has no template"),
        ({"mix_beside": ("a photo of {first}",)}, "must have {first} and {second} once each"),
        ({"mix_above": ("{first} {second} {third}",)}, "must have {first} and {second} once each"),
        ({"mix_above": ("{first!r} {second}",)}, "must have {first} and {second} once each"),
        ({"mix_above": ("{first} {second",)}, "is no format string"),
    ],
)
def test_settings_of_mixing_that_cannot_work_are_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError) as refused:
        replace(CONFIG, **fields)
    assert why in str(refused.value)


@pytest.mark.parametrize("fields", [{"unmix_weight": 0.1}, {"method": "kv"}])
def test_what_looks_for_tokens_needs_them(fields: dict[str, Any]) -> None:
    nameless = (replace(DOG, class_prompt=None), replace(CAT, class_prompt=None))
    with pytest.raises(InputError, match="none is named: say `token`"):
        replace(CONFIG, concepts=nameless, **fields)


def test_facts_say_how_concepts_are_called_and_not_where_their_pictures_are() -> None:
    found = replace(CONFIG, unmix_weight=0.1, unmix_layers=("mid_block",)).facts()
    assert found["concepts"] == [
        {"prompt": "a photo of a V1 dog", "class_prompt": "a photo of a dog"},
        {"prompt": "a photo of a V2 cat", "class_prompt": "a photo of a cat"},
    ]
    assert (found["mix_probability"], found["unmix_weight"], found["unmix_layers"]) == (0.6, 0.1, ["mid_block"])
    assert not found.keys() & {"prompt", "class_prompt", "images"}
    assert "class_prompt" not in replace(CONFIG, prior_weight=0.0).facts()["concepts"][0]


def test_a_run_file_describes_concepts_again_from_where_it_lies(tmp_path: Path) -> None:
    config = TrainConfig(
        concepts=(
            replace(DOG, images=tmp_path / "dog", phrase="the V1 dog"),
            replace(CAT, images=tmp_path / "x" / "cat"),
        ),
        mix_probability=0.5,
        mix_above=("{first} on {second}",),
        unmix_weight=0.2,
        unmix_resolutions=(16, 8),
        batch_size=1,
        learning_rate=1e-3,
    )
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs" / "both.toml"
    write_run(path, config.facts(), "tiny", [concept.images for concept in config.subjects()])
    text = path.read_text()
    assert text.count("[[concepts]]") == 2
    assert 'images = "../dog"' in text
    assert str(tmp_path) not in text
    found = TrainConfig.from_facts(read_run(path))
    assert [concept.images.resolve() for concept in found.subjects()] == [tmp_path / "dog", tmp_path / "x" / "cat"]
    assert found.facts() == config.facts()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[[concepts]]\nimages = "a"\nprompt = "b"\nclas = "c"\n', "'clas' is no setting of a concept: known are"),
        ('concepts = ["a"]\n', "concepts must be tables: write [[concepts]]"),
        ('concepts = "a"\n', "concepts must be tables: write [[concepts]]"),
        ('[[concepts]]\nimages = "a"\n', "a concept has no prompt: say its prompt"),
        ('[[concepts]]\nprompt = "a"\n', "a concept has no images: say its images"),
        ('[[concepts]]\nimages = "a"\nprompt = 3\n', "concepts[0].prompt: must be a text, is 3"),
    ],
)
def test_a_table_that_describes_no_concept_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(InputError) as refused:
        TrainConfig.from_facts(read_run(tmp_path / "run.toml"))
    assert why in str(refused.value)
