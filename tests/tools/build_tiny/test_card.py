"""The card: it says what the logs and the benchmark say, and credits both vendors."""

from __future__ import annotations

import json
from pathlib import Path

from tools.build_tiny.card import curve, render, table, write_card
from tools.build_tiny.subjects import HELD_OUT, TRAINED


def logs(folder: Path) -> Path:
    lines = [
        {"step": i, "hours": i / 1000, "subject": 0.5, "ground": 0.9, "pair": 0.1} for i in range(1000, 41000, 1000)
    ]
    (folder / "unet.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 41000, "hours": 41.0}])
    )
    return folder


def test_the_curve_is_short_and_has_the_last_measurement(tmp_path: Path) -> None:
    table = curve(logs(tmp_path) / "unet.jsonl").splitlines()
    assert len(table) <= 14
    assert table[-1].startswith("| 40,000 | 2400.0 |")


def test_the_card_names_licences_subjects_and_hours(tmp_path: Path) -> None:
    card = render(logs(tmp_path), "| figure |", 11_000_000)
    for text in (
        "Apache-2.0",
        "CC-BY 4.0",
        "Noto Emoji",
        "Twemoji",
        "unet 2460.0 min",
        "11.0 million",
        "V1, V2",
        "sks",
    ):
        assert text in card
    assert all(subject.name in card for subject in TRAINED + HELD_OUT)


def test_the_table_says_what_was_reached() -> None:
    lines = table({"psnr": 27.5, "seconds": 4.0}, {"psnr": (27.0, ">="), "seconds": (3.0, "<=")}).splitlines()
    assert lines[2] == "| psnr | 27.500 | >= 27 | yes |"
    assert lines[3] == "| seconds | 4.000 | <= 3 | no |"


def test_a_card_without_figures_says_so(tmp_path: Path) -> None:
    write_card(tmp_path, logs(tmp_path), None, 1)
    assert "Not measured yet." in (tmp_path / "README.md").read_text()
