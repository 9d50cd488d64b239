"""Further channels in and out of a pretrained network, whose weights are zero at first."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Ends:
    """The layers where channels enter and leave a network, by name.

    A layer over the elements of a patch has them by channel (all of the first channel, then all of the
    second), or with channels last (all channels of the first element): pipelines pack both ways, and new
    channels go to other places.
    """

    inputs: str
    outputs: str
    inputs_last: bool = False
    outputs_last: bool = False


def widen_to(network: Any, ends: Ends, inputs: int, outputs: int) -> None:
    """Give a network so many channels in and out; one that has them, or more, stays as it is.

    The configuration says it too, so that the network saves and loads as any other.
    """
    old_in = network.config.in_channels
    old_out = network.config.out_channels or old_in
    if inputs > old_in:
        layer = network.get_submodule(ends.inputs)
        layer.weight = _grown(layer.weight, 1, old_in, inputs, ends.inputs_last)
        _say_size(layer, "in", layer.weight.shape[1])
    if outputs > old_out:
        layer = network.get_submodule(ends.outputs)
        layer.weight = _grown(layer.weight, 0, old_out, outputs, ends.outputs_last)
        if layer.bias is not None:
            layer.bias = _grown(layer.bias, 0, old_out, outputs, ends.outputs_last)
        _say_size(layer, "out", layer.weight.shape[0])
    network.register_to_config(in_channels=max(inputs, old_in), out_channels=max(outputs, old_out))


def _grown(value: nn.Parameter, dim: int, old: int, new: int, last: bool) -> nn.Parameter:
    """Put zeros behind the channels that a dim holds, times the elements of a patch."""
    patch = value.shape[dim] // old
    split = (patch, old) if last else (old, patch)
    channels = dim + 1 if last else dim
    folded = value.detach().view(*value.shape[:dim], *split, *value.shape[dim + 1 :])
    shape = list(folded.shape)
    shape[channels] = new - old
    grown = torch.cat([folded, folded.new_zeros(shape)], channels).flatten(dim, dim + 1)
    return nn.Parameter(grown, requires_grad=value.requires_grad)


def _say_size(layer: nn.Module, side: str, size: int) -> None:
    """Correct what a layer says of itself, which peft reads to size its adapters."""
    setattr(layer, f"{side}_features" if isinstance(layer, nn.Linear) else f"{side}_channels", size)
