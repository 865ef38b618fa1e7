"""What the report learns and edits: held-out subjects with their tokens, pairs of them, pictures with descriptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from svdiff_train.tiny import pictures_path


@dataclass(frozen=True)
class Subject:
    """A held-out subject.

    Attributes:
        name: its name, which no prompt has.
        noun: its class.
        token: its rare token.
    """

    name: str
    noun: str
    token: str

    @property
    def folder(self) -> Path:
        """Where its pictures are."""
        return pictures_path(self.name.replace(" ", "_"))

    def phrase(self, noun: str | None = None, token: str | None = None) -> str:
        """Return what prompts call it."""
        return f"a {token or self.token} {noun or self.noun}"


_ALL: Final = (
    Subject("black cat", "cat", "V1"),
    Subject("poodle", "dog", "V2"),
    Subject("police car", "car", "V3"),
    Subject("fire engine", "truck", "V4"),
    Subject("polar bear", "bear", "V5"),
    Subject("white rabbit", "rabbit", "V6"),
    Subject("pagoda", "castle", "V7"),
    Subject("hibiscus", "flower", "V8"),
    Subject("guide dog", "dog", "V9"),
    Subject("banjo", "guitar", "V10"),
    Subject("racehorse", "horse", "V11"),
)
SUBJECTS: Final[Mapping[str, Subject]] = {subject.name: subject for subject in _ALL}

SEARCHED: Final = ("banjo", "guide dog", "racehorse")
"""The subjects on which recipes are searched; no experiment has them."""

SEARCHED_PAIR: Final = ("guide dog", "racehorse")
"""Two of them, of similar class, that are learned together."""

SINGLES: Final = tuple(name for name in SUBJECTS if name not in SEARCHED)
"""The eight subjects of the experiments."""

SIMILAR: Final = (
    ("black cat", "poodle"),
    ("polar bear", "white rabbit"),
    ("police car", "fire engine"),
    ("poodle", "polar bear"),
    ("white rabbit", "black cat"),
    ("black cat", "polar bear"),
)
"""Pairs of similar class, for Cut-Mix-Unmix: animals, and vehicles.

Not the poodle and the white rabbit: of the halves that show the one a fifth is taken for the other.
"""

APART: Final = (
    ("black cat", "pagoda"),
    ("polar bear", "fire engine"),
    ("police car", "hibiscus"),
    ("poodle", "pagoda"),
    ("white rabbit", "police car"),
    ("black cat", "hibiscus"),
)
"""Well separated pairs: each shares its first subject with that similar pair whose place it has."""

TRIPLE: Final = ("black cat", "poodle", "pagoda")

ADDED: Final = (
    ("black cat", "polar bear"),
    ("poodle", "fire engine"),
    ("police car", "pagoda"),
    ("white rabbit", "hibiscus"),
)
"""Pairs whose individually trained results are added, or interpolated: every subject of the experiments once."""

Check = Literal["ground", "removed", "replaced", "left", "right"]


@dataclass(frozen=True)
class Edit:
    """An edit of a picture, and how its success is told.

    Attributes:
        prompt: the target.
        check: what must be seen: the colour of the ground; an object gone from the right half; another object, in the
            right half of pictures of two and anywhere of pictures of one; the subject on one side.
        asked: the colour, or the object's name.
    """

    prompt: str
    check: Check
    asked: str = ""

    @property
    def keeps_subject(self) -> bool:
        """Whether the picture's subject must survive it."""
        return self.check != "replaced" or " and " in self.prompt


@dataclass(frozen=True)
class Scene:
    """A picture to edit.

    Attributes:
        name: of its file.
        noun: the class of its subject.
        prompt: describes it.
        edits: what is asked for.
        subject: whose first picture it is; None if it is one of those to edit.
    """

    name: str
    noun: str
    prompt: str
    edits: tuple[Edit, ...] = ()
    subject: str | None = None

    @property
    def path(self) -> Path:
        """The picture."""
        if self.subject is not None:
            return min(SUBJECTS[self.subject].folder.glob("*.png"))
        return pictures_path("edits") / f"{self.name}.png"

    @property
    def paired(self) -> bool:
        """Whether it shows two things; the subject is the left one then."""
        return " and " in self.prompt


def _alone(name: str, noun: str, ground: str, other: str, colour: str, side: Literal["left", "right"]) -> Scene:
    about = f"a photo of a {noun}"
    edits = (
        Edit(f"{about} on a {colour} background", "ground", colour),
        Edit(f"{about} on the {side} {ground}", side),
        Edit(f"a photo of a {other} {ground}", "replaced", other),
    )
    return Scene(name, noun, f"{about} {ground}", edits)


def _two(name: str, noun: str, thing: str, ground: str, other: str, colour: str) -> Scene:
    left = f"a photo of a {noun} on the left"
    edits = (
        Edit(f"{left} and a {thing} on the right on a {colour} background", "ground", colour),
        Edit(f"{left} {ground}", "removed", thing),
        Edit(f"{left} and a {other} on the right {ground}", "replaced", other),
    )
    return Scene(name, noun, f"{left} and a {thing} on the right {ground}", edits)


SCENES: Final = (
    _alone("horse", "horse", "on a green background", "zebra", "blue", "left"),
    _two("cat-mushroom", "cat", "mushroom", "on a yellow background", "rose", "red"),
    _alone("bear", "bear", "in the snow", "panda", "red", "left"),
    _alone("castle", "castle", "at sunset", "temple", "green", "right"),
    _two("car-tree", "car", "tree", "on a gray background", "cactus", "yellow"),
)
SEARCHED_SCENES: Final = tuple(
    Scene(f"search-{name}".replace(" ", "-"), SUBJECTS[name].noun, f"a photo of a {SUBJECTS[name].noun}", subject=name)
    for name in SEARCHED
)
"""Single pictures on which the recipes of edits are searched."""

SCENE: Final[Mapping[str, Scene]] = {scene.name: scene for scene in (*SCENES, *SEARCHED_SCENES)}


def slug(*names: str) -> str:
    """Return names as a part of a file's name."""
    return "+".join(names).replace(" ", "_")
