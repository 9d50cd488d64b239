"""Replicate x shard data parallelism on one code path.

1 x 1 is a single device, N x 1 replicates (DDP), 1 x N shards (FSDP2), M x N does both (HSDP).
"""

import gc
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer

from ..errors import MachineError, UserError, shared
from .device import device_id, local_device
from .options import Parallel
from .precision import hold_master_weights

T = TypeVar("T")

WORK = timedelta(days=1)
"""How long ranks wait for one that works alone (scans, encodes, writes); one that is lost ends it at once."""
MEETING_SECONDS = 60
"""How long a rank with a mistake waits for the others before it tells of it alone."""


class Mesh:
    """The ranks of a run and what they do together.

    A mistake that this rank made before is raised on all of them, which would wait for it in vain.
    """

    def __init__(self, parallel: Parallel, mistake: UserError | None = None):
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        self.device = local_device()
        self.mesh: Any = None
        self.waiting: Any = None
        """The group of ranks that wait for work of one; None is that of all, with its shorter patience."""
        timeout = timedelta(seconds=parallel.timeout)
        if self.world > 1:
            kind = self.device.type
            own = "" if kind == "cpu" else f",{kind}:{dist.get_default_backend_for_device(kind)}"
            dist.init_process_group(f"cpu:gloo{own}", timeout=timeout)

        def sizes() -> tuple[int, int]:
            if mistake is not None:
                raise mistake
            return parallel.sizes(self.world)

        try:
            agreed = self.on_all_ranks(sizes)
            self._check_own_devices()
        except UserError:
            self.close()
            raise
        if self.world > 1:
            # Nothing here changes a prediction in place, which is what this warns of.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
            self.mesh = init_device_mesh(self.device.type, agreed, mesh_dim_names=("replicate", "shard"))
            for group in self.mesh.get_all_groups():  # it gives them torch's own timeout
                dist.set_timeout(timeout, group)
            self.waiting = dist.new_group(backend="gloo", timeout=WORK)
        self.dp_rank, self.dp_size = self.rank, self.world  # ranks that share a batch would share dp_rank
        self.placed: list[Any] = []
        self.replicated: list[nn.Parameter] = []
        self._pending_vote: tuple[Any, Tensor] | None = None

    def _check_own_devices(self) -> None:
        """Raise UserError, on all ranks, if two have one card."""
        if self.device.type == "cpu" or self.world == 1:
            return
        cards = self.gather(device_id(self.device))
        for rank, card in enumerate(cards):
            if card in cards[:rank]:
                raise shared(
                    UserError(
                        f"parallel: ranks {cards.index(card)} and {rank} have one device, {card}; start at "
                        "most as many ranks as there are devices (--nproc), or show each its own "
                        "(CUDA_VISIBLE_DEVICES)"
                    )
                )

    @property
    def main(self) -> bool:
        """Whether this rank writes files and speaks to the user."""
        return self.rank == 0

    def close(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()

    def place(
        self,
        module: nn.Module,
        blocks: Sequence[nn.Module],
        compute: Mapping[str, torch.dtype],
        dtype: torch.dtype,
    ) -> None:
        """Shard each block, then what is left; in place, so names and forward calls stay as they are.

        The module computes in `dtype`; `compute` has the dtype of each parameter, which is another where the
        model keeps some in fp32. What trains is stored in fp32 and cast for the forward pass, on one device
        as on many.
        """
        if self.mesh is None:
            hold_master_weights(module, blocks, compute)
            return
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        # A group has one compute dtype: what a model keeps in fp32 stays whole on every rank.
        apart = [p for n, p in module.named_parameters() if compute[n] != dtype]
        self.replicated += [p for p in apart if p.requires_grad]  # a list: ranks reduce in one order
        # Inputs are cast by the family: a blanket cast would round timesteps to bf16.
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for part in [*blocks, module]:
            sharded = fully_shard(part, mesh=self.mesh, mp_policy=policy, ignored_params=set(apart))
        self.placed.append(sharded)

    def release(self) -> None:
        """Free what was placed: another phase places its own.

        Trainer, callbacks and hooks are in cycles, which hold a whole model until they are looked for.
        """
        self.placed, self.replicated = [], []
        gc.collect()
        if self.device.type != "cpu":
            torch.accelerator.empty_cache()

    def reshard(self) -> None:
        """Drop what a forward pass without a backward pass left gathered.

        Until then parameters are whole tensors, and a change of the shards does not reach them.
        """
        for module in self.placed:
            module.reshard()

    def backward(self, loss: Tensor, last: bool) -> None:
        """Backpropagate a loss divided by its global count; ranks sum their gradients after the last."""
        for module in self.placed:
            module.set_requires_gradient_sync(last)
            module.set_is_last_backward(last)
        (loss * self.dp_size).backward()  # type: ignore[no-untyped-call]  # ranks are averaged over

    def step(self, optimizer: Optimizer, max_norm: float | None) -> Tensor:
        """Clip the global gradient norm, update, clear; returns the norm before clipping, on the device."""
        self._reduce_replicated()
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = self._total_norm([cast(Tensor, p.grad) for p in params])
        if max_norm is not None:
            for kind in {type(p) for p in params}:
                nn.utils.clip_grads_with_norm_([p for p in params if type(p) is kind], max_norm, norm)
        optimizer.step()
        optimizer.zero_grad()
        return norm

    def _reduce_replicated(self) -> None:
        for param in self.replicated:
            if param.grad is not None:  # else on all ranks: of an expert that the batch did not go to
                dist.all_reduce(param.grad)
                param.grad /= self.dp_size

    @staticmethod
    def _total_norm(grads: list[Tensor]) -> Tensor:
        norms = []
        for kind in {type(g) for g in grads}:
            norm = nn.utils.get_total_norm([g for g in grads if type(g) is kind])
            norms.append(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over data-parallel ranks."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """The value of every data-parallel rank, on all of them."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self.waiting)
        return found

    def agree(self, *wishes: bool) -> tuple[bool, ...]:
        """Whether any rank had each wish by the call before: one step late, so that no step waits for it."""
        if self.world == 1:
            return wishes
        agreed = (False,) * len(wishes)
        if self._pending_vote is not None:
            work, votes = self._pending_vote
            work.wait()
            agreed = tuple(bool(vote) for vote in votes.tolist())
        vote = torch.tensor([float(wish) for wish in wishes])
        self._pending_vote = (dist.all_reduce(vote, async_op=True), vote)
        return agreed

    def on_main(self, work: Callable[[], T]) -> T:
        """Run `work` on the main rank and give its result, or its error, to all."""
        if self.world == 1:
            return work()
        box: list[Any] = [None]
        if self.main:
            box = [_tried(work)]
        dist.broadcast_object_list(box, group=self.waiting)
        made, error = box[0]
        if error is not None:
            raise shared(error)
        return cast(T, made)

    def on_all_ranks(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank and wait; an error of one rank is raised on all, so that none hangs."""
        if self.world == 1:
            return work()
        made, error = _tried(work)
        failed = torch.tensor(float(error is not None))
        dist.all_reduce(failed, group=self.waiting)
        if failed:
            raise shared(next(e for e in self.gather(error) if e is not None))
        return cast(T, made)

    def full(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Whole tensors on the CPU of the main rank; an empty dict elsewhere. All ranks call it."""
        found = {}
        for name, tensor in tensors:
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            if self.main:
                found[name] = whole.detach().cpu().clone()
        return found


def _tried(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What `work` gives, or its error: of the user, the machine or a file."""
    try:
        return work(), None
    except (UserError, MachineError, OSError) as error:
        return None, error


def fail_on_all_ranks(mistake: UserError) -> NoReturn:
    """Raise a mistake that was made before the mesh was there on all ranks, or here if they do not come."""
    with suppress(RuntimeError):  # so torch and gloo tell that nobody came
        Mesh(Parallel(timeout=MEETING_SECONDS), mistake)
    raise mistake
