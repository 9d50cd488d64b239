"""Which parameters train, how, and at which learning rate: one list of rules for every model.

A pattern is a glob over full parameter names (`transformer.blocks.0.attn1.to_q.weight`) and also matches by
naming a parent module, so `transformer.blocks` covers everything under it. The first matching rule wins;
what no rule matches stays frozen.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from .types import UserError, option

if TYPE_CHECKING:
    import torch
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
        if self.rank < 1:
            raise ValueError(f"rank must be 1 or more, not {self.rank}")
        if self.alpha is not None and self.alpha <= 0:
            raise ValueError(f"alpha must be above 0, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")


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

    def __post_init__(self) -> None:
        _check_rates(lr=self.lr, weight_decay=self.weight_decay)

    @property
    def globs(self) -> list[str]:
        return [self.params] if isinstance(self.params, str) else self.params

    def matches(self, name: str) -> bool:
        return any(_glob_matches(glob, name) for glob in self.globs)


@option
class LoraEverywhere:
    """The family's default layers under LoRA."""

    lora: Lora
    lr: float | None = None
    """Learning rate; absent: `optimizer.lr`."""

    def __post_init__(self) -> None:
        _check_rates(lr=self.lr)


def _glob_matches(glob: str, name: str) -> bool:
    parents = [name[:i] for i, c in enumerate(name) if c == "."]
    return any(fnmatchcase(n, glob) for n in (name, *parents))


def _check_rates(**rates: float | None) -> None:
    for name, rate in rates.items():
        if rate is not None and rate < 0:
            raise ValueError(f"{name} must be 0 or more, not {rate}")


Trainable = list[Rule] | Literal["full"] | LoraEverywhere
"""A list of rules, `full` (all of the core network), or `{lora: {...}}` (the family's default layers)."""


def expand(trainable: Trainable, cores: Sequence[str], lora_targets: Sequence[str]) -> list[Rule]:
    """Spell the short forms of `trainable` as rules."""
    if isinstance(trainable, list):
        return trainable
    if isinstance(trainable, LoraEverywhere):
        return [Rule(params=list(lora_targets), lr=trainable.lr, lora=trainable.lora)]
    return [Rule(params=list(cores))]


@dataclass(frozen=True)
class Claims:
    """What each rule claims among the parameters of a model, before anything is changed."""

    rules: Sequence[Rule]
    direct: Mapping[str, int]
    """Parameter name -> number of the rule that trains it."""
    adapted: Mapping[str, int]
    """Module name -> number of the rule that puts an adapter on it."""
    left: Mapping[str, int] = field(default_factory=dict)
    """Parameters under a LoRA rule that no adapter can carry (biases, norms): they stay frozen."""

    @property
    def names(self) -> set[str]:
        """Every parameter whose effect changes in training, by its name in the base model."""
        return {*self.direct, *(f"{module}.weight" for module in self.adapted)}

    @property
    def components(self) -> set[str]:
        return {name.split(".")[0] for name in self.names}

    def rule(self, name: str) -> int | None:
        """The rule that trains a parameter, named as it is after adapters were added."""
        if ".lora_" in name:
            return self.adapted.get(name.split(".lora_")[0])
        return self.direct.get(name.replace(".base_layer.", "."))


def claim(components: "nn.ModuleDict", rules: Sequence[Rule]) -> Claims:
    """Match rules against parameters, on the meta device too. Raises UserError for one without effect."""
    names = [name for name, _ in components.named_parameters()]
    modules = dict(components.named_modules())
    direct: dict[str, int] = {}
    adapted: dict[str, int] = {}
    left: dict[str, int] = {}
    for name in names:
        number = next((i for i, rule in enumerate(rules) if rule.matches(name)), None)
        if number is None:
            continue
        module = name.rpartition(".")[0]
        if rules[number].lora is None:
            direct[name] = number
        elif name.endswith(".weight") and _adaptable(modules[module]):
            adapted[module] = number
        else:
            left[name] = number
    claims = Claims(rules, direct, adapted, left)
    mistakes = [m for i, rule in enumerate(rules) for m in _mistakes(i, rule, claims, names)]
    if not rules:
        mistakes.append("trainable: no rule, so nothing would train; use full, {lora: {}} or a list of rules")
    if mistakes:
        raise UserError("\n".join(mistakes))
    return claims


def apply_claims(components: "nn.ModuleDict", claims: Claims, seed: int) -> "dict[str, torch.dtype]":
    """Freeze everything, then add adapters and unfreeze what the claims name, all of it in fp32.

    Returns the dtype in which each parameter takes part in the forward pass: the one it was loaded in.
    """
    from peft import inject_adapter_in_model

    for component, module in components.items():
        adapted = {
            path.removeprefix(component + "."): claims.rules[i].lora
            for path, i in claims.adapted.items()
            if path.startswith(component + ".")
        }
        if adapted:
            inject_adapter_in_model(_lora_config(adapted), module)
    everything = components.named_parameters(remove_duplicate=False)  # tied weights under all their names
    compute = {name: param.dtype for name, param in everything}
    for name, param in components.named_parameters():
        trains = claims.rule(name) is not None
        param.requires_grad_(trains)
        if trains:
            # The optimizer steps fp32 weights: in bf16 an update below 1/256 of a weight is lost.
            param.data = param.data.float()
        if ".lora_A." in name:
            _init_down(name, param, seed)
    return compute


def param_groups(
    components: "nn.ModuleDict", claims: Claims, lr: float, decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups, one per rule. Call it after placing: `fully_shard` replaces the parameters."""
    members: dict[tuple[int, str], dict[str, nn.Parameter]] = {}
    for name, param in components.named_parameters():
        number = claims.rule(name)
        assert (number is not None) == param.requires_grad, name
        if number is not None:  # sharded and whole tensors do not mix in one fused update
            members.setdefault((number, type(param).__name__), {})[name] = param
    return [
        {
            "params": list(params.values()),
            "names": list(params),
            "rule": number,
            "lr": lr if claims.rules[number].lr is None else claims.rules[number].lr,
            "weight_decay": decay if (own := claims.rules[number].weight_decay) is None else own,
        }
        for (number, _), params in sorted(members.items())
    ]


def nearest(glob: str, names: Iterable[str], cutoff: float = 0.4) -> str:
    """`; nearest: a, b` for a glob that matched nothing, or an empty string."""
    modules = {".".join(name.split(".")[:i]) for name in names for i in range(1, name.count(".") + 1)}
    close = get_close_matches(glob, sorted(modules), n=3, cutoff=cutoff)
    return f"; nearest: {', '.join(close)}" if close else ""


def _mistakes(number: int, rule: Rule, claims: Claims, names: Collection[str]) -> list[str]:
    """One line for each glob of a rule that has no effect: the rest of a list would hide it."""
    if not rule.globs:
        return [f"trainable.{number}: {rule.params!r} matches no parameter; name at least one"]
    if isinstance(rule.params, str):
        places = {f"trainable.{number}": rule.params}
    else:
        places = {f"trainable.{number}.params.{i}": glob for i, glob in enumerate(rule.params)}
    found = (_mistake(where, glob, number, claims, names) for where, glob in places.items())
    return [mistake for mistake in found if mistake]


def _mistake(where: str, glob: str, number: int, claims: Claims, names: Collection[str]) -> str | None:
    matched = [name for name in names if _glob_matches(glob, name)]
    if not matched:
        return f"{where}: {glob!r} matches no parameter{nearest(glob, names)}"
    used = {*claims.direct.items(), *((f"{module}.weight", i) for module, i in claims.adapted.items())}
    if any((name, number) in used for name in matched):
        return None
    if any(claims.left.get(name) == number for name in matched):
        return f"{where}: {glob!r} matches no layer that can carry LoRA; name linear or convolution layers"
    first = next(i for i, rule in enumerate(claims.rules) if rule.matches(matched[0]))
    return (
        f"{where}: all that {glob!r} matches is taken by trainable.{first} "
        f"({claims.rules[first].params!r}); put it before that"
    )


def _adaptable(module: "nn.Module") -> bool:
    from torch import nn

    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _lora_config(adapted: Mapping[str, Lora | None]) -> Any:
    """One adapter per component; peft's patterns carry the modules whose settings differ from the first."""
    from peft import LoraConfig

    settings = {name: (lora.rank, lora.alpha or lora.rank) for name, lora in adapted.items() if lora}
    dropouts = {lora.dropout for lora in adapted.values() if lora}
    if len(dropouts) > 1:
        raise UserError(
            f"trainable: LoRA rules of one component have dropouts {sorted(dropouts)}; use one value"
        )
    rank, alpha = next(iter(settings.values()))
    others = {f"^{name}$": s for name, s in settings.items() if s != (rank, alpha)}
    return LoraConfig(
        # Not a list: peft would adapt all layers whose names end in one of it.
        target_modules="|".join(re.escape(name) for name in settings),
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropouts.pop(),
        rank_pattern={name: r for name, (r, _) in others.items()},
        alpha_pattern={name: a for name, (_, a) in others.items()},
    )


def plain_settings() -> dict[str, Any]:
    """Every setting of peft's LoRA at its default."""
    from peft import LoraConfig

    found: dict[str, Any] = LoraConfig().to_dict()
    return found


def _init_down(name: str, param: "nn.Parameter", seed: int) -> None:
    """Kaiming-uniform with a = sqrt(5), as peft, from a generator keyed by the parameter's name."""
    import torch

    from .random import generator

    if param.is_meta:
        return
    fan_in = param[0].numel()
    values = torch.rand(param.shape, generator=generator(seed, "lora", name)) * 2 - 1
    param.data.copy_(values / fan_in**0.5)


def adapter_state(module: "nn.Module", state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The adapters of a component as peft spells them in files, from its state dict."""
    from peft import get_peft_model_state_dict

    found: dict[str, Tensor] = get_peft_model_state_dict(module, state_dict=dict(state))
    return found
