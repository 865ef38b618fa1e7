"""Gains of single samples: rows that are set for one forward compute what `per_sample` does, and leave nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from support.live import CASES, delta_of, relative, run, tiny, zero_of

from svdiff_delta.errors import AttachError, InputError
from svdiff_delta.ops.select import part_of
from svdiff_delta.runtime import attach
from svdiff_delta.runtime.sample_gains import SampleGains


def both(name: str) -> dict[str, Any]:
    return {"dog": delta_of(name, seed=1), "cat": delta_of(name, seed=2)}


@pytest.mark.parametrize(("name", "exact"), [("UNet", False), ("Flux", True), ("CLIP's text encoder", False)])
def test_rows_compute_what_a_batch_of_named_samples_does(name: str, exact: bool) -> None:
    model, deltas = tiny(name), both(name)
    inputs = CASES[name].inputs(3)
    with attach(model, deltas, exact=exact) as handle, handle.per_sample(["dog", None, {"dog": 0.5, "cat": -0.5}]):
        expected = run(model, name, inputs)
    with attach(model, zero_of(name), exact=exact) as handle:
        gains = SampleGains(handle)
        rows = [
            gains.of([(deltas["dog"], 1.0)]),
            gains.none(),
            gains.of([(deltas["dog"], 0.5), (deltas["cat"], -0.5)]),
        ]
        with gains.rows("model", rows):
            found = run(model, name, inputs)
        before = run(model, name, inputs)
    assert relative(found, expected) < 1e-5
    assert relative(found, before) > 0.01
    with attach(model, zero_of(name), exact=exact):
        assert torch.equal(run(model, name, inputs), before)


def test_the_same_samples_use_the_same_rows_and_others_new_ones() -> None:
    name = "UNet"
    model, deltas = tiny(name), both(name)
    with attach(model, zero_of(name)) as handle:
        gains = SampleGains(handle)
        dog, cat = (gains.of([(deltas[each], 1.0)]) for each in ("dog", "cat"))
        results = []
        for rows in ([dog, cat], [dog, cat], [cat, dog], [dog]):
            with gains.rows("model", rows):
                results.append(run(model, name, samples=len(rows)))
    assert torch.equal(results[0], results[1])
    assert relative(results[2], results[0]) > 0.01
    assert len(results[3]) == 1


def test_a_batch_of_another_size_than_its_rows_is_refused() -> None:
    model = tiny("UNet")
    with attach(model, zero_of("UNet")) as handle:
        gains = SampleGains(handle)
        with gains.rows("model", [gains.none()] * 3), pytest.raises(InputError, match="2 rows"):
            run(model, "UNet", samples=2)
        run(model, "UNet", samples=2)


def test_gains_are_computed_by_several_threads_at_once() -> None:
    model = tiny("UNet")
    deltas = [delta_of("UNet", seed=seed) for seed in range(8)]
    with attach(model, zero_of("UNet")) as handle:
        gains = SampleGains(handle)
        alone = [gains.of([(delta, 1.0)]) for delta in deltas]
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(lambda delta: gains.of([(delta, 1.0)]), deltas * 4))
    assert all(torch.equal(found, alone[index % 8]) for index, found in enumerate(together))
    assert alone[0].nbytes == gains.nbytes


def test_what_a_delta_shifts_beyond_the_attached_layers_is_passed_over() -> None:
    model, whole = tiny("UNet"), delta_of("UNet")
    names = list(whole)[:3]
    with attach(model, part_of(zero_of("UNet"), names)) as handle:
        gains = SampleGains(handle)
        assert torch.equal(gains.of([(whole, 1.0)]), gains.of([(part_of(whole, names), 1.0)]))
        assert list(gains.parameters) == names


def test_rows_of_another_component_leave_a_model_as_it_is() -> None:
    model = tiny("UNet")
    with attach(model, zero_of("UNet")) as handle:
        before = run(model, "UNet")
        gains = SampleGains(handle)
        dog = gains.of([(delta_of("UNet"), 1.0)])
        with gains.rows("text_encoder", [dog, dog]):
            assert torch.equal(run(model, "UNet"), before)


def test_a_fused_or_trained_delta_has_no_rows() -> None:
    for how in ({"mode": "fused"}, {"trainable": True}):
        with attach(tiny("UNet"), zero_of("UNet"), **how) as handle, pytest.raises(AttachError):  # type: ignore[arg-type]
            SampleGains(handle)
