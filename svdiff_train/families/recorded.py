"""One flow-matching family for all pipelines that tell by a run of their own how their denoiser is called."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from svdiff_delta.errors import TrainError

from .autoencoders import autoencoder_of
from .experts import Experts, experts_of
from .family import Conditioning
from .latent import FlowMatching
from .prompt_rows import join_rows, pad_list, unpad_list
from .recording import Recording, Texts, UnclearError, cut_to, first_of, learn
from .tape import play

PROMPT: Final = "a"
"""What a pipeline is recorded with."""

MASK: Final = ".mask"
"""After the name of text that is a list of one tensor for each sample: which of its tokens are there."""


def text_key(index: int) -> str:
    """Return what conditioning calls the thing that `encode_prompt` gives at a place."""
    return f"text{index}"


class Recorded(FlowMatching):
    """A pipeline whose first run tells where latents, timestep and text go and which sign the velocity has.

    The target is the velocity ε − z_0 and timesteps are drawn uniformly from the scheduler's, with its shift, as in
    diffusers' training examples of these families. A family says what a recording cannot tell.

    Args:
        pipeline: the live pipeline.
    """

    density = "none"
    patch: ClassVar[int] = 2
    """Sides of latents are multiples of it."""
    masks: ClassVar[Mapping[int, int]] = {}
    """Of what `encode_prompt` gives, the place of a mask and of the states that it masks."""
    mode: ClassVar[bool] = False
    """Whether latents are the posterior's mean, as in some of the training examples, and not drawn from it."""
    guidance: ClassVar[float | None] = None
    """What a denoiser with a guidance embedding is told in training."""
    readers: tuple[str, ...] = ("text_encoder",)

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.autoencoder = autoencoder_of(pipeline)
        self.slot = self.slots[0]
        self._experts = Experts([getattr(pipeline, slot) for slot in self.slots]) if len(self.slots) > 1 else None
        self.setup(pipeline)
        self.factor = self.autoencoder.spatial
        self.unit = self.factor * self.patch
        self.resolution = self._own_resolution()
        self._recording: Recording | None = None
        self.dims: dict[int, int] = {}
        self.listed: set[int] = set()
        self._fixed: dict[Any, dict[str, Any]] = {}

    # --- What a family may say ---

    def arguments(self, height: int, width: int) -> dict[str, Any]:
        """Return arguments of the pipeline's call that it needs beside the usual ones to keep a size in pixels."""
        del height, width
        return {}

    def recording(self) -> AbstractContextManager[None]:
        """Return what holds while the pipeline is recorded."""
        return nullcontext()

    def derived(self, name: str, recorded: Any, texts: Texts) -> Any:
        """Return an argument that depends on the prompt otherwise than as what `encode_prompt` gives.

        Args:
            name: of the argument.
            recorded: what it is at this size.
            texts: what `encode_prompt` gave for the batch.
        """
        del recorded, texts
        raise UnclearError(f"{name} depends on the prompt, and nothing says how")

    def pack(self, latents: Tensor) -> Tensor:
        """Return latents (batch, channels, …) as the scheduler has them."""
        return latents

    def unpack(self, found: Tensor, shape: torch.Size) -> Tensor:
        """Return what the scheduler has as latents of a shape."""
        return found.reshape(shape)

    # --- Pictures ---

    def _own_resolution(self) -> int:
        """Return the side of a square of about as many pixels as the pipeline makes where nothing is said."""
        side = getattr(self.pipeline, "default_sample_size", None)
        config = self.denoiser.config
        if not isinstance(side, int):
            side = config.get("sample_size") if isinstance(config.get("sample_size"), int) else None
        taken = inspect.signature(self.pipeline.__call__).parameters
        height, width = (taken[name].default if name in taken else None for name in ("height", "width"))
        if isinstance(height, int) and isinstance(width, int):
            pixels = int((height * width) ** 0.5)
        else:
            pixels = (side or 128) * int(getattr(self.pipeline, "vae_scale_factor", self.factor))
        return max(self.unit, pixels // self.unit * self.unit)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return (channels, height, width) of the latents of one picture of this size in pixels."""
        return (self.autoencoder.channels, height // self.factor, width // self.factor)

    def encode_images(self, images: Tensor) -> Tensor:
        """Return mean and standard deviation (batch, 2, channels, …) of the latents of pictures, in float32."""
        mean, std = self.autoencoder.encode(images)
        return torch.stack([mean, torch.zeros_like(std) if self.mode else std], dim=1)

    def sample_latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Return latents (batch, channels, …) in the denoiser's scale, drawn with standard normal noise."""
        mean, std = moments.unbind(1)
        return self.autoencoder.normalize(mean + std * noise.to(mean))

    # --- The recording ---

    @property
    def slots(self) -> tuple[str, ...]:
        """The components that predict: one transformer, or two experts."""
        return experts_of(self.pipeline)

    @property
    def denoiser(self) -> Any:
        """The component that predicts; of two experts, a module that holds both."""
        return self._experts or getattr(self.pipeline, self.slot)

    @property
    def learned(self) -> Recording:
        """What the pipeline's run told; it is recorded when it is first asked for.

        Raises:
            TrainError: it does not tell what training must know.
        """
        if self._recording is None:
            try:
                self._recording = self._learn()
            except UnclearError as error:
                self._recording = None
                raise TrainError(
                    f"{type(self.pipeline).__name__}: its recording is ambiguous ({error})",
                    fix="train a pipeline that diffusers made, as it is",
                ) from None
        return self._recording

    def prepare(self) -> None:
        """Record the pipeline, unless that is done.

        Raises:
            TrainError: it does not tell what training must know.
        """
        self.learned  # noqa: B018 - it is made when it is asked for

    def _learn(self) -> Recording:
        self.text_device  # noqa: B018 - a pipeline without its text encoders is refused before it runs
        with self.recording():
            arguments = self.call(1, self.recorded_shape())
            found = learn(self.pipeline, self.slots, arguments, self.training_steps, self.masks)
        self._recording = found
        self.read_dims(found)
        if found.prompted:
            texts = self._texts(self.encode_prompts([PROMPT]))
            for name in found.prompted:
                self.derived(name, None, texts)
        return found

    @property
    def training_steps(self) -> int:
        """The greatest timestep."""
        return int(self.scheduler.config.num_train_timesteps)

    def recorded_shape(self) -> tuple[int, ...]:
        """Return the shape (…, height, width) of the latents that a pipeline is recorded with: no square, so small."""
        return (2 * self.patch, 3 * self.patch)

    def call(self, batch: int, shape: torch.Size | tuple[int, ...]) -> dict[str, Any]:
        """Return the pipeline's arguments for latents of a shape (…, height, width): one prediction, not decoded."""
        taken = inspect.signature(self.pipeline.__call__).parameters
        height, width = (side * self.factor for side in shape[-2:])
        wanted: dict[str, Any] = {
            "prompt": [PROMPT] * batch,
            "height": height,
            "width": width,
            "num_inference_steps": 2,
            "true_cfg_scale": 1.0,
            "output_type": "latent",
            "generator": torch.Generator().manual_seed(0),
        }
        if "guidance_scale" in taken and taken["guidance_scale"].default is not None:
            wanted["guidance_scale"] = 0.0 if self.guidance is None else self.guidance
        wanted |= self.arguments(height, width)
        return {name: value for name, value in wanted.items() if name in taken}

    # --- Text ---

    def read_dims(self, found: Recording) -> None:
        """Learn along which dimension of text the samples are: what doubles with the number of prompts."""
        one, two = (self._encode([PROMPT] * count, found) for count in (1, 2))
        for index, (first, second) in enumerate(zip(one, two, strict=True)):
            if isinstance(first, Tensor) and isinstance(second, Tensor):
                grown = [dim for dim in range(first.dim()) if second.shape[dim] == 2 * first.shape[dim]]
                if grown:
                    self.dims[index] = grown[0]
            elif isinstance(first, list | tuple) and len(first) == 1 and len(second) == 2:
                self.listed.add(index)

    def _encode(self, prompts: list[str], found: Recording) -> Texts:
        """Return what `encode_prompt` gives for prompts, asked as the pipeline asks it."""
        given = self.pipeline.encode_prompt(**{**found.asked, "prompt": prompts, "device": self.text_device})
        return given if isinstance(given, tuple) else (given,)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Return what the pipeline's `encode_prompt` gives, each `text…` (batch, …) by its place among that."""
        told: dict[str, Tensor] = {}
        found = self.learned
        needed = {*found.texts.values(), *self.masks} if not found.prompted else {*found.constants}
        for index, value in enumerate(self._encode([*prompts], found)):
            key = text_key(index)
            if index not in needed:
                continue
            if index in self.listed:
                told[key], mask = pad_list(value)
                told |= {} if mask is None else {key + MASK: mask}
            elif isinstance(value, Tensor) and (index in self.dims or index in self.masks):
                told[key] = value.movedim(self.dims.get(index, 0), 0)
        return told

    def join(self, rows: Sequence[Conditioning]) -> Conditioning:
        """Return the conditioning of samples as that of a batch; shorter text is masked where the family masks."""
        masks = {text_key(mask): text_key(states) for mask, states in self.masks.items()}
        masks |= {text_key(index) + MASK: text_key(index) for index in self.listed}
        return join_rows(rows, masks, type(self.pipeline).__name__)

    def _texts(self, told: Conditioning) -> Texts:
        """Return conditioning as `encode_prompt` gives it."""
        found: list[Any] = []
        asked = self.learned if self._recording is None else self._recording
        for index in asked.constants:
            key = text_key(index)
            if index in self.listed:
                found.append(unpad_list(told[key], told.get(key + MASK)))
            elif key in told:
                found.append(told[key].movedim(0, self.dims.get(index, 0)))
            elif index in self.dims or index in self.masks:
                found.append(None)
            else:
                found.append(asked.constants.get(index))
        return tuple(found)

    # --- The prediction ---

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the predicted velocity, in the latents' shape."""
        found, texts = self.learned, self._texts(_on(conditioning, noised, self.dtype))
        fixed = self._fixed_at(noised, texts)
        apart = (found.latents.argument, found.time.argument)
        given = {name: value for name, value in fixed.items() if name not in apart}
        told = {name: texts[index] for name, index in found.texts.items() if texts[index] is not None}
        given |= {name: _moved(value, noised.device) for name, value in told.items()}
        given |= {name: self.derived(name, fixed[name], texts) for name in found.prompted}
        given[found.latents.argument] = self.latents_for(self.pack(noised.to(self.dtype)), fixed, conditioning)
        given |= self.beside(noised, conditioning)
        t = timesteps.to(noised.device, torch.float32)
        time = found.time.scale * t + found.time.offset
        given[found.time.argument] = time.view(-1, *(1 for _ in fixed[found.time.argument].shape[1:])).expand(
            fixed[found.time.argument].shape
        )
        with warnings.catch_warnings():
            # That weights in float32 under autocast take the slower way is a hint, and nobody can act on it.
            warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)
            output = self.run(denoiser, given, timesteps)
        velocity = cut_to(output, self.pack(noised))
        if velocity is None:
            name = type(self.pipeline).__name__
            raise TrainError(f"{name}: its denoiser's output has another shape than its latents")
        return self.unpack(found.sign * velocity, noised.shape)

    def settle(self, noised: Tensor, conditioning: Conditioning) -> None:
        """Ask the pipeline for the denoiser's other arguments at this size and these lengths of text."""
        self.prepare()
        self._fixed_at(noised, self._texts(_on(conditioning, noised, self.dtype)))

    def run(self, denoiser: Any, given: Mapping[str, Any], timesteps: Tensor) -> Tensor:
        """Return the denoiser's output (batch, …)."""
        del timesteps
        return first_of(denoiser(**given))

    def latents_for(self, packed: Tensor, fixed: Mapping[str, Any], conditioning: Conditioning) -> Any:
        """Return latents as the denoiser takes them."""
        del conditioning
        template = fixed[self.learned.latents.argument]
        if isinstance(template, list | tuple):
            return [sample.reshape(each.shape) for sample, each in zip(packed, template, strict=True)]
        return packed

    def beside(self, noised: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """Return arguments of the denoiser that say what is seen beside the noised latents; none in most families."""
        del noised, conditioning
        return {}

    def settled(self, fixed: dict[str, Any], noised: Tensor) -> dict[str, Any]:
        """Return the denoiser's other arguments at a size, with what the pipeline would not say of training."""
        del noised
        return fixed

    def _fixed_at(self, noised: Tensor, texts: Texts) -> dict[str, Any]:
        """Return the denoiser's arguments at a size, a batch and text of these lengths; asked of the pipeline once."""
        key = (tuple(noised.shape), noised.device, tuple(_shape(text) for text in texts))
        if key not in self._fixed:
            with self.recording():
                arguments = self.call(len(noised), noised.shape)
                call = play(self.pipeline, self.slots, arguments, texts=texts, stop=True).calls[0]
            linked = self.learned.texts
            kept = {name: value for name, value in call.arguments.items() if name not in linked or value is None}
            moved = {name: _moved(value, noised.device) for name, value in kept.items()}
            self._fixed[key] = self.settled(moved, noised)
        return self._fixed[key]


def _on(conditioning: Conditioning, noised: Tensor, dtype: torch.dtype) -> Conditioning:
    """Return conditioning on the device of the latents, its numbers in the denoiser's dtype."""
    return {
        name: value.to(noised.device, dtype) if value.is_floating_point() else value.to(noised.device)
        for name, value in conditioning.items()
    }


def _shape(text: Any) -> Any:
    if isinstance(text, list | tuple):
        return tuple(_shape(each) for each in text)
    return tuple(text.shape) if isinstance(text, Tensor) else text is None


def _moved(value: Any, device: torch.device) -> Any:
    """Return an argument with its tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        return type(value)(_moved(each, device) for each in value)
    return value
