"""The unmix regularization (section 3.3): on mixed samples, no concept's token attends to the other one's half."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final, TypeAlias

import torch
from torch import Tensor

from svdiff_delta._util.patterns import glob
from svdiff_delta.errors import SelectionError, TrainError
from svdiff_train.data.batches import Batch
from svdiff_train.data.cut_mix import Mix, Mixing
from svdiff_train.families import Family
from svdiff_train.settings.concept import Concept
from svdiff_train.settings.config import UnmixMaps

from .attention_maps import Layer, Maps, cross_attention, recorded
from .token_positions import token_places

VANISHED: Final = 1e-30

Places: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Where in a mixed prompt the tokens of the first and of the second concept stand."""


def unmix_loss(maps: Sequence[Tensor], mix: Mix, places: Places, kind: UnmixMaps = "attention") -> Tensor:
    """Return the squared attention of each concept's token on the other one's half: (), a mean over maps.

    Of each map it is mean(A²) over the second's half and the tokens of the first, plus the same with both exchanged.
    With "share" it is (Σ A over that half / Σ A over the whole map)² of each token instead: that does not shrink when
    a token is attended to less everywhere, which the first does, and which unlearns what the token stands for.
    A row or column in the middle, of which each has one half, counts for neither; a map that is one pixel wide along
    the cut has no halves and is left out.

    Args:
        maps: of one sample, (height, width, tokens) each.
        mix: what it shows.
        places: where both concepts' tokens stand.
        kind: what is squared.
    """
    found = []
    for attention in maps:
        length = attention.shape[1 if mix.beside else 0]
        if length < 2:
            continue
        axis, part = (1 if mix.beside else 0), length // 2
        halves = attention.narrow(axis, 0, part), attention.narrow(axis, length - part, part)
        first, second = (list(tokens) for tokens in places)
        misplaced = _of_kind(attention, halves[1], first, kind), _of_kind(attention, halves[0], second, kind)
        found.append(misplaced[0].square().mean() + misplaced[1].square().mean())
    return torch.stack(found).mean() if found else maps[0].new_zeros(())


def _of_kind(attention: Tensor, half: Tensor, tokens: list[int], kind: UnmixMaps) -> Tensor:
    """Return the attention of tokens on a half of a map, (height, width, tokens), or what share of theirs it is."""
    if kind == "attention":
        return half[..., tokens]
    # Attention that has vanished in the last digit is nowhere, and so not misplaced.
    return half[..., tokens].sum((0, 1)) / attention[..., tokens].sum((0, 1)).clamp_min(VANISHED)


class Unmix:
    """The regularization on a family's denoiser: which layers it looks at, and where the tokens stand.

    Args:
        family: of the model.
        concepts: what is learned; each has a token.
        mixing: what mixed samples can show.
        maps: what of each map is squared; None for the attention.
        layers: globs on the names of cross-attention modules, or parts of them; None for all.
        resolutions: sides of the maps in square pictures; None for all.
        resolution: side of square pictures in pixels.

    Raises:
        TrainError: the denoiser has no cross-attention, or a mixed prompt does not have its tokens where they are read.
        SelectionError: no map is of such a layer, or of such a side.
    """

    def __init__(
        self,
        family: Family,
        concepts: Sequence[Concept],
        mixing: Mixing,
        *,
        maps: UnmixMaps | None = None,
        layers: Sequence[str] | None,
        resolutions: Sequence[int] | None,
        resolution: int,
    ) -> None:
        self.family, self.kind = family, maps or "attention"
        side = family.latent_shape(resolution, resolution)[1]
        self.layers = choose_layers(family, layers, resolutions, side)
        self.places = _places_in_prompts(family, concepts, mixing)
        self.maps: Maps | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the denoiser's attention until the end."""
        with recorded(self.family.denoiser, self.layers) as self.maps:
            try:
                yield
            finally:
                self.maps = None

    def on(self, batch: Batch) -> AbstractContextManager[None]:
        """Look at a batch, on its way forward and back.

        Raises:
            TrainError: outside of `watching`.
        """
        return self._maps().recording(_mixed(batch))

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss on a batch that has just passed: () in float32, a mean over the subjects' samples.

        Those that are not mixed count as 0, so that the loss does not depend on how samples are shared out to batches.
        """
        maps, size = self._maps().taken, batch.latents.shape[-2:]
        total = batch.latents.new_zeros((), dtype=torch.float32)
        for row, sample in enumerate(_mixed(batch)):
            mix = batch.mixes[sample]
            if mix is not None:
                own = [maps[layer.name][row].unflatten(0, layer.size(*size)) for layer in self.layers]
                total = total + unmix_loss(own, mix, self.places[mix], self.kind)
        return total / batch.subjects

    def _maps(self) -> Maps:
        if self.maps is None:
            raise TrainError("nothing looks at the denoiser's attention", fix="do this inside of `watching`")
        return self.maps


def choose_layers(
    family: Family, patterns: Sequence[str] | None, sides: Sequence[int] | None, side: int
) -> tuple[Layer, ...]:
    """Return the cross-attention of a family's denoiser, or some of it.

    Args:
        family: of the model.
        patterns: globs on modules' names, or parts of them; a layer is chosen if one matches. None for all.
        sides: of maps; None for all.
        side: of latents of square pictures.

    Raises:
        TrainError: it has none.
        SelectionError: a pattern or a side matches none.
    """
    layers = cross_attention(family.denoiser)
    if not layers:
        raise TrainError(
            f"{type(family.pipeline).__name__}: its {family.slot} has no cross-attention maps to regularize",
            fix="set unmix_weight to 0 to go on without",
        )
    for pattern in patterns or ():
        if not any(_matches(layer.name, pattern) for layer in layers):
            raise SelectionError(
                f"unmix_layers: {pattern!r} matches no cross-attention",
                fix=f"they are called like {layers[0].name}",
            )
    own = {layer: side // layer.factor for layer in layers}
    if unknown := sorted(set(sides or ()) - set(own.values())):
        known = ", ".join(str(number) for number in sorted(set(own.values()), reverse=True))
        raise SelectionError(f"unmix_resolutions: no map has the side {unknown[0]}", fix=f"there are {known}")
    chosen = tuple(
        layer
        for layer in layers
        if (not sides or own[layer] in sides)
        and (not patterns or any(_matches(layer.name, pattern) for pattern in patterns))
    )
    if not chosen:
        raise SelectionError("unmix_layers and unmix_resolutions have no map in common", fix="leave out one of them")
    return chosen


def _matches(name: str, pattern: str) -> bool:
    return pattern in name or glob(pattern)(name)


def _places_in_prompts(family: Family, concepts: Sequence[Concept], mixing: Mixing) -> Mapping[Mix, Places]:
    """Return where the tokens stand in the prompt of everything that a mixed sample can show."""
    phrases = [concept.noun for concept in concepts]
    found: dict[Mix, Places] = {}
    for mix in mixing.every(len(concepts)):
        prompt = mixing.prompt(mix, phrases)
        first, second = (
            token_places(family.pipeline, family.text_slots, prompt, concepts[number].find_token() or "")
            for number in (mix.first, mix.second)
        )
        found[mix] = (first, second)
    return found


def _mixed(batch: Batch) -> list[int]:
    """Return which samples of a batch are mixed."""
    return [sample for sample, mix in enumerate(batch.mixes) if mix is not None]
