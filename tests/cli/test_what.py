"""`svdiff what`: files, folders and repositories are told from their headers, and what is broken stops nothing."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path

import pytest
from support.commands import svdiff
from support.deltas import random_delta, saved
from support.hub import Fault, Hub

from svdiff_delta.adapters.places import look
from svdiff_delta.format.container import header_bytes
from svdiff_delta.format.file import dumps

Tensors = Mapping[str, tuple[int, ...]]

Q = "transformer_blocks.0.attn.to_q"


def safetensors(tensors: Tensors, metadata: Mapping[str, str] = {}, dtype: str = "F16") -> bytes:
    """A file of zeros."""
    head = header_bytes([(name, dtype, shape) for name, shape in sorted(tensors.items())], metadata)
    return head + bytes(sum({"F16": 2, "F32": 4}[dtype] * prod(shape) for shape in tensors.values()))


def lora(module: str, down: str = ".lora_down.weight", up: str = ".lora_up.weight", rank: int = 4) -> Tensors:
    return {f"{module}{down}": (rank, 3072), f"{module}{up}": (9216, rank)}


FLUX = "lora_unet_double_blocks_0_img_attn_qkv"
PEFT = (".lora_A.weight", ".lora_B.weight")

FILES: dict[str, tuple[Tensors, Mapping[str, str], tuple[str, str, str, str]]] = {
    # file: tensors, metadata, and the method, dialect, family and program that are told
    "musubi": (
        {**lora("lora_unet_layers_0_attention_qkv"), "lora_unet_layers_0_attention_qkv.alpha": ()},
        {"ss_network_module": "networks.lora_zimage", "ss_network_alpha": "1.0"},
        ("LoRA", "kohya", "Z-Image", "musubi-tuner"),
    ),
    "kohya": (lora(FLUX), {"ss_network_module": "networks.lora_flux"}, ("LoRA", "kohya", "Flux", "kohya's sd-scripts")),
    "toolkit": (
        lora("diffusion_model.double_blocks.0.img_attn.qkv", *PEFT),
        {"software": '{"name": "ai-toolkit", "version": "0.7"}'},
        ("LoRA", "comfyui", "Flux", "ai-toolkit"),
    ),
    "diffsynth": (
        lora("pipe.dit.blocks.0.self_attn.q", ".lora_A.default.weight", ".lora_B.default.weight"),
        {},
        ("LoRA", "diffusers", "Wan", "DiffSynth"),
    ),
    "onetrainer": (
        {**lora("lora_transformer_single_transformer_blocks_0_attn_to_q"), "x.y.lora_down.weight": (4, 8)},
        {"ot_branch": "master"},
        ("LoRA", "kohya", "Flux", "OneTrainer"),
    ),
    "dora": (
        {**lora(f"transformer.single_{Q}", *PEFT), f"transformer.single_{Q}.lora_magnitude_vector": (9216,)},
        {"lora_adapter_metadata": "{}"},
        ("DoRA", "diffusers", "Flux", "diffusers"),
    ),
    "loha": (
        {f"{FLUX}.hada_w{i}_{half}": (4, 4) for i in (1, 2) for half in "ab"},
        {"ss_network_module": "lycoris.kohya"},
        ("LoHa", "kohya", "Flux", "LyCORIS"),
    ),
    "lokr": ({"lycoris_mid_block_x.lokr_w1": (4, 4)}, {}, ("LoKr", "lycoris", "a UNet of diffusers", "one of")),
    "oft": ({"lycoris_mid_block_x.oft_blocks": (4, 4, 4)}, {}, ("OFT", "lycoris", "a UNet of diffusers", "")),
}


@pytest.mark.parametrize("name", FILES)
def test_an_adapter_says_what_it_is(tmp_path: Path, name: str) -> None:
    tensors, metadata, told = FILES[name]
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(safetensors(tensors, metadata))
    (found,) = look(str(path))
    assert found.kind == "adapter"
    assert (found.method, found.dialect, found.family) == told[:3]
    assert found.program.startswith(told[3])
    assert (found.size, found.dtypes) == (path.stat().st_size, ("F16",))


def test_ranks_alphas_and_the_base_are_said(tmp_path: Path) -> None:
    tensors = {**lora("lora_unet_a", rank=8), **lora("lora_unet_b"), **lora("lora_unet_c"), "lora_unet_a.alpha": ()}
    path = tmp_path / "x"
    path.write_bytes(safetensors(tensors, {"ss_base_model_version": "sdxl_base_v1-0"}))
    (found,) = look(str(path))
    assert (found.ranks, found.alpha, found.base, found.layers) == (
        ((4, 2), (8, 1)),
        "in the file",
        "sdxl_base_v1-0",
        3,
    )


OTHERS: dict[str, tuple[Tensors, str, str, str]] = {
    "checkpoint": (
        {
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
            "first_stage_model.decoder.conv_in.weight": (4, 4, 3, 3),
            "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768),
        },
        "model",
        "single-file checkpoint: denoiser and more",
        "",
    ),
    "unet": ({"down_blocks.0.attentions.0.attn2.to_k.weight": (320, 768)}, "model", "a model's weights", "1.x"),
    "inversion": ({"emb_params": (4, 768)}, "embedding", "textual inversion", "1.x"),
    "inversion of SDXL": ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "embedding", "textual inversion", "SDXL"),
    "shifts": ({"down_blocks.0.x.delta": (320,)}, "shifts", "svdiff-pytorch's shifts", ""),
    "nothing": ({}, "unknown", "no tensors", ""),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_adapter_is_told_too(tmp_path: Path, name: str) -> None:
    tensors, kind, sort, family = OTHERS[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors(tensors))
    (found,) = look(str(path))
    assert (found.kind, found.method) == (kind, sort)
    assert found.family.endswith(family)


def folder_of_all(root: Path) -> Path:
    """A folder of everything: two adapters, a delta, a PEFT folder, a pipeline, a pickle, and what is broken."""
    (root / "deep").mkdir()
    (root / "deep" / "a.safetensors").write_bytes(safetensors(lora(FLUX)))
    (root / "b.safetensors").write_bytes(safetensors(lora(FLUX)))
    saved(random_delta(1), root / "delta.safetensors")
    (root / "cut.safetensors").write_bytes(safetensors(lora(FLUX))[:-1])
    (root / "noise.safetensors").write_bytes(b"\xff" * 100)
    (root / "old.ckpt").write_bytes(pickle.dumps([1], protocol=2))
    (root / "packed.gguf").write_bytes(b"GGUF" + bytes(20))
    (root / "notes.txt").write_text("x")
    (root / "peft").mkdir()
    (root / "peft" / "adapter_config.json").write_text('{"peft_type": "LOHA", "lora_alpha": 3}')
    (root / "peft" / "adapter_model.safetensors").write_bytes(safetensors(lora("base_model.model.x.y", *PEFT)))
    (root / "pipe" / "unet").mkdir(parents=True)
    (root / "pipe" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (root / "pipe" / "unet" / "model.safetensors").write_bytes(safetensors({"a.weight": (2, 2)}))
    return root


KINDS = {
    "b.safetensors": "adapter",
    "cut.safetensors": "broken",
    "deep/a.safetensors": "adapter",
    "delta.safetensors": "delta",
    "noise.safetensors": "broken",
    "old.ckpt": "pickle",
    "packed.gguf": "model",
    "peft": "adapter",
    "pipe": "model",
}


def test_a_folder_is_looked_through_and_nothing_stops_it(tmp_path: Path) -> None:
    outcome = svdiff("what", folder_of_all(tmp_path), "--json")
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert outcome.code == 1  # two are broken
    assert {Path(row["path"]).relative_to(tmp_path).as_posix(): row["kind"] for row in rows} == KINDS
    peft = next(row for row in rows if row["path"].endswith("peft"))
    assert (peft["method"], peft["dialect"], peft["alpha"]) == ("LoHa", "peft", "3")


def test_a_table_has_a_line_for_each_and_an_error_for_the_broken(tmp_path: Path) -> None:
    outcome = svdiff("what", folder_of_all(tmp_path))
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["file", "what", "dialect", "family", "rank", "dtype", "layers", "bytes"]
    assert lines[-1] == "9 files, 2 broken"
    assert len(lines) == 1 + 7 + 2
    errors = outcome.err.splitlines()
    assert [line.partition(":")[0] for line in errors] == ["error", "error"]
    assert "the file is cut off" in errors[0]
    assert outcome.code == 1


def test_one_file_says_what_takes_it_on(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors(lora(FLUX)))
    outcome = svdiff("what", path)
    assert outcome.code == 0
    assert f"next        svdiff convert {path} --base BASE -o DELTA.safetensors\n" in outcome.out
    assert f"next        svdiff convert {path} --to comfyui -o NEW.safetensors\n" in outcome.out


def test_names_of_strangers_reach_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / "evil\x1b[2J.safetensors"
    path.write_bytes(safetensors(lora(FLUX), {"software": "\x1b[31mred", "ss_base_model_version": "\x07" * 3}))
    for arguments in ([path], [path, path], [path, "--json"]):
        outcome = svdiff("what", *arguments)
        assert outcome.code == 0
        assert not set(outcome.out + outcome.err) & set("\x1b\x07")


HEADERS = {
    "a length beyond the file": struct.pack("<Q", 5_000) + b"{}",
    "no JSON": struct.pack("<Q", 8) + b"{nothing",
    "a hole": safetensors({"a": (2,)}) + bytes(3),
    "empty": b"",
}


@pytest.mark.parametrize("raw", HEADERS.values(), ids=HEADERS)
def test_a_broken_header_is_one_line(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    outcome = svdiff("what", path)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"error: {path}: ")
    assert outcome.err.count("\n") == 1


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    for place in (tmp_path / "nope", tmp_path):
        outcome = svdiff("what", place)
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)


def test_a_repository_is_looked_at_by_its_headers(hub: Hub) -> None:
    big = {
        f"lora_unet_double_blocks_{i}_img_attn_qkv": lora(f"lora_unet_double_blocks_{i}_img_attn_qkv")
        for i in range(19)
    }
    files = {
        "small.safetensors": safetensors(lora(FLUX)),
        "large.safetensors": safetensors({key: shape for part in big.values() for key, shape in part.items()}),
        "long.safetensors": safetensors(lora(FLUX), {"note": "x" * 100_000}),
        "svdiff.safetensors": dumps(random_delta(1)),
        "config.json": b"{}",
        "README.md": b"",
        "old.bin": b"\x80\x02" + bytes(100),
    }
    hub.add("alice/all", files)
    found = {Path(described.path).name: described for described in look("alice/all")}
    assert {name: described.kind for name, described in found.items()} == {
        "large.safetensors": "adapter",
        "long.safetensors": "adapter",
        "old.bin": "pickle",
        "small.safetensors": "adapter",
        "svdiff.safetensors": "delta",
    }
    assert {name: described.size for name, described in found.items()} == {name: len(files[name]) for name in found}
    assert found["large.safetensors"].layers == 19
    (one,) = look("alice/all/small.safetensors")
    assert one.path == "alice/all/small.safetensors"


def test_what_the_hub_lacks_is_one_line(hub: Hub) -> None:
    outcome = svdiff("what", "alice/none")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: alice/none: there is no such file or folder")


# --- find ---


def card(kind: str, base: str = "owner/base", said: str = "") -> bytes:
    return f"---\nbase_model: {base}\nbase_model_relation: adapter\ntags: [{kind}]\n{said}---\n".encode()


def ask(when: str) -> str:
    return f"said: {{lastModified: '{when}T10:00:00.000Z'}}\n"


@pytest.fixture
def shared(hub: Hub) -> Hub:
    """A hub with what people made of a base."""
    hub.add("ann/old", {"README.md": card("svdiff", said=ask("2026-01-02")), "svdiff.safetensors": b"x" * 1000})
    hub.add("bob/lora", {"README.md": card("lora", said=ask("2026-11-01"))})
    hub.add("cy/other", {"README.md": card("lora", base="owner/another")})
    hub.add("di/tuned", {"README.md": card("x").replace(b"adapter", b"finetune")})
    hub.add("ed/new", {"README.md": card("svdiff", said=ask("2026-11-03"))})
    return hub


def test_a_base_finds_its_deltas_and_adapters(shared: Hub) -> None:
    outcome = svdiff("find", "owner/base")
    assert outcome.code == 0
    rows = [line.split() for line in outcome.out.splitlines()]
    assert [row[:3] for row in rows[:3]] == [
        ["δ", "ed/new", "2026-11-03"],
        ["δ", "ann/old", "2026-01-02"],
        ["LoRA", "bob/lora", "2026-11-01"],
    ]
    assert outcome.out.splitlines()[-1] == "3 repositories for owner/base"
    lines = [json.loads(line) for line in svdiff("find", "owner/base", "--deltas", "--json").out.splitlines()]
    assert [line["repository"] for line in lines] == ["ed/new", "ann/old"]
    assert lines[1]["size"] == sum(map(len, shared.files("ann/old").values()))
    assert svdiff("find", "owner/none").out == "0 repositories for owner/none\n"


def test_strangers_write_nothing_to_the_terminal(hub: Hub) -> None:
    hub.add("ann/\x1b[2Jx", {"README.md": card("svdiff")})
    for arguments in (["--json"], []):
        outcome = svdiff("find", "owner/base", *arguments)
        assert outcome.code == 0
        assert "\x1b" not in outcome.out + outcome.err


@pytest.mark.parametrize("fault", ["status", "bomb", "cut"])
def test_a_hub_that_fails_is_one_line(shared: Hub, fault: str) -> None:
    shared.faults.append(Fault("api/models", fault))
    outcome = svdiff("find", "owner/base")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert outcome.err.startswith("error: owner/base: ")


def test_what_names_no_repository_is_refused(shared: Hub) -> None:
    outcome = svdiff("find", "../x")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: ../x: names no repository: write ")
    assert not shared.asked


# --- from LoRA to LoRA, by the command ---


def test_what_it_says_to_do_does_it(tmp_path: Path) -> None:
    path, new = tmp_path / "x.safetensors", tmp_path / "NEW.safetensors"
    path.write_bytes(safetensors({f"{FLUX}.lora_down.weight": (4, 8), f"{FLUX}.lora_up.weight": (24, 4)}))
    outcome = svdiff("convert", path, "--to", "comfyui", "-o", new)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"wrote {new}: 1 module, 2 tensors, {new.stat().st_size:,} bytes\n"
    assert next(look(str(new))).dialect == "comfyui"
    facts = json.loads(svdiff("convert", new, "--to", "diffusers", "-o", tmp_path / "d", "--json").out)
    assert (facts["modules"], facts["layers"], facts["tensors"], facts["written"]) == (1, 3, 6, True)


REFUSED = {
    "a number format": (["--to", "comfyui", "--dtype", "F16"], 1, "keeps its number formats: leave --dtype away"),
    "no base for a delta": ([], 2, "Missing option '--base'."),
    "no base for a rank": (["--to", "kohya", "--rank", "4"], 2, "Missing option '--base'."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_way_that_is_not_direct_needs_its_base(tmp_path: Path, case: str) -> None:
    arguments, code, message = REFUSED[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors(lora(FLUX)))
    outcome = svdiff("convert", path, *arguments, "-o", tmp_path / "new")
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err


def test_thousands_go_by_a_manifest(tmp_path: Path) -> None:
    rows = []
    for index in range(3):
        rank = 4 + index
        raw = safetensors({f"{FLUX}.lora_down.weight": (rank, 8), f"{FLUX}.lora_up.weight": (24, rank)})
        (tmp_path / f"{index}.safetensors").write_bytes(raw)
        rows.append({"input": f"{index}.safetensors", "output": f"new/{index}.safetensors", "to": "comfyui"})
    (tmp_path / "new").mkdir()
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = svdiff("convert", "--manifest", tmp_path / "all.jsonl")
    assert outcome.code == 0, outcome.err
    assert "3 converted, 0 passed over, 0 failed" in outcome.out
    assert "0 converted, 3 passed over, 0 failed" in svdiff("convert", "--manifest", tmp_path / "all.jsonl").out
    (tmp_path / "bad.jsonl").write_text(json.dumps({**rows[0], "to": "delta"}) + "\n")
    assert "row 1: has no base" in svdiff("convert", "--manifest", tmp_path / "bad.jsonl").err
