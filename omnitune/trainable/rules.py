"""Which parameters train, how, and at which learning rate: one list of rules for every model.

A pattern is a glob over full parameter names (`transformer.blocks.0.attn1.to_q.weight`) and also matches by
naming a parent module, so `transformer.blocks` covers everything under it. A role stands for the prefixes of
its parameters: `vision_tower.blocks.*.attn`. The first matching rule wins; what no rule matches stays frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from ..errors import UserError
from ..options import check_ranges, option
from .parameters import ParameterIndex, Roles, base_name, called, distances, glob_matches

if TYPE_CHECKING:
    from torch import Tensor, nn


@option
class Lora:
    """Low-rank adapters (Hu et al. 2021) instead of the weights themselves."""

    rank: int = 16
    """Inner dimension of the adapter, 1 or more."""
    alpha: float | None = None
    """The update is scaled by alpha / rank; absent: alpha = rank."""
    dropout: float = 0.0
    """Share of the adapter's inputs that are dropped, in [0, 1): drawn per step and rank, exact at resume but
    not between different numbers of devices."""

    def __post_init__(self) -> None:
        check_ranges(self, rank="[1, inf)", alpha="(0, inf)", dropout="[0, 1)")


@option
class Rule:
    """A claim on parameters."""

    params: str | list[str]
    """Glob or globs over parameter names; naming a module claims all under it."""
    lr: float | None = None
    """Learning rate; absent: `optimizer.lr`."""
    weight_decay: float | None = None
    """Decoupled weight decay; absent: `optimizer.weight_decay`."""
    lora: Lora | None = None
    """Adapters on the claimed layers; absent: the parameters themselves train."""
    last_layers: int | None = None
    """Claim only what lies in the last so many of each list of layers."""
    layer_decay: float | None = None
    """Factor on the rate from each layer to the one before it, in (0, 1]: what follows the layers trains at
    `lr`, the last of n at lr * layer_decay, what stands before them at lr * layer_decay ** (n + 1)."""

    def __post_init__(self) -> None:
        check_ranges(self, lr="[0, inf)", weight_decay="[0, inf)")
        check_ranges(self, last_layers="[1, inf)", layer_decay="(0, 1]")

    def rate(self, lr: float, distance: int = 0) -> float:
        """Its learning rate at a distance from the end; `lr` is that of rules that state none."""
        own = lr if self.lr is None else self.lr
        return own if self.layer_decay is None else own * self.layer_decay**distance

    @property
    def globs(self) -> list[str]:
        return [self.params] if isinstance(self.params, str) else self.params

    def reaches(self, name: str, index: ParameterIndex) -> bool:
        """Whether a parameter lies in the last layers, where only those are wanted."""
        if self.last_layers is None:
            return True
        place = index.place(name)
        return place is not None and place.index >= place.length - self.last_layers


@option
class LoraEverywhere:
    """The family's default layers under LoRA."""

    lora: Lora
    lr: float | None = None
    """Learning rate; absent: `optimizer.lr`."""

    def __post_init__(self) -> None:
        check_ranges(self, lr="[0, inf)")


Trainable = list[Rule] | Literal["full"] | LoraEverywhere
"""A list of rules, `full` (all of the core network), or `{lora: {...}}` (the family's default layers)."""


@dataclass(frozen=True)
class Claims:
    """What each rule claims among the parameters of a model, before anything is changed."""

    rules: Sequence[Rule]
    direct: Mapping[str, int]
    """Parameter name -> number of the rule that trains it."""
    adapted: Mapping[str, int]
    """Module name -> number of the rule that puts an adapter on it."""
    unadaptable: Mapping[str, int] = field(default_factory=dict)
    """Parameters under a LoRA rule that no adapter can carry (biases, norms): they stay frozen."""
    previously_trained: frozenset[str] = frozenset()
    """Parameters that trained in an earlier phase and do not in this one."""
    frozen_adapters: Mapping[str, Lora] = field(default_factory=dict)
    """Module name -> its adapter of an earlier phase, which stays as it is."""
    distances: Mapping[str, int] = field(default_factory=dict)
    """Parameter name -> layers from it to the end of its network, under rules with `layer_decay`."""

    def after(self, earlier: "Claims") -> "Claims":
        """The same behind an earlier phase, whose results stay. Raises UserError for adapters that differ."""
        mine = {module: self.rules[number].lora for module, number in self.adapted.items()}
        before = {module: earlier.rules[number].lora for module, number in earlier.adapted.items()}
        theirs = {**earlier.frozen_adapters, **{module: lora for module, lora in before.items() if lora}}
        for module, lora in theirs.items():
            if mine.get(module, lora) != lora:
                raise UserError(
                    f"trainable.{self.adapted[module]}.lora: {module} has an adapter of an earlier phase "
                    f"with {lora}; state the same"
                )
        trained = {*earlier.direct, *earlier.previously_trained}
        return replace(
            self,
            previously_trained=frozenset(trained - set(self.direct)),
            frozen_adapters={module: lora for module, lora in theirs.items() if module not in mine},
        )

    @property
    def all_trained(self) -> "Claims":
        """All that trained in this phase and before, for what reads no rules."""
        return replace(
            self,
            direct={**dict.fromkeys(self.previously_trained, -1), **self.direct},
            adapted={**dict.fromkeys(self.frozen_adapters, -1), **self.adapted},
        )

    @property
    def trained(self) -> dict[str, int]:
        """Parameter name in the base model -> number of the rule that trains it or an adapter of it."""
        return {**self.direct, **{f"{module}.weight": number for module, number in self.adapted.items()}}

    @property
    def taken(self) -> dict[str, int]:
        """Parameter name -> number of the rule that it falls under, also if that leaves it frozen."""
        return {**self.trained, **self.unadaptable}

    @property
    def components(self) -> set[str]:
        return {name.split(".")[0] for name in self.trained}

    def rule(self, name: str) -> int | None:
        """The rule that trains a parameter, named as it is after adapters were added."""
        if ".lora_" in name:
            return self.adapted.get(name.split(".lora_")[0])
        return self.direct.get(base_name(name))

    def distance(self, name: str) -> int:
        """As in `distances`, of a parameter named as it is after adapters were added; else 0."""
        base = f"{name.split('.lora_')[0]}.weight" if ".lora_" in name else base_name(name)
        return self.distances.get(base, 0)

    def sizes(self, parameters: Mapping[str, Tensor]) -> dict[str, int]:
        """Parameter name in the base model -> how many values of it, or of its adapter, train."""
        found = {name: parameters[name].numel() for name in self.direct}
        for module, number in self.adapted.items():
            lora, weight = self.rules[number].lora, parameters[f"{module}.weight"]
            assert lora is not None, module
            # rank x (inputs + outputs), inputs counted over a convolution's kernel
            found[f"{module}.weight"] = lora.rank * (weight[0].numel() + len(weight))
        return found


def match(index: ParameterIndex, rules: Sequence[Rule]) -> Claims:
    """What each rule takes, also if some take nothing."""
    direct: dict[str, int] = {}
    adapted: dict[str, int] = {}
    unadaptable: dict[str, int] = {}
    first: dict[str, int] = {}
    for number, rule in enumerate(rules):
        for name in (name for glob in rule.globs for name in index.matching(glob)):
            if rule.reaches(name, index):
                first.setdefault(name, number)
    for name in (name for name in index.parameters if name in first):
        number = first[name]
        if rules[number].lora is None:
            direct[name] = number
        elif index.carries(name):
            adapted[name.rpartition(".")[0]] = number
        else:
            unadaptable[name] = number
    claims = Claims(rules, direct, adapted, unadaptable)
    apart: dict[str, int] = {}
    for number, rule in enumerate(rules):
        if rule.layer_decay is not None:
            apart |= distances([name for name, i in claims.trained.items() if i == number], index)
    return replace(claims, distances=apart)


def claim(components: nn.ModuleDict, rules: Sequence[Rule], roles: Roles | None = None) -> Claims:
    """Match rules against parameters, on the meta device too. Raises UserError for one without effect."""
    index = ParameterIndex(components, roles)
    claims = match(index, rules)
    mistakes = list(mistakes_of(claims, index))
    if not rules:
        mistakes.append("trainable: no rule, so nothing would train; use full, {lora: {}} or a list of rules")
    if mistakes:
        raise UserError("\n".join(mistakes))
    return claims


def mistakes_of(claims: Claims, index: ParameterIndex) -> Iterator[str]:
    """One line for each glob of a rule that has no effect: the rest of a list would hide it."""
    for number, rule in enumerate(claims.rules):
        if not rule.globs:
            yield f"trainable.{number}: {rule.params!r} matches no parameter; name at least one"
            continue
        whole = isinstance(rule.params, str)
        for i, glob in enumerate(rule.globs):
            where = f"trainable.{number}" if whole else f"trainable.{number}.params.{i}"
            if mistake := _mistake(glob, number, claims, index):
                yield f"{where}: {mistake}"
        yield from _mistakes_of_layers(number, claims, index)


def _mistake(glob: str, number: int, claims: Claims, index: ParameterIndex) -> str | None:
    """Why a glob of a rule has no effect, if it has none."""
    rule, taken = claims.rules[number], claims.taken
    matched = index.matching(glob)
    if not matched:
        return _tied(glob, index) or f"{glob!r} matches no parameter{index.nearest(glob)}"
    reached = [name for name in matched if rule.reaches(name, index)]
    if not reached:
        return f"{glob!r} matches nothing in the last {rule.last_layers} of a list of layers"
    if any(claims.trained.get(name) == number for name in reached):
        return None
    if any(taken.get(name) == number for name in reached):
        tied = next((n for n in reached if n in index.tied.values()), None)
        why = f", {tied} is tied" if tied else ""
        return f"{glob!r} matches no layer that can carry LoRA{why}; name linear or convolution layers"
    first = taken[reached[0]]
    return (
        f"all that {glob!r} matches is taken by trainable.{first} "
        f"({claims.rules[first].params!r}); put it before that"
    )


def _tied(glob: str, index: ParameterIndex) -> str | None:
    """Tell of a tied parameter that a glob finds only under the name that it is not listed under."""
    for alias, name in index.tied.items():
        if glob_matches(glob, called(alias, index.roles)):
            return f"{glob!r} matches {alias} alone, which is tied to {name}; they are one: name that"
    return None


def _mistakes_of_layers(number: int, claims: Claims, index: ParameterIndex) -> Iterator[str]:
    """Tell of `last_layers` and `layer_decay` that do not fit the layers a rule matches."""
    rule = claims.rules[number]
    matched = {name for glob in rule.globs for name in index.matching(glob)}
    places = [place for name in index.parameters if name in matched and (place := index.place(name))]
    if rule.last_layers is not None:
        for layers, length in {place.layers: place.length for place in places}.items():
            if length < rule.last_layers:
                yield (
                    f"trainable.{number}.last_layers: {rule.last_layers}, but {layers} has {length} layers; "
                    f"take at most {length}"
                )
    if rule.layer_decay is not None and matched and not places:
        yield (
            f"trainable.{number}.layer_decay: nothing of {rule.params!r} lies in a list of layers; "
            "leave it out"
        )
