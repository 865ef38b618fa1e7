"""Broken files of every kind that is read beside deltas; each depends on a seed and a number alone."""

from __future__ import annotations

import atexit
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from support.checkpoints import bert
from support.deltas import random_delta
from support.measured import Files
from support.mutants import MUTATIONS, changes, cut, flip, grow, parsed, written

from svdiff_delta import convert
from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.base_model.kinds import base_kinds
from svdiff_delta.format.file import dumps
from svdiff_delta.ops.merge.recipe import run_recipe
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.batch.manifest import read_manifest
from svdiff_train.settings.config import TrainConfig
from svdiff_train.settings.runfile import read_run

QUERY = "encoder.layer.0.attention.self.query"
Draw = random.Random


@cache
def folder() -> Path:
    """A folder for what all cases share; it goes when the process ends."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-shared-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


@cache
def model() -> Base:
    """The base that adapters are for: a transformers model of one layer."""
    return bert(folder() / "base")


# --- Bytes, JSON and text ---


def of_bytes(draw: Draw, raw: bytes) -> tuple[str, bytes]:
    """Change, take away or add bytes."""
    change = draw.choice([flip, flip, cut, grow])
    return change.__name__, change(draw, raw) if raw else b"x"


def of_tensors(draw: Draw, raw: bytes) -> tuple[str, bytes]:
    """Change a safetensors file: its bytes, its length, its header or its values."""
    name = draw.choice(["flip", "cut", "grow", "length", "values", "header", "header", "header"])
    return name, MUTATIONS[name](draw, raw)


def of_json(draw: Draw, raw: bytes) -> tuple[str, bytes]:
    """Change the tree that a JSON file holds, or its bytes."""
    if draw.random() < 0.25:
        return of_bytes(draw, raw)
    return "json", written(changes(draw, parsed(raw.decode()))).encode("utf-8", "surrogatepass")


PIECES: Sequence[str] = [
    "true", "3", "-1", "1.5", ".nan", "nan", "inf", "1e999", '"x"', "''", "[]", "{}", "[1, x]", "null", "~",
    "2000-01-01", "2000-99-99", "&a [*a]", "*a", "&a x", "<<: *a", "!!float x", "!!int [1]", "!!bool x",
    "!!python/name:os.system x", "!!timestamp x", "!!set {a}", "? a", "|\n  x", "%YAML 9", "---", "...", "\t", "\0",
    "#", "[" * 50, "{a: " * 50, "9" * 5000, "0x" + "f" * 2000, "1:" * 2000, "a." * 200 + "a = 1", "[[x]]", "[x]",
    "x = 1", "é", "\ufeff", "a" * 5000, "*" * 2000, "x: " * 40, '"\\ud800"', "'''", '"""', "- " * 60, "../../x",
    "/dev/zero", "a\\0b",
]  # fmt: skip


def of_text(draw: Draw, raw: bytes) -> tuple[str, bytes]:
    """Change a text that people write: a line, a value behind a sign, or bytes."""
    lines, action = raw.decode().split("\n"), draw.random()
    place = draw.randrange(len(lines))
    if action < 0.3:
        return of_bytes(draw, raw)
    if action < 0.4:
        lines.insert(draw.randrange(len(lines) + 1), lines[place])
    elif action < 0.5:
        del lines[place]
    elif action < 0.65:
        lines.insert(place, draw.choice(PIECES))
    else:
        sign = draw.choice([": ", " = ", "- ", ", ", "["])
        head, found, tail = lines[place].partition(sign)
        rest = tail.partition(",")[2] if found and draw.random() < 0.5 else ""
        lines[place] = head + found + draw.choice(PIECES) + rest
    return "text", "\n".join(lines).encode("utf-8", "surrogatepass")


def one_of(
    draw: Draw, files: Files, change: Callable[[Draw, bytes], tuple[str, bytes]], name: str
) -> tuple[str, Files]:
    """Return files of which one is changed, and what was done to which."""
    mutation, content = change(draw, files[name])
    return f"{mutation} {name}", {**files, name: content}


# --- Adapters of all dialects ---


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensors(values: dict[str, torch.Tensor], **metadata: str) -> bytes:
    return save({key: value.contiguous() for key, value in values.items()}, metadata or None)


@cache
def adapters() -> dict[str, Files]:
    """Valid adapters by dialect, for one layer of the base."""
    flat, down, up = QUERY.replace(".", "_"), normal(2, 16), normal(16, 2, seed=2)
    alpha, vector = torch.tensor(2.0), normal(16)
    base = model().path
    whole = load_file(base / "model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"query": 2}, "alpha_pattern": {".*key": 3}}
    hada = {
        f"lycoris_{flat}.hada_w{n}_{part}": normal(*shape, seed=n)
        for n in (1, 2)
        for part, shape in (("a", (16, 2)), ("b", (2, 16)))
    }
    kron = {f"lycoris_{flat}.lokr_w1": normal(4, 4), f"lycoris_{flat}.lokr_w2": normal(4, 4)}
    dora = {f"base_model.model.{QUERY}.lora_magnitude_vector": normal(16).abs()}
    factors = {f"base_model.model.{QUERY}.lora_A.weight": down, f"base_model.model.{QUERY}.lora_B.weight": up}
    return {
        "peft": {"a/adapter_config.json": json.dumps(config).encode(), "a/adapter_model.safetensors": tensors(factors)},
        "peft with magnitudes": {
            "a/adapter_config.json": json.dumps({**config, "use_dora": True}).encode(),
            "a/adapter_model.safetensors": tensors({**factors, **dora}),
        },
        "kohya": {
            "a.safetensors": tensors(
                {
                    f"lora_te_{flat}.lora_down.weight": down,
                    f"lora_te_{flat}.lora_up.weight": up,
                    f"lora_te_{flat}.alpha": alpha,
                },
                ss_network_args='{"algo": "lora"}',
            )
        },
        "lycoris": {
            "a.safetensors": tensors(
                {
                    f"lycoris_{flat}.lora_down.weight": down,
                    f"lycoris_{flat}.lora_up.weight": up,
                    f"lycoris_{flat}.alpha": alpha,
                }
            )
        },
        "loha": {"a.safetensors": tensors({**hada, f"lycoris_{flat}.alpha": alpha})},
        "lokr": {"a.safetensors": tensors({**kron, f"lycoris_{flat}.alpha": alpha})},
        "diff": {"a.safetensors": tensors({f"lycoris_{flat}.diff": normal(16, 16)})},
        "diffusers": {
            "a.safetensors": tensors(
                {f"model.{QUERY}.lora_A.weight": down, f"model.{QUERY}.lora_B.weight": up},
                lora_adapter_metadata='{"model.r": 2, "model.lora_alpha": 4}',
            )
        },
        "flux": {
            "a.safetensors": tensors(
                {
                    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": down,
                    "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": normal(48, 2),
                }
            )
        },
        "svdiff-pytorch": {
            "a.safetensors": tensors({f"{QUERY}.delta": vector, "embeddings.LayerNorm.delta": normal(1)})
        },
        "svdiff-author": {"a.safetensors": tensors({f"{QUERY}.parametrizations.weight.0.eigenvalues_delta": vector})},
        "svf": {"svf.safetensors": tensors({f"{QUERY}.weight": vector.abs()})},
        "full": {
            "a/model.safetensors": tensors({**whole, f"{QUERY}.weight": 2 * whole[f"{QUERY}.weight"]}),
            "a/config.json": (base / "config.json").read_bytes(),
        },
    }


def broken_adapter(draw: Draw) -> tuple[str, Files]:
    dialect = draw.choice([*adapters()])
    files = adapters()[dialect]
    name = draw.choice([*files])
    mutation, changed = one_of(draw, files, of_json if name.endswith(".json") else of_tensors, name)
    return f"{dialect}: {mutation}", changed


def read_adapter(path: Path) -> None:
    source = path.parent if path.parent.name == "a" else path
    from_ = "svf" if path.stem == "svf" else None  # its numbers do not tell it from Transformer²
    convert(
        source, from_=from_, base=model(), allow_unmatched=True, min_energy=0.0, cache=BasisCache(folder() / "cache")
    )


# --- Recipes, manifests and run files ---

RECIPE = b"""method: dare_ties
density: 0.5
seed: 7
dtype: f16
title: both
inputs:
- {delta: a.delta, weight: 2, where: {text_encoder.*: 0.5}}
- delta: b.delta
- recipe: in.yaml
"""
MANIFEST = b"""base: base
to: kohya
rank: 4
allow_unmatched: yes
files:
- {input: a.delta, output: out/a, title: one}
- input: b.delta
  output: out/b
  min_energy: 0.5
  calibrate_steps: 3
"""
LINES = b"""{"input": "a.delta", "output": "out/a", "base": "base", "rank": 4, "from": "delta"}
{"input": "b.delta", "output": "out/b", "base": "base", "energy": 0.5, "embeddings": true}
"""
RUN = b"""base = "tiny"
images = "dog"
prompt = "a photo of a sks dog"
class_prompt = "a photo of a dog"
steps = 12
learning_rate = 0.001
selectors = ["unet-ca", "unet.mid_block.*"]
flip = true
snr_gamma = 5.0
"""
RUN_OF_TWO = b"""base = "tiny"
mix_probability = 0.5
unmix_weight = 0.1
unmix_resolutions = [8, 16]

[[concepts]]
images = "dog"
prompt = "a photo of a V1 dog"
token = "V1"

[[concepts]]
images = "cat"
prompt = "a photo of a V2 cat"
token = "V2"
"""


@cache
def texts() -> dict[str, Files]:
    one, two = dumps(random_delta(1)), dumps(random_delta(2))
    inner = b"inputs: [{delta: a.delta}, {delta: b.delta, weight: -1}]"
    return {
        "recipe": {"a.yaml": RECIPE, "in.yaml": inner, "a.delta": one, "b.delta": two},
        "manifest": {"a.yaml": MANIFEST},
        "manifest of lines": {"a.jsonl": LINES},
        "run": {"a.toml": RUN},
        "run of two": {"a.toml": RUN_OF_TWO},
    }


def broken_text(draw: Draw) -> tuple[str, Files]:
    kind = draw.choice([*texts()])
    name = next(iter(texts()[kind]))
    mutation, files = one_of(draw, texts()[kind], of_text, name)
    return f"{kind}: {mutation}", files


def read_text(path: Path) -> None:
    if path.suffix == ".toml":
        TrainConfig.from_facts(read_run(path))
    elif (path.parent / "in.yaml").exists():
        run_recipe(path)
    else:
        read_manifest(path)


# --- Base configurations ---


@cache
def bases() -> dict[str, Files]:
    place = model().path
    config, weights = (place / "config.json").read_bytes(), (place / "model.safetensors").read_bytes()
    index = json.dumps({"metadata": {"total_size": 9}, "weight_map": {"a": "model.safetensors"}}).encode()
    named = {
        "_class_name": "StableDiffusionPipeline",
        "text_encoder": ["transformers", "BertModel"],
        "vae": [None, None],
    }
    scheduler = json.dumps({"_class_name": "DDIMScheduler", "prediction_type": "epsilon"}).encode()
    return {
        "model": {"config.json": config, "model.safetensors": weights},
        "shards": {"model.safetensors.index.json": index, "config.json": config, "model.safetensors": weights},
        "pipeline": {
            "model_index.json": json.dumps(named).encode(),
            "text_encoder/config.json": config,
            "text_encoder/model.safetensors": weights,
            "scheduler/scheduler_config.json": scheduler,
        },
    }


def broken_base(draw: Draw) -> tuple[str, Files]:
    kind = draw.choice([*bases()])
    files = bases()[kind]
    name = draw.choice([name for name in files if name.endswith(".json")])
    mutation, changed = one_of(draw, files, of_json, name)
    return f"{kind}: {mutation}", changed


def read_base(path: Path) -> None:
    base = open_base(path.parent)
    list(base.names())
    assert base.info.components
    base_kinds(base)
