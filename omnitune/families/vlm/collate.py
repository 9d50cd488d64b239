"""Rows of tokens and pixels to a batch, as the processor would have made it of all items at once."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...batch import Batch
from ...errors import UserError

PADS = {
    "input_ids": None,
    "labels": -100,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "cross_attention_mask": 0,
    "segment": 0,
    "qformer_input_ids": 0,
    "qformer_attention_mask": 0,
}
"""Tensors with one entry a token, (L, ...), and what they are padded with; None is the padding token."""
AXES = "position_ids"
"""(L,), or (A, L) for positions along several axes: the one tensor that has its tokens last."""


def collate(rows: Sequence[Mapping[str, Tensor]], pad_token_id: int) -> Batch:
    """Pad what has an entry a token on the right, and join what describes pictures along its first axis."""
    names = dict.fromkeys(name for row in rows for name in row)
    items = any(map(by_item, rows))
    batch: Batch = {}
    for name in names:
        given = [row.get(name) for row in rows]
        there = [value for value in given if value is not None]
        if name == AXES:
            batch[name] = _positions(there)
        elif name in PADS:
            batch[name] = _tokens(name, given, pad_token_id, rows)
        elif items:
            batch[name] = join_items(given)
            if name == "aspect_ratio_mask":
                batch[name][..., 0] = 1  # one tile at least, of pictures that are not there too
        else:
            batch[name] = torch.cat(to_largest(name, there))
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return batch


def by_item(row: Mapping[str, Tensor]) -> bool:
    """Whether pixels lead with an axis of items, (1, N, ...): mllama's, and those of idefics and smolvlm."""
    mask = row.get("pixel_attention_mask")
    return "aspect_ratio_ids" in row or (mask is not None and mask.ndim == 4)


def _tokens(
    name: str, given: Sequence[Tensor | None], pad_token_id: int, rows: Sequence[Mapping[str, Tensor]]
) -> Tensor:
    """(B, L, ...)."""
    like = next(value for value in given if value is not None)
    pad = PADS[name]
    fill = pad_token_id if pad is None else pad
    values = []
    length = max(len(row[name]) if name in row else len(row["input_ids"]) for row in rows)
    for value, row in zip(given, rows, strict=True):
        if value is None:
            value = like.new_full((len(row["input_ids"]), *(0 for _ in like.shape[1:])), fill)
        if name == "cross_attention_mask" and len(value) < length:
            # The processor has padding see what the last token sees.
            value = torch.cat([value, value[-1:].expand(length - len(value), *value.shape[1:])])
        values.append(value[None])
    return torch.cat([_pad_end(value, _largest(values), fill) for value in values])


def join_items(given: Sequence[Tensor | None]) -> Tensor:
    """(B, N, ...), with zeros in the place of pictures that an item does not show."""
    like = next(value for value in given if value is not None)
    empty = like.new_zeros((1, 0, *like.shape[2:]))
    values = [empty if value is None else value for value in given]
    shape = _largest(values)
    return torch.cat([_pad_end(value, shape, 0) for value in values])


def to_largest(name: str, values: Sequence[Tensor]) -> list[Tensor]:
    """Bring pictures of several sizes, or cut into several numbers of patches, to the largest."""
    shape = _largest(values)
    if name == "pixel_values_videos" and any(value.shape[1:] != values[0].shape[1:] for value in values):
        raise UserError(
            f"clips of {sorted({value.shape[1] for value in values})} frames cannot share a batch with this "
            "model; set video_frames to a number that every clip has, or a batch of one"
        )
    return [_pad_end(value, (len(value), *shape[1:]), 0) for value in values]


def _positions(values: Sequence[Tensor]) -> Tensor:
    """(B, L), or (A, B, L)."""
    length = max(value.shape[-1] for value in values)
    return torch.stack([F.pad(value, (0, length - value.shape[-1])) for value in values], dim=-2)


def _largest(values: Sequence[Tensor]) -> tuple[int, ...]:
    """The length of each axis but the first."""
    sizes = zip(*(value.shape for value in values), strict=True)
    return tuple(max(axis) if place else 1 for place, axis in enumerate(sizes))


def _pad_end(value: Tensor, shape: tuple[int, ...], fill: int) -> Tensor:
    """Grow a tensor at the end of its axes; the first stays."""
    if value.shape[1:] == shape[1:]:
        return value
    amounts = [
        amount for axis in range(value.ndim - 1, 0, -1) for amount in (0, shape[axis] - value.shape[axis])
    ]
    return F.pad(value, amounts, value=fill)
