"""Statements on freezing that cannot hold are refused, with the place of each."""

from typing import Any

import pytest
from seer import CORES, LORA, ROLES, TARGETS, components, message
from torch import nn

from omnitune.errors import UserError
from omnitune.trainable.freezing import Freezing, spell_rules
from omnitune.trainable.rules import Lora, Rule, Trainable


def test_freezing_what_a_rule_trains_is_refused() -> None:
    rules = [Rule(params="multi_modal_projector"), Rule(params="vision_tower.blocks", lora=Lora())]
    assert message(rules, freeze_vision_tower=True) == (
        "freeze_vision_tower: true, but trainable.1 trains vision_tower "
        "(model.visual.blocks.0.qkv.weight, 4 such); remove one"
    )
    rules = [Rule(params="image_newline"), Rule(params="*.0.q_proj")]
    assert message(rules, freeze={"image_newline": True, "language_model": True}) == (
        "freeze.image_newline: true, but trainable.0 trains image_newline (model.image_newline); remove one\n"
        "freeze.language_model: true, but trainable.1 trains language_model "
        "(model.language_model.layers.0.q_proj.weight); remove one"
    )


def test_every_rule_that_trains_what_is_frozen_is_told() -> None:
    rules = [Rule(params="vision_tower.blocks.0"), Rule(params="vision_tower")]
    assert message(rules, freeze={"vision_tower": True}) == (
        "freeze.vision_tower: true, but trainable.0 trains vision_tower "
        "(model.visual.blocks.0.qkv.weight, 6 such); remove one\n"
        "freeze.vision_tower: true, but trainable.1 trains vision_tower "
        "(model.visual.patch_embed.weight, 8 such); remove one"
    )


def test_freezing_is_told_beside_mistakes_of_rules() -> None:
    rules = [Rule(params="vision_tower"), Rule(params="nowhere.0")]
    first, second = message(rules, freeze_vision_tower=True).split("\n")
    assert first.startswith("trainable.1: 'nowhere.0' matches no parameter")
    assert second.startswith("freeze_vision_tower: true, but trainable.0 trains vision_tower (")


def test_the_shortcut_beside_a_rule_that_trains_more_is_refused() -> None:
    assert message([Rule(params="image_newline")], train_mm_proj_only=True) == (
        "train_mm_proj_only: true, but trainable.0 trains image_newline (model.image_newline); remove one"
    )


@pytest.mark.parametrize("trainable", ["full", LORA, [Rule(params="image_newline")]])
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            {"freeze_vision_tower": True, "freeze": {"vision_tower": False}},
            "freeze_vision_tower: true, but freeze.vision_tower: false, and both speak of vision_tower; "
            "remove one",
        ),
        (
            {"freeze_language_model": False, "freeze_llm": True},
            "freeze_language_model: false, but freeze_llm: true, and both speak of language_model; "
            "remove one",
        ),
        (
            {"freeze_llm": False, "freeze": {"language_model": True}},
            "freeze_llm: false, but freeze.language_model: true, and both speak of language_model; "
            "remove one",
        ),
        (
            {"train_mm_proj_only": True, "freeze_vision_tower": False},
            "freeze_vision_tower: false, but train_mm_proj_only: true freezes vision_tower; remove one",
        ),
        (
            {"train_mm_proj_only": True, "freeze_multi_modal_projector": True},
            "freeze_multi_modal_projector: true, but train_mm_proj_only: true trains multi_modal_projector; "
            "remove one",
        ),
        (
            {"train_mm_proj_only": True, "freeze": {"image_newline": False}},
            "freeze.image_newline: false, but train_mm_proj_only: true freezes image_newline; remove one",
        ),
    ],
)
def test_flags_that_disagree_are_refused(trainable: Trainable, flags: dict[str, Any], expected: str) -> None:
    assert message(trainable, **flags) == expected


def test_an_unknown_role_is_refused_and_the_roles_are_told() -> None:
    assert message("full", freeze={"vision": True}) == (
        "freeze.vision: the model has no vision; its roles are vision_tower, multi_modal_projector, "
        "language_model, image_newline"
    )


def test_opening_what_a_lora_rule_takes_but_cannot_train_is_refused() -> None:
    assert message([Rule(params="*", lora=Lora())], freeze={"image_newline": False}) == (
        "freeze.image_newline: false, but trainable.0 puts LoRA on image_newline, where no layer can carry "
        "it; name that part in a rule without lora before it"
    )


def test_lora_on_a_tower_without_linear_layers_is_refused() -> None:
    parts = components()
    parts["model"].visual["blocks"] = nn.ModuleList([nn.Conv2d(4, 4, 1, device="meta") for _ in range(2)])
    with pytest.raises(UserError) as caught:
        spell_rules(LORA, Freezing(freeze_vision_tower=False), parts, ROLES, CORES, TARGETS)
    assert str(caught.value) == (
        "freeze_vision_tower: false, but vision_tower has no linear layer to put LoRA on; train it by a rule "
        "without lora"
    )


def test_lora_targets_that_are_empty_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        spell_rules(LORA, Freezing(), components(), ROLES, CORES, ("language_model.*.gate",))
    assert str(caught.value) == (
        "trainable: lora, but language_model has no linear layer to put LoRA on; train it by a rule without "
        "lora"
    )
