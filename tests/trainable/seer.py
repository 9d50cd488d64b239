"""A model of the shape that rules and flags meet: towers, a projector, a language model, a bare parameter."""

from typing import Any

import pytest
import torch
from torch import nn

from omnitune.errors import UserError
from omnitune.trainable.freezing import Freezing, spell_rules
from omnitune.trainable.parameters import role_of
from omnitune.trainable.rules import Claims, Lora, LoraEverywhere, Rule, Trainable, claim

ROLES = {
    "vision_tower": ("model.visual.patch_embed", "model.visual.blocks"),
    "multi_modal_projector": ("model.visual.merger",),
    "language_model": ("model.language_model", "model.lm_head"),
    "image_newline": ("model.image_newline",),
}
CORES = ("model",)
TARGETS = ("language_model.*_proj", "*.qkv", "language_model.lm_head")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.fc, self.norm = nn.Linear(4, 12), nn.Linear(4, 4), nn.LayerNorm(4)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.up_proj = nn.Linear(6, 6, bias=False), nn.Linear(6, 8, bias=False)
        self.norm = nn.LayerNorm(6, bias=False)


class Seer(nn.Module):
    """Named as Qwen2-VL, with LLaVA-NeXT's newline."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        visual = nn.ModuleDict({"patch_embed": nn.Conv2d(3, 4, 2)})
        visual["blocks"] = nn.ModuleList([Block(), Block()])
        visual["merger"] = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6))
        self.visual = visual
        language = nn.ModuleDict({"embed_tokens": nn.Embedding(9, 6)})
        language["layers"] = nn.ModuleList([Layer(), Layer()])
        self.language_model = language
        self.lm_head = nn.Linear(6, 9, bias=False)
        self.image_newline = nn.Parameter(torch.zeros(6))
        if tied:
            self.lm_head.weight = language["embed_tokens"].weight


def components(tied: bool = True) -> nn.ModuleDict:
    with torch.device("meta"):
        return nn.ModuleDict({"model": Seer(tied)})


def under(*roles: str, tied: bool = True) -> set[str]:
    return {name for name, _ in components(tied).named_parameters() if role_of(name, ROLES) in roles}


TOWER = {f"model.visual.blocks.{i}.{layer}" for i in (0, 1) for layer in ("qkv", "fc")}
LANGUAGE = {f"model.language_model.layers.{i}.{layer}_proj" for i in (0, 1) for layer in ("q", "up")}
LORA = LoraEverywhere(lora=Lora(rank=2), lr=1e-4)


def spell(trainable: Trainable, tied: bool = True, **flags: Any) -> list[Rule]:
    return spell_rules(trainable, Freezing(**flags), components(tied), ROLES, CORES, TARGETS)


def claims(trainable: Trainable, tied: bool = True, **flags: Any) -> Claims:
    return claim(components(tied), spell(trainable, tied, **flags), ROLES)


def message(trainable: Trainable, **flags: Any) -> str:
    with pytest.raises(UserError) as caught:
        spell(trainable, **flags)
    return str(caught.value)
