"""`svdiff train --push-to-hub`: what is checked before the run, and the push after it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from svdiff_delta.errors import DeltaError, HubError, InputError

from .references import say

if TYPE_CHECKING:
    from svdiff_delta.base_model.base import Base
    from svdiff_delta.publish.push import Pushed
    from svdiff_train.settings.config import TrainConfig

MINE: Final = "."
"""What stands for a repository of the token's owner that is called as the output."""


@dataclass(frozen=True)
class PushAfter:
    """A push to the Hub once a run has ended.

    Args:
        asked: the repository as it was written; `MINE` for one of the token's owner that is called as the output.
        output: the delta file.
        licence: of the delta; None for that of the base's card.
    """

    asked: str
    output: Path
    licence: str | None = None

    def check(self, base: Base, config: TrainConfig) -> None:
        """Refuse what would fail after hours, as far as it shows without network.

        Raises:
            InputError: the run makes no delta, its base has no name that others know, or the repository has none.
            HubError: there is no token.
        """
        from huggingface_hub import get_token

        from svdiff_delta.hub_client.errors import LOGIN
        from svdiff_delta.hub_client.names import EMBEDDED
        from svdiff_delta.hub_client.reference import read_reference

        if config.method != "svdiff":
            raise InputError(
                f"--push-to-hub sends deltas, and the method {config.method} makes none", fix="leave it out"
            )
        if self.asked != MINE and (read_reference(self.asked).path or "/" not in self.asked):
            raise InputError(
                f"--push-to-hub {self.asked}: is no repository", fix="write --push-to-hub=owner/repo, or nothing more"
            )
        name = base.info.repository
        if name is None or (name != EMBEDDED and "/" not in name):
            raise InputError(
                f"--push-to-hub: the base {base.path} has no name that others know it by",
                fix="name the base as owner/repo, or push later with `svdiff push --base-model owner/repo`",
            )
        if name == EMBEDDED and self.licence is None:
            raise InputError(
                "--push-to-hub: the embedded base has no card on the Hub that says a licence",
                fix="name one with --license, such as apache-2.0",
            )
        if not get_token():
            raise HubError("--push-to-hub needs a token, and there is none", fix=LOGIN)

    def repository(self) -> str:
        """Return the repository as owner/repo; the Hub says who owns the token, if nobody else does.

        Raises:
            HubError: it refused or was not reached.
        """
        if self.asked != MINE:
            return self.asked
        from huggingface_hub import HfApi

        from svdiff_delta.hub_client.errors import client_errors, explain
        from svdiff_delta.hub_client.reference import Reference

        try:
            return f"{HfApi().whoami()['name']}/{self.output.stem}"
        except client_errors() as error:
            raise explain(Reference(f"owner/{self.output.stem}"), error, sending=True) from None

    def push(self, samples: Sequence[tuple[Path, str]], *, quiet: bool) -> Pushed:
        """Push the delta with its card and pictures.

        Args:
            samples: pictures with their prompts.
            quiet: whether remarks are left out.

        Raises:
            HubError: it was not sent; the message has the command that sends it.
        """
        from svdiff_delta.publish.push import push

        from .hub import hub_client

        try:
            with hub_client(quiet=quiet):
                done = push(self.output, self.repository(), samples=samples, license=self.licence)
        except DeltaError as error:
            raise HubError(
                f"{self.output} is written, and was not pushed: {error.message}",
                fix=f"{error.fix + '; then ' if error.fix else ''}run `{self.command(samples)}`",
            ) from error
        for remark in done.remarks:
            say(f"note: {remark}", quiet=quiet)
        return done

    def command(self, samples: Sequence[tuple[Path, str]]) -> str:
        """Return the command that pushes what is there."""
        named = f"OWNER/{self.output.stem}" if self.asked == MINE else self.asked
        pictures = [word for path, prompt in samples for word in ("--sample", f"{path}:{prompt}")]
        licence = [] if self.licence is None else ["--license", self.licence]
        return shlex.join(["svdiff", "push", str(self.output), named, *licence, *pictures])


def painted(folder: Path, prompts: Sequence[str], step: int) -> list[tuple[Path, str]]:
    """Return the pictures that validation has painted after a step, with their prompts."""
    named = ((folder / "validation" / f"step-{step:06d}-{index}.png", prompt) for index, prompt in enumerate(prompts))
    return [(path, prompt) for path, prompt in named if path.is_file()]
