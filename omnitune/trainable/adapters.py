"""What rules claim, put into effect: adapters, what is frozen, the groups of the optimizer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..random import generator
from .freezing import Statement
from .parameters import Roles, role_of
from .rules import Claims, Lora, Rule


def claim_always(
    claims: Claims, always: Mapping[str, Sequence[str]], stated: Sequence[Statement], roles: Roles
) -> Claims:
    """Add a rule for what options train (option -> parameters), but for what a rule trains itself.

    A LoRA gives way to it: what such an option asks for are new values, which no adapter holds. Raises
    UserError where that is frozen.
    """
    for where, names in always.items():
        for one in stated:
            if one.frozen and (theirs := [name for name in names if role_of(name, roles) == one.role]):
                raise UserError(
                    f"{one}, but {where} trains {theirs[0]} of {one.role}; remove one, or list what else "
                    f"trains as rules, without that flag (trainable: [{{params: multi_modal_projector}}])"
                )
        if mine := [name for name in names if name not in claims.direct]:
            claims = _with_rule(claims, mine, where)
    return claims


def _with_rule(claims: Claims, names: Sequence[str], where: str) -> Claims:
    """A rule behind the others that takes parameters from them; they do not decay."""
    modules = {name.rpartition(".")[0] for name in names}
    number = len(claims.rules)
    found = replace(
        claims,
        rules=[*claims.rules, Rule(params=list(names), weight_decay=0.0)],
        direct={**claims.direct, **dict.fromkeys(names, number)},
        adapted={module: i for module, i in claims.adapted.items() if module not in modules},
        unadaptable={name: i for name, i in claims.unadaptable.items() if name not in names},
        distances={name: i for name, i in claims.distances.items() if name not in names},
    )
    for module, i in claims.adapted.items():
        if i not in found.adapted.values():
            raise UserError(
                f"trainable.{i}.lora: adapts {module} alone, which {where} trains itself; remove lora from "
                "that rule, or the rule"
            )
    return found


def apply_claims(components: nn.ModuleDict, claims: Claims, seed: int) -> dict[str, torch.dtype]:
    """Freeze everything, then add adapters and unfreeze what the claims name, all of it in fp32.

    Returns the dtype in which each parameter takes part in the forward pass: the one it was loaded in.
    """
    from peft import inject_adapter_in_model

    layers = {path: claims.rules[i].lora for path, i in claims.adapted.items()} | {**claims.frozen_adapters}
    for component, module in components.items():
        start = f"{component}."
        if own := {p.removeprefix(start): lora for p, lora in layers.items() if p.startswith(start)}:
            inject_adapter_in_model(_lora_config(own), module)
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


def param_groups(components: nn.ModuleDict, claims: Claims, lr: float, decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: one per rule, with `layer_decay` one per distance from the end, the nearest last.

    Call it after placing: `fully_shard` replaces the parameters.
    """
    members: dict[tuple[int, int, str], dict[str, nn.Parameter]] = {}
    for name, param in components.named_parameters():
        number = claims.rule(name)
        assert (number is not None) == param.requires_grad, name
        if number is not None:  # sharded and whole tensors do not mix in one fused update
            key = (number, -claims.distance(name), type(param).__name__)
            members.setdefault(key, {})[name] = param
    return [
        {
            "params": list(params.values()),
            "names": list(params),
            "rule": number,
            "lr": claims.rules[number].rate(lr, -before_end),
            "rule_lr": claims.rules[number].rate(lr),
            "weight_decay": decay if (own := claims.rules[number].weight_decay) is None else own,
        }
        for (number, before_end, _), params in sorted(members.items())
    ]


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


def _init_down(name: str, param: nn.Parameter, seed: int) -> None:
    """Kaiming-uniform with a = sqrt(5), as peft, from a generator keyed by the parameter's name."""
    if param.is_meta:
        return
    fan_in = param[0].numel()
    values = torch.rand(param.shape, generator=generator(seed, "lora", name)) * 2 - 1
    param.data.copy_(values / fan_in**0.5)
