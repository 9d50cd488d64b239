"""Random draws keyed by what they are for, so that ranks, micro-batches and resume points cannot change them.

After the cache a row is keyed by its position in the run (it counts samples across epochs); before a cached
stage by the sample's id and variant. Generators run on the CPU: the same numbers on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from .lazily import torch

if TYPE_CHECKING:
    from torch import Tensor


Key = int | str


def seed_of(*parts: Key) -> int:
    """Hash a key to 64 bits; stable between processes and versions of Python."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def uniform_of(*parts: Key) -> float:
    """A number in [0, 1) that is a pure function of the key, without torch."""
    return (seed_of(*parts) >> 11) * 2.0**-53


def generator(*parts: Key) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*parts) % 2**63)


class Draw:
    """Draws for the rows of one batch; row i is keyed by (seed, keys[i], purpose)."""

    def __init__(
        self,
        seed: int,
        keys: Sequence[Key],
        device: torch.device | str = "cpu",
        step: int | None = None,
    ):
        self.seed, self.keys, self.device, self.step = seed, list(keys), device, step
        self.hashes: dict[str, list[str]] | None = None
        """Set to {} to record a hash of every row that is drawn, by purpose."""

    def normal(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Standard normal numbers, (rows, *shape) in fp32."""
        rows = [torch.randn(tuple(shape), generator=generator(self.seed, k, purpose)) for k in self.keys]
        return self._finish(purpose, rows)

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Numbers in [0, 1), (rows, *shape) in fp32."""
        rows = [torch.rand(tuple(shape), generator=generator(self.seed, k, purpose)) for k in self.keys]
        return self._finish(purpose, rows)

    def row(self, purpose: str, i: int = 0) -> float:
        """One number in [0, 1) for row i, without torch: for decisions made while data are read."""
        return uniform_of(self.seed, self.keys[i], purpose)

    def within(self, purpose: str, edges: Sequence[float]) -> tuple[int, Tensor]:
        """One cell of [0, 1) for the whole global batch, and numbers in it for its rows.

        `edges` ascend from 0 to 1; cell i, from edges[i] to edges[i + 1], comes up as often as it is wide.
        """
        chosen = uniform_of(self.seed, f"step {self.step}", purpose)
        cell = next(i for i, edge in enumerate(edges[1:]) if chosen < edge)
        return cell, edges[cell] + self.uniform(purpose) * (edges[cell + 1] - edges[cell])

    def _finish(self, purpose: str, rows: list[Tensor]) -> Tensor:
        if self.hashes is not None:
            self.hashes[purpose] = [blake2b(r.numpy().tobytes(), digest_size=8).hexdigest() for r in rows]
        return torch.stack(rows).to(self.device, non_blocking=True)


def permuted(index: int, size: int, *key: Key) -> int:
    """The image of `index` under a pseudo-random permutation of range(size): constant time and memory.

    A four-round Feistel network over the smallest even power of two that holds `size`, walked until it
    lands inside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", method 3).
    """
    assert 0 <= index < size, (index, size)
    half = max(1, math.ceil((size - 1).bit_length() / 2))
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            left, right = right, left ^ (seed_of(*key, turn, right) & mask)
        index = left << half | right
        if index < size:
            return index
