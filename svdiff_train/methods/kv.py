"""Custom Diffusion (Kumari et al. 2023): keys and values of the cross-attention, and the tokens' embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from svdiff_delta.base_model.weight_selection import choose_kinds
from svdiff_delta.errors import TrainError
from svdiff_train.families import Family

from .checkpoint import copied
from .full import TunedWeights
from .method import Job

SUBSET = "unet-ca-kv"


class CustomDiffusion:
    """The paper's second baseline."""

    def half(self) -> bool:
        """Return False: a small step is lost in a weight in half precision."""
        return False

    def selectors(self, family: Family) -> tuple[str, ...]:
        """Return keys and values of the cross-attention.

        Raises:
            TrainError: the family's denoiser has no cross-attention of its own.
        """
        if family.slot != "unet":
            raise TrainError("kv trains cross-attention, which only UNets have", fix="use another method")
        return (SUBSET,)

    def check(self, job: Job) -> None:
        """Find the weights, and each concept's token."""
        weights, _ = self._weights(job)
        copied(job.base, _components(weights))

    @contextmanager
    def tune(self, job: Job) -> Iterator[TunedWeights]:
        """Let the chosen weights, and each concept's row of every text encoder's embedding, take gradients."""
        weights, rows = self._weights(job)
        yield TunedWeights(job, _components(weights), weights, rows)

    def _weights(self, job: Job) -> tuple[dict[str, nn.Parameter], dict[str, list[int]]]:
        """Return what is trained by parameter name, and the rows of embeddings."""
        selectors = job.config.selectors or self.selectors(job.family)
        names = choose_kinds(job.base, selectors, allow_missing=job.config.allow_missing)
        weights = {name: _weight(job, name) for name in names}
        rows: dict[str, list[int]] = {}
        for slot in job.family.text_slots:
            for token in job.config.tokens():
                name, embedding, row = _embedding(job, slot, token or "")
                weights[name] = embedding
                rows.setdefault(name, []).append(row)
        return weights, rows


def _components(weights: Iterable[str]) -> frozenset[str]:
    return frozenset(name.partition(".")[0] for name in weights)


def _weight(job: Job, name: str) -> nn.Parameter:
    slot, _, key = name.partition(".")
    weight: nn.Parameter = getattr(job.family.pipeline, slot).get_parameter(key)
    return weight


def _embedding(job: Job, slot: str, token: str) -> tuple[str, nn.Parameter, int]:
    """Return name and weight of a text encoder's embedding, and the token's row in it."""
    pipeline = job.family.pipeline
    encoder, tokenizer = getattr(pipeline, slot), getattr(pipeline, slot.replace("text_encoder", "tokenizer"))
    ids = tokenizer(token, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise TrainError(
            f"{token!r} is {len(ids)} tokens of {slot}'s tokenizer, and kv trains the embedding of one",
            fix="use a word that is a single token, such as sks",
        )
    weight = encoder.get_input_embeddings().weight
    name = next(key for key, value in encoder.named_parameters() if value is weight)
    return f"{slot}.{name}", weight, ids[0]
