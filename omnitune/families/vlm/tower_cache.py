"""The output of a frozen vision tower, stored once and played back where the tower would run.

What leaves the tower is the arguments of the modules that read it (`Cut.inputs`). While recording, a forward
pass ends where the language model would begin; while playing, the tower's modules are gone and stand-ins keep
the model's own code on its way.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...stages import is_under
from .types import Cut


class _StopForward(Exception):
    """Ends a forward pass whose rest is of no use."""


@contextmanager
def record_outputs(
    model: nn.Module, cut: Cut, language_model: nn.Module
) -> Iterator[dict[str, list[Tensor]]]:
    """What each of the cut's inputs was given, in the order of the calls; `language_model` does not run."""
    outputs: dict[str, list[Tensor]] = {spot: [] for spot in cut.inputs}

    def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
        raise _StopForward

    hooks = [language_model.register_forward_pre_hook(stop, with_kwargs=True)]
    for spot in cut.inputs:
        hooks.append(_edit_input(model, spot, partial(_append, outputs[spot])))
    try:
        yield outputs
    except _StopForward:
        pass
    finally:
        for hook in hooks:
            hook.remove()


def _append(outputs: list[Tensor], value: Tensor) -> Tensor:
    outputs.append(value.detach())
    return value


def _edit_input(model: nn.Module, spot: str, replace: Callable[[Tensor], Tensor]) -> Any:
    """Pass what a spot (`path` or `path:keyword`) is given through a function."""
    path, _, keyword = spot.partition(":")

    def edit(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if keyword:
            return args, {**kwargs, keyword: replace(kwargs[keyword])}
        return (replace(args[0]), *args[1:]), kwargs

    return model.get_submodule(path).register_forward_pre_hook(edit, with_kwargs=True)


class Player:
    """Plays a tower's output back to the model that its modules were stripped from."""

    def __init__(self, model: nn.Module, cut: Cut, prefixes: Sequence[str]):
        self.model, self.cut, self.prefixes = model, cut, prefixes
        self.queues: dict[str, list[Tensor]] = {}
        self.active = True
        for spot in cut.inputs:
            _edit_input(model, spot, partial(self._next, spot))
        for module in model.modules():
            if isinstance(module, _Tower):
                module.played = lambda: self.queues[self.cut.inputs[0]][0]
                module.exact = ":" in cut.inputs[0]  # its shape is looked at beside where it is read

    def _next(self, spot: str, value: Tensor) -> Tensor:
        return self.queues[spot].pop(0) if self.active else value

    @contextmanager
    def playing(self, queues: Mapping[str, Sequence[Tensor]]) -> Iterator[None]:
        """Play what was recorded for the pictures, then the clips, of a batch."""
        self.queues = {spot: list(tensors) for spot, tensors in queues.items()}
        yield
        left = {spot: len(tensors) for spot, tensors in self.queues.items() if tensors}
        assert not left, f"not played back: {left}"

    @contextmanager
    def paused(self, whole: nn.Module) -> Iterator[None]:
        """The tower of another copy of the model in the place of the stand-ins."""
        kept = {prefix: self.model.get_submodule(prefix) for prefix in self.prefixes}
        for prefix in self.prefixes:
            self.model.set_submodule(prefix, whole.get_submodule(prefix))
        self.active = False
        try:
            yield
        finally:
            self.active = True
            for prefix, module in kept.items():
                self.model.set_submodule(prefix, module)


def strip(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Put stand-ins in the place of a tower's modules."""
    for prefix in prefixes:
        model.set_submodule(prefix, _stand_in(model.get_submodule(prefix)))


def stripped_class(cls: Any, prefixes: Sequence[str]) -> Any:
    """A model's class that strips itself as soon as it is built: the weights of the tower are never read."""
    return _edited_class(cls, strip, prefixes, [rf"^{re.escape(prefix)}\." for prefix in prefixes])


def tower_class(cls: Any, prefixes: Sequence[str]) -> Any:
    """A model's class that keeps its tower alone: no other weights are read."""
    names = "|".join(re.escape(prefix) for prefix in prefixes)
    return _edited_class(cls, _strip_rest, prefixes, [rf"^(?!(?:{names})(?:\.|$))"])


def _strip_rest(model: Any, prefixes: Sequence[str]) -> None:
    """Empty every module that is no part of a tower and holds none."""
    for path, _ in [*model.named_modules()]:
        if path and not is_under(path, *prefixes) and not any(is_under(prefix, path) for prefix in prefixes):
            model.set_submodule(path, nn.Identity())
    model.all_tied_weights_keys = {}  # the library would look for embeddings and head


def _edited_class(
    cls: Any, edit: Callable[[nn.Module, Sequence[str]], None], prefixes: Sequence[str], unread: Sequence[str]
) -> Any:
    """A model's class that edits itself when it is built; `unread` are patterns of weights not to be read."""

    class Stripped(cls):  # type: ignore[misc]
        _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
            *(cls._keys_to_ignore_on_load_unexpected or []),
            *unread,
        ]

        def __init__(self, config: Any, *args: Any, **kwargs: Any):
            super().__init__(config, *args, **kwargs)
            edit(self, prefixes)

    # The library converts the names of weights for classes that it takes for its own.
    Stripped.__name__, Stripped.__qualname__, Stripped.__module__ = (
        cls.__name__,
        cls.__qualname__,
        cls.__module__,
    )
    return Stripped


def _stand_in(module: Any) -> nn.Module:
    if isinstance(module, nn.ModuleList):
        return nn.ModuleList(_Identity() for _ in module)
    if isinstance(module, nn.Embedding):
        return _Zeros(module.embedding_dim, per_element=True)
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        return _Zeros(module.out_channels)
    if hasattr(module, "proj") and hasattr(module, "embed_dim"):  # an embedding of patches
        return _Zeros(module.embed_dim)
    return _Tower(module) if hasattr(module, "base_model_prefix") else _Identity()


class _Identity(nn.Module):
    """Gives back what it is given."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


class _Zeros(nn.Module):
    """Zeros of a width, for each row or for each element of what it is given."""

    def __init__(self, width: int, per_element: bool = False):
        super().__init__()
        self.width, self.per_element = width, per_element

    def forward(self, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows = value.shape if self.per_element else value.shape[:1]
        return torch.zeros(*rows, self.width, device=value.device)


class _Tower(nn.Module):
    """A tower without weights, with the settings that models ask theirs for."""

    played: Callable[[], Tensor]
    exact: bool
    """Whether the model looks at the shape of the output beside passing it on."""

    def __init__(self, tower: Any):
        super().__init__()
        self.config = tower.config
        for name in ("patch_size", "num_patches", "dtype", "spatial_merge_size"):
            if isinstance(value := getattr(tower, name, None), int | torch.dtype):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        played = self.played()
        if not self.exact and played.ndim == 3:
            # One token of a class and four of patches, which models cut off and fold together.
            played = played.new_zeros(len(played), 5, played.shape[-1])
        any_layer: defaultdict[int, Tensor] = defaultdict(lambda: played)
        return BaseModelOutputWithPooling(last_hidden_state=played, hidden_states=any_layer)
