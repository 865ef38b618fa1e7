"""What each dialect's keys mean: ΔW equals the full-weight formula in float64, written down here once more."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.adapters import save_peft, save_tensors, taken
from support.checkpoints import bert, true_shift
from support.weights import normal, relative
from torch import Tensor

from svdiff_delta import convert
from svdiff_delta.base import Base
from svdiff_delta.cache import BasisCache
from svdiff_delta.convert import DIALECTS
from svdiff_delta.convert.dialect import Changes, Job
from svdiff_train.tiny import open_tiny

QUERY = "encoder.layer.0.attention.self.query"  # 16 x 16
GROW = "encoder.layer.0.intermediate.dense"  # 24 x 16
SHRINK = "encoder.layer.0.output.dense"  # 16 x 24
Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"  # from text
CONV = "mid_block.resnets.0.conv1"
FLAT = {path: path.replace(".", "_") for path in (Q, KEY, CONV)}
TEXT = "encoder.layers.1.mlp.fc1"
WIDE, CONTEXT = open_tiny().shape(f"unet.{KEY}.weight")
GROWN, TEXT_WIDE = open_tiny().shape(f"text_encoder.{TEXT}.weight")


@pytest.fixture
def model(tmp_path: Path) -> Base:
    return bert(tmp_path / "bert")


@pytest.fixture(scope="module")
def tiny() -> Base:
    return open_tiny()


def changes(path: Path, dialect: str, base: Base) -> Changes:
    found = DIALECTS[dialect].read
    assert found is not None
    return found(str(path), Job(base, BasisCache()))


def only(path: Path, dialect: str, base: Base, name: str) -> Tensor:
    """Return ΔW of the one weight that a file changes."""
    found = changes(path, dialect, base)
    assert [*found.kinds] == [name]
    assert found.left_out == {}
    change = found.read(name)
    assert change.dtype == torch.float64
    assert change.shape == base.shape(name)
    return change


def factors(rows: int, rank: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return normal(rows, rank, seed=seed), normal(rank, columns, seed=seed + 1)


def lora(path: str, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    return {f"{path}.lora_B.weight": up, f"{path}.lora_A.weight": down}


# --- PEFT ---


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 1}, 0.25),
        ({"r": 4, "lora_alpha": -6}, -1.5),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"r": 8, "lora_alpha": 8, "rank_pattern": {"query": 4}}, 2.0),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"attention.self.query": 2}}, 0.5),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"^query": 2, "self.quer.": 16, "query": 3}}, 4.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"query": 3}}, 1.5),
        ({"r": 4, "lora_alpha": 8, "fan_in_fan_out": True}, 2.0),  # of a Linear layer PEFT ignores it
    ],
)
def test_peft_s_scale(model: Base, tmp_path: Path, config: Mapping[str, Any], scale: float) -> None:
    up, down = factors(16, 4, 16)
    path = save_peft(tmp_path / "lora", lora(QUERY, up, down), **config)
    expected = scale * up.double() @ down.double()
    assert relative(only(path, "peft", model, f"model.{QUERY}.weight"), expected) < 1e-14


@pytest.mark.parametrize("rank", [1, 3, 40])
def test_any_rank_even_one_above_k(model: Base, tmp_path: Path, rank: int) -> None:
    up, down = factors(24, rank, 16)
    path = save_peft(tmp_path / "lora", lora(GROW, up, down), r=rank, lora_alpha=rank)
    assert relative(only(path, "peft", model, f"model.{GROW}.weight"), up.double() @ down.double()) < 1e-14


KINDS: dict[str, Callable[[Path, Tensor, Tensor, float], Path]] = {
    "peft": lambda path, up, down, alpha: save_peft(path, lora(Q, up, down), r=len(down), lora_alpha=alpha),
    "diffusers": lambda path, up, down, alpha: save_tensors(
        path,
        {f"unet.{Q}.lora.up.weight": up, f"unet.{Q}.lora.down.weight": down, f"unet.{Q}.alpha": torch.tensor(alpha)},
    ),
    "kohya": lambda path, up, down, alpha: save_tensors(
        path, module(Q, lora_up__weight=up, lora_down__weight=down, alpha=torch.tensor(alpha))
    ),
    "lycoris": lambda path, up, down, alpha: save_tensors(
        path, module(Q, "lycoris", lora_up__weight=up, lora_down__weight=down, alpha=torch.tensor(alpha))
    ),
}


@pytest.mark.parametrize("dialect", KINDS)
@pytest.mark.parametrize(("rank", "alpha"), [(1, 1.0), (3, 1.5), (4, -6.0), (WIDE + 8, 5.0)])
def test_the_weight_that_comes_out_is_w_plus_alpha_by_rank_times_b_a(
    tiny: Base, tmp_path: Path, dialect: str, rank: int, alpha: float
) -> None:
    up, down = factors(WIDE, rank, WIDE)
    name, W = f"unet.{Q}.weight", tiny.read(f"unet.{Q}.weight").double()
    change = only(KINDS[dialect](tmp_path / "x", up, down, alpha), dialect, tiny, name)
    whole = W + alpha / rank * (up.double() @ down.double())
    assert relative(W + change, whole) < 1e-14


def test_mixed_ranks_each_have_their_own_scale(model: Base, tmp_path: Path) -> None:
    a, b = factors(16, 2, 16), factors(16, 5, 24, seed=2)
    tensors = lora(QUERY, *a) | lora(SHRINK, *b)
    found = changes(save_peft(tmp_path / "lora", tensors, r=2, rank_pattern={SHRINK: 5}, lora_alpha=4), "peft", model)
    assert relative(found.read(f"model.{QUERY}.weight"), 2.0 * a[0].double() @ a[1].double()) < 1e-14
    assert relative(found.read(f"model.{SHRINK}.weight"), 0.8 * b[0].double() @ b[1].double()) < 1e-14


def test_peft_s_dora(model: Base, tmp_path: Path) -> None:
    up, down = factors(24, 4, 16)
    magnitude = normal(24, seed=9).abs() + 1
    tensors = {**lora(GROW, up, down), f"{GROW}.lora_magnitude_vector": magnitude}
    path = save_peft(tmp_path / "lora", tensors, r=4, lora_alpha=2, use_dora=True)
    W = model.read(f"model.{GROW}.weight").double()
    moved = W + 0.5 * up.double() @ down.double()
    expected = magnitude.double()[:, None] * moved / moved.norm(dim=1, keepdim=True) - W
    assert relative(only(path, "peft", model, f"model.{GROW}.weight"), expected) < 1e-14


def test_peft_s_embedding(model: Base, tmp_path: Path) -> None:
    path = "embeddings.word_embeddings"
    a, b = normal(3, 40), normal(16, 3, seed=1)
    tensors = {f"{path}.lora_embedding_A": a, f"{path}.lora_embedding_B": b}
    folder = save_peft(tmp_path / "lora", tensors | lora(QUERY, *factors(16, 3, 16)), r=3, lora_alpha=6)
    found = changes(folder, "peft", model)
    assert found.left_out == {f"model.{path}.weight": "changes, and is of no kind that can be shifted"}
    read = DIALECTS["peft"].read
    assert read is not None
    change = read(str(folder), Job(model, BasisCache(), embeddings=True)).read(f"model.{path}.weight")
    assert relative(change, 2 * (b.double() @ a.double()).T) < 1e-14


def test_gpt2_s_layers_are_stored_transposed(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from svdiff_delta import open_base

    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    gpt.save_pretrained(tmp_path / "gpt2")
    base = open_base(tmp_path / "gpt2")
    key = "transformer.h.0.attn.c_attn"
    up, down = factors(24, 3, 8)
    path = save_peft(tmp_path / "lora", lora(key, up, down), r=3, lora_alpha=3, fan_in_fan_out=True)
    found = changes(path, "peft", base)
    (name,) = found.kinds
    assert base.shape(name) == (8, 24)
    assert relative(found.read(name), (up.double() @ down.double()).T) < 1e-14


def test_a_module_that_was_saved_whole_replaces_the_base_s(model: Base, tmp_path: Path) -> None:
    new = normal(16, 16, seed=4)
    path = save_peft(tmp_path / "lora", {f"{QUERY}.weight": new}, modules_to_save=["query"], r=4, lora_alpha=4)
    W = model.read(f"model.{QUERY}.weight")
    assert torch.equal(only(path, "peft", model, f"model.{QUERY}.weight"), new.double() - W.double())


def test_biases_are_listed_where_they_differ_from_the_base_s(model: Base, tmp_path: Path) -> None:
    same = model.read(f"model.{QUERY}.bias")
    tensors = lora(QUERY, *factors(16, 2, 16)) | {f"{QUERY}.bias": same, f"{GROW}.bias": normal(24)}
    tensors |= {f"{QUERY}.lora_B.bias": normal(16)}
    found = changes(save_peft(tmp_path / "lora", tensors, r=2, lora_alpha=2, bias="lora_only"), "peft", model)
    prefix = "base_model.model."
    assert found.left_out == {f"{prefix}{GROW}.bias": "is a bias", f"{prefix}{QUERY}.lora_B.bias": "is a bias"}
    a, b = (tensors[f"{QUERY}.lora_{side}.weight"].double() for side in "BA")
    assert relative(found.read(f"model.{QUERY}.weight"), a @ b) < 1e-14


def test_a_config_without_alpha_has_peft_s_default_and_says_so(model: Base, tmp_path: Path) -> None:
    up, down = factors(16, 4, 16)
    found = changes(save_peft(tmp_path / "lora", lora(QUERY, up, down), r=4), "peft", model)
    assert relative(found.read(f"model.{QUERY}.weight"), 2 * up.double() @ down.double()) < 1e-14
    assert found.remarks == ("adapter_config.json gives no lora_alpha: taken to be 8, as PEFT does",)


def test_folders_for_each_component_are_read_together(tiny: Base, tmp_path: Path) -> None:
    a, b = factors(WIDE, 2, WIDE), factors(GROWN, 2, TEXT_WIDE)
    (tmp_path / "lora").mkdir()
    save_peft(tmp_path / "lora" / "unet", lora(Q, *a), r=2, lora_alpha=2)
    save_peft(tmp_path / "lora" / "text_encoder", lora(f"text_model.{TEXT}", *b), r=2, lora_alpha=4)
    found = changes(tmp_path / "lora", "peft", tiny)
    assert [*found.kinds] == [f"text_encoder.{TEXT}.weight", f"unet.{Q}.weight"]
    assert relative(found.read(f"text_encoder.{TEXT}.weight"), 2 * b[0].double() @ b[1].double()) < 1e-14
    assert len(found.sources()) == 2


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 6},
        {"r": 4, "lora_alpha": 6, "use_rslora": True, "rank_pattern": {"intermediate.dense": 2}},
        {"r": 4, "lora_alpha": 6, "use_dora": True, "alpha_pattern": {"query": 1, "0.output.dense": 12}},
        {"r": 1, "lora_alpha": -2},
        {"r": 20, "lora_alpha": 5},
    ],
)
def test_peft_itself_makes_the_same_of_what_it_wrote(model: Base, tmp_path: Path, config: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    live: Any = AutoModel.from_pretrained(model.path).double()
    before = {key: value.clone() for key, value in live.state_dict().items()}
    targets = ["query", "intermediate.dense", "0.output.dense"]
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):  # PEFT asks transformers for it
        wrapped: Any = get_peft_model(live, LoraConfig(target_modules=targets, init_lora_weights=False, **config))
    assert taken(wrapped) == len(targets)
    wrapped.save_pretrained(tmp_path / "lora")
    found = changes(tmp_path / "lora", "peft", model)
    assert [*found.kinds] == sorted(f"model.{path}.weight" for path in (QUERY, GROW, SHRINK))
    assert found.left_out == {}
    merged = wrapped.merge_and_unload().state_dict()
    for name in found.kinds:
        key = name.removeprefix("model.")
        assert relative(found.read(name), merged[key] - before[key]) < 1e-6, name  # PEFT keeps factors in float32


# --- diffusers ---

SPELLINGS = {
    "today's": (f"unet.{Q}.lora_A.weight", f"unet.{Q}.lora_B.weight"),
    "diffusers 0.2x": (f"unet.{Q}.lora.down.weight", f"unet.{Q}.lora.up.weight"),
    "processors": tuple(f"unet.{Q.replace('.to_q', '.processor.to_q_lora')}.{side}.weight" for side in ("down", "up")),
    "no component": (f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_diffusers(tiny: Base, tmp_path: Path, spelling: str) -> None:
    up, down = factors(WIDE, 3, WIDE)
    a, b = SPELLINGS[spelling]
    path = save_tensors(tmp_path / "x.safetensors", {a: down, b: up})
    assert relative(only(path, "diffusers", tiny, f"unet.{Q}.weight"), up.double() @ down.double()) < 1e-14
    (remark,) = changes(path, "diffusers", tiny).remarks
    assert remark.startswith("no alpha in 1 modules (")
    assert remark.endswith("taken to be the rank, a scale of 1")


@pytest.mark.parametrize(
    ("inner", "name"),
    [
        ("text_model.encoder.layers.1.self_attn.to_q_lora.{}.weight", "encoder.layers.1.self_attn.q_proj"),
        ("text_model.encoder.layers.1.self_attn.to_out_lora.{}.weight", "encoder.layers.1.self_attn.out_proj"),
        ("text_model.encoder.layers.1.mlp.fc1.lora_linear_layer.{}.weight", TEXT),
    ],
)
def test_old_spellings_of_text_encoders(tiny: Base, tmp_path: Path, inner: str, name: str) -> None:
    up, down = factors(tiny.shape(f"text_encoder.{name}.weight")[0], 3, TEXT_WIDE)
    tensors = {f"text_encoder.{inner}".format("up"): up, f"text_encoder.{inner}".format("down"): down}
    path = save_tensors(tmp_path / "x.safetensors", tensors)
    found = only(path, "diffusers", tiny, f"text_encoder.{name}.weight")
    assert relative(found, up.double() @ down.double()) < 1e-14


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"unet.r": 3, "unet.lora_alpha": 6}, 2.0),
        ({"unet.r": 3, "unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_q": 9}}, 3.0),
        ({"text_encoder.lora_alpha": 6}, 1.0),
    ],
)
def test_diffusers_metadata_gives_the_scale(tiny: Base, tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    up, down = factors(WIDE, 3, WIDE)
    tensors = {f"unet.{Q}.lora_A.weight": down, f"unet.{Q}.lora_B.weight": up}
    path = save_tensors(tmp_path / "x.safetensors", tensors, lora_adapter_metadata=json.dumps(config))
    expected = scale * up.double() @ down.double()
    assert relative(only(path, "diffusers", tiny, f"unet.{Q}.weight"), expected) < 1e-14


def test_a_key_with_alpha_gives_the_scale_too(tiny: Base, tmp_path: Path) -> None:
    up, down = factors(WIDE, 4, WIDE)
    tensors = {f"unet.{Q}.lora.down.weight": down, f"unet.{Q}.lora.up.weight": up, f"unet.{Q}.alpha": torch.tensor(1.0)}
    path = save_tensors(tmp_path / "x.safetensors", tensors)
    assert relative(only(path, "diffusers", tiny, f"unet.{Q}.weight"), 0.25 * up.double() @ down.double()) < 1e-14


# --- kohya and LyCORIS ---


def module(path: str, prefix: str = "lora_unet", **tensors: Tensor) -> dict[str, Tensor]:
    return {f"{prefix}_{FLAT[path]}.{key.replace('__', '.')}": value for key, value in tensors.items()}


@pytest.mark.parametrize(("alpha", "scale"), [(4.0, 1.0), (1.0, 0.25), (-2.0, -0.5), (None, 1.0), (0.0, 1.0)])
def test_kohya_s_alpha(tiny: Base, tmp_path: Path, alpha: float | None, scale: float) -> None:
    up, down = factors(WIDE, 4, CONTEXT)
    tensors = module(KEY, lora_up__weight=up, lora_down__weight=down)
    if alpha is not None:
        tensors |= module(KEY, alpha=torch.tensor(alpha))
    path = save_tensors(tmp_path / "x.safetensors", tensors)
    expected = scale * up.double() @ down.double()
    assert relative(only(path, "kohya", tiny, f"unet.{KEY}.weight"), expected) < 1e-14
    said = changes(path, "kohya", tiny).remarks
    assert bool(said) == (not alpha)
    assert all("taken to be the rank, a scale of 1" in remark for remark in said)


def test_kohya_s_convolution(tiny: Base, tmp_path: Path) -> None:
    up, down = normal(WIDE, 4, 1, 1), normal(4, WIDE, 3, 3, seed=1)
    path = save_tensors(
        tmp_path / "x.safetensors",
        module(CONV, lora_up__weight=up, lora_down__weight=down, alpha=torch.tensor(2.0)),
    )
    expected = 0.5 * torch.einsum("or,rikl->oikl", up.double()[..., 0, 0], down.double())
    assert relative(only(path, "kohya", tiny, f"unet.{CONV}.weight"), expected) < 1e-14


def test_kohya_s_convolution_with_a_core(tiny: Base, tmp_path: Path) -> None:
    up, mid, down = normal(WIDE, 4, 1, 1), normal(4, 4, 3, 3, seed=1), normal(4, WIDE, 1, 1, seed=2)
    tensors = module(CONV, lora_up__weight=up, lora_mid__weight=mid, lora_down__weight=down, alpha=torch.tensor(8.0))
    path = save_tensors(tmp_path / "x.safetensors", tensors)
    expected = 2 * torch.einsum("or,rskl,si->oikl", up.double()[..., 0, 0], mid.double(), down.double()[..., 0, 0])
    assert relative(only(path, "kohya", tiny, f"unet.{CONV}.weight"), expected) < 1e-13


def test_kohya_s_text_encoder(tiny: Base, tmp_path: Path) -> None:
    up, down = factors(GROWN, 2, TEXT_WIDE)
    for prefix in ("lora_te_text_model_encoder", "lora_te1_text_model_encoder", "lora_te_encoder"):
        flat = f"{prefix}_layers_1_mlp_fc1"
        tensors = {f"{flat}.lora_up.weight": up, f"{flat}.lora_down.weight": down, f"{flat}.alpha": torch.tensor(2.0)}
        path = save_tensors(tmp_path / f"{prefix}.safetensors", tensors)
        found = only(path, "kohya", tiny, f"text_encoder.{TEXT}.weight")
        assert relative(found, up.double() @ down.double()) < 1e-14


def lycoris(path: Path, dialect_keys: dict[str, Tensor]) -> Path:
    return save_tensors(path / "x.safetensors", dialect_keys)


def hada(rows: int, columns: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    return normal(rows, rank, seed=seed), normal(rank, columns, seed=seed + 1)


@pytest.mark.parametrize("prefix", ["lycoris", "lora_unet"])
def test_loha(tiny: Base, tmp_path: Path, prefix: str) -> None:
    (a, b), (c, d) = hada(WIDE, CONTEXT, 3, 0), hada(WIDE, CONTEXT, 3, 2)
    parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(6.0)}
    path = lycoris(tmp_path, module(KEY, prefix, **parts))
    expected = 2 * (a.double() @ b.double()) * (c.double() @ d.double())
    assert relative(only(path, "lycoris", tiny, f"unet.{KEY}.weight"), expected) < 1e-14


def test_loha_of_a_convolution_with_cores(tiny: Base, tmp_path: Path) -> None:
    t1, t2 = normal(3, 3, 3, 3), normal(3, 3, 3, 3, seed=1)
    a, b, c, d = (normal(3, WIDE, seed=seed) for seed in (2, 3, 4, 5))
    parts = {"hada_t1": t1, "hada_t2": t2, "hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
    path = lycoris(tmp_path, module(CONV, "lycoris", **parts, alpha=torch.tensor(3.0)))

    def core(t: Tensor, out: Tensor, inside: Tensor) -> Tensor:
        return torch.einsum("rskl,ro,si->oikl", t.double(), out.double(), inside.double())

    found = only(path, "lycoris", tiny, f"unet.{CONV}.weight")
    assert relative(found, core(t1, a, b) * core(t2, c, d)) < 1e-13


@pytest.mark.parametrize("first_whole", [True, False])
@pytest.mark.parametrize("second_whole", [True, False])
def test_lokr(tiny: Base, tmp_path: Path, first_whole: bool, second_whole: bool) -> None:
    first, (a, b) = normal(WIDE // 16, CONTEXT // 16), hada(WIDE // 16, CONTEXT // 16, 2, 3)
    second, (c, d) = normal(16, 16, seed=1), hada(16, 16, 4, 5)
    parts = {"alpha": torch.tensor(2.0)}
    parts |= {"lokr_w1": first} if first_whole else {"lokr_w1_a": a, "lokr_w1_b": b}
    parts |= {"lokr_w2": second} if second_whole else {"lokr_w2_a": c, "lokr_w2_b": d}
    path = lycoris(tmp_path, module(KEY, "lycoris", **parts))
    one = first.double() if first_whole else a.double() @ b.double()
    two = second.double() if second_whole else c.double() @ d.double()
    # alpha over the rank of the second factor, else of the first; 1 where both are whole, whatever alpha says.
    scale = 1.0 if first_whole and second_whole else 2 / (2 if second_whole else 4)
    expected = scale * torch.einsum("ab,cd->acbd", one, two).reshape(WIDE, CONTEXT)
    assert relative(only(path, "lycoris", tiny, f"unet.{KEY}.weight"), expected) < 1e-14


def test_lokr_of_a_convolution_and_with_a_core(tiny: Base, tmp_path: Path) -> None:
    first = normal(WIDE // 16, 16)
    whole, core, c, d = (
        normal(16, WIDE // 16, 3, 3, seed=1),
        normal(4, 4, 3, 3, seed=2),
        normal(4, 16),
        normal(4, WIDE // 16, seed=4),
    )
    a = lycoris(tmp_path, module(CONV, "lycoris", lokr_w1=first, lokr_w2=whole))
    expected = torch.einsum("ab,cdkl->acbdkl", first.double(), whole.double()).reshape(WIDE, WIDE, 3, 3)
    assert relative(only(a, "lycoris", tiny, f"unet.{CONV}.weight"), expected) < 1e-14
    tucker = torch.einsum("rskl,rc,sd->cdkl", core.double(), c.double(), d.double())
    parts = {"lokr_w1": first, "lokr_t2": core, "lokr_w2_a": c, "lokr_w2_b": d, "alpha": torch.tensor(4.0)}
    b = lycoris(tmp_path, module(CONV, "lycoris", **parts))
    expected = torch.einsum("ab,cdkl->acbdkl", first.double(), tucker).reshape(WIDE, WIDE, 3, 3)
    assert relative(only(b, "lycoris", tiny, f"unet.{CONV}.weight"), expected) < 1e-13


def test_full_differences_and_norms(tiny: Base, tmp_path: Path) -> None:
    norm = "mid_block.resnets.0.norm1"
    whole, w, b = normal(WIDE, WIDE, 3, 3), normal(WIDE, seed=1), normal(WIDE, seed=2)
    flat = f"lycoris_{norm.replace('.', '_')}"
    path = lycoris(tmp_path, module(CONV, "lycoris", diff=whole) | {f"{flat}.w_norm": w, f"{flat}.b_norm": b})
    found = changes(path, "lycoris", tiny)
    assert torch.equal(found.read(f"unet.{CONV}.weight"), whole.double())
    assert torch.equal(found.read(f"unet.{norm}.weight"), w.double())
    assert found.left_out == {f"unet.{norm}.bias": "changes, and is of no kind that can be shifted"}
    assert found.kinds[f"unet.{norm}.weight"] == ("elementwise", 0)


@pytest.mark.parametrize(("shape", "axis"), [((WIDE, 1), 0), ((1, CONTEXT), 1)])
def test_lycoris_dora_has_its_norm_per_output_or_input(
    tiny: Base, tmp_path: Path, shape: tuple[int, int], axis: int
) -> None:
    up, down = factors(WIDE, 4, CONTEXT)
    magnitude = normal(*shape, seed=7).abs() + 1
    parts = {"lora_up__weight": up, "lora_down__weight": down, "alpha": torch.tensor(4.0), "dora_scale": magnitude}
    path = lycoris(tmp_path, module(KEY, "lycoris", **parts))
    W = tiny.read(f"unet.{KEY}.weight").double()
    moved = W + up.double() @ down.double()
    expected = magnitude.double() / moved.norm(dim=1 - axis, keepdim=True) * moved - W
    assert relative(only(path, "lycoris", tiny, f"unet.{KEY}.weight"), expected) < 1e-13


def test_lycoris_itself_makes_the_same_of_dora(tiny: Base, tmp_path: Path) -> None:
    from lycoris import create_lycoris_from_weights

    from svdiff_train.pipelines import load_pipeline

    up, down = factors(WIDE, 4, CONTEXT)
    magnitude = normal(WIDE, 1, seed=7).abs() + 1
    parts = {"lora_up__weight": up, "lora_down__weight": down, "alpha": torch.tensor(4.0), "dora_scale": magnitude}
    path = lycoris(tmp_path, module(KEY, "lycoris", **parts))
    unet = load_pipeline(tiny).unet  # type: ignore[attr-defined]
    network, _ = create_lycoris_from_weights(1.0, str(path), unet)
    assert len(network.loras) == 1
    merged, _ = network.loras[0].get_merged_weight()
    change = merged.detach().double() - tiny.read(f"unet.{KEY}.weight").double()
    assert relative(only(path, "lycoris", tiny, f"unet.{KEY}.weight"), change) < 1e-6


# --- All of it together ---


def test_the_delta_is_the_projection_of_the_change(model: Base, tmp_path: Path) -> None:
    up, down = factors(16, 4, 16)
    path = save_peft(tmp_path / "lora", lora(QUERY, up, down), r=4, lora_alpha=8)
    name = f"model.{QUERY}.weight"
    found = convert(path, base=model, min_energy=0.0)
    expected = true_shift(model.read(name), 2 * up.double() @ down.double())
    assert found.delta[name] == pytest.approx(expected, abs=1e-5 * abs(expected).max())
    assert found.layers[name].whole == pytest.approx(float((2 * up.double() @ down.double()).square().sum()))
