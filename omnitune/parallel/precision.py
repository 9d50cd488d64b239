"""Mixed precision on one device, the same as `fully_shard`'s policy on many."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def hold_master_weights(module: nn.Module, compute: Mapping[str, torch.dtype]) -> None:
    """Let parameters stored in fp32 take part in the forward pass in their compute dtype.

    While the owning module runs, a cast copy stands in for the parameter; autograd carries its gradient back
    to the fp32 master. Names, state dicts and the optimizer see the master only.
    """
    for path, owner in module.named_modules():
        prefix = f"{path}." if path else ""
        cast = {
            n: d for n, p in owner.named_parameters(recurse=False) if (d := compute[prefix + n]) != p.dtype
        }
        if cast:
            _Cast(owner, cast)


class _Cast:
    def __init__(self, owner: nn.Module, dtypes: dict[str, torch.dtype]):
        self.dtypes, self.masters = dtypes, dict[str, Any]()
        owner.register_forward_pre_hook(self.swap_in)
        owner.register_forward_hook(self.swap_out, always_call=True)

    def swap_in(self, owner: nn.Module, args: Any) -> None:
        for name, dtype in self.dtypes.items():
            self.masters[name] = owner._parameters.pop(name)
            setattr(owner, name, self.masters[name].to(dtype))

    def swap_out(self, owner: nn.Module, args: Any, output: Any) -> None:
        for name in self.dtypes:
            if name in self.masters:
                delattr(owner, name)
                owner._parameters[name] = self.masters.pop(name)
