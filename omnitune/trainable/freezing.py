"""Freezing by role, spelled as rules.

What a run says of a role counts in this order: rules, then `freeze` and the familiar names of it, then what
the words `full` and `{lora: ...}` train by default. Statements that cannot both hold are an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import UserError
from ..lazily import torch
from ..options import option
from .parameters import ParameterIndex, Roles, glob_matches, role_of, spoken
from .rules import Claims, Lora, LoraEverywhere, Rule, Trainable, match, mistakes_of

if TYPE_CHECKING:
    from torch import nn

VISION, PROJECTOR, LANGUAGE = "vision_tower", "multi_modal_projector", "language_model"
SHORTCUT = "train_mm_proj_only"
NAMED = {
    "freeze_vision_tower": VISION,
    "freeze_multi_modal_projector": PROJECTOR,
    "freeze_language_model": LANGUAGE,
    "freeze_llm": LANGUAGE,
}
"""Familiar names of `freeze` and the role that each speaks of."""


@dataclass(frozen=True)
class Statement:
    """That a role is frozen, or that it trains, and where that stands."""

    where: str
    role: str
    frozen: bool

    def __str__(self) -> str:
        return f"{self.where}: {'true' if self.frozen or self.where == SHORTCUT else 'false'}"


@option
class Freezing:
    """What is said of freezing, by role; null and a missing role say nothing."""

    freeze: dict[str, bool] = field(default_factory=dict)
    """Role -> whether it stays as it is; false trains it. `omnitune plan` lists the roles of a model."""
    freeze_vision_tower: bool | None = None
    """The same as `freeze: {vision_tower: ...}`."""
    freeze_multi_modal_projector: bool | None = None
    """The same as `freeze: {multi_modal_projector: ...}`."""
    freeze_language_model: bool | None = None
    """The same as `freeze: {language_model: ...}`."""
    freeze_llm: bool | None = None
    """The same as `freeze_language_model`."""
    train_mm_proj_only: bool | None = None
    """True trains the projector alone; false says nothing."""

    def statements(self, roles: Roles) -> list[Statement]:
        """One by one, of roles that the model lacks too."""
        named = [(key, role, getattr(self, key)) for key, role in NAMED.items()]
        found = [Statement(key, role, value) for key, role, value in named if value is not None]
        found += [Statement(f"freeze.{role}", role, value) for role, value in self.freeze.items()]
        if self.train_mm_proj_only:
            found += [Statement(SHORTCUT, role, role != PROJECTOR) for role in {**roles, PROJECTOR: ()}]
        return found


def spell_rules(
    trainable: Trainable,
    freezing: Freezing,
    components: nn.ModuleDict,
    roles: Roles,
    cores: Sequence[str],
    lora_targets: Sequence[str],
) -> list[Rule]:
    """Spell `trainable` and what is said of freezing as one list of rules, those of the user first.

    The meta device is enough. Raises UserError with a line for everything that cannot hold.
    """
    statements = freezing.statements(roles)
    if not statements and isinstance(trainable, list):
        return trainable
    if not statements and LANGUAGE not in roles:
        if isinstance(trainable, LoraEverywhere):
            return [Rule(params=list(lora_targets), lr=trainable.lr, lora=trainable.lora)]
        return [Rule(params=list(cores))]
    stated = _agreed(statements, roles)
    index = ParameterIndex(components, roles)
    by_default = [LANGUAGE] if LANGUAGE in roles else [role for role in roles if role in cores]
    targets = dict.fromkeys(by_default, lora_targets)
    if isinstance(trainable, list):
        return _beside(trainable, stated, index, targets)
    return _for_each_role(trainable, stated, index, targets)


def _agreed(statements: Sequence[Statement], roles: Roles) -> dict[str, Statement]:
    """Role -> the first statement on it, after all are held against each other and against the roles."""
    mistakes = [
        f"{one.where}: the model has no {one.role}; its roles are {', '.join(roles)}"
        for one in statements
        if one.role not in roles
    ]
    first: dict[str, Statement] = {}
    for one in statements:
        if first.setdefault(one.role, one).frozen != one.frozen:
            other = first[one.role]
            both = f"{one}, and both speak of {one.role}"
            if one.where == SHORTCUT:
                both = f"{one} {'freezes' if one.frozen else 'trains'} {one.role}"
            mistakes.append(f"{other}, but {both}; remove one")
    if mistakes:
        raise UserError("\n".join(mistakes))
    return first


Targets = Mapping[str, Sequence[str]]
"""Role -> globs over the layers that get adapters; every linear layer of a role that is not here."""


@dataclass(frozen=True)
class _Method:
    """How roles are opened, and where that is stated."""

    lora: Lora | None
    lr: float | None
    """Of adapters."""
    full_lr: float | None
    """Of what trains itself."""
    targets: Targets

    def rule(self, role: str, where: str, index: ParameterIndex) -> Rule:
        """Train a role: towers and networks of layers by LoRA if that is the method, all else itself."""
        if self.lora is None or not (role in self.targets or _is_network(role, index)):
            return Rule(params=role, lr=self.full_lr)
        layers = _layers(role, self.targets.get(role), index)
        if not layers:
            raise UserError(
                f"{where}, but {role} has no linear layer to put LoRA on; train it by a rule without lora"
            )
        return Rule(params=_globs(layers, index), lr=self.lr, lora=self.lora)


def _for_each_role(
    trainable: Trainable, stated: Mapping[str, Statement], index: ParameterIndex, targets: Targets
) -> list[Rule]:
    """Spell `full` or `{lora: ...}`: a rule for each role that trains, by default those of `targets`."""
    if isinstance(trainable, LoraEverywhere):
        method = _Method(trainable.lora, trainable.lr, trainable.lr, targets)
    else:
        method = _Method(None, None, None, targets)
    rules: list[Rule] = []
    closed: list[str] = []
    for role in index.roles:
        said = stated.get(role)
        if said.frozen if said else role not in targets:
            closed.append(f"{role} by {said or 'default'}")
        else:
            rules.append(method.rule(role, str(said) if said else "trainable: lora", index))
    if not rules:
        raise UserError(f"trainable: nothing is left to train: frozen are {', '.join(closed)}; open one")
    return rules


def _beside(
    rules: list[Rule], stated: Mapping[str, Statement], index: ParameterIndex, targets: Targets
) -> list[Rule]:
    """Hold flags against a list of rules, and add a rule for each open role that the list does not touch."""
    claims = match(index, rules)
    mistakes = [*mistakes_of(claims, index), *_contradictions(stated, claims, index)]
    if mistakes:
        raise UserError("\n".join(mistakes))
    adapting = next((rule for rule in rules if rule.lora), None)
    lora, lr = (adapting.lora, adapting.lr) if adapting else (None, None)
    method = _Method(lora, lr, None, targets)
    touched = {role_of(name, index.roles) for name in claims.taken}
    added = [
        method.rule(role, str(said), index)
        for role, said in stated.items()
        if not said.frozen and role not in touched
    ]
    if not rules and not added:
        closed = [f"{role} by {said}" for role, said in stated.items()]
        raise UserError(
            f"trainable: no rule, so nothing is left to train: frozen are {', '.join(closed)}; add one"
        )
    return [*rules, *added]


def _contradictions(stated: Mapping[str, Statement], claims: Claims, index: ParameterIndex) -> Iterator[str]:
    """Tell of rules that train what is frozen, and of those that keep frozen what is said to train."""
    for role, said in stated.items():
        names = index.of_role(role)
        by_rule: dict[int, list[str]] = {}
        for name in names:
            if (number := claims.trained.get(name)) is not None:
                by_rule.setdefault(number, []).append(name)
        if said.frozen:
            for number, trained in sorted(by_rule.items()):
                such = f", {len(trained)} such" if trained[1:] else ""
                yield f"{said}, but trainable.{number} trains {role} ({trained[0]}{such}); remove one"
        elif not by_rule and (
            bare := [number for name in names if (number := claims.unadaptable.get(name)) is not None]
        ):
            yield (
                f"{said}, but trainable.{bare[0]} puts LoRA on {role}, where no layer can carry it; "
                "name that part in a rule without lora before it"
            )


def _is_network(role: str, index: ParameterIndex) -> bool:
    """Whether LoRA is the light way to train a role; not for projectors and what has no list of layers."""
    if role == PROJECTOR:
        return False
    return role.endswith("_tower") or any(index.place(name) for name in index.of_role(role))


def _layers(role: str, targets: Sequence[str] | None, index: ParameterIndex) -> list[str]:
    """The layers of a role that get adapters: what `targets` match, or every linear layer."""
    weights = [name for name in index.of_role(role) if index.carries(name)]
    modules = {name: name.rpartition(".")[0] for name in weights}
    if targets is None:
        return [module for module in modules.values() if isinstance(index.modules[module], torch.nn.Linear)]
    wanted = [n for n in weights if any(glob_matches(glob, index.called[n]) for glob in targets)]
    return [modules[name] for name in wanted]


def _globs(layers: Sequence[str], index: ParameterIndex) -> list[str]:
    """Name layers by few globs: numbers become `*` where that takes in no other layer."""
    wanted = set(layers)
    alike: dict[str, list[str]] = {}
    for layer in layers:
        name = spoken(layer, index.roles)
        alike.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name), []).append(name)
    found: list[str] = []
    for glob, names in alike.items():
        reached = {name.rpartition(".")[0] for name in index.matching(glob) if index.carries(name)}
        found += [glob] if reached <= wanted else names
    return found


@dataclass(frozen=True)
class RoleLine:
    """What becomes of a role, for `plan`."""

    role: str
    parameters: int
    trainable: int
    """Its own, and those of adapters."""
    method: str
    """`frozen`, `full`, `LoRA rank 8`, or `mixed`."""
    rates: tuple[float, ...]
    """The learning rates in it, from low to high."""


def role_table(components: nn.ModuleDict, claims: Claims, roles: Roles, lr: float) -> list[RoleLine]:
    """One line a role; `lr` is the rate of rules that state none."""
    index = ParameterIndex(components, roles)
    sizes, trained = claims.sizes(index.parameters), claims.trained
    found = []
    for role in roles:
        names = index.of_role(role)
        rules = {name: claims.rules[trained[name]] for name in names if name in trained}
        methods = {f"LoRA rank {rule.lora.rank}" if rule.lora else "full" for rule in rules.values()}
        method = "mixed" if len(methods) > 1 else next(iter(methods), "frozen")
        rates = {rule.rate(lr, claims.distance(name)) for name, rule in rules.items()}
        parameters = sum(index.parameters[name].numel() for name in names)
        trainable = sum(sizes[name] for name in rules)
        found.append(RoleLine(role, parameters, trainable, method, tuple(sorted(rates))))
    return found
