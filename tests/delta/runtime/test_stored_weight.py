"""Weights that are read from the base's file later: they are those that were there, or an error says which are not."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import live_zero, named, random_delta
from support.weights import normal
from torch import Tensor, nn

from svdiff_delta._util.file_state import RACY
from svdiff_delta.base_model.base import open_base
from svdiff_delta.errors import AttachError, BaseError
from svdiff_delta.format.delta import Delta
from svdiff_delta.runtime import Handle, attach
from svdiff_delta.runtime.stored_weight import digest

X = normal(4, 6, 12)
FORMS: dict[str, dict[str, Any]] = {"live": {}, "exact": {"exact": True}, "fused": {"mode": "fused"}}


def old(path: Path) -> Path:
    """Let a file be one that was saved a while ago, as far as its own times say."""
    os.utime(path, ns=(time.time_ns() - 10**12,) * 2)
    return path


class Scene:
    """A model with its file."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.model: Any = nn.Sequential(named(nn.Linear(12, 8)), named(nn.Conv1d(6, 5, 1)), named(nn.LayerNorm(8)))
        self.weights = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.path = folder / "model.safetensors"
        save_file(self.weights, self.path)
        self.base = open_base(old(self.path))
        self.delta: Delta = random_delta(live_zero(self.model), size=0.3)
        self.plain = self.model(X)

    def attach(self, **form: Any) -> Handle:
        return attach(self.model, self.delta, base=self.base, **form)

    def is_plain(self) -> bool:
        found = self.model.state_dict()
        return all(torch.equal(value, self.weights[key]) for key, value in found.items()) and torch.equal(
            self.model(X), self.plain
        )


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def saved_again(scene: Scene, change: Callable[[Tensor], Tensor] = lambda value: value * 1.5, **metadata: str) -> None:
    save_file({key: change(value) for key, value in scene.weights.items()}, scene.path, metadata or None)


def scribble(path: Path) -> None:
    """Write into every weight of a file, in place."""
    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        size = path.stat().st_size - 8 - length
        stream.seek(8 + length)
        stream.write(b"\x01" * size)


def edited(scene: Scene) -> None:
    """In place, with the time put back."""
    about = scene.path.stat()
    scribble(scene.path)
    os.utime(scene.path, ns=(about.st_atime_ns, about.st_mtime_ns))


def reordered(scene: Scene) -> None:
    saved_again(scene, lambda value: value.flip(0))


def linked(scene: Scene) -> None:
    other = scene.path.with_name("other.safetensors")
    save_file({key: value + 1 for key, value in scene.weights.items()}, other)
    scene.path.unlink()
    scene.path.symlink_to(other)


WRONG: dict[str, Callable[[Scene], None]] = {
    "saved again": saved_again,
    "saved again with other offsets": lambda scene: saved_again(scene, note="x" * 1000),
    "saved in another dtype": lambda scene: saved_again(scene, lambda value: value.half()),
    "saved in another order": reordered,
    "edited, its time put back": edited,
    "a link to another": linked,
    "truncated": lambda scene: os.truncate(scene.path, 500),
    "emptied": lambda scene: os.truncate(scene.path, 0),
    "removed": lambda scene: scene.path.unlink(),
    "a folder": lambda scene: (scene.path.unlink(), scene.path.mkdir()),  # type: ignore[dict-item, func-returns-value]
}


@pytest.mark.parametrize("form", ["live", "fused"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_weight_is_not_read_from_a_file_that_has_another_one(scene: Scene, wrong: str, form: str) -> None:
    handle = scene.attach(**FORMS[form])
    shutil.copy2(scene.path, scene.path.with_suffix(".kept"))
    expected = scene.model(X)
    WRONG[wrong](scene)
    named_ = r"model\.\d\.layer\.weight: .*model\.safetensors (was changed since|could not be read).*put the file back"
    for _ in range(2):
        with pytest.raises(AttachError, match=named_):
            handle.detach()
    if form == "live":
        with pytest.raises(AttachError, match=named_):
            scene.model.state_dict()
        handle.set_scale(0.5)
        handle.set_scale(1.0)
    else:
        with pytest.raises(AttachError, match=named_):
            handle.set_scale(0.5)
        assert handle.scale == 1.0
    assert torch.equal(scene.model(X), expected)
    if scene.path.is_dir():
        scene.path.rmdir()
    scene.path.unlink(missing_ok=True)
    shutil.move(scene.path.with_suffix(".kept"), scene.path)
    handle.detach()
    assert scene.is_plain()


def test_a_weight_that_rounds_to_the_same_is_another_one(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    for value in scene.model.parameters():
        value.data.mul_(1.0003)  # bits that float16 has no room for
    scene.weights = {key: value.clone() for key, value in scene.model.state_dict().items()}
    save_file(scene.weights, scene.path)
    base = open_base(old(scene.path))
    handle = attach(scene.model, random_delta(live_zero(scene.model)), base=base)
    saved_again(scene, lambda value: value.half().float())
    with pytest.raises(AttachError, match="holds another weight now"):
        handle.detach()


def moved_data(scene: Scene) -> None:
    saved_again(scene, lambda value: value, note="x" * 1000)


RIGHT: dict[str, Callable[[Scene], object]] = {
    "as it was": lambda scene: None,
    "saved again with the same weights": lambda scene: saved_again(scene, lambda value: value),
    "saved again with other offsets": moved_data,
    "touched": lambda scene: scene.path.touch(),
    "with other rights": lambda scene: scene.path.chmod(0o400),
    "under a second name": lambda scene: os.link(scene.path, scene.path.with_name("two")),
    "a copy of itself": lambda scene: (
        shutil.copy(scene.path, scene.path.with_name("two")),
        scene.path.with_name("two").replace(scene.path),
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("right", RIGHT)
def test_a_file_that_still_has_the_weight_is_read(scene: Scene, right: str, form: str) -> None:
    handle = scene.attach(**FORMS[form])
    expected = scene.model(X)
    RIGHT[right](scene)
    handle.set_scale(0.5)
    handle.set_scale(1.0)
    assert torch.equal(scene.model(X), expected)
    handle.detach()
    assert scene.is_plain()


def test_a_model_that_saves_itself_over_its_base_is_restored(scene: Scene) -> None:
    with scene.attach():
        save_file({key: value.clone() for key, value in scene.model.state_dict().items()}, scene.path, {"by": "me"})
    assert scene.is_plain()


def test_an_unchanged_file_is_not_hashed_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svdiff_delta.runtime.stored_weight.RACY", 0)
    calls: list[Tensor] = []
    with scene.attach(mode="fused") as handle:
        monkeypatch.setattr("svdiff_delta.runtime.stored_weight.digest", calls.append)
        handle.set_scale(0.5)
        handle.swap(scene.delta)
    assert not calls


def test_a_file_that_may_have_changed_within_its_time_s_grain_is_compared(scene: Scene) -> None:
    assert RACY == 2_000_000_000
    handle = scene.attach()
    scribble(scene.path)
    with pytest.raises(AttachError, match="holds another weight now"):
        handle.detach()
    saved_again(scene, lambda value: value)
    handle.detach()


@pytest.mark.parametrize("shape", [(3,), (100, 100), (700, 701)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_digest_tells_tensors_apart(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = normal(*shape).to(dtype)
    others = [weight.clone() for _ in range(3)]
    others[0].view(-1)[-1] += 1
    others[1].view(-1)[0] += 1
    others[2] = others[2].flip(0)
    found = {digest(each) for each in (weight, *others, weight.reshape(-1, 1), weight.view(torch.int16))}
    assert len(found) == 6
    assert digest(weight.clone()) == digest(weight)


@pytest.mark.parametrize("wrong", ["saved again", "saved again with other offsets", "a link to another", "truncated"])
def test_a_base_that_was_saved_again_since_it_was_opened_says_so(scene: Scene, wrong: str) -> None:
    assert scene.base.read("model.0.layer.weight").shape == (8, 12)
    WRONG[wrong](scene)
    for read in (scene.base.read, scene.base.read_bytes):
        with pytest.raises(BaseError, match=r"model\.0\.layer\.weight: .*was changed since the base was opened: open"):
            read("model.0.layer.weight")


def test_a_base_whose_file_got_another_name_or_other_rights_is_read(scene: Scene) -> None:
    os.link(scene.path, scene.path.with_name("two"))
    scene.path.chmod(0o400)
    assert torch.equal(scene.base.read("model.0.layer.weight"), load_file(scene.path)["0.layer.weight"])
