"""Texts with zeros behind them, which a denoiser masks or attends to."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...batch import on_device


def pad_texts(embeds: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Texts (L, D) with zeros behind them, (B, length, D), and which are tokens, (B, length)."""
    text = torch.stack([F.pad(e, (0, 0, 0, length - len(e))) for e in embeds])
    lengths = on_device(torch.tensor([len(e) for e in embeds]), text.device)
    return text, torch.arange(length, device=text.device) < lengths[:, None]


FOLDED = 3
"""Zeros that stand for all: with one, log n in bfloat16 would weigh them up to 1.6% wrong, with three 4e-6.
A bias in fp32 would not do: of texts in bfloat16, CUDA's kernels refuse it, or read it as bfloat16."""


def log_weights(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits in a dtype, (B, FOLDED), whose exponentials add up to each of the numbers, (B,)."""
    found, left = [], numbers.double()
    for last in (False, False, True):
        logit = left.log().to(dtype)
        below = torch.nextafter(logit, torch.full_like(logit, -torch.inf))
        logit = logit if last else torch.where(logit.double().exp() > left, below, logit)
        found.append(logit)
        left = (left - logit.double().exp()).clamp_min(0)
    return torch.stack(found, 1)


class Padding:
    """Pads texts to a length; or folds the zeros into few that weigh as much, by a bias of attention.

    n equal keys weigh as one whose logit is higher by log n: the same result to rounding.
    """

    def __init__(self, length: int, fold: bool):
        self.length, self.fold = length, fold
        self.bias: Tensor | None = None
        """Of the texts padded last, (B, 1, 1, M); None where they are padded in full."""

    def pad(self, embeds: Sequence[Tensor]) -> Tensor:
        """Texts (L, D) to (B, length, D), or (B, M, D) folded."""
        lengths = torch.tensor([len(e) for e in embeds])
        width = min(self.length, int(lengths.max()) + FOLDED) if self.fold else self.length
        text, _ = pad_texts(embeds, width)
        self.bias = None
        if width < self.length:
            places = torch.arange(width) - lengths[:, None]  # behind each text's end, (B, M)
            weights = log_weights(self.length - lengths, text.dtype)
            bias = torch.zeros(places.shape, dtype=text.dtype).masked_fill(places >= 0, -torch.inf)
            bias.scatter_(1, lengths[:, None] + torch.arange(FOLDED), weights)
            self.bias = on_device(bias[:, None, None], text.device)
        return text

    def attach(self, module: Any) -> None:
        """Have a network fold what a pipeline pads in full, and cross-attention weigh what was folded."""
        module.register_forward_pre_hook(self._fold, with_kwargs=True)
        for block in module.blocks:
            block.attn2.register_forward_pre_hook(self._weigh)

    def _fold(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        text = kwargs["encoder_hidden_states"]  # (B, L, D)
        if text.shape[1] == self.length:
            there = (text != 0).any(-1) * torch.arange(1, self.length + 1, device=text.device)
            lengths = there.amax(1).tolist()
            text = self.pad([row[:length] for row, length in zip(text, lengths, strict=True)])
        return args, {**kwargs, "encoder_hidden_states": text}

    def _weigh(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, text, _, rotary = args
        return hidden, text, self.bias, rotary
