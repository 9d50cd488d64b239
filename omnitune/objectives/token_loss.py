"""The loss of a model that answers in text on conversations that it was not trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.order import Row
from ..families.base import Responder
from ..random import Draw
from ..stages import encode
from .causal_lm import CausalLM
from .held_out import Step, batched, evaluating


@dataclass(frozen=True)
class TokenLoss:
    """Cross-entropy for each learned token: the sum over all tokens of all items, by how many they are."""

    items: Sequence[float]
    """The sum over the tokens of each item, in the order of the index."""
    tokens: Sequence[int]
    """How many those are."""

    @property
    def mean(self) -> float:
        return sum(self.items) / sum(self.tokens)

    @property
    def standard_error(self) -> float:
        """Over items, of a ratio of two sums (Cochran 1977); nan for one item."""
        number = len(self.items)
        if number < 2:
            return math.nan
        pairs = zip(self.items, self.tokens, strict=True)
        square = sum((total - self.mean * tokens) ** 2 for total, tokens in pairs) / (number - 1)
        return math.sqrt(square / number) / (sum(self.tokens) / number)


def token_loss(step: Step, *, batch_size: int = 1) -> TokenLoss:
    """Sum the plain cross-entropy of every item's learned tokens; the batch size changes speed alone.

    It has no label smoothing, so that runs with and without compare.
    """
    dataset = step.batches.dataset
    number = len(dataset.index.items)
    with evaluating(step.family.components), torch.no_grad():
        sums = torch.cat([_sums(step, some) for some in batched(range(number), batch_size)])
    return TokenLoss(sums.tolist(), [dataset.units(i)["tokens"] for i in range(number)])


def _sums(step: Step, chosen: Sequence[int]) -> Tensor:
    """(B,): of each of some items."""
    family, objective = step.family, step.objective
    assert isinstance(family, Responder), family.name
    assert isinstance(objective, CausalLM), type(objective)
    batch = step.batches.batch([Row(i, i, 0) for i in chosen])
    encoded = encode(batch, Draw(0, batch["position"], step.device), step.stages, step.device)
    losses = family.token_losses(encoded, chunk=objective.chunk, label_smoothing=0.0)
    # Behind the items there may be a row that is there for its picture alone.
    return losses[: len(chosen)].double().cpu()
