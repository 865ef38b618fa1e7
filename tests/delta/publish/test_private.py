"""What is private, and what only looks like it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from svdiff_delta.errors import HubError, InputError
from svdiff_delta.publish.private import ROOTS, check_private, find_private

PATHS = [
    "/content/drive/MyDrive/dog", "/kaggle/input/dogs/1.png", "/kaggle/working/x", "/workspace/dog", "/workspace",
    "/scratch/anna/x", "/scratch2/anna/x", "/mnt/data/x", "/gpfs/projects/x", "/lustre/anna", "/lustre03/anna",
    *(f"/{top}/anna/x" for top in ("home", "home2", "Users", "users", "root", "Volumes", "tmp")),
    "/teamspace/studios/x", "/notebooks/dog", "/storage/x", "/dbfs/FileStore/x", "/data/anna/x", "/nobackup/anna",
    "/private/var/folders/x", "/var/folders/x", "/dev/shm/x", "/run/user/1000/x", "/cygdrive/c/x", "/c/Users/anna/x",
    "C:\\Users\\anna", "D:/pictures/dog", "d:\\x", "C:\\\\Users\\\\anna", "\\\\server\\share\\x", "\\\\?\\C:\\x",
    "\\\\wsl$\\Ubuntu\\x", "\\Users\\anna\\x", "~/pictures/dog", "~anna/pictures", "$HOME/x", "${HOME}/x", "$HOME",
    "$SCRATCH/x", "$env:USERPROFILE\\x", "%USERPROFILE%\\x", "%userprofile%", "%APPDATA%\\x", "file:///mnt/data/x",
    "file:/etc/x", "file://server/share/x", "FILE:///C:/x", "/odd9/cluster/anna/x.png",
    "/nas/anna/wedding", "/u/anna/y", "/net/fileserver/anna/x", "/sdcard/DCIM/Anna", "//server/share/anna/x",
    "/hpc/home/anna", "/vol1/anna/x", "ssh://anna@host/home/anna/x", "smb://server/anna",
]  # fmt: skip
FRAMES = ["{}", "trained on {}", '"{}"', "path={}", "path:{}", "({})", "a, {}, b", "pictures:\n{}", "<{}>", "[{}]"]

TOKENS = [
    "hf_" + "aB3" * 11, "api_org_" + "aB3" * 11, "hf_oauth_eyJhbGciOi.x", "hf_jwt_eyJhbGciOi", "ghp_" + "a1" * 18,
    "gho_" + "a1" * 18, "github_pat_" + "a1_" * 10, "glpat-" + "a1-" * 7, "sk-" + "a1B2" * 12, "sk-proj-" + "a1-B_" * 9,
    "sk-ant-api03-" + "a1-B_" * 9, "AKIA" + "A1B2" * 4, "ASIA" + "A1B2" * 4, "aws_secret_access_key = " + "a1/+" * 10,
    "Bearer a1b2c3d4e5f6a7b8", "Authorization: Basic YW5uYTpzZWNyZXQ=", '"Authorization": "token abcdef123456"',
    "AIza" + "a" * 35, "xoxb-123456789012-abcdef", "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxw", "r8_" + "a1" * 18,
    "WANDB_API_KEY=0123456789abcdef", "export HF_TOKEN=secretsecret", "https://anna:secret@example.org/x",
    "https://example.org/x?X-Amz-Signature=0123456789", "-----BEGIN OPENSSH PRIVATE KEY-----",
]  # fmt: skip

HARMLESS = [
    "a photo of sks dog and/or cat", "a dog w/ hat", "w/ hat, w/o collar", "16/9, 3/4 and and/or", "he/she/they", "~20",
    "see https://example.org/home/dog", "https://example.org/~anna/x", "http://example.org:8080/home/x", "a/home/b",
    "s3://bucket/home/x", "hf://alice/cat@v1", "alice/cat", "stable-diffusion-v1-5/stable-diffusion-v1-5", "../home/x",
    "unet.up_blocks.*.attn2.to_q.weight", "ratio 1:/2", "sad :/ dog", "D: happy", "note: a dog", "a:b", "c/o Anna",
    "costs $5/month", "100% wool, 50%", "at home /" + "work/ home", "50 % USER %", "home, sweet home", "/", "a\\b",
    "\\o/",
    "sks", "sk-dog", "sk-learn-compatible-estimators-and-more", "hf_transfer", "hf_hub_download", "hf_internal_testing",
    "a bearer of good news", "standard-bearer internationalization", "Bearer of the ring", "an AKIA dog", "ghp_dog",
    "token: <sks-dog>", "a secret = nothing", "authorization: none", "UNet2DConditionModel/svdiff", "0x" + "ab" * 32,
    "data:image/png;base64,/9j/4AAQSkZJRgABAQAAAQABAAD", "https://github.com/huggingface/diffusers", "10:30/11:00",
    "the path is the goal", "user@example.org", "profile: front", "1/2/3", "a photo of a dog, 4k, f/1.8", "km/h", "-/-",
    "a// b", "unet/down_blocks/0/attn", "(16,down,1)-(8,down,0)",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_path_of_a_machine_is_private_wherever_it_stands(path: str) -> None:
    whole_only = path == "/workspace"  # one folder deep
    for frame in FRAMES[:1] if whole_only else FRAMES:
        if path.startswith("//") and frame.startswith("path:"):
            continue  # an address
        found = find_private(frame.format(path))
        assert found is not None, frame
        assert found.startswith("names the local path ")


@pytest.mark.parametrize("root", ROOTS)
def test_each_top_folder_is_private(root: str) -> None:
    assert find_private(f"see /{root}/anna/dog.png") == f"names the local path /{root}/anna/dog.png"


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("frame", FRAMES)
def test_a_token_is_private_and_is_not_said(token: str, frame: str) -> None:
    assert find_private(frame.format(token)) == "holds an access token"
    with pytest.raises(InputError) as caught:
        check_private([frame.format(token)], f"a prompt {token}")
    assert token not in str(caught.value)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_it_is_not(text: str) -> None:
    assert find_private(text) is None


def test_the_token_in_use_is_private_whatever_its_form(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_private("odd-secret-of-mine") is None
    monkeypatch.setenv("HF_TOKEN", "odd-secret-of-mine")
    assert find_private("x odd-secret-of-mine y") == "holds an access token"
    assert str(HubError("it said odd-secret-of-mine")) == "it said ***"


def test_so_is_the_one_that_a_login_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("another-odd-secret\n", "utf-8")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert find_private("x another-odd-secret") == "holds an access token"
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path))
    assert find_private("x another-odd-secret") is None


def test_the_home_folder_is_private_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/odd/anna")
    assert find_private("in /odd/anna") == "names the local path /odd/anna"
    assert find_private("in /odd/anna/x") == "names the local path /odd/anna/x"
    assert find_private("in /odd/annabel") is None


NESTED = [
    ["a", {"b": [{"c": "/home/anna/x"}]}],
    {"/home/anna/x": 1},
    json.dumps({"a": ["b\n/home/anna/x"]}),
    json.dumps({"a": json.dumps(["\\\\server\\share\\x"])}),
    '{"a": "/home/anna/x", "a": "b"}',
    '["' * 3 + "/home/anna/x",
    [[[[[["\t~anna/x"]]]]]],
]


@pytest.mark.parametrize("value", NESTED)
def test_it_is_found_however_deep_it_stands(value: object) -> None:
    with pytest.raises(InputError, match=r"^it: names the local path .*, which would be published: take it out$"):
        check_private([value], "it")


def test_escapes_of_json_are_no_paths() -> None:
    check_private([json.dumps({"a": 'b\\nc "d"\n\\e', "f": "\\frac{1}{2}"})], "it")


@pytest.mark.parametrize(
    "piece",
    [
        "/",
        "\\",
        "~",
        "$",
        ":/",
        "a",
        "A",
        "A_",
        "sk-",
        "hf_",
        "eyJaaaaaaaa.",
        "://a:",
        "~a",
        "/home",
        "%USER",
        "[",
        '{"',
    ],
)
def test_a_long_text_is_looked_through_soon(piece: str) -> None:
    start = time.process_time()
    find_private(piece * (200_000 // len(piece)))
    assert time.process_time() - start < 5  # what does not end takes for ever
