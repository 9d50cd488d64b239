"""Equalities that vision-language families keep, for tests of ours and of families outside the package."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..families.base import Responder

Entry = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
"""A conversation as the cache of tokens holds it, and with its pixels."""


def rows_of(*rows: Sequence[Entry]) -> dict[str, Any]:
    """Make the batch of rows of one or several conversations."""
    return {
        "tokens": [[tokens for tokens, _ in row] for row in rows],
        "media": [[media for _, media in row] for row in rows],
    }


def assert_packed_is_apart(family: Responder, entries: Sequence[Entry], rtol: float = 1e-5) -> None:
    """Assert that a row of several conversations has the loss of each in a row of its own.

    It holds whatever stands beside a conversation: in the second batch the first one is alone.
    """

    def losses(*rows: Sequence[Entry]) -> Tensor:
        return family.token_losses(rows_of(*rows), chunk=7, label_smoothing=0.0)

    apart = losses(*([one] for one in entries))
    torch.testing.assert_close(losses(entries), apart.sum()[None], rtol=rtol, atol=rtol)
    mixed = losses(entries[1:], entries[:1])
    torch.testing.assert_close(mixed, torch.stack([apart[1:].sum(), apart[0]]), rtol=rtol, atol=rtol)
