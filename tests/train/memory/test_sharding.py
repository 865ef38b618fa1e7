"""Frozen weights shared out over processes by FSDP: what they compute, what stays, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.descent import ROUNDED, greatest_distance
from support.forked import together
from torch import nn

from svdiff_delta import Delta, attach, load, zero_delta
from svdiff_delta.errors import InputError, TrainError
from svdiff_train.memory.sharding import asked_for, blocks, check_sharding, check_weights
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import open_tiny


def launched(script: str, *arguments: str | Path, processes: int = 2) -> None:
    for end in together(processes, script, *arguments, warn=True):
        assert end.code == 0, end.err[-4000:]


TRAIN = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
torch.optim.AdamW = lambda groups, **_: torch.optim.SGD(groups)  # as support.descent does
from svdiff_delta import save
from svdiff_train.memory.output_cache import OutputCache
from svdiff_train.settings.config import TrainConfig
from svdiff_train.training import class_images
from svdiff_train.training.callbacks import Watch
from svdiff_train.training.keeping import Keeping
from svdiff_train.training.loop import train
from svdiff_train.training.validation import Validation
from svdiff_train.sampling.sample import Sampling
from svdiff_train.tiny import open_tiny, pictures_path
folder, fsdp, batch, precision = Path(sys.argv[1]), sys.argv[2] == "fsdp", int(sys.argv[3]), sys.argv[4]
# With pictures of the class, and without: then no forward of the model came before δ was put on it.
class_prompt = "a photo of a cat" if precision == "no" else None
class_images.SAMPLING = replace(class_images.SAMPLING, steps=2)
config = TrainConfig(prompt="a photo of a sks cat", class_prompt=class_prompt, class_images=3, steps=3,
                     resolution=32, learning_rate=1.0, batch_size=batch, selectors=("unet",), mixed_precision=precision,
                     gradient_checkpointing=fsdp, cache_latents=True, pre_compute_text_embeddings=True)
losses = []
outcome = train(open_tiny(), pictures_path("black_cat"), config, keeping=Keeping(folder=folder / "run"), fsdp=fsdp,
                class_folder=folder / "class", watch=Watch(step=lambda report: losses.append(report.loss)),
                validation=Validation(prompts=("a sks cat",), sampling=Sampling(steps=2)),
                outputs=OutputCache(folder / "outputs"))
if outcome.main_process:
    save(outcome.delta, folder / "delta.safetensors")
    (folder / "losses").write_text(" ".join(map(repr, losses)))
import torch.distributed as dist
if dist.is_initialized():
    dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_two_processes_that_share_the_model_train_what_one_does(precision: str, tmp_path: Path) -> None:
    """With all that goes with it: pictures of the class and on the way, checkpoints, encoders that were let go."""
    for name, batch in (("fsdp", "1"), ("plain", "2")):
        (tmp_path / name).mkdir()
        launched(TRAIN, tmp_path / name, name, batch, precision, processes=2 if name == "fsdp" else 1)
    shared, alone = (load(tmp_path / name / "delta.safetensors") for name in ("fsdp", "plain"))
    losses = [np.array((tmp_path / name / "losses").read_text().split(), float) for name in ("fsdp", "plain")]
    # In half precision each of the sums rounds to 8 bits, and both runs add in another order.
    np.testing.assert_allclose(*losses, rtol=1e-5 if precision == "no" else 1e-2)
    assert max(np.abs(alone[name]).max() for name in alone) > 1e-3
    if precision == "no":
        assert greatest_distance(shared, alone) < ROUNDED
    assert [*(tmp_path / "fsdp/run/validation").iterdir()]


ATTACH = """
import sys
import torch
import torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from svdiff_delta import Delta, attach, zero_delta
from svdiff_delta.errors import AttachError
from svdiff_train.memory.sharding import blocks
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.tiny import open_tiny
base, dtype = open_tiny(), sys.argv[1]
kind = {"F32": torch.float32, "BF16": torch.bfloat16}[dtype]
zero = zero_delta(base, "unet")
delta = Delta({name: shift + 0.1 for name, shift in zero.items()}, zero.metadata)
x, states = torch.linspace(-1, 1, 8 * 16 * 16).reshape(1, 8, 16, 16), torch.linspace(-1, 1, 77 * 192).reshape(1, 77, -1)
def run(unet):
    return unet(x.to(kind), 500, states[..., : unet.config.cross_attention_dim].to(kind), return_dict=False)[0]
whole = load_pipeline(base, dtype=dtype)
whole.unet.requires_grad_(False)
with attach(whole, delta, base=base, trainable=True) as handle:
    expected = run(whole.unet)
    expected.float().square().sum().backward()
    gradients = {name: each.grad.clone() for name, each in handle.parameters()}
plain = run(whole.unet)
shared = load_pipeline(base, dtype=dtype)
shared.unet.requires_grad_(False)
for block in blocks(shared.unet):
    fully_shard(block, mesh=init_device_mesh("cpu", (2,)))
fully_shard(shared.unet, mesh=init_device_mesh("cpu", (2,)))
before = {name: each.to_local().clone() for name, each in shared.unet.named_parameters()}
layer = shared.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
for more, why in (
    ({"mode": "fused"}, "sharded over processes, nothing can be fused into it"),
    ({"form": "factored"}, "sharded over processes, and cannot be dropped"),
):
    try:
        attach(shared, delta, base=base, **more)
    except AttachError as error:
        assert why in str(error), error
    else:
        raise AssertionError(more)
with torch.no_grad():
    layer.weight.to_local().mul_(2)
try:
    attach(shared, delta, base=base)
except AttachError as error:
    assert "attn1.to_q.weight: the live weight is not the one in the base's file" in str(error), error
else:
    raise AssertionError("another weight")
with torch.no_grad():
    layer.weight.to_local().div_(2)
handle = attach(shared, delta, base=base, trainable=True)
found = run(shared.unet)
found.float().square().sum().backward()
small = 1e-5 if dtype == "F32" else 5e-2
def same(one, other):
    assert (one.float() - other.float()).norm() <= small * other.float().norm(), (one - other).norm() / other.norm()
same(found, expected)
# A single gradient is a sum that may cancel: all of them together are compared.
both = [torch.cat([each[name].flatten() for name in gradients]) for each in
        ({name: each.grad for name, each in handle.parameters()}, gradients)]
same(*both)
shared.unet.reshard()
try:
    layer.weight + 1
except AttachError as error:
    assert "was read outside its layer's call, and is sharded" in str(error), error
else:
    raise AssertionError("a read outside")
handle.detach()
for name, each in shared.unet.named_parameters():
    assert isinstance(each, DTensor) and torch.equal(each.to_local(), before[name]), name
with torch.no_grad():
    same(run(shared.unet), plain)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_delta_on_a_sharded_model_computes_what_it_does_on_a_whole_one(dtype: str) -> None:
    """And is refused where it cannot be there, sees another base's weights, and leaves them bit for bit."""
    launched(ATTACH, dtype)


CONFIG = TrainConfig(prompt="a cat")


@pytest.mark.parametrize(
    ("config", "processes", "why"),
    [
        (CONFIG, 1, "and there is one: start several with torchrun"),
        (replace(CONFIG, method="lora"), 2, "the method lora trains weights"),
        (replace(CONFIG, method="full"), 2, "the method full trains weights"),
        (replace(CONFIG, compile=True), 2, "compile needs them in one place"),
        (replace(CONFIG, quantization="nf4"), 2, r"they are quantized \(nf4\)"),
    ],
)
def test_runs_that_need_the_whole_model_are_refused(config: TrainConfig, processes: int, why: str) -> None:
    with pytest.raises(InputError, match=why):
        check_sharding(config, processes)


class Odd(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.scale = nn.Parameter(weight, requires_grad=False)


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        (torch.tensor(1.0), "it is a single number"),
        (torch.zeros(2, 2, dtype=torch.uint8), "of torch.uint8"),
        (torch.zeros(()).expand(2, 2), "it does not lie in one piece"),
    ],
)
def test_a_weight_that_cannot_be_shared_out_is_named(weight: torch.Tensor, why: str) -> None:
    with pytest.raises(TrainError, match=rf"unet\.scale: cannot be shared out over processes \(FSDP\), .*{why}"):
        check_weights("unet", Odd(weight))


def test_the_placeholder_of_a_weight_that_a_delta_stands_for_is_named() -> None:
    pipeline: Any = load_pipeline(open_tiny())
    zero = zero_delta(open_tiny(), "unet-ca-kv")
    check_weights("unet", pipeline.unet)
    refused = pytest.raises(TrainError, match="it does not lie in one piece")
    with attach(pipeline, Delta(dict(zero), zero.metadata), form="factored"), refused:
        check_weights("unet", pipeline.unet)


def test_blocks_are_what_the_class_does_not_split_inner_ones_first() -> None:
    pipeline: Any = load_pipeline(open_tiny())
    found = list(blocks(pipeline.unet))
    assert {type(block).__name__ for block in found} <= set(pipeline.unet._no_split_modules)
    for index, block in enumerate(found):
        assert not any(inner in found[index + 1 :] for inner in block.modules() if inner is not block)
    plain = nn.Sequential(nn.Linear(1, 1), nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)]))
    assert list(blocks(plain)) == [plain[1][1], plain[1][0]]  # type: ignore[index]


def test_accelerate_is_asked_whether_it_was_launched_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert not asked_for()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert asked_for()
