"""Bases of weights of one shape, decomposed at once where a GPU computes them: the same bases, in the same order.

No card is needed: one that computes in the processor's memory stands in for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.live import delta_of, tiny
from support.refusals import EXHAUSTED
from support.weights import normal
from torch import Tensor

from svdiff_delta import attach, build_basis, zero_delta
from svdiff_delta._util import warned
from svdiff_delta._util.warned import DeltaWarning
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.runtime import attachment
from svdiff_delta.svd import cache as caches
from svdiff_delta.svd import gpu_basis
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.cache_entry import read_entry
from svdiff_delta.svd.decomposition import Basis, compute_bases, compute_basis
from svdiff_delta.svd.gpu_basis import EACH, SMALL, TOGETHER, batches
from svdiff_delta.svd.verify import prepare_base
from svdiff_train.tiny import open_tiny

CARD = torch.device("meta")
"""A device of another name; what is brought to it stays where it is."""


class Card:
    """Stands in for a card: notes what is decomposed there at once, and refuses some of it.

    Attributes:
        found: the shapes of each decomposition, in order.
        most: how many weights it has memory for.
    """

    def __init__(self) -> None:
        self.found: list[list[tuple[int, ...]]] = []
        self.most = 1000
        self.there = False

    def compute(self, weights: Sequence[tuple[Tensor, int]], **options: bool) -> list[Basis]:
        self.found.append([tuple(rounded.shape) for rounded, _ in weights])
        if len(weights) > self.most:
            raise EXHAUSTED["cuSOLVER"]()
        return compute_bases(weights, **options)

    def compute_one(self, rounded: Tensor, axis: int, **options: bool) -> Basis:
        self.found.append([tuple(rounded.shape)])
        if self.most < 1 and self.there:
            raise EXHAUSTED["torch"]()
        return compute_basis(rounded, axis, **options)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """The card, where caches with `device=CARD` compute."""
    found = Card()

    def upload(rounded: Tensor, device: torch.device) -> Tensor:
        assert device == CARD
        found.there = True
        return rounded

    def on_gpu(device: torch.device, compute: Any) -> Any:
        try:
            return own(device, compute)
        finally:
            found.there = False

    own = gpu_basis._on_gpu
    monkeypatch.setattr(gpu_basis, "upload", upload)
    monkeypatch.setattr(gpu_basis, "_on_gpu", on_gpu)
    monkeypatch.setattr(gpu_basis, "gpu_workers", lambda _: 1)  # so that there is one order
    monkeypatch.setattr("svdiff_delta.svd.side_by_side.gpu_workers", lambda _: 1)
    monkeypatch.setattr(caches, "find_device", lambda name, **_: torch.device(name))
    monkeypatch.setattr(caches, "compute_bases", found.compute)
    monkeypatch.setattr(caches, "compute_basis", found.compute_one)
    monkeypatch.setattr(warned, "_SAID", set())
    return found


def steep(rows: int, columns: int, seed: int) -> Tensor:
    """A weight whose singular values fall over six decades, so that its tail is decomposed once more."""
    u, _, vt = torch.linalg.svd(normal(rows, columns, seed=seed).double(), full_matrices=False)
    return ((u * torch.logspace(0, -6, len(vt), dtype=torch.float64)) @ vt).float()


SPECTRA = {
    "normal": lambda seed: normal(6, 9, seed=seed),
    "tall": lambda seed: normal(9, 6, seed=seed),
    "square": lambda seed: normal(7, 7, seed=seed),
    "steep": lambda seed: steep(8, 12, seed),
    "tied": lambda seed: torch.eye(5) * (seed + 1),
    "null": lambda seed: torch.nn.functional.pad(normal(3, 9, seed=seed), (0, 0, 0, 2)),
    "nothing": lambda seed: torch.zeros(4, 6) + 0 * seed,
    "one of each": lambda seed: [normal(6, 9), steep(6, 9, 1), torch.zeros(6, 9)][seed],
}


def same(found: Basis, expected: Basis) -> None:
    for name in ("sigma", "factor", "tail"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert (found.null, found.left) == (expected.null, expected.left)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("name", SPECTRA)
def test_weights_decomposed_at_once_have_the_bases_that_each_has_alone(name: str, two_sided: bool) -> None:
    weights = [SPECTRA[name](seed) for seed in range(3)]
    found = compute_bases([(weight, 0) for weight in weights], two_sided=two_sided)
    for basis, weight in zip(found, weights, strict=True):
        same(basis, compute_basis(weight, 0, two_sided=two_sided))
        exact = torch.linalg.svdvals(weight.double())
        assert float((basis.sigma - exact).abs().max()) <= 1e-12 * float(exact[0])


def test_their_axes_may_differ_where_their_matrices_have_one_shape() -> None:
    first, second = normal(6, 9), normal(9, 6, seed=1)
    found = compute_bases([(first, 0), (second, 1)])
    same(found[0], compute_basis(first, 0))
    same(found[1], compute_basis(second, 1))


def test_batches_begin_with_the_most_costly_and_have_one_shape_each() -> None:
    shapes = {"a": (64, 64), "b": (32, 64), "c": (64, 64), "d": (SMALL + 1, SMALL + 1), "e": (32, 64)}
    order = ["d", "a", "c", "x", "b", "e"]  # of "x" nothing is decomposed
    assert batches(shapes, order, CARD) == [["d"], ["a", "c"], ["x"], ["b", "e"]]
    assert batches(shapes, order, torch.device("cpu")) == [[name] for name in order]
    many = {str(number): (8, 8) for number in range(2 * TOGETHER + 1)}
    assert [len(batch) for batch in batches(many, list(many), CARD)] == [TOGETHER, TOGETHER, 1]


@pytest.mark.parametrize(("rows", "columns"), [(SMALL, 100_000), (100_000, SMALL), (16, 3_000_000), (4, 10**8)])
def test_batches_take_no_more_memory_than_a_worker_may_have(rows: int, columns: int) -> None:
    many = {str(number): (rows, columns) for number in range(TOGETHER)}
    sizes = [len(batch) for batch in batches(many, list(many), CARD)]
    assert sum(sizes) == TOGETHER
    assert len(sizes) > 1
    assert max(sizes) == 1 or max(sizes) * 4 * rows * columns < EACH  # the weights alone


def entries(found: dict[str, Parameter], cache: BasisCache) -> dict[str, Basis]:
    keys = {name: each.fingerprint for name, each in found.items() if each.kind == "spectral"}
    return {name: read_entry(cache.path(key), key) for name, key in keys.items()}


def test_a_build_on_a_card_takes_weights_of_a_shape_at_once_and_gives_the_processors_bases(
    card: Card, tmp_path: Path
) -> None:
    base, here, there = open_tiny(), BasisCache(tmp_path / "cpu"), BasisCache(tmp_path / "card", device=CARD)
    expected = build_basis(base, "unet-ca", cache=here)
    card.found.clear()
    done: list[int] = []
    found = build_basis(base, "unet-ca", cache=there, progress=lambda now, total: done.append(now / total))
    assert found == expected
    for name, basis in entries(found, there).items():
        same(basis, entries(expected, here)[name])
    together = [len(shapes) for shapes in card.found]
    assert max(together) > 1
    assert sum(together) == len({each.fingerprint for each in found.values() if each.kind == "spectral"})
    assert all(len(set(shapes)) == 1 for shapes in card.found)
    assert len(done) == len(together)  # a report after each
    assert (done, done[-1]) == (sorted(done), 1)
    card.found.clear()
    assert build_basis(base, "unet-ca", cache=there) == expected
    assert card.found == []  # nothing is computed again


@pytest.mark.parametrize("most", [1, 0])
def test_what_does_not_fit_together_is_computed_alone_and_then_on_the_cpu(
    most: int, card: Card, tmp_path: Path
) -> None:
    base, there = open_tiny(), BasisCache(tmp_path / "card", device=CARD)
    expected = build_basis(base, "mid-ca", cache=BasisCache(tmp_path / "cpu"))
    card.most = most
    if most:
        found = build_basis(base, "mid-ca", cache=there)
    else:
        with pytest.warns(DeltaWarning, match="has not enough memory for the basis of a weight of "):
            found = build_basis(base, "mid-ca", cache=there)
    assert found == expected
    for name, basis in entries(found, there).items():
        same(basis, entries(expected, BasisCache(tmp_path / "cpu"))[name])


def test_a_weight_that_another_process_computes_is_left_to_it(card: Card, tmp_path: Path) -> None:
    cache = BasisCache(tmp_path, device=CARD)
    keys = [letter * 21 + "A" for letter in "abc"]
    weights = {key: (normal(4, 6, seed=seed), 0) for seed, key in enumerate(keys)}
    with BasisCache(tmp_path, device=CARD)._lock(keys[1]) as mine:
        assert mine
        cache.fill(weights)
    assert [cache.has(key) for key in keys] == [True, False, True]
    assert card.found == [[(4, 6), (4, 6)]]
    cache.fill(weights)
    assert not cache.has(keys[1])  # a single one has nothing to go with
    same(cache.obtain(keys[1], *weights[keys[1]]), compute_basis(*weights[keys[1]]))


def test_a_delta_verified_against_a_base_has_its_bases_computed_at_once(card: Card, tmp_path: Path) -> None:
    base, there = open_tiny(), BasisCache(tmp_path / "card", device=CARD)
    delta = zero_delta(base, "mid-ca", cache=BasisCache(tmp_path / "cpu"))
    card.found.clear()
    prepare_base(base, [delta], there)
    assert max(len(shapes) for shapes in card.found) > 1
    assert entries(dict(delta.metadata.parameters), there).keys() == delta.keys()


def test_a_delta_is_attached_with_bases_that_the_models_card_computes(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta, model = delta_of("UNet"), tiny("UNet")
    monkeypatch.setenv("SVDIFF_HOME", str(tmp_path / "cpu"))
    with attach(tiny("UNet"), delta) as handle:
        expected = handle.delta()
    monkeypatch.setenv("SVDIFF_HOME", str(tmp_path / "card"))
    monkeypatch.setattr(attachment, "running_on", lambda models: CARD if list(models) else None)
    monkeypatch.setattr(caches, "bases_beside", lambda device: device)
    card.found.clear()
    with attach(model, delta) as handle:
        found = handle.delta()
    assert max(len(shapes) for shapes in card.found) > 1
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    card.found.clear()
    attach(tiny("UNet"), delta).detach()
    assert card.found == []
