"""One concept to learn: a folder of its pictures, and how it and its class are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from svdiff_delta.errors import InputError

from .prompt_templates import phrase_of


@dataclass(frozen=True)
class Concept:
    """One of the concepts of a run.

    Attributes:
        images: the folder of its pictures.
        prompt: describes them, with the concept's rare token: "a photo of a V1 dog".
        class_prompt: describes its class, "a photo of a dog"; None trains without prior preservation.
        token: the rare token, which prompt, phrase and captions must have; None takes what the class prompt lacks.
        phrase: what prompts of Cut-Mix samples call it, "a V1 dog"; None takes what follows "a photo of" in the prompt,
            or the whole prompt if it does not begin so.
    """

    images: Path
    prompt: str
    class_prompt: str | None = None
    token: str | None = None
    phrase: str | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InputError("the prompt is empty", fix="describe the pictures, such as 'a photo of a V1 dog'")
        self.find_token()
        if self.phrase is not None:
            if not self.phrase.strip():
                raise InputError(
                    f"the phrase for {self.prompt!r} is empty", fix="leave it out to take it from the prompt"
                )
            self.check_phrase()

    @property
    def noun(self) -> str:
        """What prompts of mixed samples call it."""
        return phrase_of(self.prompt) if self.phrase is None else self.phrase.strip()

    @property
    def class_noun(self) -> str:
        """What prompts of mixed samples of the classes call its class."""
        return phrase_of(self.class_prompt or "")

    def check_phrase(self) -> None:
        """Raise InputError if what prompts of mixed samples call it does not have its token."""
        token = self.find_token()
        if token is not None and token not in self.noun.split():
            raise InputError(
                f"the phrase {self.noun!r} does not have the token {token!r}", fix="say a `phrase` that has it"
            )

    def find_token(self) -> str | None:
        """Return its token; None if nothing says which it is.

        Raises:
            InputError: the prompt does not have it, or has nothing that the class prompt lacks.
        """
        words = self.prompt.split()
        if self.token is not None:
            if self.token not in words:
                raise InputError(
                    f"the prompt {self.prompt!r} does not have the token {self.token!r}", fix="put it into the prompt"
                )
            return self.token
        if self.class_prompt is None:
            return None
        own = [word for word in words if word not in self.class_prompt.split()]
        if not own:
            raise InputError(
                f"the prompt {self.prompt!r} has no word that the class prompt lacks, so nothing names the subject",
                fix="give the subject a rare token, such as V1",
            )
        return own[0]

    def facts(self, *, with_prior: bool) -> dict[str, str]:
        """Return what a result records of it: never where its pictures are."""
        names = ("prompt", "class_prompt", "token", "phrase") if with_prior else ("prompt", "token", "phrase")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def check_fields(facts: object) -> None:
    """Raise InputError if a table of a run file has not what describes a concept, or what is none of its settings."""
    if not isinstance(facts, Mapping):
        raise InputError("concepts must be tables", fix="write [[concepts]] above each")
    known = [field.name for field in fields(Concept)]
    if unknown := sorted(map(str, facts.keys() - set(known))):
        raise InputError(f"{unknown[0]!r} is no setting of a concept", fix=f"known are {', '.join(known)}")
    for name in ("images", "prompt"):
        if name not in facts:
            raise InputError(f"a concept has no {name}", fix=f"say its {name}")


def check_concepts(concepts: Sequence[Concept]) -> None:
    """Check that concepts can be told apart, and that all have a class or none.

    Raises:
        InputError: two have the same prompt, or one prompt has another's token, in whatever case; a phrase does not
            have its token; or some have a class prompt and some have none.
    """
    for number, concept in enumerate(concepts):
        concept.check_phrase()
        for other in concepts[:number]:
            if concept.prompt == other.prompt:
                raise InputError(f"two concepts have the prompt {concept.prompt!r}", fix="give each a token of its own")
            for one, two in ((concept, other), (other, concept)):
                _check_apart(one, two)
    without = [concept.prompt for concept in concepts if concept.class_prompt is None]
    if 0 < len(without) < len(concepts):
        raise InputError(
            f"{without[0]!r} has no class prompt, and others have one",
            fix="give every concept a class prompt, or none for training without prior preservation",
        )


def _check_apart(concept: Concept, other: Concept) -> None:
    token = concept.find_token()
    if token is None:
        return
    if token.casefold() in (word.casefold() for word in other.prompt.split()):
        raise InputError(
            f"the token {token!r} of {concept.prompt!r} is in {other.prompt!r} too", fix="give each a token of its own"
        )
