"""LPIPS against its formula in float64, with random weights."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.scenes import CAR, CAT, portraits
from torch import Tensor, nn

from svdiff_delta.errors import InputError
from svdiff_train.evaluate import Lpips, image_alignment

Weights = dict[str, Tensor]


def alexnet() -> nn.Sequential:
    """The convolutions of AlexNet as torchvision numbers them."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


CONVOLUTIONS = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
"""Number of a convolution to number of its slice in `lpips`."""


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return alexnet().requires_grad_(False)


@pytest.fixture(scope="module")
def weights(net: nn.Sequential) -> Weights:
    found = {
        f"net.slice{part}.{number}.{kind}": getattr(net[number], kind)
        for number, part in CONVOLUTIONS.items()
        for kind in ("weight", "bias")
    }
    widths = [net[number].out_channels for number in CONVOLUTIONS]
    found |= {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(widths)}
    # What `lpips` has besides.
    return {**found, "scaling_layer.shift": torch.zeros(1, 3, 1, 1)}


@pytest.fixture(scope="module")
def lpips(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    path = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    save_file(weights, path)
    return Lpips.load(path)


def plain(net: nn.Sequential, weights: Weights, x: Image.Image, y: Image.Image) -> float:
    """Zhang et al. (2018), eq. 1, place by place, in float64."""
    total = 0.0
    states = [
        (torch.from_numpy(np.asarray(image, np.float64).transpose(2, 0, 1)[None]) / 127.5 - 1) for image in (x, y)
    ]
    shift, scale = (torch.tensor(v).double().view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.45]))
    states = [(state - shift) / scale for state in states]
    layer = 0
    for module in alexnet_like(net):
        states = [module(state) for state in states]
        if not isinstance(module, nn.ReLU):
            continue
        a, b = (state[0] / (state[0] ** 2).sum(0).sqrt() for state in states)
        a, b = (torch.nan_to_num(each) for each in (a, b))
        head = weights[f"lin{layer}.model.1.weight"].double().flatten()
        total += float(torch.einsum("c,chw->hw", head, a**2 - 2 * a * b + b**2).mean())
        layer += 1
    return total


def alexnet_like(net: nn.Sequential) -> nn.Sequential:
    copy = alexnet()
    copy.load_state_dict(net.state_dict())
    return copy.double().requires_grad_(False)


def test_distances_follow_the_formula(net: nn.Sequential, weights: Weights, lpips: Lpips) -> None:
    images, references = [portraits(CAT)[0], portraits(CAR)[1]], portraits(CAT)[1:4]
    expected = np.array([[plain(net, weights, x, y) for y in references] for x in images])
    found = lpips.distances(images, references)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(image_alignment(lpips, images, references), 1 - expected.mean(1), atol=1e-6)


def test_a_picture_is_no_way_from_itself(lpips: Lpips) -> None:
    images = portraits(CAT)[:2]
    assert lpips.alignment(images, images).diagonal().tolist() == [1, 1]


def test_references_are_brought_to_the_size_of_each_picture(lpips: Lpips) -> None:
    cat, car = portraits(CAT)[0], portraits(CAR)[0]
    large = cat.resize((96, 80))
    fitted = car.resize((96, 80), Image.Resampling.LANCZOS, box=(0, 64 / 12, 64, 64 - 64 / 12))
    found = lpips.distances([cat, large], [car])
    assert found[0, 0] == pytest.approx(float(lpips.distances([cat], [car])[0, 0]))
    assert found[1, 0] == pytest.approx(float(lpips.distances([large], [fitted])[0, 0]), rel=1e-3)


def test_too_small_pictures_are_refused(lpips: Lpips) -> None:
    lpips.distances([portraits(CAT)[0].resize((31, 31))], portraits(CAT)[:1])
    with pytest.raises(InputError, match="30 x 64 pixels"):
        lpips.distances([portraits(CAT)[0].resize((30, 64))], portraits(CAT)[:1])


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "alex.pth"
    path.write_bytes(pickle.dumps({"lin0": 0}))
    with pytest.raises(InputError, match="is a pickle") as refused:
        Lpips.load(path)
    assert "state_dict()" in refused.value.fix
    renamed = path.rename(tmp_path / "alex.safetensors")
    with pytest.raises(InputError, match="could not be read as safetensors"):
        Lpips.load(renamed)
    with pytest.raises(InputError, match="could not be read as safetensors"):
        Lpips.load(tmp_path / "nowhere.safetensors")


def test_other_weights_are_refused(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({key: value for key, value in weights.items() if key != "lin4.model.1.weight"}, path)
    with pytest.raises(InputError, match=r"has no lin4\.model\.1\.weight"):
        Lpips.load(path)
    save_file({**weights, "net.slice1.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(InputError, match=r"net.slice1.0.weight has the shape \(64, 3, 3, 3\)"):
        Lpips.load(path)
