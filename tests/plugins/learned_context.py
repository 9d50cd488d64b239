"""A condition of another package with a module of its own: a vector added to every token of a text."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from omnitune.batch import Batch
from omnitune.conditions.base import Condition
from omnitune.families.base import Noisy
from omnitune.options import option
from omnitune.random import Draw
from omnitune.sampling import Sampling


class Context(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D); zeros are padding and stay so."""
        return torch.where((tokens != 0).any(-1, keepdim=True), tokens + self.weight.to(tokens), tokens)


@option
class LearnedContext(Condition):
    name: str

    def prepare(self, family: Any) -> None:
        family.add_component("context", lambda: Context(family.core_config["text_dim"]))

    def before(self, family: Any, noisy: Noisy, batch: Batch, draw: Draw) -> Noisy:
        batch["prompt_embeds"] = [family.components["context"](text) for text in batch["prompt_embeds"]]
        return noisy

    def sampling(self, family: Any, request: Sampling) -> Sampling:
        def with_context(forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(encoder_hidden_states: Tensor, **rest: Any) -> Any:
                texts = family.components["context"](encoder_hidden_states)
                return forward(encoder_hidden_states=texts, **rest)

            return call

        return replace(request, wrappers=[*request.wrappers, with_context])

    def exports(self, family: Any) -> Mapping[str, Any]:
        return {"context": family.components["context"].weight.numel()}
