"""Rules reach the last layers alone, and rates fall from layer to layer."""

import pytest
import torch
from torch import nn

from omnitune.errors import UserError
from omnitune.trainable.adapters import apply_claims, param_groups
from omnitune.trainable.rules import Lora, Rule, claim


def network(count: int, *, beside: int = 0) -> nn.ModuleDict:
    """A network that opens with an embedding, has layers and closes with a norm."""
    parts = nn.ModuleDict({"embed": nn.Linear(2, 2, bias=False)})
    parts["blocks"] = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(count)])
    if beside:
        parts["single"] = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(beside)])
    parts["norm"] = nn.LayerNorm(2, bias=False)
    return parts


class Pair(nn.Module):
    """Two networks and what joins them: a token before both, a layer between, a head behind."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(2))
        self.visual = network(2)
        self.join = nn.Linear(2, 2, bias=False)
        self.language = network(3)
        self.head = nn.Linear(2, 2, bias=False)


def components() -> nn.ModuleDict:
    return nn.ModuleDict({"pair": Pair(), "flux": network(2, beside=3), "flat": nn.Linear(2, 2)})


def names(*rules: Rule) -> list[str]:
    return sorted(claim(components(), rules).direct)


def message(*rules: Rule) -> str:
    with pytest.raises(UserError) as caught:
        claim(components(), rules)
    return str(caught.value)


def rates(*rules: Rule) -> dict[str, float]:
    """Trained parameter -> its rate over 1e-3, from the optimizer's groups."""
    parts = components()
    claims = claim(parts, rules)
    apply_claims(parts, claims, 0)
    groups = param_groups(parts, claims, lr=1e-3, decay=0.0)
    return {name: group["lr"] / 1e-3 for group in groups for name in group["names"]}


# The last layers


def test_last_layers_claims_the_last_of_each_list_and_nothing_else() -> None:
    assert names(Rule(params="pair", last_layers=1)) == [
        "pair.language.blocks.2.weight",
        "pair.visual.blocks.1.weight",
    ]
    assert names(Rule(params="flux", last_layers=2)) == [
        *("flux.blocks.0.weight", "flux.blocks.1.weight"),
        *("flux.single.1.weight", "flux.single.2.weight"),
    ]


def test_rules_behind_take_what_is_not_in_the_last_layers() -> None:
    rules = [Rule(params="pair.language", last_layers=2), Rule(params="pair.language", lora=Lora())]
    claims = claim(components(), rules)
    assert sorted(claims.direct) == ["pair.language.blocks.1.weight", "pair.language.blocks.2.weight"]
    assert sorted(claims.adapted) == ["pair.language.blocks.0", "pair.language.embed"]
    assert list(claims.unadaptable) == ["pair.language.norm.weight"]


def test_more_last_layers_than_there_are_is_refused_and_told_for_each_list() -> None:
    assert names(Rule(params="pair.visual", last_layers=2))
    assert message(Rule(params="pair", last_layers=4)) == (
        "trainable.0.last_layers: 4, but pair.visual.blocks has 2 layers; take at most 2\n"
        "trainable.0.last_layers: 4, but pair.language.blocks has 3 layers; take at most 3"
    )


def test_last_layers_where_nothing_lies_in_them_is_refused() -> None:
    assert message(Rule(params=["pair.visual", "pair.join"], last_layers=1)) == (
        "trainable.0.params.1: 'pair.join' matches nothing in the last 1 of a list of layers"
    )
    assert message(Rule(params="pair.visual.blocks.0", last_layers=1)) == (
        "trainable.0: 'pair.visual.blocks.0' matches nothing in the last 1 of a list of layers"
    )


def test_a_list_of_one_layer_is_passed_over_for_the_list_in_it() -> None:
    parts = nn.ModuleDict({"net": nn.ModuleList([network(2)])})
    claims = claim(parts, [Rule(params="net", last_layers=1)])
    assert list(claims.direct) == ["net.0.blocks.1.weight"]


# Rates that fall


def test_rates_fall_from_what_follows_the_layers_to_what_stands_before_them() -> None:
    assert rates(Rule(params="pair.visual", layer_decay=0.5)) == {
        "pair.visual.embed.weight": 0.125,
        "pair.visual.blocks.0.weight": 0.25,
        "pair.visual.blocks.1.weight": 0.5,
        "pair.visual.norm.weight": 1.0,
    }


def test_each_network_has_its_own_depth() -> None:
    assert rates(Rule(params="pair", layer_decay=0.5)) == {
        "pair.token": 0.125,
        "pair.visual.embed.weight": 0.125,
        "pair.visual.blocks.0.weight": 0.25,
        "pair.visual.blocks.1.weight": 0.5,
        "pair.visual.norm.weight": 1.0,
        "pair.join.weight": 1.0,
        "pair.language.embed.weight": 0.0625,
        "pair.language.blocks.0.weight": 0.125,
        "pair.language.blocks.1.weight": 0.25,
        "pair.language.blocks.2.weight": 0.5,
        "pair.language.norm.weight": 1.0,
        "pair.head.weight": 1.0,
    }


def test_lists_side_by_side_are_one_sequence() -> None:
    assert rates(Rule(params="flux", layer_decay=0.5)) == {
        "flux.embed.weight": 2**-6,
        "flux.blocks.0.weight": 2**-5,
        "flux.blocks.1.weight": 2**-4,
        "flux.single.0.weight": 2**-3,
        "flux.single.1.weight": 2**-2,
        "flux.single.2.weight": 2**-1,
        "flux.norm.weight": 1.0,
    }
    assert rates(Rule(params="flux.blocks", layer_decay=0.5)) == {
        "flux.blocks.0.weight": 0.25,
        "flux.blocks.1.weight": 0.5,
    }


def test_depth_counts_all_layers_where_only_the_last_train() -> None:
    rule = Rule(params="pair.language", layer_decay=0.5, last_layers=2)
    assert rates(rule) == {"pair.language.blocks.1.weight": 0.25, "pair.language.blocks.2.weight": 0.5}


def test_adapters_have_the_rate_of_their_layer() -> None:
    found = rates(Rule(params="pair.visual.blocks", lora=Lora(rank=1), layer_decay=0.5))
    assert found == {
        f"pair.visual.blocks.{i}.lora_{part}.default.weight": rate
        for i, rate in ((0, 0.25), (1, 0.5))
        for part in "AB"
    }


def test_a_rule_has_one_group_for_each_depth_the_fastest_last() -> None:
    parts = components()
    rules = [Rule(params="flat", lr=1.0), Rule(params="pair.visual", lr=8.0, layer_decay=0.5)]
    claims = claim(parts, rules)
    apply_claims(parts, claims, 0)
    found = param_groups(parts, claims, lr=1e-3, decay=0.0)
    assert [(group["rule"], group["lr"], group["rule_lr"]) for group in found] == [
        (0, 1.0, 1.0),
        *((1, 1.0, 8.0), (1, 2.0, 8.0), (1, 4.0, 8.0), (1, 8.0, 8.0)),
    ]


def test_a_decay_of_one_changes_no_rate() -> None:
    assert set(rates(Rule(params="pair", layer_decay=1.0)).values()) == {1.0}


def test_a_decay_without_layers_is_refused() -> None:
    assert message(Rule(params="pair.join", layer_decay=0.5)) == (
        "trainable.0.layer_decay: nothing of 'pair.join' lies in a list of layers; leave it out"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"last_layers": 0}, "last_layers must be 1 or more, not 0"),
        ({"layer_decay": 0.0}, r"layer_decay must be in \(0, 1\], not 0.0"),
        ({"layer_decay": 1.5}, r"layer_decay must be in \(0, 1\], not 1.5"),
    ],
)
def test_layer_options_that_cannot_be_are_refused(options: dict[str, float], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Rule(params="pair", **options)  # type: ignore[arg-type]
