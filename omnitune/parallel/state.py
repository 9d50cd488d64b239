"""Training state on disk: torch's distributed checkpoint, which any number of ranks can read back."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import UserError
from .mesh import Mesh

OPTIMIZER = "optimizer/"


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state: `optimizer/NAME/exp_avg` and so on, sharded as its parameters are."""
    found = {}
    for group in optimizer.param_groups:
        for name, param in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state[param].items():
                found[f"{OPTIMIZER}{name}/{key}"] = (
                    value if isinstance(value, Tensor) else torch.tensor(value)
                )
    return found


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """Silence the warning that one process saves alone: that is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled, unavailable or uninitialized"
        )
        yield


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise what a rank met first: torch wraps it in a BaseException, which no `except Exception` sees."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        met, _ = next(iter(error.failures.values()))
        while met.__context__ is not None:  # torch.save complains of its own archive after a full disk
            met = met.__context__
        raise met from error


def save_tensors(folder: Path, tensors: dict[str, Tensor], mesh: Mesh) -> None:
    """Write tensors into a folder; every rank writes what it holds."""
    import torch.distributed.checkpoint as dcp

    with _one_process_is_fine(), _own_errors():
        dcp.save(
            {name: t.detach() for name, t in tensors.items()},
            storage_writer=dcp.FileSystemWriter(folder, sync_files=True),
            process_group=mesh.waiting,
            no_dist=mesh.world == 1,
        )


def load_tensors(folder: Path, tensors: dict[str, Tensor], mesh: Mesh) -> None:
    """Read into tensors, in place; each rank reads what it holds, whoever wrote it."""
    import torch.distributed.checkpoint as dcp

    with _one_process_is_fine():
        reader, alone = dcp.FileSystemReader(folder), mesh.world == 1
        dcp.load(dict(tensors), storage_reader=reader, process_group=mesh.waiting, no_dist=alone)


def stored_shapes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Name -> shape and dtype of every tensor in a folder."""
    import torch.distributed.checkpoint as dcp

    meta = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {name: m for name, m in meta.items() if isinstance(m, dcp.TensorStorageMetadata)}
    return {name: (m.size, m.properties.dtype) for name, m in tensors.items()}


def check_stored(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Raise UserError for a tensor that a folder does not hold in this shape."""
    stored = stored_shapes(folder)
    for name, tensor in tensors.items():
        there = tuple(stored[name][0]) if name in stored else None
        if there != tuple(tensor.shape):
            raise UserError(
                f"{folder}: {name} is {tuple(tensor.shape)} here and {there or 'missing'} in the checkpoint; "
                "go on with what the run was started with (a callback gives its own in tensors())"
            )


def load_whole(folder: Path, mesh: Mesh) -> dict[str, Tensor]:
    """Every tensor of a folder, whole, on the CPU."""
    tensors = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in stored_shapes(folder).items()}
    load_tensors(folder, tensors, mesh)
    return tensors


def load_optimizer(folder: Path, optimizer: Optimizer, mesh: Mesh) -> None:
    """Restore the state that `optimizer_tensors` gave, whatever keys this kind of optimizer has."""
    by_param: dict[str, dict[str, Tensor]] = {}
    for full_name, (size, dtype) in stored_shapes(folder).items():
        name, _, key = full_name.removeprefix(OPTIMIZER).rpartition("/")
        if full_name.startswith(OPTIMIZER):
            by_param.setdefault(name, {})[key] = torch.empty(size, dtype=dtype)
    tensors: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, param in zip(group["names"], group["params"], strict=True):
            for key, empty in by_param.get(name, {}).items():
                like_param = empty.shape == param.shape and empty.ndim > 0
                value = torch.zeros_like(param, dtype=empty.dtype) if like_param else empty.to(param.device)
                optimizer.state[param][key] = tensors[f"{OPTIMIZER}{name}/{key}"] = value.detach()
    load_tensors(folder, tensors, mesh)
