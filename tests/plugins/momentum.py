"""Stochastic gradient descent with momentum."""

from typing import Any

import torch

from omnitune.options import option


@option
class Momentum:
    """Sutskever et al. 2013, as torch has it."""

    name: str
    lr: float = 1e-2
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    momentum: float = 0.9

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
