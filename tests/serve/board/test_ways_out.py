"""What a mix is saved as is what the commands write of it, byte for byte; and it opens again with its sliders."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.board import varied
from support.commands import svdiff
from support.served import server, service, shifted

from svdiff_delta import add, interpolate, merge, save, scale, select, truncate
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps
from svdiff_delta.ops.merge.recipe import read_recipe
from svdiff_delta.ops.weights import Weight
from svdiff_serve.store.sources import FileSource, FolderSource, source_of


def export(page: httpx.Client, mix: dict[str, Any], form: str, **fields: Any) -> httpx.Response:
    answer = page.post("board/export", json={"mix": mix, "form": form, **fields})
    assert answer.status_code == 200, answer.text
    return answer


def name_of(answer: httpx.Response) -> str:
    found = re.fullmatch(r'attachment; filename="([A-Za-z0-9._-]+)"', answer.headers["content-disposition"])
    assert found is not None
    return found[1]


MIXES: dict[str, dict[str, Any]] = {
    "plain weights": {"terms": [{"name": "dog", "weight": 0.8}, {"name": "pets/bird", "weight": -0.25}]},
    "weights of 1": {"terms": [{"name": "dog"}, {"name": "wide"}]},
    "parts": {
        "terms": [
            {
                "name": "wide",
                "weight": 0.8,
                "parts": [["unet-2d", 0.5], ["unet-ca", 3], ["down.1", 0], ["unet.conv_in.*", -1]],
            },
            {"name": "cat", "weight": 1e-5},
        ]
    },
    "nought": {"terms": [{"name": "dog", "weight": 0, "parts": [["mid", -2]]}, {"name": "cat"}]},
}


TITLE = "Dog & 'cat' — \"both\""


@pytest.mark.parametrize(("which", "title"), [*((which, None) for which in MIXES), ("parts", TITLE)])
def test_recipe_command_and_python_write_what_the_board_saves(
    page: httpx.Client, board_folder: Path, tmp_path: Path, which: str, title: str | None
) -> None:
    mix, fields = MIXES[which], {} if title is None else {"title": title}
    saved = export(page, mix, "delta", **fields).content
    folder = shutil.copytree(board_folder, tmp_path / "deltas")
    recipe = folder / "mix.yaml"
    recipe.write_bytes(export(page, mix, "recipe", **fields).content)
    found = svdiff("merge", "--recipe", recipe, "-o", tmp_path / "recipe.safetensors")
    assert found.code == 0, found.err
    assert (tmp_path / "recipe.safetensors").read_bytes() == saved
    if which in ("plain weights", "parts"):  # the two forms of a command; each is a process of its own
        for form, shell in (("command", ["sh", "-eu"]), ("python", [sys.executable, "-W", "error"])):
            answer = export(page, mix, form, **fields)
            script = answer.text.replace("svdiff merge", f"{sys.executable} -m svdiff_cli merge")
            done = subprocess.run([*shell, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            made = folder / name_of(answer).replace(".sh", ".safetensors").replace(".py", ".safetensors")
            assert made.read_bytes() == saved
            made.unlink()


def test_number_formats_are_those_of_the_command(page: httpx.Client, board_folder: Path, tmp_path: Path) -> None:
    mix = MIXES["plain weights"]
    for dtype in ("F16", "BF16", "I8"):
        out = tmp_path / f"{dtype}.safetensors"
        deltas = [board_folder / "dog.safetensors:0.8", board_folder / "pets/bird.safetensors:-0.25"]
        assert svdiff("merge", *deltas, "--dtype", dtype.lower(), "-o", out).code == 0
        assert export(page, mix, "delta", dtype=dtype).content == out.read_bytes()
        assert f"--dtype {dtype}" in export(page, mix, "command", dtype=dtype).text


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
def test_a_lora_is_what_convert_writes(page: httpx.Client, tmp_path: Path, form: str) -> None:
    mix = MIXES["plain weights"]
    (tmp_path / "mix.safetensors").write_bytes(export(page, mix, "delta").content)
    out = tmp_path / "lora.safetensors"
    found = svdiff("convert", tmp_path / "mix.safetensors", "--to", form, "--base", "tiny", "--rank", "4", "-o", out)
    assert found.code == 0, found.err
    answer = export(page, mix, form, rank=4)
    assert answer.content == out.read_bytes()
    assert (name_of(answer), answer.headers["x-left-out"]) == (f"dog-bird-mix-{form}.safetensors", "0")
    assert 0 < float(answer.headers["x-retained-energy"]) <= 1


def test_norms_are_left_out_of_a_lora_when_that_is_said(page: httpx.Client) -> None:
    mix = {"terms": [{"name": "carded/svdiff"}]}
    refused = page.post("board/export", json={"mix": mix, "form": "kohya"})
    assert refused.status_code == 400
    assert "cannot be carried over" in refused.json()["error"]["message"]
    assert export(page, mix, "kohya", rank=1, leave_out=True).headers["x-left-out"] == "8"


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("../../etc/passwd", "etc-passwd.safetensors"),
        ('a"; filename=evil.exe', "a-filename-evil.exe.safetensors"),
        ("Übermäßig schön", "Ubermaig-schon.safetensors"),
        ("δ", "mix.safetensors"),
        (".hidden", "hidden.safetensors"),
        ("con", "mix-con.safetensors"),
        ("NUL.txt", "mix-NUL.txt.safetensors"),
        ("x" * 200, "x" * 80 + ".safetensors"),
    ],
)
def test_names_of_files_are_safe(page: httpx.Client, title: str, name: str) -> None:
    assert name_of(export(page, MIXES["weights of 1"], "delta", title=title)) == name


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"mix": {"terms": []}, "form": "delta"}, 400, "no δ"),
        ({"mix": {"terms": [{"name": "other"}]}, "form": "delta"}, 404, "another base"),
        ({"mix": {"terms": [{"name": "bog"}]}, "form": "delta"}, 404, "the nearest are"),
        (
            {"mix": {"terms": [{"name": "loud", "weight": 2}]}, "form": "delta", "dtype": "F16"},
            400,
            "F16 ends at 65504",
        ),
        ({"mix": {"terms": [{"name": "dog"}]}, "form": "exe"}, 400, "form"),
        ({"mix": {"terms": [{"name": "dog"}]}, "form": "delta", "title": "a\x1b[2J"}, 400, "title"),
        ({"mix": {"terms": [{"name": "dog"}]}, "form": "kohya", "rank": 0}, 400, "rank: must be a whole number from 1"),
        ({"mix": {"terms": [{"name": "dog"}]}, "form": "comfyui", "dtype": "I8"}, 400, "choose F32, F16 or BF16"),
    ],
)
def test_what_cannot_be_saved_is_refused(page: httpx.Client, body: dict[str, Any], status: int, said: str) -> None:
    answer = page.post("board/export", json=body)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True), answer.text


@pytest.mark.parametrize("which", ["plain weights", "weights of 1", "parts"])
def test_a_saved_mix_opens_with_its_sliders(page: httpx.Client, which: str) -> None:
    saved = export(page, MIXES[which], "delta", title="It").content
    answer = page.post("board/open", content=saved, headers={"content-type": "application/octet-stream"})
    found = answer.json()
    assert (answer.status_code, found["title"], found["missing"], found["message"]) == (200, "It", [], "")
    whole = [{"weight": 1.0, "parts": [], **term} for term in MIXES[which]["terms"]]
    assert found["mix"]["terms"] == whole
    assert export(page, found["mix"], "delta", title="It").content == saved


def test_a_delta_of_the_store_opens_with_its_sliders(page: httpx.Client) -> None:
    found = page.get("board/lineage", params={"name": "both"}).json()
    assert found["mix"]["terms"][0] == {"name": "dog", "weight": 0.8, "parts": [["unet-ca", 0.5], ["down.1", 0.0]]}
    rows = {row["name"]: row["opens"] for row in page.get("board/deltas").json()["deltas"]}
    assert (rows["both"], rows["dog"]) == (True, False)


def opened(page: httpx.Client, delta: Delta) -> Any:
    return page.post("board/open", content=dumps(delta), headers={"content-type": "application/octet-stream"}).json()


def test_what_a_lineage_names_and_the_store_lacks_is_said(page: httpx.Client) -> None:
    lost = varied("mid", 9).with_title("Lost")
    found = opened(page, merge([shifted(0.3), lost], weights=[Weight(0.5), Weight(0.25, {"mid-ca": 0.5})]))
    assert found["mix"]["terms"] == [{"name": "dog", "weight": 0.5, "parts": []}]
    (missing,) = found["missing"]
    assert (missing["title"], missing["weight"], missing["parts"]) == ("Lost", 0.25, [["mid-ca", 2.0]])
    assert found["message"].startswith("1 delta of the 2 that it was mixed of is not here: 'Lost'")


def test_sums_of_other_commands_open_too(page: httpx.Client) -> None:
    dog, cat = shifted(0.3), shifted(-0.3)
    weights = {
        add: [(1.0, "dog"), (0.5, "cat")],
        interpolate: [(0.25, "dog"), (0.75, "cat")],
        scale: [(-0.5, "dog")],
    }
    made = {add: add(dog, (cat, 0.5)), interpolate: interpolate(dog, cat, 0.25), scale: scale(dog, -0.5)}
    for operation, expected in weights.items():
        terms = opened(page, made[operation])["mix"]["terms"]
        assert [(term["weight"], term["name"]) for term in terms] == expected


def test_what_is_no_sum_says_so(page: httpx.Client) -> None:
    dog, cat = shifted(0.3), shifted(-0.3)
    said = {
        "no sliders to open": dog,
        "merged by ties": merge([dog, cat], method="ties", density=0.5),
        "made by slice": select(dog, "mid"),
        "made by truncate": truncate(dog, rank=3),
        "takes one δ twice": add(dog, dog),
        "mixed of 17 deltas": add(*[shifted(number / 100) for number in range(1, 18)]),
        "sample size of its own": merge([dog], weights=[{"(16,down,0)": 0.5}], sample_size=16),
    }
    for words, delta in said.items():
        found = opened(page, delta)
        assert (found["mix"], words in found["message"]) == (None, True), found


def test_a_file_that_is_no_delta_does_not_open(page: httpx.Client) -> None:
    answer = page.post("board/open", content=b"no delta", headers={"content-type": "application/octet-stream"})
    assert (answer.status_code, "no δ that can be opened" in answer.json()["error"]["message"]) == (400, True)


def test_of_ones_own_files_recipes_name_the_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "more/two", "-x"):
        Path(name).parent.mkdir(exist_ok=True)
        save(shifted(len(name) / 10), f"./{name}.safetensors")
    sources = [source_of(text, own=True) for text in ("one.safetensors", "more", "./-x.safetensors")]
    assert [type(source) for source in sources] == [FileSource, FolderSource, FileSource]
    with (
        service(tmp_path, sources=sources) as found,
        server(found) as (url, _, _),
        httpx.Client(base_url=url, timeout=60) as page,
    ):
        mix = {"terms": [{"name": name, "weight": 0.5} for name in ("one", "two", "-x")]}
        command = export(page, mix, "command").text
        words = "one.safetensors:0.5 more/two.safetensors:0.5 ./-x.safetensors:0.5"
        assert command == f"svdiff merge {words} -o one-two--x-mix.safetensors\n"
        Path("mix.yaml").write_bytes(export(page, mix, "recipe").content)
    named = [item.text for item in read_recipe(Path("mix.yaml")).inputs]
    assert named == ["one.safetensors", "more/two.safetensors", "-x.safetensors"]
