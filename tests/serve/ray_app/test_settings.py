"""Settings of a server on Ray: as Ray's command line and files give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from svdiff_delta.errors import InputError
from svdiff_serve.ray_app import RaySettings, build


def test_texts_of_a_command_line_become_what_they_stand_for() -> None:
    found = RaySettings.read({"base": "tiny", "deltas": "a,owner/repo", "max_replicas": "3", "no_auth": "true"})
    assert (found.deltas, found.max_replicas, found.no_auth) == (("a", "owner/repo"), 3, True)
    assert found == RaySettings(base="tiny", deltas=("a", "owner/repo"), max_replicas=3, no_auth=True)


def test_the_base_is_called_as_it_was_given_or_as_its_folder(tmp_path: Path) -> None:
    assert RaySettings(base="owner/repo").called == "owner/repo"
    assert RaySettings(base=str(tmp_path / "." / "")).called == tmp_path.name
    assert RaySettings(base="tiny", name="mine").called == "mine"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"deltas": "a"}, "missing required field `base`"),
        ({"base": "tiny"}, "no deltas are served"),
        ({"base": "tiny", "deltas": "a", "replicas": 2}, "unknown field `replicas`"),
        ({"base": "tiny", "deltas": "a", "cpus": "many"}, r"Expected `int`.*cpus"),
        ({"base": "tiny", "deltas": "a", "min_replicas": 0}, "min_replicas must be at least 1, is 0"),
        ({"base": "tiny", "deltas": "a", "deadline": float("nan")}, "deadline must be at least 0.1, is nan"),
        ({"base": "tiny", "deltas": "a", "min_replicas": 3}, "max_replicas is 2, less than min_replicas, 3"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RaySettings.read(given)


def test_nobody_serves_to_other_machines_without_keys_by_mistake() -> None:
    with pytest.raises(InputError, match="no keys are asked for"):
        build({"base": "tiny", "deltas": "a", "host": "0.0.0.0"})
