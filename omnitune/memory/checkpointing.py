"""Activation checkpointing: a block keeps its inputs alone, and the backward pass runs it again."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)  # fmt: skip
"""Where a module keeps what runs before and after its forward pass."""


def checkpoint_blocks(blocks: Sequence[nn.Module]) -> None:
    """Have each block keep its inputs alone, in training and evaluation mode; in place, before sharding.

    The whole call is run again, hooks and all: those of `hold_master_weights` put the weights in place that
    the forward pass saw. Names of parameters and classes stay. A block within another is run with that one.
    """
    for block in outermost(blocks):
        cls: Any = type(block)
        block.__class__ = _checkpointed(cls)


def outermost(blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """Those that are within no other."""
    inner = {id(module) for block in blocks for module in block.modules() if module is not block}
    return [block for block in blocks if id(block) not in inner]


@cache
def _checkpointed(cls: Any) -> Any:
    """A class of the same name, by which families find their blocks."""

    class Checkpointed(cls):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            call = super().__call__
            if not torch.is_grad_enabled():
                return call(*args, **kwargs)

            def run(*given: Any) -> Any:
                named = zip(kwargs, given[len(args) :], strict=True)
                return call(*given[: len(args)], **dict(named))

            def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
                return nullcontext(), _HooksOfNow(self)

            # As arguments by place all tensors are kept the same way, and tell the device of the draws.
            given = (*args, *kwargs.values())
            return checkpoint(run, *given, use_reentrant=False, context_fn=contexts)

    for name in ("__name__", "__qualname__", "__module__"):
        setattr(Checkpointed, name, getattr(cls, name))
    return Checkpointed


class _HooksOfNow:
    """The hooks of a block as they are now, for a time when some of them may be gone.

    A family may hook a layer for one forward pass, and remove that before the backward pass runs it again.
    """

    def __init__(self, block: nn.Module):
        self.held = [(m, n, value.copy()) for m in block.modules() for n in HOOKS if (value := getattr(m, n))]

    def __enter__(self) -> None:
        self.before = [(module, name, getattr(module, name)) for module, name, _ in self.held]
        self._put(self.held)

    def __exit__(self, *error: object) -> None:
        self._put(self.before)

    @staticmethod
    def _put(hooks: Sequence[tuple[nn.Module, str, Any]]) -> None:
        for module, name, value in hooks:
            setattr(module, name, value)
