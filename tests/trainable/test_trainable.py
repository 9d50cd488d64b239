"""One list of rules decides what trains, as what, and how fast."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from omnitune.errors import UserError
from omnitune.trainable.adapters import adapter_state, apply_claims, param_groups
from omnitune.trainable.freezing import Freezing, spell_rules
from omnitune.trainable.rules import Lora, LoraEverywhere, Rule, claim


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_v, self.norm = nn.Linear(6, 4), nn.Linear(6, 4), nn.LayerNorm(4)


class Net(nn.Module):
    """Ends in a layer whose name a layer inside its blocks has too, as FLUX does."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.conv = nn.Conv2d(3, 4, 3)
        self.to_q = nn.Linear(4, 4)


def components(dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"transformer": Net().to(dtype), "text_encoder": Net().to(dtype)})


def trained(*rules: Rule, seed: int = 0) -> nn.ModuleDict:
    parts = components()
    apply_claims(parts, claim(parts, rules), seed)
    return parts


def training_names(parts: nn.ModuleDict) -> list[str]:
    return [name for name, param in parts.named_parameters() if param.requires_grad]


def ranks(parts: nn.ModuleDict) -> dict[str, int]:
    """Adapted layer -> rank, from the shapes that a LoRA file would have."""
    state = adapter_state(parts["transformer"], parts["transformer"].state_dict())
    return {name.removesuffix(".lora_A.weight"): len(t) for name, t in state.items() if ".lora_A." in name}


# Which parameters a rule claims


def test_a_glob_claims_the_parameters_it_matches() -> None:
    claims = claim(components(), [Rule(params="transformer.blocks.*.to_q.weight")])
    assert claims.direct == {f"transformer.blocks.{i}.to_q.weight": 0 for i in (0, 1)}


def test_naming_a_module_claims_all_under_it() -> None:
    claims = claim(components(), [Rule(params="transformer.blocks.1")])
    own = [name for name, _ in components().named_parameters() if name.startswith("transformer.blocks.1.")]
    assert sorted(claims.direct) == sorted(own)
    assert len(own) == 6


def test_a_prefix_of_a_name_is_not_its_module() -> None:
    with pytest.raises(UserError, match="matches no parameter"):
        claim(components(), [Rule(params="transformer.block")])


def test_a_rule_may_have_several_globs() -> None:
    claims = claim(components(), [Rule(params=["transformer.conv", "transformer.to_q.bias"])])
    assert set(claims.direct) == {f"transformer.{n}" for n in ("conv.weight", "conv.bias", "to_q.bias")}


def test_the_first_matching_rule_wins() -> None:
    claims = claim(components(), [Rule(params="transformer.blocks.0"), Rule(params="transformer.blocks")])
    for name, number in claims.direct.items():
        assert number == int(name.split(".")[2])


def test_what_no_rule_matches_is_frozen() -> None:
    parts = trained(Rule(params="transformer.conv"))
    assert training_names(parts) == ["transformer.conv.weight", "transformer.conv.bias"]


def test_claims_work_without_weights() -> None:
    with torch.device("meta"):
        parts = nn.ModuleDict({"transformer": Net()})
    rules = [Rule(params="transformer.blocks", lora=Lora(rank=2))]
    claims = claim(parts, rules)
    apply_claims(parts, claims, 0)
    assert {p.is_meta for p in parts.parameters()} == {True}
    assert len(training_names(parts)) == 8


def test_names_are_those_of_the_model_before_adapters() -> None:
    rules = [Rule(params="transformer.to_q", lora=Lora(rank=2)), Rule(params="text_encoder.conv.bias")]
    claims = claim(components(), rules)
    assert claims.names == {"transformer.to_q.weight", "text_encoder.conv.bias"}
    assert claims.components == {"transformer", "text_encoder"}
    assert claims.unadaptable == {"transformer.to_q.bias": 0}


def test_short_forms_spell_rules() -> None:
    lora = Lora(rank=3)
    model = (Freezing(), components(), {}, ["high", "low"], ["a", "b"])
    assert spell_rules("full", *model) == [Rule(params=["high", "low"])]
    assert spell_rules(LoraEverywhere(lora=lora, lr=1e-3), *model) == [
        Rule(params=["a", "b"], lr=1e-3, lora=lora)
    ]
    rules = [Rule(params="x")]
    assert spell_rules(rules, *model) == rules


# Mistakes


def mistake(*rules: Rule) -> list[str]:
    with pytest.raises(UserError) as caught:
        claim(components(), rules)
    return str(caught.value).split("\n")


def test_a_rule_that_matches_nothing_is_refused_with_the_nearest_names() -> None:
    lines = mistake(Rule(params="transformer.blocks"), Rule(params="transformer.blokcs.0.to_q"))
    assert len(lines) == 1
    assert lines[0].startswith("trainable.1: 'transformer.blokcs.0.to_q' matches no parameter; nearest: ")
    assert "transformer.blocks.0.to_q" in lines[0]


def test_a_shadowed_rule_is_refused_and_names_the_rule_before_it() -> None:
    rules = [Rule(params="text_encoder"), Rule(params="transformer"), Rule(params="transformer.conv")]
    assert mistake(*rules) == [
        "trainable.2: all that 'transformer.conv' matches is taken by trainable.1 ('transformer'); put it "
        "before that"
    ]


def test_a_lora_rule_without_a_layer_for_it_is_refused() -> None:
    assert mistake(Rule(params="transformer.blocks.*.norm", lora=Lora())) == [
        "trainable.0: 'transformer.blocks.*.norm' matches no layer that can carry LoRA; "
        "name linear or convolution layers"
    ]


def test_each_glob_of_a_rule_has_to_match() -> None:
    (line,) = mistake(Rule(params=["transformer.blocks.*.to_*", "transformer.blcks.*.norm"]))
    assert line.startswith(
        "trainable.0.params.1: 'transformer.blcks.*.norm' matches no parameter; nearest: transformer.blocks."
    )


def test_a_shadowed_glob_of_a_rule_is_refused() -> None:
    rules = [Rule(params="transformer.blocks"), Rule(params=["transformer.conv", "transformer.blocks.0"])]
    assert mistake(*rules) == [
        "trainable.1.params.1: all that 'transformer.blocks.0' matches is taken by trainable.0 "
        "('transformer.blocks'); put it before that"
    ]


def test_a_glob_of_a_lora_rule_without_a_layer_for_it_is_refused() -> None:
    assert mistake(Rule(params=["transformer.conv", "*.norm"], lora=Lora())) == [
        "trainable.0.params.1: '*.norm' matches no layer that can carry LoRA; "
        "name linear or convolution layers"
    ]


def test_globs_of_one_rule_may_overlap() -> None:
    rule = Rule(params=["transformer.blocks", "transformer.blocks.*.to_q"], lora=Lora(rank=2))
    assert len(claim(components(), [rule]).adapted) == 4


def test_a_rule_without_globs_is_refused() -> None:
    assert mistake(Rule(params=[])) == ["trainable.0: [] matches no parameter; name at least one"]


def test_every_mistaken_rule_is_told_at_once() -> None:
    lines = mistake(Rule(params="nothing"), Rule(params="transformer.conv"), Rule(params="nowhere"))
    assert [line.split(":")[0] for line in lines] == ["trainable.0", "trainable.2"]


def test_no_rule_is_refused() -> None:
    assert mistake() == [
        "trainable: no rule, so nothing would train; use full, {lora: {}} or a list of rules"
    ]


def test_loras_of_one_component_with_different_dropouts_are_refused() -> None:
    rules = [
        Rule(params="transformer.conv", lora=Lora(dropout=0.1)),
        Rule(params="transformer.to_q", lora=Lora(dropout=0.2)),
    ]
    parts = components()
    with pytest.raises(UserError, match=r"dropouts \[0\.1, 0\.2\]; use one value"):
        apply_claims(parts, claim(parts, rules), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be 1 or more, not 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), not -0.1"),
        ({"alpha": 0.0}, "alpha must be above 0, not 0.0"),
    ],
)
def test_a_lora_that_cannot_be_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lora(**options)  # type: ignore[arg-type]


def test_negative_rates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lr must be 0 or more, not -1\.0"):
        Rule(params="transformer", lr=-1.0)
    with pytest.raises(ValueError, match=r"weight_decay must be 0 or more, not -1\.0"):
        Rule(params="transformer", weight_decay=-1.0)
    with pytest.raises(ValueError, match=r"lr must be 0 or more, not -1\.0"):
        LoraEverywhere(lora=Lora(), lr=-1.0)


# Adapters


def test_each_rule_has_its_rank() -> None:
    parts = trained(
        Rule(params="transformer.blocks.0", lora=Lora(rank=2)),
        Rule(params=["transformer.blocks.1.to_q", "transformer.conv"], lora=Lora(rank=3)),
    )
    assert ranks(parts) == {"blocks.0.to_q": 2, "blocks.0.to_v": 2, "blocks.1.to_q": 3, "conv": 3}


def test_only_the_claimed_layer_is_adapted_where_another_ends_in_its_name() -> None:
    parts = trained(Rule(params="transformer.to_q", lora=Lora(rank=2)))
    assert ranks(parts) == {"to_q": 2}


def test_an_adapted_model_computes_the_same_at_first() -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    plain, adapted = components(), trained(Rule(params="transformer.blocks", lora=Lora(rank=2)))
    layer = "transformer.blocks.0.to_q"
    assert torch.equal(adapted.get_submodule(layer)(x), plain.get_submodule(layer)(x))


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (4.0, 2.0), (1.0, 0.5)])
def test_the_update_is_scaled_by_alpha_over_rank(alpha: float | None, scale: float) -> None:
    parts = trained(
        Rule(params="transformer.to_q", lora=Lora(rank=2, alpha=alpha)),
        Rule(params="transformer.blocks.*.to_q", lora=Lora(rank=3, alpha=6.0)),
    )
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    layer = parts.get_submodule("transformer.to_q")
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(up)
    expected = layer.base_layer(x) + scale * (x @ down.T @ up.T)
    torch.testing.assert_close(layer(x), expected)


def downs(parts: nn.ModuleDict) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in parts.named_parameters() if ".lora_A." in name}


def test_adapters_start_from_their_names_and_the_seed_alone() -> None:
    one, two = Lora(rank=2), Lora(rank=3)
    torch.manual_seed(1)
    first = downs(
        trained(Rule(params="transformer.blocks.0", lora=one), Rule(params="transformer.conv", lora=two))
    )
    torch.manual_seed(2)
    second = downs(
        trained(Rule(params="transformer.conv", lora=two), Rule(params="transformer.blocks.*", lora=one))
    )
    assert first.keys() < second.keys()
    assert all(torch.equal(second[name], value) for name, value in first.items())
    other = downs(trained(Rule(params="transformer.blocks.0", lora=one), seed=1))
    assert not any(torch.equal(other[name], first[name]) for name in other)


def test_adapters_start_uniform_within_one_over_root_fan_in_and_zero() -> None:
    """Kaiming-uniform with a = sqrt(5): bound sqrt(6 / (1 + 5) / fan_in)."""
    parts = components()
    parts["transformer"].to_q = nn.Linear(400, 4)
    apply_claims(parts, claim(parts, [Rule(params="transformer.to_q", lora=Lora(rank=50))]), 0)
    layer = parts.get_submodule("transformer.to_q")
    down = layer.lora_A["default"].weight
    assert 0.99 / 20 < down.abs().max() <= 1 / 20
    torch.testing.assert_close(down.var(), torch.tensor(1 / 20**2 / 3), rtol=0.05, atol=0)
    assert layer.lora_B["default"].weight.count_nonzero() == 0


def test_a_layer_may_train_its_bias_beside_an_adapter() -> None:
    rules = [Rule(params="transformer.to_q.bias"), Rule(params="transformer.to_q", lora=Lora(rank=2))]
    assert training_names(trained(*rules)) == [
        "transformer.to_q.base_layer.bias",
        "transformer.to_q.lora_A.default.weight",
        "transformer.to_q.lora_B.default.weight",
    ]


# Precision and optimizer groups


def test_what_trains_is_stored_in_fp32_and_the_rest_as_loaded() -> None:
    parts = components(torch.bfloat16)
    rules = [Rule(params="transformer.blocks", lora=Lora(rank=2)), Rule(params="transformer.conv")]
    compute = apply_claims(parts, claim(parts, rules), 0)
    for name, param in parts.named_parameters():
        assert param.dtype == (torch.float32 if param.requires_grad else torch.bfloat16), name
    assert compute == {name: torch.bfloat16 for name, _ in parts.named_parameters()}


def test_a_layer_that_was_loaded_in_fp32_computes_in_fp32() -> None:
    parts = components(torch.bfloat16)
    parts["transformer"].conv.float()
    compute = apply_claims(parts, claim(parts, [Rule(params="transformer")]), 0)
    fp32 = {name for name, dtype in compute.items() if dtype == torch.float32}
    assert fp32 == {"transformer.conv.weight", "transformer.conv.bias"}


def groups(*rules: Rule) -> Sequence[dict[str, object]]:
    parts = components()
    claims = claim(parts, rules)
    apply_claims(parts, claims, 0)
    return param_groups(parts, claims, lr=1e-4, decay=0.01)


def test_each_rule_is_an_optimizer_group_with_its_rates() -> None:
    found = groups(
        Rule(params="transformer.conv", lr=1e-3),
        Rule(params="transformer.blocks", weight_decay=0.0, lora=Lora(rank=2)),
        Rule(params="text_encoder", lr=0.0),
    )
    assert [(g["rule"], g["lr"], g["weight_decay"]) for g in found] == [
        (0, 1e-3, 0.01),
        (1, 1e-4, 0.0),
        (2, 0.0, 0.01),
    ]
    assert found[0]["names"] == ["transformer.conv.weight", "transformer.conv.bias"]


def test_the_groups_hold_every_training_parameter_once() -> None:
    rules = [Rule(params="transformer.blocks.0"), Rule(params="transformer", lora=Lora(rank=2))]
    parts = components()
    claims = claim(parts, rules)
    apply_claims(parts, claims, 0)
    found = [p for group in param_groups(parts, claims, 1e-4, 0.01) for p in group["params"]]
    assert {id(p) for p in found} == {id(p) for p in parts.parameters() if p.requires_grad}
    assert len(found) == len({id(p) for p in found})
