"""Freezing on every model type: a step moves exactly the named parts, and nothing else by one bit."""

import copy
import re
from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_items import CLIP, PICTURE, TEXT
from test_family import APART, entry
from tiny_chats import SHOWS_CLIPS
from torch import nn

from omnitune.data.conversations.options import ChatOptions
from omnitune.errors import UserError
from omnitune.families.vlm.family import Vlm
from omnitune.families.vlm.types import TYPES
from omnitune.stages import is_under
from omnitune.testing.tiny_vlm import tiny_types
from omnitune.trainable.adapters import apply_claims, param_groups
from omnitune.trainable.freezing import Freezing, spell_rules
from omnitune.trainable.rules import Lora, LoraEverywhere, claim

VISION, PROJECTOR, LANGUAGE = ROLES = "vision_tower", "multi_modal_projector", "language_model"
OPEN = [c for c in product((True, False), repeat=3) if any(c)]
"""Which of the three roles train, where any does."""
BOTH_SPELLINGS = ("llava", "qwen2_vl", "qwen3_vl", "gemma3")
LORA = LoraEverywhere(lora=Lora(rank=2))
ONE_BUT_LAST = r"_tower\.(encoder\.layers\.2|post_layernorm)\."
UNREACHED: Mapping[str, str] = {
    "llava": ONE_BUT_LAST,
    "llava_next": ONE_BUT_LAST,
    "video_llava": ONE_BUT_LAST,
    "llava_onevision": r"vision_tower\.post_layernorm\.",
    "instructblip": r"qformer\.encoder\.layer\.1\.(intermediate|output)\.",
}
"""Parameters that no gradient reaches: the projector reads the last layer but one, or the last before its
norm; of the last layer of the Q-Former it reads the half of the queries and not that of the words."""

Prepared = Callable[[str], tuple[Vlm, dict[str, Any]]]


@pytest.fixture(scope="module")
def prepared(tiny_vlm: Callable[..., Path]) -> Prepared:
    """Gives a type's family, which tests copy, and a batch of all that the type takes."""

    @cache
    def of(model_type: str) -> tuple[Vlm, dict[str, Any]]:
        family = Vlm.load(str(tiny_vlm(model_type)), "cpu", torch.float32, without=())
        chat = family.conversation_encoder(ChatOptions(max_length=4096))
        shown = [PICTURE, *([TEXT] if TYPES[model_type].text_only else [])]
        if model_type in SHOWS_CLIPS and model_type not in APART:
            shown.append(CLIP)
        rows = [entry(chat, one) for one in shown]
        return family, {"tokens": [[tokens] for tokens, _ in rows], "media": [[media] for _, media in rows]}

    return of


def copied(family: Vlm) -> Vlm:
    other = copy.copy(family)
    other.components = copy.deepcopy(family.components)
    return other


def trained(family: Vlm, batch: dict[str, Any], steps: int, trainable: Any, flags: Freezing) -> Vlm:
    """A copy of the family after steps of a run that says this of what trains."""
    family = copied(family)
    rules = spell_rules(trainable, flags, family.components, family.roles, family.cores, family.lora_targets)
    claims = claim(family.components, rules, family.roles)
    apply_claims(family.components, claims, seed=0)
    optimizer = torch.optim.AdamW(param_groups(family.components, claims, 1e-2, 0.0))
    for _ in range(steps):
        loss = family.token_losses(batch, chunk=1024, label_smoothing=0.0).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return family


def moved(before: nn.Module, after: nn.Module) -> set[str]:
    """Names of base parameters that are not what they were, bit for bit."""
    now = {name.replace(".base_layer.", "."): p for name, p in after.named_parameters()}
    was = dict(before.named_parameters())
    assert was.keys() == {name for name in now if ".lora_" not in name}
    return {name for name in was if not torch.equal(was[name], now[name])}


def of_roles(model_type: str, model: nn.Module, *roles: str) -> set[str]:
    """Names of the parameters of roles that a gradient reaches."""
    prefixes = [prefix for role in roles for prefix in TYPES[model_type].roles[role]]
    names = {n for n, _ in model.named_parameters() if is_under(n, *prefixes)}
    pattern = UNREACHED.get(model_type)
    return {n for n in names if pattern is None or not re.search(pattern, n)}


def flags(trains: tuple[bool, ...]) -> Freezing:
    tower, projector, language = (not opened for opened in trains)
    return Freezing(
        freeze_vision_tower=tower, freeze_multi_modal_projector=projector, freeze_language_model=language
    )


def in_freeze(trains: tuple[bool, ...]) -> Freezing:
    return Freezing(freeze={role: not opened for role, opened in zip(ROLES, trains, strict=True)})


def opened(trains: tuple[bool, ...]) -> list[str]:
    return [role for role, opened in zip(ROLES, trains, strict=True) if opened]


def named(trains: tuple[bool, ...]) -> str:
    return "+".join(opened(trains))


@pytest.mark.parametrize("trains", OPEN, ids=named)
@pytest.mark.parametrize("model_type", tiny_types())
def test_full_trains_exactly_the_open_parts(
    prepared: Prepared, model_type: str, trains: tuple[bool, ...]
) -> None:
    family, batch = prepared(model_type)
    after = trained(family, batch, 1, "full", flags(trains))
    expected = of_roles(model_type, family.model, *opened(trains))
    assert expected
    assert moved(family.model, after.model) == expected


@pytest.mark.parametrize("trains", OPEN, ids=named)
@pytest.mark.parametrize("model_type", BOTH_SPELLINGS)
def test_freeze_by_role_trains_the_same(
    prepared: Prepared, model_type: str, trains: tuple[bool, ...]
) -> None:
    family, batch = prepared(model_type)
    one, other = (trained(family, batch, 1, "full", spell(trains)).model for spell in (flags, in_freeze))
    weights = dict(one.named_parameters())
    assert all(torch.equal(weights[name], param) for name, param in other.named_parameters())
    assert moved(family.model, other) == of_roles(model_type, family.model, *opened(trains))


@pytest.mark.parametrize("model_type", tiny_types())
def test_the_shortcut_trains_the_projector_alone(prepared: Prepared, model_type: str) -> None:
    family, batch = prepared(model_type)
    for trainable in ("full", LORA):
        after = trained(family, batch, 1, trainable, Freezing(train_mm_proj_only=True))
        assert moved(family.model, after.model) == of_roles(model_type, family.model, PROJECTOR)
        assert not any(".lora_" in name for name, _ in after.model.named_parameters())


@pytest.mark.parametrize("spell", [flags, in_freeze])
@pytest.mark.parametrize("trainable", ["full", LORA], ids=["full", "lora"])
@pytest.mark.parametrize("model_type", tiny_types())
def test_all_frozen_is_refused(
    prepared: Prepared, model_type: str, trainable: Any, spell: Callable[..., Freezing]
) -> None:
    family, batch = prepared(model_type)
    with pytest.raises(UserError) as told:
        trained(family, batch, 1, trainable, spell((False, False, False)))
    before = "freeze." if spell is in_freeze else "freeze_"
    frozen = [
        f"{role} by {f'{before}{role}: true' if role in ROLES else 'default'}"
        for role in TYPES[model_type].roles
    ]
    assert str(told.value) == (
        f"trainable: nothing is left to train: frozen are {', '.join(frozen)}; open one"
    )


@pytest.mark.parametrize("trains", OPEN, ids=named)
@pytest.mark.parametrize("model_type", BOTH_SPELLINGS)
def test_lora_leaves_the_base_and_trains_the_projector_itself(
    prepared: Prepared, model_type: str, trains: tuple[bool, ...]
) -> None:
    family, batch = prepared(model_type)
    after = trained(family, batch, 2, LORA, flags(trains)).model
    itself = [PROJECTOR] if PROJECTOR in opened(trains) else []
    assert moved(family.model, after) == of_roles(model_type, family.model, *itself)
    adapters = {n: p for n, p in after.named_parameters() if ".lora_" in n}
    bases = {f"{name.split('.lora_')[0]}.weight" for name in adapters}
    assert {n for n, p in after.named_parameters() if p.requires_grad} - adapters.keys() == {
        n for n, _ in family.model.named_parameters() if itself and in_role(model_type, PROJECTOR, n)
    }
    for role in (VISION, LANGUAGE):
        assert any(in_role(model_type, role, base) for base in bases) == (role in opened(trains))
    assert not any(in_role(model_type, PROJECTOR, base) for base in bases)
    reached = of_roles(model_type, family.model, *ROLES)
    ups = {n: p for n, p in adapters.items() if ".lora_B." in n}
    for name, param in ups.items():  # they begin at zero
        assert bool(param.any()) == (f"{name.split('.lora_')[0]}.weight" in reached), name


def in_role(model_type: str, role: str, name: str) -> bool:
    return is_under(name, *TYPES[model_type].roles[role])


def under(names: set[str], *prefixes: str) -> set[str]:
    return {name for name in names if name.startswith(prefixes)}


def test_the_downsample_of_glm4v_is_vision(prepared: Prepared) -> None:
    family, batch = prepared("glm4v")
    tower = trained(family, batch, 1, "full", flags((True, False, False)))
    rest = trained(family, batch, 1, "full", flags((False, True, True)))
    apart = ("model.visual.downsample.", "model.visual.embeddings.", "model.visual.post_")
    assert under(moved(family.model, tower.model), *apart) == {
        "model.visual.downsample.weight", "model.visual.downsample.bias",
        "model.visual.embeddings.position_embedding.weight", "model.visual.post_conv_layernorm.weight",
        "model.visual.post_layernorm.weight",
    }  # fmt: skip
    assert not under(moved(family.model, rest.model), *apart)


def test_the_newline_of_llava_next_is_a_role_of_its_own(prepared: Prepared) -> None:
    family, batch = prepared("llava_next")
    every = trained(family, batch, 1, "full", flags((True, True, True)))
    assert "model.image_newline" not in moved(family.model, every.model)
    alone = Freezing(freeze={"image_newline": False}, freeze_llm=True)
    for trainable in ("full", LORA):
        after = trained(family, batch, 1, trainable, alone)
        assert moved(family.model, after.model) == {"model.image_newline"}


def test_both_towers_of_video_llava_are_vision(prepared: Prepared) -> None:
    family, batch = prepared("video_llava")
    towers = "model.video_tower.", "model.image_tower."
    opened = moved(family.model, trained(family, batch, 1, "full", flags((True, False, False))).model)
    assert all(under(opened, tower) for tower in towers)
    closed = moved(family.model, trained(family, batch, 1, "full", flags((False, True, True))).model)
    assert closed
    assert not under(closed, *towers)


def test_the_language_model_of_omni_is_not_all_that_is_named_model(prepared: Prepared) -> None:
    family, batch = prepared("qwen2_5_omni_thinker")
    others = moved(family.model, trained(family, batch, 1, "full", flags((True, True, False))).model)
    language = moved(family.model, trained(family, batch, 1, "full", flags((False, False, True))).model)
    assert others == under(others, "model.visual.")
    assert under(others, "model.visual.merger.")
    assert language == under(language, "model.language_model.", "lm_head.")
    assert any(name.startswith("model.audio_tower.") for name, _ in family.model.named_parameters())
