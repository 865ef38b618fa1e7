"""One optimizer step on Eq. 3: the samples of all processes, their gradients, and what is learned from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate.accelerator import Accelerator
from torch import Tensor

from svdiff_delta.errors import TrainError
from svdiff_train.data.batches import Batch, Batches, Texts
from svdiff_train.families.experts import draw_for
from svdiff_train.methods import Tuned

from .ema import Ema
from .loss import prior_preserving_loss
from .processes import mean
from .setup import HALF, RunInputs


class Stepper:
    """What a step needs: the model, what is trained on it, the optimizer, and the batches.

    Args:
        opened: what the run starts from; its config says how many processes it is for.
        tuned: what is trained.
        accelerator: the process, and what connects it to the others.
        batches: what draws samples.
        factor: on the learning rate at each step.

    Attributes:
        rate: the learning rate of the first group, as it was at the last step.
        ema: the running mean of what is trained; None where nobody asks for it.
    """

    def __init__(
        self,
        opened: RunInputs,
        tuned: Tuned,
        accelerator: Accelerator,
        batches: Batches,
        factor: Callable[[int], float],
    ) -> None:
        config, family = opened.config, opened.family
        self.config, self.family, self.tuned, self.accelerator = config, family, tuned, accelerator
        self.batches, self.unmix, self.factor = batches, opened.unmix, factor
        self.parameters, self.places = dict(tuned.parameters()), dict(tuned.places())
        groups = tuned.groups()
        self.rates = [group["lr"] for group in groups]
        self.rate: float = self.rates[0]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=config.mixed_precision == "fp16")
        self.bad = torch.zeros((), dtype=torch.bool, device=accelerator.device)
        self.cast = _cast(opened, tuned)
        self.ema = Ema(self.parameters, config.decay) if config.use_ema else None
        draw_for(family, tuned.components)
        self.texts = Texts(family, trained=not tuned.components.isdisjoint(family.text_slots))
        denoiser: Any = family.denoiser
        if config.gradient_checkpointing:
            _checkpoint(denoiser)
        self.denoiser: Any = torch.compile(denoiser) if config.compile else denoiser

    def step(self, step: int) -> Tensor:
        """Do one optimizer step on Eq. 3; return its loss and its gradient's length (2,), where they were computed.

        Nothing is read from the device, which may be steps behind. If one of the two is not finite, what is trained
        stays as it was before this step, in all later ones too. (A gradient that is not finite is no fault where the
        loss is scaled: the step is left out then, and the next one has a smaller factor.)
        """
        self.set_rates(step)
        return self.finish(self._backward(step))

    def set_rates(self, step: int) -> None:
        """Give the optimizer the learning rates of a step."""
        factor = self.factor(step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            now = self._representable(rate * factor)
            if isinstance(group["lr"], Tensor):  # a graph has its address
                group["lr"].fill_(now)
            else:
                group["lr"] = now
        self.rate = self._representable(self.rates[0] * factor)

    def _representable(self, rate: float) -> float:
        """Return a rate as the device reads it from a tensor: in float32 on CUDA, so that graphs change nothing."""
        return float(np.float32(rate)) if self.accelerator.device.type == "cuda" else rate

    def finish(self, loss: Tensor) -> Tensor:
        """Change what is trained by the gradients that are there; return the loss and their length (2,)."""
        self.tuned.mask_gradients()
        self.scaler.unscale_(self.optimizer)
        length = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        taken = torch.stack([loss, length.to(loss)])
        self._note(taken)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return taken

    def _note(self, taken: Tensor) -> None:
        """Let the optimizer leave this step out, and all later ones, if the loss or the gradient is not finite."""
        if self.scaler.is_enabled():  # it looks at the gradients itself, which `_share` makes NaN from then on
            self.bad.logical_or_(~taken[0].isfinite())
        elif all(group.get("fused") for group in self.optimizer.param_groups):
            self.bad.logical_or_(~taken.isfinite().all())
            self.optimizer.found_inf = self.bad.float()  # type: ignore[attr-defined]  # as GradScaler does

    def _poison(self) -> Tensor:
        """Return a factor on the loss: NaN, so that the scaler leaves the step out, once a loss was not finite."""
        return torch.where(self.bad, torch.nan, 1.0)

    def finite(self) -> bool:
        """Tell whether all that is trained is finite."""
        return all(bool(parameter.detach().isfinite().all()) for parameter in self.parameters.values())

    def average(self, number: int) -> None:
        """Let the running mean take in what step `number` has left."""
        if self.ema is not None:
            self.ema.step(number, self.bad)

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which what is trained is its running mean, where there is one."""
        return nullcontext() if self.ema is None else self.ema.applied()

    def means(self) -> dict[str, Tensor]:
        """Return the running mean by the names of the parameters; nothing where there is none."""
        return {} if self.ema is None else self.ema.means

    def untouched(self) -> list[str]:
        """Return the names of weights that no gradient has reached in the last step: the loss does not depend on them.

        Experts that share out the timesteps are left out: a step may be all on one's side.
        """
        apart = self.family.slots if len(self.family.slots) > 1 else ()
        return [name for name in self.tuned.untouched() if name.partition(".")[0] not in apart]

    def _backward(self, step: int) -> Tensor:
        """Leave the mean gradient of the step's samples in the parameters, and return their mean loss.

        A process does the shares of all that are not there, each as it would: a run of two is the same run in one.
        """
        count = self.config.processes or 1
        if count == 1:
            return self._share(step, 0)
        each = count // self.accelerator.num_processes
        first, total = self.accelerator.process_index * each, torch.zeros(())
        for share in range(first, first + each):
            loss = self._share(step, share)
            flat = self._flat(loss)
            total = flat if share == first else total + flat
        return self._unflat(mean(self.accelerator, total) / each)

    def _share(self, step: int, share: int) -> Tensor:
        """Leave the gradients of one process's share of the step in the parameters, and return its loss."""
        parts = range(self.config.accumulate)
        return self.learn(self.batches.batch(step, self.samples(part, share)) for part in parts)

    def learn(self, batches: Iterable[Batch]) -> Tensor:
        """Leave the gradients of batches, as many as are accumulated, in the parameters, and return their loss."""
        self.optimizer.zero_grad()
        loss = torch.zeros((), device=self.accelerator.device)
        for batch in batches:
            with nullcontext() if self.unmix is None else self.unmix.on(batch):
                one = self._loss(batch) / self.config.accumulate
                scaled = self.scaler.scale(one)
                (scaled * self._poison() if self.scaler.is_enabled() else scaled).backward()
            loss += one.detach()
        return loss

    def samples(self, part: int, share: int) -> list[int]:
        """Return the samples of a part of a share, by their numbers in the whole batch."""
        size = self.config.batch
        first = (part * (self.config.processes or 1) + share) * size
        return list(range(first, first + size))

    def _loss(self, batch: Batch) -> Tensor:
        """Return Eq. 3 on a batch, with the unmix regularization if it is asked for."""
        noised, target = self.family.noised(batch.latents, batch.noise, batch.timesteps)
        told = self.texts.conditioning(batch.prompts) if batch.told is None else batch.told
        conditioning = {**told, **batch.seen, "sizes": batch.sizes}
        with nullcontext() if self.cast is None else torch.autocast(self.accelerator.device.type, self.cast):
            found = self.family.predict(self.denoiser, noised, batch.timesteps, conditioning)
        weights = self.family.loss_weights(batch.timesteps, self.config.snr_gamma)
        loss = prior_preserving_loss(found, target, batch.subjects, self.config.prior_weight, weights)
        return loss if self.unmix is None else loss + self.config.unmix * self.unmix.loss(batch)

    def _flat(self, loss: Tensor) -> Tensor:
        """Return loss and gradients as one vector; δ is small, so one message does it."""
        return torch.cat([loss.reshape(1), *(grad.float().flatten() for grad in self._gradients())])

    def _unflat(self, flat: Tensor) -> Tensor:
        """Write the vector back into the gradients, and return the loss."""
        start = 1
        for grad in self._gradients():
            grad.copy_(flat[start : start + grad.numel()].view_as(grad))
            start += grad.numel()
        return flat[0]

    def _gradients(self) -> list[Tensor]:
        """Return all gradients: of experts that share out the timesteps, zeros where none had its turn."""
        if len(self.family.slots) > 1:  # in another process it may have had
            for parameter in self.parameters.values():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        return [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]


def _checkpoint(denoiser: Any) -> None:
    """Let activations be computed again on the way back.

    Raises:
        TrainError: diffusers does not do that in this class.
    """
    if not getattr(denoiser, "_supports_gradient_checkpointing", False):
        raise TrainError(
            f"{type(denoiser).__name__}: diffusers does not compute its activations again",
            fix="leave out gradient_checkpointing",
        )
    denoiser.enable_gradient_checkpointing()


def _cast(opened: RunInputs, tuned: Tuned) -> torch.dtype | None:
    """Return the dtype that operations are cast to; None if nothing is, as on a model that is in half precision."""
    half = HALF.get(opened.config.mixed_precision)
    return None if tuned.computes_in_half and opened.family.dtype == half else half
