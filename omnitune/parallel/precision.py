"""Mixed precision on one device, the same as `fully_shard`'s policy on many."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


def hold_master_weights(
    module: nn.Module, blocks: Sequence[nn.Module], compute: Mapping[str, torch.dtype]
) -> None:
    """Let parameters stored in fp32 take part in the forward pass in their compute dtype.

    While a block (for what is in none: the whole module) runs, cast copies stand in for its parameters;
    autograd carries their gradients back to the fp32 masters. Names, state dicts and the optimizer see the
    masters only; code that looks at a weight's dtype in the forward pass sees what it computes in.
    """
    unit_of: dict[int, nn.Module] = {id(m): block for block in blocks for m in block.modules()}
    places: dict[int, list[tuple[nn.Module, str, torch.dtype]]] = {}
    for path, owner in module.named_modules():
        prefix = f"{path}." if path else ""
        unit = unit_of.get(id(owner), module)
        for name, param in owner.named_parameters(recurse=False):
            if compute[prefix + name] != param.dtype:
                places.setdefault(id(unit), []).append((owner, name, compute[prefix + name]))
    for unit in [*blocks, module]:
        if id(unit) in places:
            Cast(places[id(unit)]).attach(unit)


class Cast:
    """Puts casts of fp32 masters in their places, for a while."""

    def __init__(self, places: list[tuple[nn.Module, str, torch.dtype]]):
        self.places, self.masters = places, list[Any]()

    @classmethod
    def of_now(cls, module: nn.Module) -> "Cast":
        """The casts that are in place now, for a part of the forward pass that is computed again later."""
        return cls(
            [
                (owner, name, value.dtype)
                for owner in module.modules()
                for name, value in vars(owner).items()  # parameters and buffers are in dicts of their own
                if isinstance(value, torch.Tensor)
            ]
        )

    def attach(self, unit: nn.Module) -> None:
        """Put them in while a module runs."""
        unit.register_forward_pre_hook(self._before)
        unit.register_forward_hook(self._after, always_call=True)

    def _before(self, unit: nn.Module, args: Any) -> None:
        self.__enter__()

    def _after(self, unit: nn.Module, args: Any, output: Any) -> None:
        self.__exit__()

    def __enter__(self) -> None:
        for owner, name, dtype in self.places:
            master = owner._parameters.pop(name)
            assert master is not None, name
            self.masters.append(master)
            setattr(owner, name, master.to(dtype))

    def __exit__(self, *error: object) -> None:
        for (owner, name, _), master in zip(self.places, self.masters, strict=False):
            delattr(owner, name)
            owner._parameters[name] = master
        self.masters = []
