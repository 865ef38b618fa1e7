"""References to the Hub: what they name, what is fetched, and what is said when it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save
from support.hub import Hub, fill_cache, folder_files

from svdiff_delta.base_model.base import open_base
from svdiff_delta.errors import BaseError
from svdiff_delta.hub_client.reference import Reference, cached_revisions, find_cached, parse_reference
from svdiff_train.tiny import base_path

CONFIG = json.dumps({"_class_name": "UNet2DConditionModel", "sample_size": 8}).encode()
WEIGHTS = save({"a.weight": torch.ones(2, 2)})
UNET = {"config.json": CONFIG, "diffusion_pytorch_model.safetensors": WEIGHTS}
PIPELINE = {
    "model_index.json": json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}).encode(),
    "unet/config.json": CONFIG,
    "unet/diffusion_pytorch_model.safetensors": WEIGHTS,
    "unet/diffusion_pytorch_model.fp16.safetensors": save({"a.weight": torch.ones(2, 2).half()}),
    "unet/diffusion_pytorch_model.bin": b"\x80\x04.",
    "tokenizer/merges.txt": b"#version: 0.2\n",
    "tokenizer/vocab.json": b"{}",
    "whole.safetensors": WEIGHTS,
    "whole.ckpt": b"\x80\x04.",
    "picture.png": b"PNG",
    "code.py": b"raise SystemExit",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/repo", Reference("owner/repo")),
        ("owner/repo@v1.5", Reference("owner/repo", "v1.5")),
        ("owner/repo@refs/pr/7/unet", Reference("owner/repo", "refs/pr/7", "unet")),
        ("owner/repo@feature%2Fa", Reference("owner/repo", "feature/a")),
        ("owner/repo/unet", Reference("owner/repo", None, "unet")),
        ("owner/repo@main/a/model.safetensors", Reference("owner/repo", "main", "a/model.safetensors")),
        ("hf://owner/repo@main", Reference("owner/repo", "main")),
        ("hf://gpt2", Reference("gpt2")),
        ("gpt2", None),
        ("/owner/repo", None),
        ("./owner/repo", None),
        ("../repo", None),
        ("~/repo", None),
        ("owner/repo/../../etc", None),
        ("hf://owner/repo/../x", None),
        ("folder/model.safetensors", None),
        ("C:\\models\\sd", None),
        ("owner//repo", None),
        ("", None),
    ],
)
def test_a_reference_names_repository_revision_and_path(text: str, expected: Reference | None) -> None:
    assert parse_reference(text) == expected


def test_a_reference_is_written_as_it_is_read() -> None:
    assert str(Reference("owner/repo", "v1", "unet")) == "owner/repo@v1/unet"


def test_only_weights_configurations_and_texts_are_fetched(hub: Hub) -> None:
    hub.add("owner/repo", PIPELINE)
    base = open_base("owner/repo")
    assert sorted(hub.sent) == [
        "model_index.json",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert base.read("unet.a.weight").dtype == torch.float32


def test_repository_and_commit_are_recorded(hub: Hub) -> None:
    commit = hub.add("owner/repo", PIPELINE)
    info = open_base("owner/repo@main").info
    assert (info.repository, info.revision) == ("owner/repo", commit)


def test_a_revision_is_what_is_opened(hub: Hub) -> None:
    old = hub.add("owner/repo", PIPELINE)
    new = hub.add("owner/repo", {**PIPELINE, "unet/diffusion_pytorch_model.safetensors": save({"b": torch.ones(1)})})
    assert list(open_base(f"owner/repo@{old}").names()) == ["unet.a.weight"]
    assert list(open_base("hf://owner/repo").names()) == ["unet.b"]
    assert set(cached_revisions("owner/repo")) == {old, new}


def test_of_a_variant_only_its_files_are_fetched(hub: Hub) -> None:
    hub.add("owner/repo", PIPELINE)
    assert open_base("owner/repo", variant="fp16").read("unet.a.weight").dtype == torch.float16
    assert [name for name in hub.sent if name.endswith(".safetensors")] == [
        "unet/diffusion_pytorch_model.fp16.safetensors"
    ]


def test_a_variant_that_the_repository_lacks_is_refused_before_weights_are_fetched(hub: Hub) -> None:
    hub.add("owner/repo", PIPELINE)
    with pytest.raises(BaseError, match=r"owner/repo: has no variant 'bf16', only the variant fp16"):
        open_base("owner/repo", variant="bf16")
    assert not any(name.endswith(".safetensors") for name in hub.sent)


def test_the_shards_that_an_index_names_are_fetched(hub: Hub) -> None:
    stem = "diffusion_pytorch_model"
    shards = {f"{stem}-0000{i}-of-00002.safetensors": save({f"{i}.weight": torch.ones(i)}) for i in (1, 2)}
    index = {"weight_map": {f"{i}.weight": name for i, name in enumerate(shards, 1)}}
    index_name = f"{stem}.safetensors.index.json"
    hub.add("owner/repo", {"config.json": CONFIG, index_name: json.dumps(index).encode(), **shards})
    assert sorted(open_base("owner/repo").names()) == ["unet.1.weight", "unet.2.weight"]


def test_one_component_of_a_pipeline_is_fetched_alone(hub: Hub) -> None:
    hub.add("owner/repo", {**PIPELINE, "vae/config.json": CONFIG, "vae/diffusion_pytorch_model.safetensors": WEIGHTS})
    assert list(open_base("owner/repo/unet").components) == ["unet"]
    assert sorted(hub.sent) == ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]


def test_a_single_file_of_a_repository_is_opened(hub: Hub) -> None:
    hub.add("owner/repo", PIPELINE)
    assert list(open_base("owner/repo/whole.safetensors", component="unet").names()) == ["unet.a.weight"]


def test_a_commit_that_is_here_is_not_asked_about(hub: Hub) -> None:
    commit = hub.add("owner/repo", PIPELINE)
    open_base("owner/repo")
    hub.asked.clear()
    open_base(f"owner/repo@{commit}")
    assert not hub.asked


def test_what_is_in_the_cache_opens_without_a_network(unreachable: Path) -> None:
    commit = fill_cache(unreachable, "owner/repo", PIPELINE)
    for reference in ("owner/repo", "owner/repo@main", f"owner/repo@{commit}"):
        base = open_base(reference)
        assert (base.repository, base.revision) == ("owner/repo", commit)
        assert base.read("unet.a.weight").tolist() == [[1, 1], [1, 1]]


def test_weights_that_are_not_in_the_cache_are_named_without_a_network(unreachable: Path) -> None:
    fill_cache(unreachable, "owner/repo", {"config.json": CONFIG})
    assert "holds no safetensors weights" in refused("owner/repo")


def test_without_asking_the_hub_only_the_cache_is_looked_at(hub: Hub, cache: Path) -> None:
    hub.add("owner/repo", PIPELINE)
    with pytest.raises(BaseError, match="not in the local Hub cache"):
        open_base("owner/repo", fetch=False)
    fill_cache(cache, "owner/repo", PIPELINE)
    assert list(open_base("owner/repo", fetch=False).components) == ["unet"]
    assert not hub.asked


def test_a_path_that_exists_wins_over_a_repository(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "repo").symlink_to(base_path())
    hub.add("owner/repo", PIPELINE)
    assert open_base("owner/repo").repository is None
    assert not hub.asked
    assert open_base("hf://owner/repo").repository == "owner/repo"


def refused(reference: str) -> str:
    with pytest.raises(BaseError) as caught:
        open_base(reference)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_repository_that_is_not_there_is_refused(hub: Hub) -> None:
    message = refused("owner/nothing")
    assert "no such file or folder, and no such repository" in message
    assert "hf auth login" in message


def test_a_restricted_repository_says_how_to_get_in(hub: Hub) -> None:
    hub.add("owner/repo", PIPELINE)
    hub.gated.add("owner/repo")
    message = refused("owner/repo")
    assert "owner/repo: access to it is restricted" in message
    assert "ask for it" in message


def test_a_revision_that_is_not_there_is_refused(hub: Hub) -> None:
    hub.add("owner/repo", PIPELINE)
    assert "no revision 'v9'" in refused("owner/repo@v9")


def test_a_folder_that_the_repository_lacks_is_refused(hub: Hub) -> None:
    hub.add("owner/repo", PIPELINE)
    assert "model_index.json" in refused("owner/repo/transformer")


def test_a_repository_of_pickles_is_refused_with_the_call_that_converts_them(hub: Hub) -> None:
    hub.add("owner/repo", {"config.json": CONFIG, "diffusion_pytorch_model.bin": b"\x80\x04."})
    message = refused("owner/repo")
    assert "only a pickle" in message
    assert "save_pretrained" in message
    assert hub.sent == ["config.json"]


def test_a_pickle_in_a_repository_is_never_fetched(hub: Hub) -> None:
    hub.add("owner/repo", PIPELINE)
    assert "is a pickle" in refused("owner/repo/whole.ckpt")
    assert not hub.sent


def test_what_is_neither_here_nor_reachable_says_so(unreachable: Path) -> None:
    message = refused("owner/repo")
    assert "no such file or folder" in message
    assert "not in the local Hub cache" in message
    assert "HF_HUB_OFFLINE" in message


def test_a_hub_that_does_not_answer_is_said_in_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    assert "the Hub was not reached" in refused("owner/repo")


def test_a_name_that_no_repository_can_have_is_refused(hub: Hub) -> None:
    assert "names no repository" in refused("owner/-repo-")


def test_a_base_from_the_hub_has_what_the_folder_has(hub: Hub) -> None:
    hub.add("owner/tiny", folder_files(base_path()))
    fetched, local = open_base("owner/tiny"), open_base(base_path())
    assert list(fetched.names()) == list(local.names())
    assert torch.equal(fetched.read("unet.conv_in.weight"), local.read("unet.conv_in.weight"))


def test_another_repositorys_cache_is_not_taken_for_one_of_that_name(cache: Path) -> None:
    commit = fill_cache(cache, "alice/cat", {"svdiff.safetensors": b""})
    assert find_cached(Reference("alice/cat")) is not None
    assert find_cached(Reference("alice--cat")) is None
    assert list(cached_revisions("alice/cat")) == [commit]
    assert not cached_revisions("alice--cat")
