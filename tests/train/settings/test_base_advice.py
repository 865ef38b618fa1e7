"""What a base's card says to those who train on it: rates where none are given, and which pictures it may know."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageFilter
from support.commands import svdiff

from svdiff_delta import load
from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.errors import BaseError
from svdiff_train.data.familiarity import decibels
from svdiff_train.data.image_sets import open_pictures
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.settings.base_advice import CARD, Advice, advice_of, rate_lines, settle
from svdiff_train.settings.config import RATE_1D, RATES, TrainConfig
from svdiff_train.tiny import base_path, open_tiny, pictures_path
from svdiff_train.training.loop import plan
from tools.build_tiny.card import FAMILIAR
from tools.build_tiny.card import RATE as CARDS_RATE
from tools.build_tiny.card import RATE_1D as CARDS_RATE_1D

CONFIG = TrainConfig(prompt="a photo of a sks cat", steps=1, selectors=("mid-ca",))
PHOTOGRAPHS = Path(__file__).parents[2] / "data" / "pictures"
NEVER = "never seen anything like"


@pytest.fixture(scope="module")
def tiny() -> Base:
    return open_tiny()


def with_card(tmp_path: Path, text: str | None) -> Base:
    """The embedded base with another card, or with none."""
    folder = tmp_path / "base"
    shutil.copytree(base_path(), folder)
    (folder / CARD).unlink()
    if text is not None:
        (folder / CARD).write_text(text)
    return open_base(folder)


def test_the_embedded_base_says_what_its_card_was_written_with(tiny: Base) -> None:
    assert advice_of(tiny) == Advice(CARDS_RATE, CARDS_RATE_1D, FAMILIAR)


def test_rates_are_the_cards_where_none_are_given(tiny: Base) -> None:
    assert (settle(CONFIG, tiny).rate, settle(CONFIG, tiny).rate_1d) == (CARDS_RATE, CARDS_RATE_1D)
    assert settle(CONFIG, tiny) == settle(settle(CONFIG, tiny), tiny)


def test_rates_that_are_given_win_each_by_itself(tiny: Base) -> None:
    assert settle(replace(CONFIG, learning_rate=0.5), tiny).rate == 0.5
    assert settle(replace(CONFIG, learning_rate=0.5), tiny).rate_1d == CARDS_RATE_1D
    assert settle(replace(CONFIG, learning_rate_1d=0.0), tiny).rate_1d == 0.0


@pytest.mark.parametrize("method", ["full", "lora", "kv"])
def test_other_methods_keep_their_rates(tiny: Base, method: str) -> None:
    config = replace(CONFIG, method=method, token="sks")  # type: ignore[arg-type]
    assert settle(config, tiny).rate == RATES[method]
    assert [*rate_lines(config, tiny)] == []


@pytest.mark.parametrize(
    "card",
    [
        None,
        "no head\n",
        "---\nlicense: mit\n---\n# a model\n",
        "---\n: [broken\n---\n",
        "---\nsvdiff: a word\n---\n",
        "---\n- a list\n---\n",
        "text\n---\nsvdiff: {learning_rate: 3}\n---\n",
    ],
)
def test_a_base_whose_card_says_nothing_keeps_the_papers_rates(tmp_path: Path, card: str | None) -> None:
    base = with_card(tmp_path, card)
    assert (settle(CONFIG, base).rate, settle(CONFIG, base).rate_1d) == (RATES["svdiff"], RATE_1D)
    assert [*rate_lines(settle(CONFIG, base), base)] == []


def test_the_advice_goes_with_the_card_and_not_with_the_name(tmp_path: Path) -> None:
    base = with_card(tmp_path, "---\nsvdiff:\n  learning_rate: 0.25\n---\n")
    assert (settle(CONFIG, base).rate, settle(CONFIG, base).rate_1d) == (0.25, RATE_1D)
    assert [*rate_lines(settle(CONFIG, base), base)] == ["learning rate 0.25: as the base's card names for it"]


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("learning_rate: fast", "svdiff.learning_rate must be a finite number above 0, is 'fast'"),
        ("learning_rate: 0", "svdiff.learning_rate must be"),
        ("learning_rate_1d: -1.0", "svdiff.learning_rate_1d must be"),
        ("familiar_db: .nan", "svdiff.familiar_db must be"),
        ("learning_rate: true", "svdiff.learning_rate must be"),
        ("rate: 1", "svdiff says 'rate', which means nothing"),
    ],
)
def test_a_broken_block_is_refused_by_file_and_name(tmp_path: Path, block: str, why: str) -> None:
    base = with_card(tmp_path, f"---\nsvdiff:\n  {block}\n---\n")
    with pytest.raises(BaseError) as caught:
        settle(CONFIG, base)
    assert why in caught.value.message
    assert str(base.path / CARD) in caught.value.message


def test_the_command_takes_the_rates_says_so_and_records_them(tmp_path: Path) -> None:
    output = tmp_path / "cat.safetensors"
    common = ("--prompt", "a photo of a sks cat", "--select", "mid-ca", "--steps", "1", "-o", output)
    done = svdiff("train", "tiny", pictures_path("black_cat"), *common)
    assert done.code == 0, done.err
    assert "learning rate 0.02, learning rate of norm weights 0.004: as the base's card names for it" in done.err
    recorded = load(output).metadata.training or {}
    assert (recorded["learning_rate"], recorded["learning_rate_1d"]) == (CARDS_RATE, CARDS_RATE_1D)
    assert tomllib.loads(output.with_suffix(".toml").read_text())["learning_rate"] == CARDS_RATE
    assert NEVER not in done.err


def test_photographs_are_told_before_training_and_the_run_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "toy.safetensors"
    common = ("--prompt", "a photo of a sks toy", "--select", "mid-ca", "--steps", "1", "-o", output)
    done = svdiff("train", "tiny", PHOTOGRAPHS, *common)
    assert done.code == 0
    lines = [line for line in done.err.splitlines() if NEVER in line]
    assert len(lines) == 1
    assert "3 of 3 pictures" in lines[0]
    assert f"where its own world has {FAMILIAR:g} or more; training goes on" in lines[0]
    assert done.err.index(NEVER) < done.err.index("training")
    assert output.exists()


def leaves(rng: np.random.Generator) -> Image.Image:
    """A picture as a camera sees foliage: detail at every scale, amplitudes falling as 1/f."""
    falls = 1 / np.maximum(np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128))), 1 / 128)
    layers = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(128, 128))) * falls).real for _ in range(3)]
    levels = [(layer - layer.min()) / (layer.max() - layer.min()) * 255 for layer in layers]
    return Image.fromarray(np.stack(levels, -1).astype(np.uint8))


def grain(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 255, (96, 96, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(1))


def text(rng: np.random.Generator) -> Image.Image:
    """Rows of dark strokes on paper."""
    rows = np.kron(rng.random((16, 32)) < 0.5, np.ones((4, 2)))
    return Image.fromarray((240 - 220 * rows).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("draw", [text, *(pytest.param(draw, marks=pytest.mark.slow) for draw in (leaves, grain))])
def test_other_kinds_of_pictures_are_told_too(tmp_path: Path, tiny: Base, draw: object) -> None:
    for index in range(3):
        draw(np.random.default_rng(index)).save(tmp_path / f"{index}.png")  # type: ignore[operator]
    assert NEVER in " ".join(plan(tiny, tmp_path, CONFIG)["pictures"])


@pytest.mark.parametrize(
    "subject",
    [
        "black_cat",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("pagoda", "fire_engine", "guide_dog", "banjo", "edits")
        ),
    ],
)
def test_pictures_of_the_bases_own_world_are_not(tiny: Base, subject: str) -> None:
    assert NEVER not in " ".join(plan(tiny, pictures_path(subject), CONFIG)["pictures"])


def test_one_strange_picture_among_its_own_is_no_reason(tmp_path: Path, tiny: Base) -> None:
    for path in sorted(pictures_path("black_cat").glob("*.png"))[:3]:
        shutil.copyfile(path, tmp_path / path.name)
    grain(np.random.default_rng(0)).save(tmp_path / "grain.png")
    assert NEVER not in " ".join(plan(tiny, tmp_path, CONFIG)["pictures"])


def test_a_base_that_names_no_limit_says_nothing(tmp_path: Path) -> None:
    base = with_card(tmp_path, None)
    assert NEVER not in " ".join(plan(base, PHOTOGRAPHS, CONFIG)["pictures"])


def test_decibels_are_those_of_the_mean_squared_error(tiny: Base) -> None:
    vae = load_pipeline(tiny).vae  # type: ignore[attr-defined]
    pictures = open_pictures(pictures_path("pagoda"), CONFIG, 64, 8, skip_bad=False)
    found = decibels(vae, pictures)
    with Image.open(sorted(pictures_path("pagoda").glob("*.png"))[0]) as picture:
        given = np.asarray(picture.convert("RGB"), np.float64).transpose(2, 0, 1) / 127.5 - 1
    import torch

    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(given).float()[None]).latent_dist.mode()
        made = vae.decode(latents).sample.clamp(-1, 1)[0].double().numpy()
    assert found[0] == pytest.approx(10 * np.log10(4 / ((made - given) ** 2).mean()), abs=1e-3)


def test_the_head_of_the_card_is_plain_yaml() -> None:
    head = (base_path() / CARD).read_text("utf-8").split("---\n")[1]
    assert yaml.safe_load(head)["svdiff"] == {
        "learning_rate": CARDS_RATE, "learning_rate_1d": CARDS_RATE_1D, "familiar_db": FAMILIAR,
    }  # fmt: skip
