"""Several conversations in one row: each attends to itself alone and has positions of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .collate import by_item, to_largest
from .types import VlmType

GRIDS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
SEGMENT = "segment"
"""Which conversation each token of a row is of, from 1; becomes a mask when rows are collated."""


def pack(row: Sequence[Mapping[str, Tensor]], model: Any, kind: VlmType) -> dict[str, Tensor]:
    """One row of several conversations, with `position_ids` ((L,), or (4, L) where they have axes)."""
    assert kind.packing is None, kind.packing
    length = [len(one["input_ids"]) for one in row]
    joined: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for one in row for name in one):
        tensors = [one[name] for one in row if name in one]
        if any(map(by_item, row)) and name.startswith("pixel"):
            joined[name] = torch.cat(tensors, 1)
        else:
            joined[name] = torch.cat(to_largest(name, tensors))
    labels = [one["labels"].clone() for one in row]
    for own in labels:
        own[0] = -100  # the first token of a conversation is not what the one before goes on with
    joined["labels"] = torch.cat(labels)
    joined[SEGMENT] = torch.cat([torch.full((n,), i + 1) for i, n in enumerate(length)])
    joined["position_ids"] = torch.cat([positions(one, model) for one in row], -1)
    return joined


def positions(tokens: Mapping[str, Tensor], model: Any) -> Tensor:
    """(L,), or (4, L) with the place in the text first, where a model has axes of time, height and width."""
    text = torch.arange(len(tokens["input_ids"]))
    find = getattr(model.model, "get_rope_index", None)
    if find is None:
        return text
    given: dict[str, Any] = {name: tokens[name] for name in GRIDS if name in tokens}
    if "mm_token_type_ids" in tokens:
        given["mm_token_type_ids"] = tokens["mm_token_type_ids"][None]
    ids = tokens["input_ids"][None]
    places, _ = find(ids, attention_mask=torch.ones_like(ids), **given)
    return torch.cat([text[None], places[:, 0]])


def block_mask(segments: Tensor, attention: str, dtype: torch.dtype) -> Tensor:
    """(B, 1, L, L): a token sees those before it, of its own conversation; 0 is padding.

    As each implementation reads it: sdpa takes True where a token sees another, eager attention adds the mask
    to its scores. A boolean one would add 1 to them, and every conversation would see all others.
    """
    same = segments[:, None, :, None] == segments[:, None, None, :]
    length = segments.shape[1]
    seen = same & torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    if attention == "sdpa":
        return seen
    assert attention == "eager", attention
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
