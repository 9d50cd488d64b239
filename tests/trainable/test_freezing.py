"""Freezing by role means what it says, for every method."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
import torch
from seer import (
    CORES,
    LANGUAGE,
    LORA,
    ROLES,
    TARGETS,
    TOWER,
    Layer,
    Seer,
    claims,
    components,
    message,
    spell,
    under,
)
from torch import nn

from omnitune.errors import UserError
from omnitune.trainable.adapters import apply_claims
from omnitune.trainable.freezing import Freezing, RoleLine, role_table, spell_rules
from omnitune.trainable.rules import Claims, Lora, Rule, Trainable, claim

FAMILIAR = ("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model")
PARTS = ("vision_tower", "multi_modal_projector", "language_model")
EVERY_PART = list(product((True, False), repeat=3))


def spellings(frozen: Mapping[str, bool]) -> list[dict[str, Any]]:
    """The ways to say it: the familiar names, `freeze`, one of each, and both at once."""
    familiar = {key: frozen[part] for key, part in zip(FAMILIAR, PARTS, strict=True)}
    short = {**familiar, "freeze_llm": familiar["freeze_language_model"]}
    del short["freeze_language_model"]
    mixed = {"freeze_vision_tower": frozen["vision_tower"]}
    rest = {part: frozen[part] for part in PARTS[1:]}
    return [
        familiar,
        short,
        {"freeze": dict(frozen)},
        {**mixed, "freeze": rest},
        {**familiar, "freeze": dict(frozen)},
    ]


# The eight combinations


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("closed", EVERY_PART[1:])
def test_full_trains_exactly_the_open_parts(closed: tuple[bool, ...], tied: bool) -> None:
    frozen = dict(zip(PARTS, closed, strict=True))
    expected = under(*(part for part in PARTS if not frozen[part]), tied=tied)
    for flags in spellings(frozen):
        found = claims("full", tied, **flags)
        assert set(found.direct) == expected, flags
        assert not found.adapted
        assert not found.unadaptable


@pytest.mark.parametrize("closed", EVERY_PART[1:])
def test_lora_adapts_open_networks_and_trains_the_open_projector_itself(closed: tuple[bool, ...]) -> None:
    frozen = dict(zip(PARTS, closed, strict=True))
    vision, projector, language = closed
    for flags in spellings(frozen):
        found = claims(LORA, **flags)
        assert set(found.adapted) == (set() if vision else TOWER) | (set() if language else LANGUAGE), flags
        assert set(found.direct) == (set() if projector else under("multi_modal_projector"))
        assert {rule.lr for rule in found.rules} == {1e-4}
        assert {found.rules[i].lora for i in found.adapted.values()} <= {Lora(rank=2)}


@pytest.mark.parametrize("closed", EVERY_PART[1:])
@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_beside_a_list_what_is_open_and_in_no_rule_is_added(
    closed: tuple[bool, ...], lora: Lora | None
) -> None:
    frozen = dict(zip(PARTS, closed, strict=True))
    vision, projector, language = closed
    # The list trains a part of its own, so that each combination can hold.
    rules = [Rule(params="image_newline")]
    expected = under("image_newline", *(part for part in PARTS if not frozen[part]))
    if lora and not language:
        rules = [*rules, Rule(params="language_model.layers.0.q_proj", lora=lora, lr=2e-4)]
        expected = under("image_newline", *(set() if projector else {PARTS[1]}))
    for flags in spellings(frozen):
        found = claims(rules, **flags)
        assert found.rules[: len(rules)] == rules
        assert set(found.direct) == expected, flags
        if lora and not language:
            ours = {"model.language_model.layers.0.q_proj"}
            assert set(found.adapted) == ours | (set() if vision else TOWER), flags
            assert {found.rules[i].lr for i in found.adapted.values()} == {2e-4}


def test_a_language_model_that_a_list_does_not_touch_opens_by_the_method_of_the_list() -> None:
    rule = Rule(params="vision_tower.blocks.*.qkv", lora=Lora(rank=3), lr=2e-4)
    found = claims([rule], freeze_llm=False, freeze={"multi_modal_projector": False})
    assert set(found.adapted) == {"model.visual.blocks.0.qkv", "model.visual.blocks.1.qkv", *LANGUAGE}
    assert set(found.direct) == under("multi_modal_projector")
    assert {found.rules[number].lora for number in found.adapted.values()} == {Lora(rank=3)}
    assert {found.rules[number].lr for number in found.direct.values()} == {None}


def test_a_part_that_a_rule_touches_is_left_to_the_rules() -> None:
    rules = [Rule(params="vision_tower.blocks.1"), Rule(params="language_model", lora=Lora())]
    assert spell(rules, freeze_vision_tower=False, freeze_llm=False) == rules


@pytest.mark.parametrize("trainable", ["full", LORA])
def test_the_eighth_combination_is_refused_and_names_what_froze(trainable: Trainable) -> None:
    assert message(trainable, freeze_vision_tower=True, freeze={"language_model": True}) == (
        "trainable: nothing is left to train: frozen are vision_tower by freeze_vision_tower: true, "
        "multi_modal_projector by default, language_model by freeze.language_model: true, "
        "image_newline by default; open one"
    )
    for flags in spellings(dict.fromkeys(PARTS, True)):
        assert message(trainable, **flags).startswith("trainable: nothing is left to train: frozen are ")


def test_the_eighth_combination_beside_an_empty_list_is_refused() -> None:
    assert message([], freeze_vision_tower=True, freeze_llm=True) == (
        "trainable: no rule, so nothing is left to train: frozen are vision_tower by "
        "freeze_vision_tower: true, language_model by freeze_llm: true; add one"
    )


# Defaults and the shortcut


def test_a_word_alone_trains_the_language_model() -> None:
    assert set(claims("full").direct) == under("language_model")
    assert set(claims(LORA).adapted) == LANGUAGE
    assert claims(LORA).direct == {}


def test_a_list_alone_is_taken_as_it_is() -> None:
    rules = [Rule(params="model")]
    assert spell(rules) is rules
    assert spell(rules, train_mm_proj_only=False) is rules


@pytest.mark.parametrize("trainable", ["full", LORA, []])
@pytest.mark.parametrize("more", [{}, {"freeze_llm": True}, {"freeze": {"multi_modal_projector": False}}])
def test_the_shortcut_trains_the_projector_itself_and_nothing_else(
    trainable: Trainable, more: dict[str, Any]
) -> None:
    found = claims(trainable, train_mm_proj_only=True, **more)
    assert set(found.direct) == under("multi_modal_projector")
    assert not found.adapted


def test_the_shortcut_leaves_a_rule_on_the_projector_as_it_is() -> None:
    rules = [Rule(params="multi_modal_projector", lora=Lora(rank=2))]
    assert spell(rules, train_mm_proj_only=True) == rules


def test_a_shortcut_that_is_false_says_nothing() -> None:
    assert spell("full", train_mm_proj_only=False) == spell("full")
    assert spell(LORA, train_mm_proj_only=False, freeze_llm=False) == spell(LORA)


@pytest.mark.parametrize("trainable", ["full", LORA])
def test_a_part_of_its_own_trains_where_it_is_named(trainable: Trainable) -> None:
    found = claims(trainable, freeze={"image_newline": False, "language_model": True})
    assert set(found.direct) == {"model.image_newline"}
    assert not found.adapted


def test_adapters_are_named_by_few_globs() -> None:
    assert [rule.params for rule in spell(LORA, freeze_vision_tower=False)] == [
        ["vision_tower.blocks.*.qkv", "vision_tower.blocks.*.fc"],
        ["language_model.layers.*.q_proj", "language_model.layers.*.up_proj"],
    ]


def test_layers_are_named_one_by_one_where_a_glob_would_take_in_another() -> None:
    parts = components()
    # A convolution where the other block has a linear layer.
    parts["model"].visual["blocks"][1].fc = nn.Conv2d(4, 4, 1, device="meta")
    rules = spell_rules(LORA, Freezing(freeze_vision_tower=False), parts, ROLES, CORES, TARGETS)
    assert rules[0].params == ["vision_tower.blocks.*.qkv", "vision_tower.blocks.0.fc"]


def test_a_tied_head_gets_no_adapter_by_default() -> None:
    assert set(claims(LORA, tied=True).adapted) == LANGUAGE
    assert set(claims(LORA, tied=False).adapted) == {*LANGUAGE, "model.lm_head"}


def test_targets_of_other_roles_get_no_adapter() -> None:
    assert "*.qkv" in TARGETS
    assert set(claims(LORA, freeze_vision_tower=True).adapted) == LANGUAGE


# Models without a language model


def experts() -> nn.ModuleDict:
    with torch.device("meta"):
        return nn.ModuleDict({name: nn.ModuleList([Layer(), Layer()]) for name in ("text", "high", "low")})


def of_experts(trainable: Trainable, **flags: Any) -> Claims:
    parts = experts()
    roles = {name: (name,) for name in parts}
    rules = spell_rules(trainable, Freezing(**flags), parts, roles, ("high", "low"), ("*.q_proj",))
    return claim(parts, rules, roles)


def test_words_mean_the_cores_where_there_is_no_language_model() -> None:
    assert list(of_experts("full").rules) == [Rule(params=["high", "low"])]
    assert list(of_experts(LORA).rules) == [Rule(params=["*.q_proj"], lr=1e-4, lora=Lora(rank=2))]


def test_freeze_opens_and_closes_components() -> None:
    assert of_experts("full", freeze={"high": True}).components == {"low"}
    assert of_experts("full", freeze={"text": False}).components == {"text", "high", "low"}
    assert set(of_experts(LORA, freeze={"high": True}).adapted) == {"low.0.q_proj", "low.1.q_proj"}
    adapted = of_experts(LORA, freeze={"high": True, "low": True, "text": False}).adapted
    assert set(adapted) == {f"text.{i}.{layer}_proj" for i in (0, 1) for layer in ("q", "up")}


@pytest.mark.parametrize("key", [*FAMILIAR, "freeze_llm"])
def test_a_familiar_name_of_a_role_that_is_not_there_is_refused(key: str) -> None:
    role = "language_model" if key == "freeze_llm" else key.removeprefix("freeze_")
    for value in (True, False):
        with pytest.raises(UserError) as caught:
            of_experts("full", **{key: value})
        assert str(caught.value) == f"{key}: the model has no {role}; its roles are text, high, low"


def test_the_shortcut_without_a_projector_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        of_experts("full", train_mm_proj_only=True)
    assert str(caught.value) == (
        "train_mm_proj_only: the model has no multi_modal_projector; its roles are text, high, low"
    )


# What plan prints


def test_the_table_tells_of_each_role_what_trains_how_and_how_fast() -> None:
    rules = [
        Rule(params="vision_tower", lora=Lora(rank=2), lr=1e-4, layer_decay=0.5),
        Rule(params="multi_modal_projector"),
        Rule(params="language_model.layers.0", lora=Lora(rank=3)),
        Rule(params="language_model.layers.1.norm", lr=1e-5),
    ]
    found = role_table(components(), claim(components(), rules, ROLES), ROLES, lr=1e-3)
    blocks = 2 * (60 + 20 + 8)
    adapters = 2 * (2 * (4 + 12) + 2 * (4 + 4)) + 2 * (3 * 2 * 2 + 4)
    assert found == [
        RoleLine("vision_tower", 52 + blocks, adapters, "LoRA rank 2", (1.25e-5, 2.5e-5, 5e-5)),
        RoleLine("multi_modal_projector", 38, 38, "full", (1e-3,)),
        RoleLine("language_model", 54 + 2 * 90, 3 * 12 + 3 * 14 + 6, "mixed", (1e-5, 1e-3)),
        RoleLine("image_newline", 6, 0, "frozen", ()),
    ]


@pytest.mark.parametrize("trainable", ["full", LORA])
def test_the_table_counts_what_requires_a_gradient(trainable: Trainable) -> None:
    with torch.device("cpu"):
        parts = nn.ModuleDict({"model": Seer(tied=True)})
    rules = spell_rules(trainable, Freezing(freeze_vision_tower=False), parts, ROLES, CORES, TARGETS)
    found = claim(parts, rules, ROLES)
    table = role_table(parts, found, ROLES, lr=1e-3)
    apply_claims(parts, found, 0)
    assert sum(line.trainable for line in table) == sum(
        param.numel() for param in parts.parameters() if param.requires_grad
    )
