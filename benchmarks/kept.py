"""Count what a piece of code, or a run's forward pass, leaves in memory."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from omnitune.batch import Batch
from omnitune.random import Draw
from omnitune.stages import encode
from omnitune.trainer import Trainer


class Kept(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operators make while it is on and that are still there.

    Around a forward pass it tells what is kept for the backward pass, by whatever means that is kept.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.earlier: dict[int, StorageWeakRef] = {}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def num_bytes(self) -> int:
        """Of what is still there."""
        return sum(size for reference, size in self.made.values() if not _is_gone(reference))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self.made:
                self.earlier.setdefault(storage._cdata, _reference(storage))
        output = func(*args, **(kwargs or {}))
        for storage in _storages(output):
            if storage._cdata not in self.earlier:  # the references keep both kinds of addresses from new use
                self.made.setdefault(storage._cdata, (_reference(storage), storage.nbytes()))
        return output


def _reference(storage: UntypedStorage) -> StorageWeakRef:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def _is_gone(reference: StorageWeakRef) -> bool:
    return bool(reference.expired())  # type: ignore[no-untyped-call]


def _storages(values: Any) -> Iterator[UntypedStorage]:
    for value in tree_leaves(values):
        if isinstance(value, Tensor):
            yield value.untyped_storage()


def kept(trainer: Trainer, batch: Batch) -> int:
    """Bytes that the forward pass of a micro-batch leaves for the backward pass."""
    draw = Draw(0, batch["position"])
    encoded = encode(batch, draw, trainer.stages, trainer.mesh.device)
    with (count := Kept()):
        loss = trainer.objective.loss(trainer.family, encoded, draw, trainer.conditions)
    assert loss.totals
    return count.num_bytes
