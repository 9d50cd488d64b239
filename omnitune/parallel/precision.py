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
            _Cast(unit, places[id(unit)])


class _Cast:
    def __init__(self, unit: nn.Module, places: list[tuple[nn.Module, str, torch.dtype]]):
        self.places, self.masters = places, list[Any]()
        unit.register_forward_pre_hook(self.swap_in)
        unit.register_forward_hook(self.swap_out, always_call=True)

    def swap_in(self, unit: nn.Module, args: Any) -> None:
        for owner, name, dtype in self.places:
            master = owner._parameters.pop(name)
            assert master is not None, name
            self.masters.append(master)
            setattr(owner, name, master.to(dtype))

    def swap_out(self, unit: nn.Module, args: Any, output: Any) -> None:
        for (owner, name, _), master in zip(self.places, self.masters, strict=False):
            delattr(owner, name)
            owner._parameters[name] = master
        self.masters = []
