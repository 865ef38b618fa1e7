"""Text of several lengths as one batch: padded at its end, with a mask where the family masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from svdiff_delta.errors import TrainError

from .family import Conditioning


def pad_list(values: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return texts (tokens, width) as one tensor (batch, tokens, width), and which tokens are there.

    That is None if all are.
    """
    lengths = [len(value) for value in values]
    whole = torch.stack([_longer(value, 0, max(lengths)) for value in values])
    if len(set(lengths)) == 1:
        return whole, None
    return whole, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def unpad_list(whole: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Return what `pad_list` was given."""
    if mask is None:
        return list(whole.unbind())
    return [value[:length] for value, length in zip(whole, mask.sum(1).tolist(), strict=True)]


def join_rows(rows: Sequence[Conditioning], masks: Mapping[str, str], name: str) -> Conditioning:
    """Return the conditioning of samples as that of a batch.

    Args:
        rows: one for each sample, (1, …) each.
        masks: the key of a mask, and of what it masks.
        name: of the pipeline.

    Raises:
        TrainError: text has several lengths, and nothing masks it.
    """
    keys = [*dict.fromkeys(key for row in rows for key in row)]
    joined = {key: _joined([row[key] for row in rows]) for key in keys if key not in masks}
    for mask, key in masks.items():
        lengths = {row[key].shape[1] for row in rows if key in row}
        if len(lengths) > 1 or any(mask in row for row in rows):
            joined[mask] = _joined([row.get(mask, _all_there(row[key], rows, mask)) for row in rows])
    for key in keys:
        shapes = {row[key].shape[1:] for row in rows if key in row and key not in masks}
        if len(shapes) > 1 and key not in masks.values():
            raise TrainError(
                f"{name}: prompts of one batch have text of several lengths, and nothing masks it",
                fix="set batch_size to 1",
            )
    return joined


def _all_there(states: Tensor, rows: Sequence[Conditioning], mask: str) -> Tensor:
    """Return a mask that hides nothing, of the dtype of the other masks."""
    dtype = next((row[mask].dtype for row in rows if mask in row), torch.bool)
    return torch.ones(states.shape[:2], dtype=dtype, device=states.device)


def _joined(values: Sequence[Tensor]) -> Tensor:
    longest = max(value.shape[1] if value.dim() > 1 else 0 for value in values)
    return torch.cat([_longer(value, 1, longest) if value.dim() > 1 else value for value in values])


def _longer(value: Tensor, dim: int, length: int) -> Tensor:
    """Return a tensor with zeros at the end of a dimension."""
    if value.shape[dim] == length:
        return value
    shape = [*value.shape]
    shape[dim] = length - shape[dim]
    return torch.cat([value, value.new_zeros(shape)], dim)
