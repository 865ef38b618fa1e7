"""DDIM inversion (Eq. 6) and spherical interpolation with noise (Eq. 7): where single-image editing starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Any, Final

import torch
from PIL import Image, ImageOps
from torch import Tensor

from svdiff_delta.errors import InputError, TrainError
from svdiff_train.data import to_tensor
from svdiff_train.families import Conditioning, family_of
from svdiff_train.families.stable_diffusion import StableDiffusion

from .schedulers import DDIM, is_diffusion, make_scheduler

PARALLEL: Final = 1e-12
"""sin φ below which two directions count as one, and Eq. 7 takes its limit."""


def diffusion_family(pipeline: Any) -> StableDiffusion:
    """Return the family of a pipeline that DDIM can invert: Stable Diffusion or SDXL, predicting ε or velocity.

    Raises:
        InputError: it is flow matching, or predicts something else, or no such family knows it.
    """
    name = type(pipeline).__name__
    if not is_diffusion(pipeline):
        raise InputError(
            f"{name}: {type(pipeline.scheduler).__name__} is not made for diffusion, as of flow matching, and DDIM "
            "inverts diffusion only",
            fix="edit with Stable Diffusion 1.x, 2.x or XL",
        )
    try:
        family = family_of(pipeline)
    except TrainError as error:
        raise InputError(error.message, fix=error.fix) from None
    if not isinstance(family, StableDiffusion):
        raise InputError(f"{name}: its latents are not those of diffusion", fix="edit with Stable Diffusion")
    return family


def encode_image(pipeline: Any, image: Image.Image, *, size: tuple[int, int] | None = None) -> Tensor:
    """Return the latents z* (1, channels, height, width) of a picture: the mean of the autoencoder's, in float32.

    Args:
        pipeline: a live diffusion pipeline.
        image: scaled to cover the size, and cut to it at its centre.
        size: height and width in pixels; the square that the model was made for if not given.

    Raises:
        InputError: the pipeline is none of diffusion.
    """
    family = diffusion_family(pipeline)
    height, width = size or (family.resolution, family.resolution)
    fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    with torch.no_grad():
        moments = family.encode_images(to_tensor(fitted)[None])
        return family.sample_latents(moments, torch.zeros_like(moments[:, 0]))


@torch.no_grad()
def ddim_invert(
    pipeline: Any,
    latents: Tensor,
    prompt: str | Sequence[str] | Conditioning,
    steps: int,
    guidance: float = 1.0,
    *,
    negative_prompt: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return z_T = DDIMInvert(z*, c; θ') (Eq. 6): DDIM's deterministic steps (η = 0), taken backwards.

    The timesteps are those that sampling in as many steps takes. A step from s to the noisier t solves the sampler's
    step from t to s for z_t, with the prediction at (z_s, t): for ε that is
    z_t = √ᾱ_t (z_s − √(1 − ᾱ_s) ε̂)/√ᾱ_s + √(1 − ᾱ_t) ε̂. The sampler takes the prediction at z_t, which is not known
    yet, and so the way there and back errs by O(1/steps).

    Args:
        pipeline: a live diffusion pipeline, with whatever was put on it.
        latents: z* (batch, channels, height, width), as of `encode_image`.
        prompt: c: one for all, one for each, or what the family's `encode_prompts` made of as many.
        steps: how many.
        guidance: scale of classifier-free guidance; 1, the paper's, does without.
        negative_prompt: what guidance leads away from.
        progress: called with steps done and in all.

    Returns:
        z_T in the latents' shape, in float32.

    Raises:
        InputError: the pipeline is none of diffusion, there is no step, or prompts are not as many as latents.
    """
    if steps < 1:
        raise InputError("steps must be at least 1")
    family = diffusion_family(pipeline)
    scheduler = make_scheduler(pipeline, DDIM)
    scheduler.set_timesteps(steps)
    texts = [_conditioning(family, prompt, len(latents))]
    if guidance != 1.0:
        texts.append(_conditioning(family, negative_prompt, len(latents)))
    z, times = latents.float(), scheduler.timesteps.flip(0).tolist()
    for done, t in enumerate(times, 1):
        found = [family.predict(family.denoiser, z, torch.full((len(z),), t), text).float() for text in texts]
        prediction = found[0] if len(found) == 1 else found[1] + guidance * (found[0] - found[1])
        z = _noisier(scheduler, family.prediction, prediction, z, t)
        if progress is not None:
            progress(done, len(times))
    return z


def _conditioning(family: StableDiffusion, prompt: str | Sequence[str] | Conditioning, count: int) -> Conditioning:
    if isinstance(prompt, Mapping):
        return prompt
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if len(prompts) == 1:
        prompts *= count
    if len(prompts) != count:
        raise InputError(f"{count} latents need as many prompts, {len(prompts)} were given")
    return family.encode_prompts(prompts)


def _noisier(scheduler: Any, kind: str, prediction: Tensor, z: Tensor, t: int) -> Tensor:
    """Return z_t from z_s, where s is the timestep to which sampling would go from t; coefficients are in float64."""
    alphas = scheduler.alphas_cumprod.double()
    before = t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    there, here = float(alphas[t]), float(alphas[before] if before >= 0 else scheduler.final_alpha_cumprod)
    a, b, c, d = sqrt(here), sqrt(1.0 - here), sqrt(there), sqrt(1.0 - there)
    if kind == "epsilon":
        return c / a * z + (d - b * c / a) * prediction
    cosine, sine = a * c + b * d, a * d - b * c  # z_s = cos · z_t − sin · v
    return (sine * prediction + z) / cosine


def slerp(alpha: float, z: Tensor, noise: Tensor) -> Tensor:
    """Return z̃_T = sin((1−α)φ)/sin φ · z_T + sin(αφ)/sin φ · ε, where cos φ = ⟨z_T, ε⟩/(‖z_T‖‖ε‖) (Eq. 7).

    Each sample has its own φ. Where the two are parallel or one is 0, the weights are their limits 1 − α and α; where
    they are opposite there is no shortest way, and the same is taken.

    Args:
        alpha: α in [0, 1]: 0 gives z_T and 1 gives ε, bit for bit.
        z: z_T (batch, …).
        noise: ε, in the same shape.

    Returns:
        The latents in the dtype of `z`, computed in float64.

    Raises:
        InputError: α is outside [0, 1], or the shapes differ.
    """
    if not 0.0 <= alpha <= 1.0:
        raise InputError(f"alpha must be within [0, 1], is {alpha}")
    if z.shape != noise.shape:
        raise InputError(f"the latents have shape {list(z.shape)}, the noise {list(noise.shape)}")
    if alpha in (0.0, 1.0):
        return (noise if alpha else z).to(z.dtype, copy=True)
    a, b = (part.double().flatten(1) for part in (z, noise))
    norms = a.norm(dim=1) * b.norm(dim=1)
    # By atan2 and not acos, which loses half of the digits where φ is small.
    unit_a, unit_b = (torch.nn.functional.normalize(part, dim=1) for part in (a, b))
    phi = 2.0 * torch.atan2((unit_a - unit_b).norm(dim=1), (unit_a + unit_b).norm(dim=1))
    sine = torch.sin(phi)
    plain = (norms == 0) | (sine.abs() < PARALLEL)
    safe = torch.where(plain, 1.0, sine)
    first = torch.where(plain, 1.0 - alpha, torch.sin((1.0 - alpha) * phi) / safe)
    second = torch.where(plain, alpha, torch.sin(alpha * phi) / safe)
    return (first[:, None] * a + second[:, None] * b).reshape(z.shape).to(z.dtype)
