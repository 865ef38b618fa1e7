"""One step of every family on an accelerator: whatever is on another device than it should be is an error.

No GPU is needed: tensors that only know shape, dtype and device run through the code. They are on "cuda" where torch
was built with CUDA; without it torch cannot slice such tensors, so they are on a device of another name, which proves
the same of the code here: nothing in it names a device. Values and kernels are not tested by this.
"""

from __future__ import annotations

import pytest
from support.forked import forked
from support.pipelines import PIPELINES

FAKE = """
import torch
from support.models import live_zero
from support.pipelines import PIPELINES
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from svdiff_delta import attach
from svdiff_train.families import family_of
from svdiff_train.training.loss import denoising_loss

CUDA = torch.backends.cuda.is_built()
if not CUDA:
    _setup_privateuseone_for_python_backend("other")
DEVICE = "cuda" if CUDA else "other"

CROSSED = []

class Fake(FakeTensorMode):
    avoid_device_init = True

    def dispatch(self, func, types, args=(), kwargs=None):
        found = super().dispatch(func, types, args, kwargs)
        tensors = [each for each in tree_leaves((args, kwargs, found)) if isinstance(each, torch.Tensor)]
        if len({each.device.type for each in tensors}) > 1:
            CROSSED.append(str(func))
        return found

def move(model):
    for module in model.modules():
        for place in (module._parameters, module._buffers):
            for key, tensor in place.items():
                if tensor is not None:
                    moved = torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)
                    place[key] = nn.Parameter(moved, tensor.requires_grad) if place is module._parameters else moved

for name in PIPELINES:
    pipeline = PIPELINES[name]()
    family = family_of(pipeline)
    handle = attach(pipeline, live_zero(family.denoiser, slot=family.slot), trainable=True)
    times = torch.stack([family.draw_timestep(torch.Generator()) for _ in range(2)])
    with Fake(allow_non_fake_inputs=True):
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                move(part)
        # What comes from the disk or is drawn is on the CPU.
        shape = (2, *family.latent_shape(16, 24))
        latents = family.sample_latents(family.encode_images(torch.empty(2, 3, 16, 24)), torch.empty(shape))
        noised, target = family.noised(latents, torch.empty(shape), times)
        text = {**family.encode_prompts(["a cat", "a house"]), "sizes": torch.empty(2, 6)}
        prediction = family.predict(family.denoiser, noised, times, text)
        weights = family.loss_weights(times.to(DEVICE), None)
        (weights * denoising_loss(prediction, target)).mean().backward()
        found = {parameter.grad.device.type for _, parameter in handle.parameters()}
        print(name, found == {DEVICE}, {part.device.type for part in (latents, target, prediction)} == {DEVICE})
        there = {key: value.to(DEVICE) for key, value in text.items()}
        noise, times = torch.empty(shape, device=DEVICE), times.to(DEVICE)
        for _ in range(2):  # what is brought there at the first step stays
            before = len(CROSSED)
            noised, _ = family.noised(latents, noise, times)
            family.predict(family.denoiser, noised, times, there)
            family.loss_weights(times, 5.0 if family.slot == "unet" else None)
        print(CROSSED[before:])
        try:
            family.predict(family.denoiser, noised.cpu(), times, text)
        except RuntimeError as error:
            print("found at least two devices" in str(error) or "same device" in str(error))
"""


@pytest.mark.slow
def test_a_step_on_another_device_mixes_no_devices_and_brings_nothing_there_once_it_has_begun() -> None:
    """A CUDA graph cannot wait for what is brought from ordinary memory."""
    done = forked(FAKE, warn=True)
    assert done.code == 0, done.err
    assert done.out.splitlines() == [line for name in PIPELINES for line in (f"{name} True True", "[]", "True")]
