"""What the keys of kohya and LyCORIS mean: ΔW equals the full-weight formula in float64, written down once more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.adapters import save_tensors
from support.readers import CONTEXT, CONV, GROWN, KEY, TEXT, TEXT_WIDE, WIDE, change_of, changes, factors, module, only
from support.weights import normal, relative
from torch import Tensor

from svdiff_delta.base_model.base import Base


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
    assert torch.equal(change_of(found, f"unet.{CONV}.weight"), whole.double())
    assert torch.equal(change_of(found, f"unet.{norm}.weight"), w.double())
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

    from svdiff_train.sampling.pipelines import load_pipeline

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
