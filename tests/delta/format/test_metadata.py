"""What a file says about itself: read as written, unknown fields kept, broken ones refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from support.bytes import FINGERPRINT, NAME, columns, document
from support.deltas import BASE, METADATA, PARAMETERS, QUERY

from svdiff_delta.errors import DeltaError, MetadataError, VersionError
from svdiff_delta.format.lineage import Lineage, Record
from svdiff_delta.format.metadata import BaseInfo, Metadata, dump, parse
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.selectors.addresses import Layout


def read(fields: Any, names: tuple[str, ...] = (NAME,), **strings: str) -> Metadata:
    return parse({"svdiff": fields if isinstance(fields, str) else json.dumps(fields), **strings}, names)


def test_the_smallest_document_is_read() -> None:
    assert read(document()) == Metadata(
        BaseInfo({"unet": "UNet2DConditionModel"}),
        {NAME: Parameter((3, 2, 3, 3), "spectral", 0, "F16", FINGERPRINT)},
    )


def test_metadata_are_written_as_the_spec_shows_them() -> None:
    metadata = Metadata(
        BaseInfo({"unet": "UNet2DConditionModel"}, "owner/base", "main"),
        {NAME: Parameter((3, 2, 3, 3), "spectral", 0, "F16", FINGERPRINT)},
        lineage=Lineage(Record("convert", {"from": "peft"})),
        training={"steps": 5},
        modelspec={"title": "Dog", "architecture": "stable-diffusion-v1"},
        foreign={"format": "pt"},
    )
    strings = dump(metadata)
    assert json.loads(strings.pop("svdiff")) == document(
        base={"components": {"unet": "UNet2DConditionModel"}, "repository": "owner/base", "revision": "main"},
        lineage={"operation": "convert", "arguments": {"from": "peft"}, "inputs": [], "files": {}},
        training={"steps": 5},
    )
    assert strings == {"modelspec.title": "Dog", "modelspec.architecture": "stable-diffusion-v1", "format": "pt"}


def test_what_is_written_is_read_back() -> None:
    metadata = replace(
        METADATA,
        lineage=Lineage(Record("add", {"weights": [1, 2]}, ("a" * 64,))),
        training={"steps": 500, "prompt": "a photo of a δ"},
        modelspec={"title": "Dog"},
        extra={"added later": {"a": [1]}},
        foreign={"format": "pt"},
        base=replace(BASE, extra={"variant": "fp16"}),
    )
    assert parse(dump(metadata), list(PARAMETERS)) == metadata


def test_parameters_come_in_sorted_order() -> None:
    backwards = dict(reversed(PARAMETERS.items()))
    assert list(Metadata(BASE, backwards).parameters) == sorted(PARAMETERS)


def test_unknown_fields_of_the_document_are_kept_and_passed_on() -> None:
    metadata = read(document(added_later={"a": 1}))
    assert json.loads(dump(metadata)["svdiff"])["added_later"] == {"a": 1}


def test_unknown_fields_of_the_base_are_kept_and_passed_on() -> None:
    base = {"components": {"unet": "UNet2DConditionModel"}, "variant": "fp16"}
    assert json.loads(dump(read(document(base=base)))["svdiff"])["base"] == base


def test_unknown_strings_beside_the_document_are_kept_and_passed_on() -> None:
    assert dump(read(document(), format="pt"))["format"] == "pt"


def test_modelspec_fields_are_kept_and_passed_on() -> None:
    metadata = read(document(), **{"modelspec.title": "Dog", "modelspec.author": "somebody"})
    assert metadata.modelspec == {"title": "Dog", "author": "somebody"}
    assert dump(metadata)["modelspec.author"] == "somebody"


def test_a_title_is_set_and_taken_away() -> None:
    titled = METADATA.with_title("Dog")
    assert (METADATA.title, titled.title, titled.with_title(None).title) == (None, "Dog", None)
    assert titled.with_title(None) == METADATA


def test_a_missing_document_is_said_to_be_another_format() -> None:
    with pytest.raises(MetadataError, match=r"without `svdiff` metadata, not a delta file: name a delta file$"):
        parse({"format": "pt"}, [NAME])


BROKEN: dict[str, tuple[Any, str]] = {
    "a document that is not JSON": ("{", "^`svdiff` is not valid JSON"),
    "a document that is a list": ([], "^svdiff: must be a JSON object$"),
    "a document with a key twice": ('{"format":"svdiff-delta","format":"x"}', "the key 'format' stands twice"),
    "a document with half a surrogate pair": ('{"format":"\ud800"}', "^`svdiff` is not UTF-8"),
    "no format": ({"version": 1}, "^format: is missing$"),
    "another format": (document(format="lora"), "^format: must be 'svdiff-delta', is 'lora'$"),
    "no version": ({"format": "svdiff-delta"}, "^version: is missing$"),
    "a version as text": (document(version="1"), "^version: must be a whole number from 1, is '1'$"),
    "a version as a truth value": (document(version=True), "^version: must be a whole number from 1, is True$"),
    "version 0": (document(version=0), "^version: must be a whole number from 1, is 0$"),
    "a text to understand": (document(must_understand="I8"), "^must_understand: must be a list of strings$"),
    "a number to understand": (document(must_understand=[1]), "^must_understand: must be a list of strings$"),
    "no base": ({"format": "svdiff-delta", "version": 1, "parameters": {}}, "^base: is missing$"),
    "a base as text": (document(base="sd15"), "^base: must be a JSON object$"),
    "no components": (document(base={}), r"^base\.components: is missing$"),
    "components as a list": (document(base={"components": []}), r"^base\.components: must be a JSON object$"),
    "a component with a dot": (document(base={"components": {"a.b": "C"}}), r"^base\.components: 'a\.b' is not a comp"),
    "a component called svdiff": (document(base={"components": {"svdiff": "C"}}), r"^base\.components: 'svdiff' is"),
    "a class that is a number": (document(base={"components": {"unet": 1}}), r"^base\.components: 'unet' is not"),
    "a repository that is a number": (
        document(base={"components": {"unet": "C"}, "repository": 1}),
        r"^base\.repository: must be a non-empty string$",
    ),
    "a repository that is null": (
        document(base={"components": {"unet": "C"}, "repository": None}),
        r"^base\.repository: must be a non-empty string$",
    ),
    "an empty revision": (
        document(base={"components": {"unet": "C"}, "revision": ""}),
        r"^base\.revision: must be a non-empty string$",
    ),
    "no parameters": ({"format": "svdiff-delta", "version": 1, "base": {"components": {}}}, "^parameters: is missing$"),
    "parameters as a list": (document(parameters=[]), "^parameters: must be a JSON object$"),
    "a broken column": (columns(shapes="3x"), r"^unet\.conv_in\.weight: parameters\.shapes has '3x'"),
    "a lineage as a list": (document(lineage=[]), "^lineage: must be a JSON object$"),
    "a lineage without an operation": (document(lineage={}), r"^lineage\.operation: is missing$"),
    "a lineage that is null": (document(lineage=None), "^lineage: must be a JSON object$"),
    "training facts that are null": (document(training=None), "^training: must be a JSON object$"),
    "training facts as text": (document(training="long"), "^training: must be a JSON object$"),
}


@pytest.mark.parametrize(("fields", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_document_is_refused(fields: Any, reason: str) -> None:
    with pytest.raises(MetadataError, match=reason):
        read(fields)


SOUND = [
    "tiny", "gpt2", "owner/base", "stable-diffusion-v1-5/stable-diffusion-v1-5", "black-forest-labs/FLUX.1-dev",
    "01-ai/Yi-1.5", "_a/b_", "a" * 96 + "/" + "b" * 96,
]  # fmt: skip


@pytest.mark.parametrize("repository", SOUND)
@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1", "fp16", "a" * 40, "release/2.0+cpu", "user@x", "1"])
def test_a_base_is_named_as_the_hub_names_repositories(repository: str, revision: str) -> None:
    base = {"components": {"unet": "C"}, "repository": repository, "revision": revision}
    assert json.loads(dump(read(document(base=base)))["svdiff"])["base"] == base
    validate_repo_id(repository)  # the Hub's own library agrees


FORGED = [
    "owner/base) and [more](https://example.org", "owner/base\n# Heading", "<script>", "a b", "a/b/c", "/etc/passwd",
    "../base", "C:/base", "owner/base\u202e", "owner/base\x1b[2J", "owner/`base`", "owner/a--b", "owner/a..b",
    "owner/-base", "owner/base.", "owner/base.git", "owner/" + "b" * 97, "owner/bäse", "https://example.org/base",
]  # fmt: skip


@pytest.mark.parametrize("repository", FORGED)
def test_what_is_no_name_of_a_repository_is_neither_read_nor_written(repository: str) -> None:
    said = r"^base\.repository: .* is no name of the Hub: allowed is owner/repo"
    with pytest.raises(MetadataError, match=said):
        read(document(base={"components": {"unet": "C"}, "repository": repository}))
    with pytest.raises(MetadataError, match=said):
        dump(replace(METADATA, base=replace(BASE, repository=repository)))
    with pytest.raises(HFValidationError):
        validate_repo_id(repository)  # nor does the Hub's own library take it


@pytest.mark.parametrize(
    "revision", ["a b", "..", "a..b", "-x", ".x", "x/", "x//y", "x.", "x.lock", "<b>", "x`", "x\n"]
)
def test_what_is_no_name_of_a_revision_is_neither_read_nor_written(revision: str) -> None:
    said = r"^base\.revision: .* is no name of the Hub: allowed is a commit"
    with pytest.raises(MetadataError, match=said):
        read(document(base={"components": {"unet": "C"}, "revision": revision}))
    with pytest.raises(MetadataError, match=said):
        dump(replace(METADATA, base=replace(BASE, revision=revision)))


@pytest.mark.parametrize("name", ["weight", ".weight", "unet.", "unet.a\nb", "unet.é", "unet.\x7f"])
def test_what_is_not_a_parameter_name_is_refused(name: str) -> None:
    with pytest.raises(MetadataError, match="is not a parameter name"):
        read(document(), (name,))


def test_a_parameter_of_a_component_that_the_base_does_not_name_is_refused() -> None:
    with pytest.raises(MetadataError, match=r"^vae\.w: base\.components does not name 'vae'$"):
        read(document(), ("vae.w",))


def test_a_file_of_a_later_major_version_is_refused() -> None:
    with pytest.raises(VersionError, match="format version 2, this program reads version 1: use a release"):
        read(document(version=2))


def test_a_feature_that_must_be_understood_and_is_not_is_refused() -> None:
    with pytest.raises(VersionError, match="the file needs I8, ties, which this program does not know: use a newer"):
        read(document(must_understand=["ties", "I8"]))


def test_an_empty_list_of_features_is_fine_and_not_written_again() -> None:
    assert read(document(must_understand=[])).extra == {}


def test_the_place_of_attention_is_read_and_written() -> None:
    said = {"down": [2, 0], "mid": 1, "up": [0, 3]}
    base = {"components": {"unet": "UNet2DConditionModel"}, "attentions": said}
    metadata = read(document(base=base))
    assert metadata.base.attentions == Layout((2, 0), 1, (0, 3))
    assert json.loads(dump(metadata)["svdiff"])["base"] == base


@pytest.mark.parametrize(
    "said",
    [
        None, [], {}, {"down": [1], "up": [1]}, {"down": [1], "mid": 1, "up": [1, 1]}, {"down": 1, "mid": 1, "up": [1]},
        {"down": [-1], "mid": 1, "up": [1]}, {"down": [1], "mid": 100, "up": [1]}, {"down": [1], "mid": 1.0, "up": [1]},
        {"down": [1], "mid": True, "up": [1]}, {"down": [0] * 100, "mid": 1, "up": [0] * 100},
        {"down": [1], "mid": 1, "up": [1], "more": 1},
    ],
)  # fmt: skip
def test_a_place_of_attention_that_is_none_is_refused(said: object) -> None:
    with pytest.raises(MetadataError, match=r"^base\.attentions"):
        read(document(base={"components": {"unet": ""}, "attentions": said}))


def test_numbers_that_json_cannot_hold_are_refused_on_writing() -> None:
    with pytest.raises(DeltaError, match="cannot be written as JSON"):
        dump(replace(METADATA, training={"loss": float("nan")}))


def test_a_component_that_the_base_does_not_name_is_refused_on_writing() -> None:
    with pytest.raises(MetadataError, match=r"base\.components does not name 'text_encoder'$"):
        dump(replace(METADATA, base=BaseInfo({"unet": "UNet2DConditionModel"})))


def test_ties_and_nulls_are_read() -> None:
    found = parse(dump(METADATA), list(PARAMETERS)).parameters[QUERY]
    assert (found.tied, found.null) == (((0, 1), (3, 5)), 2)
