"""Stand-ins for the emoji packages: every subject a drawn shape of its own colour."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from PIL import Image, ImageDraw

from tools.build_tiny.subjects import HELD_OUT, STYLES, TRAINED


def write_packages(folder: Path) -> Path:
    """Write `emoji.json` and a PNG of 64 pixels per subject and vendor under `folder`."""
    entries = []
    for vendor in STYLES.values():
        images = folder / vendor / "img" / vendor / "64"
        images.mkdir(parents=True)
        entries = [_entry(images, i, s.short_name, vendor) for i, s in enumerate(TRAINED + HELD_OUT)]
    for vendor in STYLES.values():
        (folder / vendor / "emoji.json").write_text(json.dumps(entries))
    return folder


def _entry(images: Path, number: int, short_name: str, vendor: str) -> dict[str, object]:
    picture = Image.new("RGBA", (64, 64))
    pen = ImageDraw.Draw(picture)
    fill = (number * 37 % 256, number * 91 % 256, number * 53 % 256, 255)
    shape = pen.ellipse if vendor == "google" else pen.rectangle
    shape((4, 8, 59, 55), fill=fill)
    picture.save(images / f"{number:04d}.png")
    return {"short_name": short_name, "image": f"{number:04d}.png", "has_img_google": True, "has_img_twitter": True}


def archive(package: Path, target: Path) -> Path:
    """Pack a vendor's folder as npm does, under `package/`, beside a file that nobody wants."""
    (package / "emoji_pretty.json").write_text("[]")
    with tarfile.open(target, "w:gz") as packed:
        packed.add(package, arcname="package")
    return target
