"""Clips as training takes them, and folders that hold something else."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdiff_delta._util import limits
from svdiff_delta.errors import InputError, MissingExtraError
from svdiff_train.data import CENTRE, Cut
from svdiff_train.data import clip_file as module
from svdiff_train.data.clip_file import ClipSize, inspect_clip, read_clip
from svdiff_train.data.clips import FolderClips, find_clips


def frame(value: int, width: int = 8, height: int = 6) -> Image.Image:
    """A picture that is dark on its left half, and of one grey on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = value
    return Image.fromarray(pixels)


def folder_of(place: Path, values: list[int]) -> Path:
    place.mkdir(parents=True)
    for index, value in enumerate(values):
        frame(value).save(place / f"{index:02d}.png")
    return place


def gif_of(place: Path, values: list[int]) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (frame(value) for value in values)
    first.save(place, save_all=True, append_images=others)
    return place


def shown(image: Image.Image) -> int:
    return int(np.asarray(image)[0, -1, 0])


@pytest.mark.parametrize("kind", ["folder", "gif"])
def test_a_clip_is_a_folder_of_frames_or_a_gif(kind: str, tmp_path: Path) -> None:
    values = [10, 60, 110, 160, 210]
    path = folder_of(tmp_path / "a", values) if kind == "folder" else gif_of(tmp_path / "a.gif", values)
    assert inspect_clip(path) == ClipSize(5, 6, 8)
    assert [shown(image) for image in read_clip(path, 1, 3)] == values[1:4]


def test_the_frames_in_the_middle_are_trained_all_cut_and_mirrored_alike(tmp_path: Path) -> None:
    folder_of(tmp_path / "clips" / "a", [0, 50, 100, 150, 200, 250])
    clips = FolderClips(find_clips(tmp_path / "clips", 3), ((6, 6),), "a cat", 3)
    loaded = clips.open(0, (6, 6), CENTRE)
    assert loaded.pixels.shape == (3, 3, 6, 6)
    right = loaded.pixels[0, :, 0, -1] * 127.5 + 127.5
    assert right.round().tolist() == [50, 100, 150]
    assert (loaded.pixels[0, :, 0, 0] == -1).all()
    mirrored = clips.open(0, (6, 6), Cut(flipped=True)).pixels
    assert (mirrored[0, :, 0, -1] == -1).all()
    assert loaded.sizes == (6, 8, 0, 1, 6, 6)


def test_captions_stand_beside_clips_as_beside_pictures(tmp_path: Path) -> None:
    folder_of(tmp_path / "walk", [1, 2, 3])
    gif_of(tmp_path / "run.gif", [0, 100, 200])
    (tmp_path / "walk.txt").write_text("a sks dog walks\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "run.gif", "text": "a sks dog runs"}\n')
    clips = FolderClips(find_clips(tmp_path, 3), ((4, 4),) * 2, "a dog", 3)
    assert [clips.prompt(index) for index in range(2)] == ["a sks dog runs", "a sks dog walks"]
    assert next(iter(clips.counts().lines())) == "2 clips: 2 at 4x4 of 3 frames; 2 with captions"


def test_a_digest_is_that_of_every_frame(tmp_path: Path) -> None:
    def digest() -> str:
        return FolderClips(find_clips(tmp_path, 2), ((4, 4),), "a", 2).digest()

    folder_of(tmp_path / "a", [1, 2])
    before = digest()
    assert digest() == before
    frame(3).save(tmp_path / "a" / "01.png")
    assert digest() != before


# --- What does not fit ---


def test_single_pictures_are_no_clips(tmp_path: Path) -> None:
    frame(1).save(tmp_path / "a.png")
    with pytest.raises(
        InputError, match=r"the model takes clips, and a\.png is a single picture: put each clip's fram"
    ):
        find_clips(tmp_path, 3)


def test_a_folder_without_clips_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no clips \(0 other files\): put each clip's frames into a folder"):
        find_clips(tmp_path, 3)
    with pytest.raises(InputError, match="there is no such folder"):
        find_clips(tmp_path / "nowhere", 3)


def test_a_clip_that_is_too_short_is_named(tmp_path: Path) -> None:
    gif_of(tmp_path / "a.gif", [0, 100, 200])
    with pytest.raises(InputError, match=r"a\.gif: has 3 frames, and 5 are trained: set num_frames lower"):
        find_clips(tmp_path, 5)


def test_frames_of_several_sizes_are_refused_by_name(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", [1, 2])
    frame(3, width=10).save(tmp_path / "a" / "02.png")
    with pytest.raises(
        InputError, match=r"a: 02\.png has 10x6 pixels, those before it 8x6: give all frames of a clip o"
    ):
        find_clips(tmp_path, 3)


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(b"GIF89a and no more")
    with pytest.raises(InputError, match=r"a\.gif: could not be read as a clip"):
        find_clips(tmp_path, 1)


def test_bad_clips_are_left_out_on_request_and_told(tmp_path: Path) -> None:
    """Broken, too short, with frames of two sizes, with a frame that is no picture; a clip without a fault stays."""
    (tmp_path / "a.gif").write_bytes(b"GIF89a and no more")
    gif_of(tmp_path / "b.gif", [0, 100])
    folder_of(tmp_path / "c", [1, 2, 3])
    frame(3, width=10).save(tmp_path / "c" / "03.png")
    folder_of(tmp_path / "d", [1, 2, 3])
    (tmp_path / "d" / "01.png").write_bytes(b"no picture")
    folder_of(tmp_path / "e", [1, 2, 3])
    with pytest.raises(InputError, match=r"a\.gif: .*\(and b\.gif, c, …\): .*, or go on without \(`skip_bad=True`\)"):
        find_clips(tmp_path, 3)
    found = find_clips(tmp_path, 3, skip_bad=True)
    assert [clip.path.name for clip in found.clips] == ["e"]
    lines = list(FolderClips(found, ((4, 4),), "a", 3).counts().lines())
    assert lines[0].startswith("1 clip: ")
    assert [Path(line.removeprefix("skipped: ").partition(": ")[0]) for line in lines[1:]] == [
        tmp_path / "a.gif",
        tmp_path / "b.gif",
        tmp_path / "c",
        tmp_path / "d" / "01.png",
    ]


def test_clips_none_of_which_can_be_used_are_refused_even_on_request(tmp_path: Path) -> None:
    for name in ("a.gif", "b.gif"):
        gif_of(tmp_path / name, [0, 100])
    with pytest.raises(InputError, match=r"none of its 2 clips can be used; .*a\.gif: has 2 frames"):
        find_clips(tmp_path, 3, skip_bad=True)


def test_a_picture_under_the_name_of_a_gif_is_refused(tmp_path: Path) -> None:
    frame(1).save(tmp_path / "a.gif", "PNG")
    with pytest.raises(InputError, match=r"a\.gif: could not be read as a clip"):
        find_clips(tmp_path, 1)


def test_a_clip_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLIP_FRAMES", 3)
    assert limits.CLIP_FRAMES > 1000
    for path in (gif_of(tmp_path / "a" / "a.gif", [0, 50, 100, 150]), folder_of(tmp_path / "b" / "b", [0, 1, 2, 3])):
        with pytest.raises(InputError, match=r"has more than 3 frames: cut it into shorter clips"):
            find_clips(path.parent, 1)


def test_an_mp4_without_its_reader_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    (tmp_path / "a.mp4").write_bytes(b"no film")
    with pytest.raises(
        MissingExtraError, match=r"this needs imageio-ffmpeg, which is not installed: pip install .*video"
    ):
        find_clips(tmp_path, 1, skip_bad=True)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # imageio-ffmpeg 0.8 leaves its pipes open
def test_an_mp4_is_read_as_it_was_written(tmp_path: Path) -> None:
    """H.264 keeps greys to a few steps of 255."""
    from svdiff_train.sampling.clip_out import mp4_bytes, save_clip

    values = [20, 80, 140, 200, 140]
    frames = [frame(value, width=32, height=16) for value in values]
    save_clip(frames, tmp_path / "a.mp4", {})
    assert mp4_bytes(frames) == (tmp_path / "a.mp4").read_bytes()
    assert inspect_clip(tmp_path / "a.mp4") == ClipSize(5, 16, 32)
    assert all(
        abs(shown(image) - value) < 12 for image, value in zip(read_clip(tmp_path / "a.mp4", 0, 5), values, strict=True)
    )
