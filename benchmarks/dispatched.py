"""What a training step dispatches beyond the same model's step without a delta, and what the host waits to read in it.

    python benchmarks/dispatched.py [--json FILE] [--folder FOLDER] [--only tiny,unet,flux,sd15,read] [--dtypes …]

Operations are those that torch dispatches, counted by a dispatch mode, views included: of a forward, the mean square
of what it gives, the way back, the clipping of gradients and AdamW, with δ trained on all weights; and less than that
those of a forward and its way back to the input without a delta. On a GPU an operation is a launch, or the processor's
time for a view. Sizes do not matter, so pictures are small. δ is held as the trainer holds it: in one flat parameter
for each kind, with a fused AdamW.

Models are the embedded base's UNet, a tiny one with random weights, a tiny Flux with random weights, and with a folder
(or `--only sd15`, which writes 4 GB) that of SD 1.5. Reads are counted in the steps of `svdiff train` on the embedded
base, from the drawn batch to the optimizer: values handed to the host, and tensors brought from one device to another.

`BEFORE` is what this script counted on the commit before live layers got forms and one δ for each kind. There each
layer had a δ of its own, and AdamW went through them. (`git worktree add OLD 460d5e4`, then this script with
`PYTHONPATH` at that tree.) What that trainer did besides in each step, such as reading the loss, is not in it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from common import sd15
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from svdiff_delta import attach, open_base, zero_delta
from svdiff_delta.base_model.base import Base
from svdiff_delta.svd.cache import BasisCache

SHARE: Final = 1 / 3
"""Of `BEFORE`: the limit."""

COMMIT: Final = "460d5e4"
"""Where `BEFORE` was counted."""

BEFORE: Final = {
    "embedded base, float32": 6_879,
    "embedded base, bfloat16": 9_645,
    "tiny UNet, float32": 3_381,
    "tiny UNet, bfloat16": 4_761,
    "tiny Flux, float32": 2_155,
    "tiny Flux, bfloat16": 2_868,
    "SD 1.5, float32": 11_522,
    "SD 1.5, bfloat16": 16_246,
}
"""Operations beyond the base's, by model and dtype (torch 2.13)."""

READS: Final = frozenset({"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero"})
"""Operations that hand values, or a size that depends on them, to the host."""

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Subject(NamedTuple):
    """A model whose steps are counted.

    Attributes:
        load: loads it in a dtype.
        base: where its weights are from.
        cache: of bases.
        inputs: of one sample, in float32.
        moving: the input that the way back goes to where nothing is trained.
    """

    load: Callable[[torch.dtype], Any]
    base: Base
    cache: BasisCache
    inputs: dict[str, Any]
    moving: str


class Dispatched(TorchDispatchMode):
    """Counts operations by name, and what crosses from one device to another."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()
        self.crossed = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.names[func.overloadpacket.__name__] += 1
        devices = {each.device for each in tree_leaves((args, kwargs, found)) if isinstance(each, Tensor)}
        self.crossed += len(devices) > 1
        return found

    @property
    def reads(self) -> int:
        """How often the host waited for a value."""
        return sum(self.names[name] for name in READS) + self.crossed


def counted(step: Callable[[], object]) -> int:
    """Operations of a step that was done before: what is made at the first one is there."""
    step()
    with Dispatched() as found:
        step()
    return int(found.names.total())


def beyond(subject: Subject, dtype: torch.dtype) -> int:
    """Operations of a training step beyond those of the model's own."""
    model = subject.load(dtype).requires_grad_(False).train()
    inputs = {name: cast_to(value, dtype) for name, value in subject.inputs.items()}

    def loss(given: dict[str, Any]) -> Tensor:
        return torch.as_tensor(model(**given, return_dict=False)[0].float().square().mean())

    def plain() -> None:
        loss({**inputs, subject.moving: inputs[subject.moving].clone().requires_grad_()}).backward()

    without = counted(plain)
    zero = zero_delta(subject.base, cache=subject.cache)
    with attach(model, zero, base=subject.base, cache=subject.cache, trainable=True) as handle:
        leaves, options = trained(handle)
        optimizer = torch.optim.AdamW(leaves, lr=1e-3, **options)

        def step() -> None:
            optimizer.zero_grad()
            loss(inputs).backward()
            torch.nn.utils.clip_grad_norm_(leaves, 1.0)
            optimizer.step()

        return counted(step) - without


def trained(handle: Any) -> tuple[list[Tensor], dict[str, Any]]:
    """What the optimizer gets, and how: on the commit of `BEFORE` each layer's δ, and no kernel for all at once."""
    if hasattr(handle, "flat_parameters"):
        return list(handle.flat_parameters().values()), {"fused": True}
    return [value for _, value in handle.parameters()], {}


def cast_to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def of_class(kind: Any, folder: Path, cache: Path, dtype: torch.dtype) -> Any:
    del cache
    return kind.from_pretrained(folder, torch_dtype=dtype)


def unet_inputs(channels: int, side: int, words: int, width: int) -> dict[str, Any]:
    """One sample of a UNet."""
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(1, channels, side, side, generator=generator),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, words, width, generator=generator),
    }


def folder_subject(kind: Any, folder: Path, cache: Path, inputs: dict[str, Any], moving: str) -> Subject:
    return Subject(partial(of_class, kind, folder, cache), open_base(folder), BasisCache(cache), inputs, moving)


def embedded(temporary: Path) -> Subject:
    """The embedded base's UNet."""
    from diffusers import UNet2DConditionModel

    from svdiff_train.tiny import open_tiny

    folder = Path(open_tiny().path) / "unet"
    config = UNet2DConditionModel.load_config(folder)
    inputs = unet_inputs(config["in_channels"], 8, 8, config["cross_attention_dim"])
    return folder_subject(UNet2DConditionModel, folder, temporary / "embedded", inputs, "sample")


def tiny_unet(temporary: Path) -> Subject:
    """A UNet of two small blocks."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    model: Any = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    model.save_pretrained(temporary / "unet")
    inputs = unet_inputs(4, 8, 8, 32)
    return folder_subject(UNet2DConditionModel, temporary / "unet", temporary / "unet-cache", inputs, "sample")


def tiny_flux(temporary: Path) -> Subject:
    """A Flux of two double and two single blocks."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model: Any = FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    model.save_pretrained(temporary / "flux")
    inputs = {
        "hidden_states": torch.randn(1, 16, 4),
        "encoder_hidden_states": torch.randn(1, 8, 32),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(8, 3),
    }
    kind = FluxTransformer2DModel
    return folder_subject(kind, temporary / "flux", temporary / "flux-cache", inputs, "hidden_states")


def whole_unet(folder: Path) -> Subject:
    """SD 1.5's UNet with random weights."""
    from diffusers import UNet2DConditionModel

    inputs = unet_inputs(4, 8, 8, 768)
    return folder_subject(UNet2DConditionModel, folder, folder / "cache", inputs, "sample")


def subjects(sections: list[str], folder: Path | None, temporary: Path) -> Iterator[tuple[str, Subject]]:
    """Yield what is asked for."""
    makers = {"tiny": ("embedded base", embedded), "unet": ("tiny UNet", tiny_unet), "flux": ("tiny Flux", tiny_flux)}
    for section, (label, make) in makers.items():
        if section in sections:
            yield label, make(temporary)
    if folder is not None or "sd15" in sections:
        yield "SD 1.5", whole_unet(sd15.folder_of(folder, temporary))


def reads(temporary: Path) -> int:
    """What the host reads in a step of `svdiff train`, the most of those between the first and the last."""
    from svdiff_train.data.batches import Batches, Texts
    from svdiff_train.settings.config import TrainConfig
    from svdiff_train.tiny import open_tiny, pictures_path
    from svdiff_train.training.loop import train
    from svdiff_train.training.step import Stepper

    found: list[int] = []
    own = Stepper.step

    def step(self: Stepper, number: int) -> Any:
        with Dispatched() as operations:
            result = own(self, number)
        found.append(operations.reads)
        return result

    for owner, name in ((Batches, "batch"), (Texts, "conditioning")):  # drawn on the host, and known after one step
        setattr(owner, name, uncounted(getattr(owner, name)))
    Stepper.step = step  # type: ignore[method-assign,assignment]
    config = TrainConfig(prompt="a photo of a sks cat", steps=4, learning_rate=1e-3, resolution=32)
    train(open_tiny(), pictures_path("black_cat"), config, cache=BasisCache(temporary / "embedded"))
    return max(found[1:-1])


def uncounted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that no mode sees."""

    def called(*given: Any) -> Any:
        with _disable_current_modes():
            return function(*given)

    return called


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where SD 1.5's weights and cache lie or are made")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="with commas")
    parser.add_argument("--only", default="tiny,unet,flux,read", help="sections, with commas")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sections, rows = given.only.split(","), []
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        os.environ["SVDIFF_HOME"] = name
        for label, subject in subjects(sections, given.folder, temporary):
            for kind in given.dtypes.split(","):
                key = f"{label}, {kind}"
                rows.append((f"operations beyond the base's: {key}", beyond(subject, DTYPES[kind]), BEFORE.get(key)))
        if "read" in sections:
            rows.append(("read by the host in a step of svdiff train", reads(temporary), 0))
    sys.exit(0 if report(rows, given.json) else 1)


def report(rows: list[tuple[str, int, int | None]], path: Path | None) -> bool:
    """Print the figures beside their limits; tell whether all are met."""
    print(f"{'':<58}{'on ' + COMMIT:>12}{'limit':>8}{'now':>8}")
    met = True
    for label, now, before in rows:
        limit = None if before is None else int(SHARE * before)
        good = limit is None or now <= limit
        met = met and good
        shown = ("" if before is None else f"{before:,}", "" if limit is None else f"{limit:,}")
        print(f"{label:<58}{shown[0]:>12}{shown[1]:>8}{now:>8,}{'' if good else '  missed'}")
    sd15.save_figures(path, {label: now for label, now, _ in rows})
    return met


if __name__ == "__main__":
    main()
