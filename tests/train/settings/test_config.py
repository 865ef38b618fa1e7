"""What a run may be set to, what is recorded of it, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from svdiff_delta.errors import InputError
from svdiff_train.settings.config import TrainConfig
from svdiff_train.training.lr_schedule import rate_factor

CONFIG = TrainConfig(prompt="a photo of a V1 dog", class_prompt="a photo of a dog")


def test_the_token_is_what_the_class_prompt_lacks() -> None:
    assert CONFIG.find_token() == "V1"


def test_a_token_that_is_named_wins() -> None:
    assert replace(CONFIG, prompt="a sks photo of a V1 dog", token="V1").find_token() == "V1"


def test_without_class_prompt_and_token_nothing_says_which_it_is() -> None:
    assert replace(CONFIG, class_prompt=None).find_token() is None


def test_a_prompt_without_the_token_is_refused() -> None:
    with pytest.raises(InputError, match="does not have the token 'V2': put it into the prompt"):
        replace(CONFIG, token="V2")


def test_a_prompt_with_nothing_of_its_own_is_refused() -> None:
    with pytest.raises(InputError, match="no word that the class prompt lacks"):
        replace(CONFIG, prompt="a photo of a dog")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("accumulate", 0),
        ("processes", 0),
        ("schedule_steps", 499),
        ("train_rank", 0),
        ("lora_rank", 0),
        ("resolution", 0),
        ("learning_rate", -1.0),
        ("prior_weight", float("nan")),
        ("snr_gamma", float("inf")),
        ("seed", -1),
        ("seed", 2**63),
        ("warmup", 501),
        ("method", "svd"),
        ("crop", "left"),
        ("mixed_precision", "fp8"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=field):
        replace(CONFIG, **{field: value})


def test_settings_of_shifts_are_refused_for_other_methods() -> None:
    with pytest.raises(InputError, match="train_rank is for spectral shifts, the method is lora"):
        replace(CONFIG, method="lora", train_rank=4)


def test_custom_diffusion_needs_a_token() -> None:
    with pytest.raises(InputError, match="none is named: say `token`"):
        replace(CONFIG, method="kv", class_prompt=None)


def test_rate_and_batch_are_the_methods_own() -> None:
    assert (replace(CONFIG, method="kv").rate, replace(CONFIG, method="kv").batch) == (1e-5, 2)
    assert (CONFIG.rate, CONFIG.batch) == (1e-3, 1)


def test_facts_describe_a_run_that_equals_it() -> None:
    config = replace(CONFIG, selectors=("unet-ca",), snr_gamma=5.0, warmup=3, flip=True)
    again = TrainConfig.from_facts({**config.facts(), "images": 5, "resolution": None})
    assert again == replace(config, batch_size=1, learning_rate=1e-3, learning_rate_1d=1e-6)


def test_facts_leave_out_defaults() -> None:
    assert "snr_gamma" not in CONFIG.facts()
    assert "class_prompt" not in replace(CONFIG, prior_weight=0.0).facts()


def test_a_description_without_a_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="incomplete"):
        TrainConfig.from_facts({"steps": 3})


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [("constant", 0, [1, 1, 1, 1]), ("constant", 2, [0, 0.5, 1, 1]), ("linear", 0, [1, 0.75, 0.5, 0.25])],
)
def test_schedules_are_functions_of_the_step(schedule: str, warmup: int, expected: list[float]) -> None:
    factor = rate_factor(replace(CONFIG, steps=4, schedule=schedule, warmup=warmup))
    assert [factor(step) for step in range(4)] == expected


def test_a_schedule_may_be_planned_for_more_steps() -> None:
    factor = rate_factor(replace(CONFIG, steps=2, schedule="linear", schedule_steps=4))
    assert [factor(step) for step in range(2)] == [1, 0.75]


def test_facts_say_what_a_schedule_was_planned_for_where_it_matters() -> None:
    planned = replace(CONFIG, steps=2, schedule_steps=4)
    assert "schedule_steps" not in planned.facts()
    assert replace(planned, schedule="linear").facts()["schedule_steps"] == 4
    assert replace(planned, warmup=3).facts()["schedule_steps"] == 4
    assert "schedule_steps" not in replace(planned, schedule="linear", schedule_steps=2).facts()


def test_facts_say_how_many_processes_there_were_if_not_one() -> None:
    assert "processes" not in replace(CONFIG, processes=1).facts()
    assert replace(CONFIG, processes=2).facts()["processes"] == 2


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(InputError, match="'zigzag' is unknown: use constant"):
        rate_factor(replace(CONFIG, schedule="zigzag"))
