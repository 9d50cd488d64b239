"""What rules see of a model: its parameters, the roles they have, the layers they lie in.

A role (`vision_tower`, `language_model`) is what a part is for. A family states exact prefixes of parameter
names for each; they are disjoint and together cover everything. A prefix covers the parameter of that name
and all under it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING

from ..lazily import torch
from ..stages import is_under

if TYPE_CHECKING:
    from torch import nn

Roles = Mapping[str, Sequence[str]]
"""Role -> the prefixes of its parameters."""


def base_name(name: str) -> str:
    """A parameter's name whether or not its layer has an adapter."""
    return name.replace(".base_layer.", ".")


def role_of(name: str, roles: Roles) -> str | None:
    """The role of a parameter or module, None if it is in none."""
    found = _prefix_of(name, roles)
    return found and found[0]


def spoken(name: str, roles: Roles) -> str:
    """A name behind its role: `vision_tower.blocks.3.attn` for `model.model.visual.blocks.3.attn`."""
    found = _prefix_of(name, roles)
    if found is None:
        return name
    role, prefix = found
    last = prefix.rpartition(".")[2]
    return (role if last == role else f"{role}.{last}") + name.removeprefix(prefix)


def called(name: str, roles: Roles) -> list[str]:
    """All that a glob may match to claim a parameter: its name, its names behind the role, their parents."""
    spellings = [name]
    if found := _prefix_of(name, roles):
        role, prefix = found
        spellings += [spoken(name, roles), role + name.removeprefix(prefix)]
    return [part for spelling in dict.fromkeys(spellings) for part in (spelling, *_parents(spelling))]


def glob_matches(glob: str, names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for name in names)


def _parents(name: str) -> Iterator[str]:
    return (name[:i] for i, c in enumerate(name) if c == ".")


def _prefix_of(name: str, roles: Roles) -> tuple[str, str] | None:
    pairs = ((role, prefix) for role, prefixes in roles.items() for prefix in prefixes)
    return next(((role, prefix) for role, prefix in pairs if is_under(name, prefix)), None)


@dataclass(frozen=True)
class Place:
    """Where a parameter lies in a list of layers."""

    layers: str
    """Name of the list."""
    index: int
    length: int


class ParameterIndex:
    """The parameters of a model by name, as rules see them; the meta device is enough."""

    def __init__(self, components: nn.ModuleDict, roles: Roles | None = None):
        self.roles: Roles = roles or {}
        self.parameters = dict(components.named_parameters())
        self.modules = dict(components.named_modules())
        self._matching: dict[str, list[str]] = {}
        self.called = {name: called(name, self.roles) for name in self.parameters}
        listed = {id(param): name for name, param in self.parameters.items()}
        everything = components.named_parameters(remove_duplicate=False)
        self.tied = {n: listed[id(p)] for n, p in everything if n not in self.parameters}
        """Further name of a tied parameter -> the name that it is listed under."""

    @cached_property
    def lists(self) -> dict[str, int]:
        """The outermost lists of more than one layer, with their lengths."""
        found: dict[str, int] = {}
        for name, module in self.modules.items():
            inner = any(name.startswith(f"{outer}.") for outer in found)
            if isinstance(module, torch.nn.ModuleList) and len(module) > 1 and not inner:
                found[name] = len(module)
        return found

    def place(self, name: str) -> Place | None:
        """Where a parameter lies in one of `lists`."""
        found = next((one for one in self.lists if name.startswith(f"{one}.")), None)
        if found is None:
            return None
        return Place(found, int(name.removeprefix(f"{found}.").split(".")[0]), self.lists[found])

    def matching(self, glob: str) -> list[str]:
        """The parameters that a glob names; each glob is looked up once."""
        if glob not in self._matching:
            self._matching[glob] = [n for n, names in self.called.items() if glob_matches(glob, names)]
        return self._matching[glob]

    def of_role(self, role: str) -> list[str]:
        return [name for name in self.parameters if role_of(name, self.roles) == role]

    def carries(self, name: str) -> bool:
        """Whether a parameter is the weight of a layer that can have an adapter.

        A tied weight is not: what an adapter changes of one of its two uses cannot be merged into it.
        """
        module, _, last = name.rpartition(".")
        return last == "weight" and name not in self.tied.values() and _adaptable(self.modules[module])

    def nearest(self, glob: str) -> str:
        """`; nearest: a, b; roles: c, d` for a glob that matched nothing, or an empty string."""
        modules = {part for n in self.parameters for part in (*_parents(n), *_parents(spoken(n, self.roles)))}
        # The role of a whole component has the component's name, which its parameters' names tell.
        roles = [role for role, prefixes in self.roles.items() if list(prefixes) != [role]]
        close = get_close_matches(glob, sorted({*modules, *roles}), n=3, cutoff=0.4)
        near = f"; nearest: {', '.join(close)}" if close else ""
        return near + (f"; roles: {', '.join(roles)}" if roles else "")


def _adaptable(module: nn.Module) -> bool:
    from torch import nn

    if isinstance(module, torch.nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False  # nn.MultiheadAttention reads its weight without calling it
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward  # Llama 4's router gives two tensors
    # peft adapts grouped convolutions at ranks that the groups divide alone: those of Qwen3.5 at none.
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1


def distances(claimed: Sequence[str], index: ParameterIndex) -> dict[str, int]:
    """How many layers lie between each of some parameters and the end of their network.

    With n layers it is n for the first, 1 for the last, n + 1 for what stands before them and 0 for what
    follows (Bao et al. 2021, BEiT). Lists of layers side by side in one module count as one sequence. What is
    in no list belongs to the lists under its nearest parent that has any.
    """
    places = {name: index.place(name) for name in claimed}
    used = list(dict.fromkeys(place.layers for place in places.values() if place))
    beside: dict[str, list[str]] = {}
    for layers in used:
        beside.setdefault(layers.rpartition(".")[0], []).append(layers)
    order = {name: i for i, name in enumerate(index.parameters)}
    starts = {one: min(order[n] for n in order if n.startswith(f"{one}.")) for one in used}
    found: dict[str, int] = {}
    for name, place in places.items():
        if place:
            sequence = beside[place.layers.rpartition(".")[0]]
            behind = sequence[sequence.index(place.layers) + 1 :]
            found[name] = place.length - place.index + sum(index.lists[one] for one in behind)
            continue
        scopes = reversed([f"{parent}." for parent in _parents(name)])
        near = next((here for scope in scopes if (here := [o for o in used if o.startswith(scope)])), [])
        if near and order[name] < min(starts[one] for one in near):
            sequence = beside[near[0].rpartition(".")[0]]
            found[name] = 1 + sum(index.lists[one] for one in sequence)
        else:
            found[name] = 0
    return found
