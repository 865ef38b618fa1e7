"""Single files in an original layout as bases: names and values as diffusers has them, and baked back as they came."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.models import base_delta
from support.originals import COMFY, narrow_flux
from support.singles import Single, stable_diffusion, transformer

from svdiff_cli.main import main
from svdiff_delta import bake, open_base, save, zero_delta
from svdiff_delta.base_model.base import Base
from svdiff_delta.base_model.mapped_tensor import Made
from svdiff_delta.base_model.original_settings import KNOWN, UNETS
from svdiff_delta.base_model.skeleton import build_skeleton
from svdiff_delta.errors import BaseError

TRANSFORMERS = (
    "FluxTransformer2DModel",
    "Flux2Transformer2DModel",
    "SD3Transformer2DModel",
    "QwenImageTransformer2DModel",
    "ZImageTransformer2DModel",
    "WanTransformer3DModel",
)
BARE = [name for name in TRANSFORMERS if not name.startswith("QwenImage")]  # whose own names are diffusers'


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow_flux(monkeypatch)


def opened(single: Single) -> Base:
    return open_base(single.file, config=single.config)


def check_values(single: Single, base: Base, *, slots: tuple[str, ...]) -> None:
    """Every parameter of the models has its name and exactly its values, and no base has more."""
    assert {name.partition(".")[0] for name in base.names()} == set(slots)
    for slot in slots:
        for key, value in single.models[slot].named_parameters():
            assert torch.equal(base.read(f"{slot}.{key}"), value.detach()), f"{slot}.{key}"


@pytest.mark.parametrize(("name", "front"), [*((name, COMFY) for name in TRANSFORMERS), *((name, "") for name in BARE)])
def test_values_are_those_that_diffusers_loads(name: str, front: str, tmp_path: Path) -> None:
    single = transformer(tmp_path, name, front)
    check_values(single, opened(single), slots=("transformer",))
    if not front or name not in ("QwenImageTransformer2DModel", "Flux2Transformer2DModel"):  # diffusers refuses these
        model = type(single.models["transformer"])
        loaded = model.from_single_file(str(single.file), config=str(single.config), local_files_only=True)
        for key, value in single.models["transformer"].state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("kind", ["1", "2", "xl"])
def test_a_whole_stable_diffusion_opens_with_all_of_its_parts(kind: str, tmp_path: Path) -> None:
    single = stable_diffusion(tmp_path, kind)
    base = opened(single)
    check_values(single, base, slots=tuple(single.models))
    loaded = type(single.models["unet"]).from_single_file(
        str(single.file), config=str(single.config), subfolder="unet", local_files_only=True
    )
    for key, value in loaded.state_dict().items():
        assert torch.equal(base.read(f"unet.{key}"), value), key


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "SD3Transformer2DModel"])
def test_only_swapped_halves_are_put_together_and_all_else_is_read_in_place(name: str, tmp_path: Path) -> None:
    base = opened(transformer(tmp_path, name))
    made = {key for key, (_, entry) in base.components["transformer"].location.items() if isinstance(entry, Made)}
    assert "norm_out.linear.weight" in made
    assert all("norm" in key and "linear" in key for key in made)


def check_baked(single: Single, base: Base, output: Path, *selectors: str) -> None:
    """A bake has keys, order, dtypes and metadata of the file, and the values of the baked model."""
    delta = base_delta(base, *selectors)
    bake(base, [delta], output)
    before, after = load_file(single.file), load_file(output)
    with safe_open(single.file, "pt") as one, safe_open(output, "pt") as two:
        assert one.metadata() == two.metadata()
        assert [*one.offset_keys()] == [*two.offset_keys()]
    assert {key: value.dtype for key, value in before.items()} == {key: value.dtype for key, value in after.items()}
    again = open_base(output, config=single.config)
    for name in base.names():
        assert torch.equal(again.read(name), base.read(name)) == (name not in delta), name


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_bake_goes_back_into_the_layout_it_came_in(name: str, tmp_path: Path) -> None:
    single = transformer(tmp_path, name, dtype=torch.float32)
    check_baked(single, opened(single), tmp_path / "out.safetensors", "transformer")


@pytest.mark.parametrize("kind", ["2", "xl"])
def test_so_does_that_of_a_whole_pipeline(kind: str, tmp_path: Path) -> None:
    single = stable_diffusion(tmp_path, kind)
    check_baked(single, opened(single), tmp_path / "out.safetensors", "unet-ca", "text")


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "SD3Transformer2DModel"])
def test_a_baked_file_equals_the_baked_folder(name: str, tmp_path: Path) -> None:
    single = transformer(tmp_path, name, dtype=torch.float32)
    single.models["transformer"].save_pretrained(tmp_path / "folder")
    folder = open_base(tmp_path / "folder")
    delta = base_delta(folder)
    bake(folder, [delta], tmp_path / "baked")
    bake(opened(single), [delta], tmp_path / "baked.safetensors")
    file, baked = open_base(tmp_path / "baked.safetensors", config=single.config), open_base(tmp_path / "baked")
    for key, _ in single.models["transformer"].named_parameters():
        assert torch.equal(file.read(f"transformer.{key}"), baked.read(f"transformer.{key}")), key


@pytest.mark.parametrize(
    "make", [lambda path: transformer(path, "FluxTransformer2DModel"), lambda path: stable_diffusion(path, "xl")]
)
def test_delta_zero_bakes_the_same_bytes(make: object, tmp_path: Path) -> None:
    assert callable(make)
    single = make(tmp_path)
    base = opened(single)
    bake(base, [zero_delta(base)], tmp_path / "out.safetensors")
    before, after = load_file(single.file), load_file(tmp_path / "out.safetensors")
    for key, value in before.items():
        assert torch.equal(after[key].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)), key


def test_a_dtype_reaches_every_tensor_of_the_file(tmp_path: Path) -> None:
    single = stable_diffusion(tmp_path, "1")
    base = opened(single)
    bake(base, [base_delta(base, "unet-ca")], tmp_path / "out.safetensors", dtype="BF16")
    found = load_file(tmp_path / "out.safetensors")
    assert {value.dtype for value in found.values() if value.is_floating_point()} == {torch.bfloat16}
    assert torch.equal(found["betas"], load_file(single.file)["betas"].bfloat16())


def test_keys_of_two_text_encoders_are_not_taken_for_one_another(tmp_path: Path) -> None:
    base = opened(stable_diffusion(tmp_path, "xl"))
    for selector in ("text-1", "text-2"):
        zero_delta(base, selector)
    found = zero_delta(base, "text").metadata.parameters
    names = [name for name in found if name.endswith("layers.0.self_attn.q_proj.weight")]
    assert len({found[name].fingerprint for name in names}) == len(names) == 2


def test_a_model_of_a_size_that_is_not_known_asks_for_its_configuration(tmp_path: Path) -> None:
    single = transformer(tmp_path, "FluxTransformer2DModel")
    with pytest.raises(BaseError, match="a FluxTransformer2DModel, has a size that no configuration is known of") as e:
        open_base(single.file)
    assert "as `config`" in e.value.fix


def test_a_configuration_that_does_not_fit_is_refused_by_the_first_weight_that_differs(tmp_path: Path) -> None:
    single = transformer(tmp_path, "ZImageTransformer2DModel")
    other = tmp_path / "other"
    transformer_config = (single.config / "config.json").read_text().replace('"n_layers": 1', '"n_layers": 2')
    other.mkdir()
    (other / "config.json").write_text(transformer_config)
    with pytest.raises(BaseError, match=r"does not fit the configuration that was named .*layers\.1\."):
        open_base(single.file, config=other)


def test_a_file_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    single = transformer(tmp_path, "WanTransformer3DModel")
    tensors = load_file(single.file)
    del tensors[f"{COMFY}blocks.0.self_attn.q.weight"]
    save_file(tensors, single.file)
    with pytest.raises(BaseError, match=r"blocks\.0\.attn1\.to_q\.weight is not in the file"):
        opened(single)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    single = transformer(tmp_path, "WanTransformer3DModel")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseError, match=r"holds no config\.json, nor does a folder in it"):
        open_base(single.file, config=tmp_path / "empty")


@pytest.mark.parametrize("suffix", ["ckpt", "pt"])
def test_a_pickle_says_how_to_convert_it(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"x.{suffix}").write_bytes(b"PK")
    with pytest.raises(BaseError, match="is a pickle, which is never opened") as caught:
        open_base(tmp_path / f"x.{suffix}")
    assert "from_single_file" in caught.value.fix


def test_the_command_line_takes_the_configuration(tmp_path: Path) -> None:
    single = transformer(tmp_path, "ZImageTransformer2DModel", dtype=torch.float32)
    save(base_delta(opened(single), "transformer-attn"), tmp_path / "d.safetensors")
    given = ["bake", str(single.file), str(tmp_path / "d.safetensors"), "-o", str(tmp_path / "out.safetensors")]
    assert CliRunner().invoke(main, given).exit_code == 1
    found = CliRunner().invoke(main, [*given, "--base-config", str(single.config)])
    assert found.exit_code == 0, found.output
    assert open_base(tmp_path / "out.safetensors", config=single.config).names()


PUBLISHED = {
    **{f"{name} {index}": (name, said) for name, each in KNOWN.items() for index, said in enumerate(each)},
    **{f"UNet of {width}": ("UNet2DConditionModel", said) for width, said in UNETS.items()},
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_configurations_of_published_models_build_with_what_their_class_knows(kind: str) -> None:
    name, said = PUBLISHED[kind]
    library = transformers if name.startswith(("CLIP", "T5")) else diffusers
    model = build_skeleton(kind, library.__name__, name, None, said)
    assert model.config.to_dict().keys() >= said.keys() if library is transformers else {*model.config} >= {*said}
