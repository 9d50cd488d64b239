"""Rules name parts by their roles, and tied weights by the one name that counts."""

import pytest
import torch
from torch import nn

from omnitune.errors import UserError
from omnitune.trainable.parameters import ParameterIndex, called, role_of, spoken
from omnitune.trainable.rules import Lora, Rule, claim

ROLES = {
    "tower": ("model.visual.embed", "model.visual.blocks"),
    "projector": ("model.visual.merger",),
    "language_model": ("model.language_model", "head"),
    "newline": ("model.newline",),
}


class Net(nn.Module):
    """Layers behind names that say little of what they are for."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        visual = nn.ModuleDict({"embed": nn.Linear(3, 4)})
        visual["blocks"] = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(2)])
        visual["merger"] = nn.Linear(4, 6)
        self.model = nn.ModuleDict({"visual": visual})
        self.model["language_model"] = nn.ModuleDict({"embed": nn.Embedding(5, 6), "out": nn.Linear(6, 6)})
        self.model.register_parameter("newline", nn.Parameter(torch.zeros(4)))
        self.head = nn.Linear(6, 5, bias=False)
        if tied:
            self.head.weight = self.model["language_model"]["embed"].weight


def components(tied: bool = False) -> nn.ModuleDict:
    with torch.device("meta"):
        return nn.ModuleDict({"vlm": Net(tied)})


WHOLE = {role: tuple(f"vlm.{prefix}" for prefix in prefixes) for role, prefixes in ROLES.items()}
BLOCKS = [f"vlm.model.visual.blocks.{i}.0.{last}" for i in (0, 1) for last in ("weight", "bias")]


def test_a_parameter_has_the_role_whose_prefix_covers_it() -> None:
    assert role_of("vlm.model.visual.blocks.1.0.weight", WHOLE) == "tower"
    assert role_of("vlm.model.newline", WHOLE) == "newline"
    assert role_of("vlm.model.visual.blocksmith", WHOLE) is None


def test_a_name_is_spoken_behind_its_role() -> None:
    assert spoken("vlm.model.visual.blocks.1.0.weight", WHOLE) == "tower.blocks.1.0.weight"
    assert spoken("vlm.model.language_model.out.bias", WHOLE) == "language_model.out.bias"
    assert spoken("vlm.head.weight", WHOLE) == "language_model.head.weight"
    assert spoken("elsewhere.weight", WHOLE) == "elsewhere.weight"


def test_a_parameter_is_called_by_its_names_and_their_parents() -> None:
    assert called("a.b.c.weight", {"role": ("a.b",)}) == [
        *("a.b.c.weight", "a", "a.b", "a.b.c"),
        *("role.b.c.weight", "role", "role.b", "role.b.c"),
        *("role.c.weight", "role", "role.c"),
    ]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("tower", ["vlm.model.visual.embed.weight", "vlm.model.visual.embed.bias", *BLOCKS]),
        ("tower.blocks", BLOCKS),
        ("tower.blocks.1", BLOCKS[2:]),
        ("tower.1", BLOCKS[2:]),
        ("tower.blocks.*.bias", BLOCKS[1::2]),
        ("vlm.model.visual.blocks.0", BLOCKS[:2]),
        ("newline", ["vlm.model.newline"]),
        ("language_model.head", ["vlm.head.weight"]),
        ("language_model.out.bias", ["vlm.model.language_model.out.bias"]),
    ],
)
def test_a_glob_names_parameters_by_role(glob: str, expected: list[str]) -> None:
    assert sorted(claim(components(), [Rule(params=glob)], WHOLE).direct) == sorted(expected)


def message(glob: str, *, tied: bool = False, lora: Lora | None = None) -> str:
    with pytest.raises(UserError) as caught:
        claim(components(tied), [Rule(params=glob, lora=lora)], WHOLE)
    return str(caught.value)


def test_a_glob_that_matches_nothing_is_told_the_roles_and_the_nearest_names() -> None:
    assert message("towr") == (
        "trainable.0: 'towr' matches no parameter; nearest: tower, tower.embed, tower.blocks; "
        "roles: tower, projector, language_model, newline"
    )
    assert message("tower.blokcs.0").startswith(
        "trainable.0: 'tower.blokcs.0' matches no parameter; nearest: tower.blocks.0, "
    )


def test_roles_that_are_whole_components_are_not_listed() -> None:
    with pytest.raises(UserError) as caught:
        claim(components(), [Rule(params="xyzzy")], {"vlm": ("vlm",)})
    assert str(caught.value) == "trainable.0: 'xyzzy' matches no parameter"


# Tied weights


def test_a_tied_weight_is_listed_under_its_first_name() -> None:
    name = "vlm.model.language_model.embed.weight"
    assert ParameterIndex(components(tied=True)).tied == {"vlm.head.weight": name}
    claims = claim(components(tied=True), [Rule(params="language_model")], WHOLE)
    assert name in claims.direct
    assert "vlm.head.weight" not in claims.direct


@pytest.mark.parametrize("lora", [None, Lora()])
def test_naming_a_tied_weight_by_its_further_name_alone_is_refused(lora: Lora | None) -> None:
    assert message("language_model.head", tied=True, lora=lora) == (
        "trainable.0: 'language_model.head' matches vlm.head.weight alone, which is tied to "
        "vlm.model.language_model.embed.weight; they are one: name that"
    )


def test_a_tied_layer_carries_no_adapter() -> None:
    parts = nn.ModuleDict({"head": nn.Linear(4, 4, bias=False), "again": nn.Linear(4, 4, bias=False)})
    parts["again"].weight = parts["head"].weight
    with pytest.raises(UserError) as caught:
        claim(parts, [Rule(params="head", lora=Lora())])
    assert str(caught.value) == (
        "trainable.0: 'head' matches no layer that can carry LoRA, head.weight is tied; "
        "name linear or convolution layers"
    )


def test_attention_of_torch_carries_no_adapter_on_the_layer_that_it_does_not_call() -> None:
    parts = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2)})
    with pytest.raises(UserError, match="matches no layer that can carry LoRA; name linear"):
        claim(parts, [Rule(params="attention.out_proj", lora=Lora())])
