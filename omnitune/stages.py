"""Encoder calls between the data and the loss, and which of them can be cached."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .batch import Batch, on_device
from .errors import UserError
from .lazily import torch
from .random import Draw


@dataclass(frozen=True)
class Stage:
    """One encoder call: reads `needs` from the batch and adds `gives`.

    A stage is cacheable exactly if every parameter under `uses` is frozen, everything it `needs` is
    cached (or comes from the data) and it `draws` nothing; that is derived from the rules, never configured.
    """

    name: str
    uses: tuple[str, ...]
    """Parameter prefixes (`text_encoder`, `model.vision_tower`), not whole components."""
    needs: tuple[str, ...]
    gives: tuple[str, ...]
    run: Callable[[Batch, "Draw"], Batch]
    draws: tuple[str, ...] = ()
    """Purposes of the random draws it makes."""
    ragged: tuple[str, ...] = ()
    """Those of `gives` that differ in shape from row to row and stay lists."""
    version: int = 0
    """Raised when its code comes to give something else for the same input: part of the cache key."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings that change the output (a text length): part of the cache key."""

    def __call__(self, batch: Batch, draw: "Draw") -> Batch:
        """Run it. Raises UserError for a stage of another package that does not give what it states."""
        given: Any = self.run(batch, draw)
        if not isinstance(given, dict):
            raise UserError(f"conditions: stage {self.name} gives {type(given).__name__}, not a dict")
        # It may leave some of `gives` out, a mask where there is none; another name in its place is a slip.
        if (strange := given.keys() - self.gives) and set(self.gives) - given.keys():
            raise UserError(
                f"conditions: stage {self.name} states that it gives {self.gives} and gives {min(strange)}"
            )
        return given


def split_stages(
    stages: list[Stage], trainable: Collection[str], media: Collection[str]
) -> tuple[list[Stage], list[Stage]]:
    """Split stages into (cacheable, live), given the names of trainable parameters and of what files hold.

    Downstream of a live output is live too. If one stage reads files anew all that read files do, for a
    sample is shown through one window and one crop.
    """
    live_keys: set[str] = set()
    for stage in stages:
        trains = any(is_under(name, *stage.uses) for name in trainable)
        if trains or stage.draws:
            live_keys.update(stage.gives, media if set(stage.needs) & set(media) else ())
    cacheable: list[Stage] = []
    live: list[Stage] = []
    for stage in stages:
        if stage.draws or live_keys.intersection((*stage.needs, *stage.gives)):
            live.append(stage)
            live_keys.update(stage.gives)
        else:
            cacheable.append(stage)
    return cacheable, live


def encode(batch: Batch, draw: Draw, stages: Sequence[Stage], device: torch.device) -> Batch:
    """Move a batch to the device and run the stages that are not cached."""
    batch = {name: _to(value, device) for name, value in batch.items()}
    for stage in stages:
        batch = {**batch, **stage(batch, draw)}
    return batch


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return on_device(value, device)
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        return [on_device(v, device) for v in value]
    return value


def is_under(name: str, *prefixes: str) -> bool:
    """Whether a parameter or module is named by one of the prefixes, or lies under it."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
