"""Cross-entropy at the place of a language model's head, a chunk of tokens at a time."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...batch import on_device
from ...parallel.precision import Cast

IGNORED = -100


@contextmanager
def losses_for_logits(model: Any, labels: Tensor, *, chunk: int, label_smoothing: float) -> Iterator[None]:
    """Let the model give, where it would give logits, the loss of each token (B, L), 0 where none is learned.

    The loss of token t stands at t - 1, which predicts it. The head runs inside the model's own forward pass,
    where a sharded one is whole, and over the hidden states of learned tokens alone; logits of a chunk are
    computed anew in the backward pass. `labels` are on the CPU, for to count them there is no wait.
    """
    head, text = model.get_output_embeddings(), model.config.get_text_config()
    softcap = getattr(text, "final_logit_softcapping", None)
    logits_of = head.forward
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    places = (targets != IGNORED).flatten().nonzero().squeeze(1)
    if not len(places):  # every rank runs the head: one token that counts nothing
        places = places.new_zeros(1)

    def part(hidden: Tensor, target: Tensor) -> Tensor:
        logits = logits_of(hidden).float()
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        return F.cross_entropy(
            logits, target, ignore_index=IGNORED, reduction="none", label_smoothing=label_smoothing
        )

    def forward(hidden: Tensor) -> Tensor:
        # The backward pass computes parts again when the model's own casts of masters are gone.
        contexts = partial(_contexts, head)
        at = on_device(places, hidden.device)
        states, wanted = hidden.flatten(0, 1)[at], on_device(targets.flatten()[places], hidden.device)
        parts = [
            checkpoint(part, *pair, use_reentrant=False, context_fn=contexts)
            for pair in zip(torch.split(states, chunk), torch.split(wanted, chunk), strict=True)
        ]
        losses = torch.zeros(targets.numel(), device=hidden.device)
        return losses.index_put((at,), torch.cat(parts)).view_as(targets)

    head.forward = forward
    if softcap is not None:
        text.final_logit_softcapping = None
    try:
        yield
    finally:
        del head.forward
        if softcap is not None:
            text.final_logit_softcapping = softcap


def _contexts(head: Any) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), Cast.of_now(head)
