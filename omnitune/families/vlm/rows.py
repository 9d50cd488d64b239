"""Rows of a batch as a model is given them: with pixels, or with what was stored of a tower."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...batch import Batch
from .collate import join_items
from .types import Cut, VlmType

KINDS = ("image", "video")


def has_media(inputs: Mapping[str, Tensor], kind: str) -> bool:
    """Whether an item shows a picture or a clip."""
    names = ("pixel_values_videos",) if kind == "video" else ("pixel_values", "pixel_values_images")
    return any(name in inputs for name in names)


def conversations_of(batch: Batch, played: bool) -> list[list[dict[str, Tensor]]]:
    """The conversations of each row, with their pixels, or, where the tower is played, with their shape."""
    media = [map(stand_in_pixels, row) for row in batch["tokens"]] if played else batch["media"]
    return [
        [
            {**pixels, **{k: v for k, v in tokens.items() if not k.startswith("shape.")}}
            for tokens, pixels in zip(*row, strict=True)
        ]
        for row in zip(batch["tokens"], media, strict=True)
    ]


def stand_in_pixels(tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ones in the place of pixels that are not there, in their shape and without their memory."""
    shapes = {k.removeprefix("shape."): v.tolist() for k, v in tokens.items() if k.startswith("shape.pixel")}
    return {name: torch.ones(()).expand(shape) for name, shape in shapes.items()}


def tower_outputs(
    conversations: Sequence[Mapping[str, Tensor]],
    cut: Cut,
    calls_of: Callable[[Mapping[str, Tensor]], Mapping[str, Sequence[Tensor]]],
    device: torch.device,
) -> dict[str, Tensor]:
    """What leaves the tower for the media of a row: `image0`, `video0` of the first input of the cut..."""
    outputs: dict[str, list[Tensor]] = {f"{kind}{i}": [] for kind in KINDS for i in range(len(cut.inputs))}
    for inputs in conversations:
        kinds = [kind for kind in KINDS if has_media(inputs, kind)]
        calls = calls_of(inputs) if kinds else dict.fromkeys(cut.inputs, ())
        for i, spot in enumerate(cut.inputs):
            for kind, tensor in zip(kinds, calls[spot], strict=True):
                outputs[f"{kind}{i}"].append(tensor)
    empty = torch.zeros(0, device=device)
    return {name: torch.cat(tensors) if tensors else empty for name, tensors in outputs.items()}


def stored_outputs(batch: Batch, cut: Cut) -> dict[str, list[Tensor]]:
    """What was stored of a batch for each input of a cut: of its pictures, then of its clips."""
    outputs: dict[str, list[Tensor]] = {}
    for i, spot in enumerate(cut.inputs):
        several = [batch[f"{kind}{i}"] for kind in KINDS]
        outputs[spot] = [one for tensors in several if (one := _joined(tensors, cut.by_row)) is not None]
    return outputs


def _joined(rows: Sequence[Tensor], by_row: bool) -> Tensor | None:
    """What was recorded of rows, as the whole batch would have given it."""
    there = [row for row in rows if row.numel()]
    if not there:
        return None
    return join_items([row if row.numel() else None for row in rows]) if by_row else torch.cat(there)


@contextmanager
def hide_absent_pictures(
    model: Any, kind: VlmType, inputs: Mapping[str, Tensor], dtype: torch.dtype
) -> Iterator[None]:
    """Keep rows without pictures from modules that they skip when they are alone."""
    mask = inputs.get("cross_attention_mask")
    if kind.unseen is None or mask is None:
        yield
        return
    shows = mask.flatten(1).any(1).view(-1, 1, 1).to(dtype)

    def hide(module: Any, args: Any, output: Any) -> Any:
        return (output[0] * shows, *output[1:])

    named = model.named_modules()
    hooks = [m.register_forward_hook(hide) for n, m in named if n.endswith(f".{kind.unseen}")]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
