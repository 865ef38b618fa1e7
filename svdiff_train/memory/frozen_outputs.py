"""Compute what text encoders and the autoencoder give once, keep it, and let those models go."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import BaseError, TrainError
from svdiff_delta.runtime.memory import give_back
from svdiff_train.data.batches import Batches
from svdiff_train.families import Family
from svdiff_train.settings.config import TrainConfig

from .content import inputs_digest, models_digest
from .output_cache import OutputCache

DENOISERS: Final = re.compile(r"(unet|transformer|prior|decoder)(_\d+)?")
"""Components that no output is kept of."""

AUTOENCODERS: Final = re.compile(r"(\w+_)?(vae|vqgan)(_\d+)?")

UNASKED: Final = ("scheduler", "safety_checker", "feature_extractor")
"""Components that neither prompts nor pictures are encoded with."""

SINGLE: Final = ""
"""What a sole tensor is called among those of an entry."""


@dataclass(frozen=True)
class Encoder:
    """A function of the family whose outputs are kept.

    Attributes:
        function: its name.
        slots: the components that go once all is known.
        seen: the components that its outputs depend on.
    """

    function: str
    slots: tuple[str, ...]
    seen: tuple[str, ...]


def encoders_of(family: Family, config: TrainConfig) -> tuple[Encoder, ...]:
    """Return what is kept outputs of, by the run's settings."""
    components = [name for name, part in family.pipeline.components.items() if part is not None]
    pictures = tuple(name for name in components if AUTOENCODERS.fullmatch(name))
    others = [name for name in components if not DENOISERS.fullmatch(name) and name not in (*UNASKED, *pictures)]
    found = []
    if config.pre_compute_text_embeddings:
        found.append(Encoder("encode_prompts", tuple(family.text_slots), tuple(others)))
    if config.cache_latents:
        found.append(Encoder("encode_images", pictures, pictures))
    if found and family.companion is not None:  # what is seen beside a picture needs whichever of them is gone
        found.append(Encoder("see", (), (*others, *pictures)))
    return tuple(found)


class FrozenOutputs:
    """Puts a cache before the family's encoders, and lets their models go and come back.

    Whatever a model's outputs depend on is in the key: every weight and setting of it, the files of its tokenizer, the
    versions of the libraries, and what it is given, byte by byte. So another encoder's outputs are never taken.

    Args:
        family: of the live pipeline, in which nothing is trained yet.
        base: where models come back from.
        encoders: what is kept outputs of.
        cache: where.
        trained: the components that are trained.
        say: whom to tell what was kept, in a line.

    Attributes:
        hits: how many outputs were there already.
        made: how many were computed.

    Raises:
        TrainError: one of the models is trained, so that its outputs change.
    """

    def __init__(
        self,
        family: Family,
        base: Base,
        encoders: Iterable[Encoder],
        cache: OutputCache,
        *,
        trained: Iterable[str] = (),
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._family, self._base, self._encoders, self._cache = family, base, tuple(encoders), cache
        self._say, self._gone, self.hits, self.made = say, list[str](), 0, 0
        for encoder in self._encoders:
            if both := sorted(set(encoder.slots) & set(trained)):
                name = "pre_compute_text_embeddings" if encoder.function == "encode_prompts" else "cache_latents"
                raise TrainError(
                    f"{both[0]} is trained, so what it gives changes at every step",
                    fix=f"leave out {name}, or select from {family.slot} alone",
                )
        for encoder in self._encoders:
            self._put_before(encoder)

    def _put_before(self, encoder: Encoder) -> None:
        """Let the family's function look into the cache first."""
        family = self._family
        own: Callable[..., Any] = getattr(family, encoder.function)
        models = models_digest(family.pipeline, encoder.seen, self._base.path)
        about = f"{type(family).__module__}.{type(family).__qualname__}.{encoder.function}"

        def kept(*args: Any, **options: Any) -> Any:
            try:
                key = inputs_digest(models, about, args, options)
            except TypeError:  # something that no key is made of
                return self._computed(own, args, options)
            found = self._cache.get(key)
            if found is not None:
                self.hits += 1
                return self._unpacked(found)
            result = self._computed(own, args, options)
            self.made += 1
            self._cache.put(key, _packed(result))
            return result

        setattr(family, encoder.function, kept)

    def _unpacked(self, found: Mapping[str, Tensor]) -> Any:
        """Return an entry as the function gave it, where the denoiser is."""
        device = next(self._family.denoiser.parameters()).device
        here = {name: tensor.to(device) for name, tensor in found.items()}
        return here[SINGLE] if here.keys() == {SINGLE} else here

    def _computed(self, own: Callable[..., Any], args: Any, options: Any) -> Any:
        with self.present(), torch.no_grad():
            return own(*args, **options)

    def release(self) -> None:
        """Let the models go: they are shapes and settings without values from here on."""
        for encoder in self._encoders:
            for slot in encoder.slots:
                part = self._family.pipeline.components[slot]
                if slot not in self._gone and isinstance(part, nn.Module):
                    part.to("meta")
                    self._gone.append(slot)
        give_back()
        if self._say is not None and self._gone:
            self._say(f"{', '.join(self._gone)}: released; {self.hits} outputs were kept from before, {self.made} made")

    @contextmanager
    def present(self) -> Iterator[None]:
        """Bring the models back as long as this lasts, read from the base's files."""
        gone, self._gone = self._gone, []
        pipeline, shapes = self._family.pipeline, {slot: self._family.pipeline.components[slot] for slot in gone}
        try:
            for slot in gone:
                pipeline.register_modules(**{slot: self._loaded(slot, shapes[slot])})
            yield
        finally:
            for slot in gone:
                pipeline.register_modules(**{slot: shapes[slot]})
            self._gone = gone

    def _loaded(self, slot: str, shape: Any) -> nn.Module:
        device = next(self._family.denoiser.parameters()).device
        try:
            fresh = type(shape).from_pretrained(
                str(self._base.path), subfolder=slot, dtype=shape.dtype, use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise BaseError(f"{self._base.path / slot}: could not be loaded again ({error})") from error
        return cast("nn.Module", fresh.eval().requires_grad_(False).to(device))


def _packed(result: Any) -> Mapping[str, Tensor]:
    return {SINGLE: result} if isinstance(result, Tensor) else result


def keep_outputs(
    family: Family,
    base: Base,
    config: TrainConfig,
    batches: Batches,
    cache: OutputCache | None = None,
    *,
    trained: Iterable[str] = (),
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FrozenOutputs | None:
    """Compute all that a run needs of its frozen encoders, and let them go; return what brings them back.

    Args:
        family: of the live pipeline, in which nothing is trained yet.
        base: the opened base.
        config: of the run; None comes back if it asks for nothing.
        batches: what draws its samples.
        cache: where outputs are kept; the default cache if not given.
        trained: the components that are trained.
        say: whom to tell what was kept.
        progress: called with pictures done and in all.

    Raises:
        TrainError: a model whose outputs are to be kept is trained.
        OutputError: they cannot be kept, or are more than the cache's bound.
    """
    encoders = encoders_of(family, config)
    if not encoders:
        return None
    outputs = FrozenOutputs(family, base, encoders, cache or OutputCache(), trained=trained, say=say)
    if config.pre_compute_text_embeddings:
        for prompt in batches.prompts():
            with torch.no_grad():
                family.encode_prompts([prompt])
    if config.cache_latents:
        batches.encode_all(progress)
    outputs.release()
    return outputs
