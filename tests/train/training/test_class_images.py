"""Pictures of the class: painted once, kept, and used again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.files import contents

from svdiff_delta._util.atomic import replace_file
from svdiff_delta._util.json import canonical_json
from svdiff_delta.errors import InputError
from svdiff_train.training import class_images
from svdiff_train.training.class_images import class_pictures
from svdiff_train.training.processes import Crew


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The jobs that were painted, in place of a model."""
    jobs: list[tuple[str, int]] = []

    def generate(pipeline: Any, chunk: list[tuple[str, int]], sampling: Any, *, graphs: None) -> list[Image.Image]:
        jobs.extend(chunk)
        return [Image.new("RGB", (8, 8), (seed, 0, 0)) for _, seed in chunk]

    monkeypatch.setattr(class_images, "generate", generate)
    return jobs


def test_pictures_have_seeds_of_their_own(painted: list[tuple[str, int]]) -> None:
    pictures = class_pictures(None, "a dog", 3, 7)
    assert painted == [("a dog", 7), ("a dog", 8), ("a dog", 9)]
    assert [int(np.asarray(picture)[0, 0, 0]) for picture in pictures] == [7, 8, 9]


def test_what_lies_in_the_folder_is_not_painted_again(painted: list[tuple[str, int]], tmp_path: Path) -> None:
    class_pictures(None, "a dog", 8, 7, folder=tmp_path / "class")
    before = contents(tmp_path / "class")
    painted.clear()
    pictures = class_pictures(None, "a dog", 9, 7, folder=tmp_path / "class")
    assert painted == [("a dog", 15)]
    assert [int(np.asarray(picture)[0, 0, 0]) for picture in pictures] == [*range(7, 16)]
    assert contents(tmp_path / "class").items() > before.items()


def test_one_that_lacks_is_painted_with_those_it_was_painted_with_and_only_it_is_written(
    painted: list[tuple[str, int]], tmp_path: Path
) -> None:
    """Painted alone, its last bits would differ: a run that was killed among them would go on as another one."""
    class_pictures(None, "a dog", 10, 7, folder=tmp_path)
    mine = Image.new("RGB", (8, 8), (99, 0, 0))
    mine.save(tmp_path / "000000.png")
    (tmp_path / "000001.png").unlink()
    painted.clear()
    pictures = class_pictures(None, "a dog", 10, 7, folder=tmp_path)
    assert painted == [("a dog", seed) for seed in range(7, 15)]
    assert [int(np.asarray(picture)[0, 0, 0]) for picture in pictures] == [99, *range(8, 17)]


def test_progress_counts_what_is_missing(painted: list[tuple[str, int]]) -> None:
    seen: list[tuple[int, int]] = []
    class_pictures(None, "a dog", 10, 0, progress=lambda *done: seen.append(done))
    assert seen == [(8, 10), (10, 10)]


def test_pictures_of_something_else_are_refused(painted: list[tuple[str, int]], tmp_path: Path) -> None:
    class_pictures(None, "a dog", 1, 0, base="one", folder=tmp_path)
    with pytest.raises(InputError, match="painted with another prompt and base: name another folder"):
        class_pictures(None, "a cat", 1, 0, base="two", folder=tmp_path)


def test_two_runs_may_begin_with_the_same_folder_at_the_same_time(
    painted: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(path: Path, *, overwrite: bool) -> Any:
        if path.name == class_images.RECORD:  # the other run is first by a moment
            path.write_bytes(canonical_json({"prompt": other, "seed": 0, "base": ""}))
        return replace_file(path, overwrite=overwrite)

    monkeypatch.setattr(class_images, "replace_file", second)
    other = "a dog"
    assert len(class_pictures(None, "a dog", 1, 0, folder=tmp_path / "same")) == 1
    other = "a cat"
    with pytest.raises(InputError, match="painted with another prompt"):
        class_pictures(None, "a dog", 1, 0, folder=tmp_path / "other")


def test_a_damaged_picture_is_named(painted: list[tuple[str, int]], tmp_path: Path) -> None:
    class_pictures(None, "a dog", 1, 0, folder=tmp_path)
    (tmp_path / "000000.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"000000\.png: could not be read as a picture .*: delete it"):
        class_pictures(None, "a dog", 1, 0, folder=tmp_path)


class Second(Crew):
    """The second of two processes, as it sees the first."""

    def any(self, flags: Sequence[bool]) -> list[bool]:
        return list(flags)

    def meet(self) -> None:
        pass

    def _told(self, pictures: Sequence[Image.Image], by: int) -> list[Image.Image]:
        return list(pictures) if by == self.index else [Image.new("RGB", (8, 8), (99, 0, 0))] * 8


def test_processes_share_out_what_is_painted_at_a_time(painted: list[tuple[str, int]], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    crew = Second(count=2, index=1)
    pictures = class_pictures(
        None, "a dog", 20, 0, folder=tmp_path, progress=lambda *done: seen.append(done), crew=_three(crew)
    )
    assert painted == [("a dog", seed) for seed in range(8, 16)]
    assert seen == [(8, 8)]
    assert [int(np.asarray(picture)[0, 0, 0]) for picture in pictures] == [99] * 8 + list(range(8, 16)) + [99] * 4


def _three(crew: Second) -> Second:
    """Let the last four pictures be told as four."""
    told = crew._told
    left = iter((8, 8, 4))
    object.__setattr__(crew, "_told", lambda pictures, by: told(pictures, by)[: next(left)])
    return crew
