"""The table of model types: roles, cuts and packing hold for a real, tiny model of each."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_chats import EVERY_CASE, SHOWS_CLIPS, cases, inputs
from torch import Tensor, nn

from omnitune.errors import UserError
from omnitune.families.vlm.types import TYPES, Cut, module_tree, roles_of
from omnitune.stages import is_under
from omnitune.testing.tiny_vlm import tiny_types

Loaded = Callable[[str], tuple[Any, Any]]
Replace = Callable[[str, Tensor], Tensor]


def logits(model: Any, given: Mapping[str, Any]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**given, use_cache=False).logits
    return found


@contextmanager
def passed(model: nn.Module, cut: Cut, through: Replace) -> Iterator[None]:
    """Pass what each of a cut's inputs is given through a function."""

    def hook(spot: str, keyword: str) -> Callable[..., Any]:
        def edit(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            if keyword:
                return args, {**kwargs, keyword: through(spot, kwargs[keyword])}
            return (through(spot, args[0]), *args[1:]), kwargs

        return edit

    handles = []
    for spot in cut.inputs:
        path, _, keyword = spot.partition(":")
        module = model.get_submodule(path)
        handles.append(module.register_forward_pre_hook(hook(spot, keyword), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def recorded(model: nn.Module, cut: Cut, given: Mapping[str, Any]) -> tuple[dict[str, list[Tensor]], Tensor]:
    """What each of a cut's inputs was given, and the logits."""
    found: dict[str, list[Tensor]] = {spot: [] for spot in cut.inputs}

    def keep(spot: str, value: Tensor) -> Tensor:
        found[spot].append(value)
        return value

    with passed(model, cut, keep):
        return found, logits(model, given)


def randomise(model: nn.Module, model_type: str) -> None:
    owner = roles_of(model, TYPES[model_type].roles)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if owner[name] == "vision_tower":
                parameter.copy_(torch.rand_like(parameter))


@pytest.mark.parametrize(("model_type", "case"), [(t, c) for t, c in EVERY_CASE if c != "text"])
def test_what_is_recorded_at_the_cut_stands_for_the_tower(loaded_vlm: Loaded, model_type: str, case: str):
    model, processor = loaded_vlm(model_type)
    cut = TYPES[model_type].cut
    assert cut is not None
    given = inputs(processor, model_type, case)
    found, expected = recorded(model, cut, given)
    assert all(len(tensors) == 1 for tensors in found.values()), "each is called once"

    other = copy.deepcopy(model)
    randomise(other, model_type)
    assert not torch.allclose(logits(other, given), expected), "the tower has no effect: the test is empty"
    with passed(other, cut, lambda spot, value: found[spot].pop(0)):
        assert torch.equal(logits(other, given), expected)


@pytest.mark.parametrize("model_type", tiny_types())
def test_recorded_rows_are_the_rows_alone_one_after_another(loaded_vlm: Loaded, model_type: str):
    model, processor = loaded_vlm(model_type)
    cut = TYPES[model_type].cut
    assert cut is not None
    together, _ = recorded(model, cut, inputs(processor, model_type, "picture", "tall"))
    alone = [recorded(model, cut, inputs(processor, model_type, case))[0] for case in ("picture", "tall")]
    for spot, (tensor,) in together.items():
        rows = torch.cat([one[spot][0] for one in alone])
        assert tensor.shape == rows.shape, spot
        torch.testing.assert_close(tensor, rows, atol=1e-5, rtol=1e-5)


# internvl and smolvlm have pictures and clips in one; glm4v takes no batch of both.
@pytest.mark.parametrize("model_type", sorted(set(SHOWS_CLIPS) - {"internvl", "smolvlm", "glm4v"}))
def test_pictures_pass_the_cut_before_clips(loaded_vlm: Loaded, model_type: str):
    model, processor = loaded_vlm(model_type)
    cut = TYPES[model_type].cut
    assert cut is not None
    together, _ = recorded(model, cut, inputs(processor, model_type, "clip", "picture"))
    alone = [recorded(model, cut, inputs(processor, model_type, case))[0] for case in ("picture", "clip")]
    for spot, tensors in together.items():
        torch.testing.assert_close(tensors, [one[spot][0] for one in alone], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", tiny_types())
def test_each_parameter_has_one_role(loaded_vlm: Loaded, model_type: str):
    model, _ = loaded_vlm(model_type)
    roles = TYPES[model_type].roles
    owner = roles_of(model, roles)
    assert list(owner) == [name for name, _ in model.named_parameters()]
    assert set(owner.values()) == set(roles)
    language = model.get_submodule(roles["language_model"][0])
    assert model.get_input_embeddings() in list(language.modules())


@pytest.mark.parametrize(
    ("model_type", "name", "role"),
    [
        ("glm4v", "model.visual.downsample.weight", "vision_tower"),
        ("glm4v", "model.visual.embeddings.position_embedding.weight", "vision_tower"),
        ("glm4v", "model.visual.merger.proj.weight", "multi_modal_projector"),
        ("llava_next", "model.image_newline", "image_newline"),
        ("llava_onevision", "model.image_newline", "image_newline"),
        ("video_llava", "model.video_tower.embeddings.class_embedding", "vision_tower"),
        ("video_llava", "model.image_tower.embeddings.class_embedding", "vision_tower"),
        ("qwen2_5_omni_thinker", "model.audio_tower.proj.weight", "audio_tower"),
        ("qwen2_5_omni_thinker", "model.visual.merger.ln_q.weight", "multi_modal_projector"),
        ("qwen2_5_omni_thinker", "model.language_model.norm.weight", "language_model"),
        ("qwen3_vl", "model.visual.deepstack_merger_list.2.norm.weight", "multi_modal_projector"),
        ("qwen3_vl", "model.visual.pos_embed.weight", "vision_tower"),
        ("llama4", "vision_model.vision_adapter.mlp.fc1.weight", "vision_tower"),
        ("mllama", "model.language_model.layers.1.cross_attn_attn_gate", "language_model"),
        ("blip-2", "query_tokens", "multi_modal_projector"),
        ("instructblip", "qformer.embeddings.layernorm.weight", "multi_modal_projector"),
        ("idefics3", "model.connector.modality_projection.proj.weight", "multi_modal_projector"),
        ("llava", "lm_head.weight", "language_model"),
        ("gemma3", "model.language_model.embed_tokens.weight", "language_model"),
    ],
)  # fmt: skip
def test_names_that_substrings_get_wrong_have_their_role(
    loaded_vlm: Loaded, model_type: str, name: str, role: str
):
    model, _ = loaded_vlm(model_type)
    assert roles_of(model, TYPES[model_type].roles)[name] == role


OTHERS: dict[str, dict[str, Any]] = {name: {} for name in sorted(set(TYPES) - set(tiny_types()))}
# The default tower of the one cannot be built, that of the other is a large one of timm.
OTHERS["aya_vision"] = {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_attention_heads": 16}
OTHERS["fast_vlm"] = {
    "model_type": "timm_wrapper",
    "architecture": "tf_efficientnet_lite0",
    "hidden_size": 1280,
}


@pytest.mark.parametrize("model_type", OTHERS)
def test_roles_of_types_without_a_tiny_model_fit_their_default_configuration(model_type: str):
    from transformers import AutoConfig, AutoModelForImageTextToText

    if model_type == "fast_vlm":
        pytest.importorskip("timm")
    tower = OTHERS[model_type]
    config = AutoConfig.for_model(model_type, **({"vision_config": tower} if tower else {}))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    roles = TYPES[model_type].roles
    assert set(roles_of(model, roles).values()) == set(roles)


def packed(model: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of several: tokens see their own conversation alone and are counted from its start."""
    ids = torch.cat([row["input_ids"] for row in rows], 1)
    segments = torch.cat([torch.full_like(row["input_ids"], i) for i, row in enumerate(rows)], 1)
    same = segments[:, None, :, None] == segments[:, None, None, :]
    given = {"input_ids": ids, "attention_mask": same & torch.ones_like(same).tril()}
    given["position_ids"] = torch.cat([positions(model, row) for row in rows], -1)
    for name in sorted({name for row in rows for name in row} - {"input_ids", "attention_mask"}):
        tensors = [row[name] for row in rows if name in row]
        # Idefics has (rows, pictures, ...) where others have (pictures, ...).
        by_row = name == "mm_token_type_ids" or model.config.model_type in ("idefics3", "smolvlm")
        given[name] = torch.cat(tensors, 1 if by_row else 0)
    return given


def positions(model: Any, row: Mapping[str, Any]) -> Tensor:
    text = torch.arange(row["input_ids"].shape[1])[None]
    if not hasattr(model.model, "get_rope_index"):
        return text
    grids = {name: value for name, value in row.items() if "grid" in name or name == "mm_token_type_ids"}
    axes, _ = model.model.get_rope_index(row["input_ids"], attention_mask=row["attention_mask"], **grids)
    return torch.cat([text[None], axes])


@pytest.mark.parametrize("model_type", [name for name in tiny_types() if TYPES[name].packing is None])
def test_conversations_that_share_a_row_do_not_see_each_other(loaded_vlm: Loaded, model_type: str):
    model, processor = loaded_vlm(model_type)
    shown = [name for name in ("text", "picture", "clip") if name in cases(model_type)]
    rows = [inputs(processor, model_type, name) for name in shown]
    alone = torch.cat([logits(model, row) for row in rows], 1)
    together = logits(model, packed(model, rows))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_types_that_cannot_pack_say_why():
    assert TYPES["gemma3"].packing == (
        "the tokens of a picture attend to each other in both directions, found by their types in a row"
    )
    assert TYPES["qwen3_5"].packing == "its linear attention layers carry a state from each token to the next"
    reasons = [kind.packing for kind in TYPES.values() if kind.packing is not None]
    assert all(reason and not reason.endswith(".") for reason in reasons)


@pytest.mark.parametrize("model_type", [name for name in tiny_types() if not TYPES[name].text_only])
def test_types_without_items_of_text_alone_refuse_them(loaded_vlm: Loaded, model_type: str):
    model, processor = loaded_vlm(model_type)
    with pytest.raises((ValueError, TypeError), match=r"images|pixel_values"):
        model(**inputs(processor, model_type, "text"))


@pytest.mark.parametrize("name", [name for name, kind in TYPES.items() if kind.cut is not None])
def test_a_cut_is_where_the_projector_reads(name: str):
    kind = TYPES[name]
    assert kind.cut is not None
    paths = [spot.partition(":")[0] for spot in kind.cut.inputs]
    projector = kind.roles["multi_modal_projector"]
    assert all(is_under(path, *projector) for path in paths)


def toy() -> nn.Module:
    model = nn.Module()
    model.tower = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    model.merger = nn.Linear(3, 2, bias=False)
    model.newline = nn.Parameter(torch.zeros(2))
    model.embed, model.head = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    model.head.weight = model.embed.weight
    return model


def test_roles_that_do_not_fit_are_told_at_once():
    roles = {"vision_tower": ("tower", "mergr"), "language_model": ("embed", "head"), "own": ("tower.1",)}
    with pytest.raises(UserError) as told:
        roles_of(toy(), roles)
    twice = "is in vision_tower (tower) and own (tower.1); state prefixes that do not overlap"
    assert str(told.value).splitlines() == [
        "roles: vision_tower: mergr names no part of Module; nearest: merger",
        f"roles: tower.1.weight {twice}",
        f"roles: tower.1.bias {twice}",
        "roles: newline and 1 more are in no role; state a prefix for each parameter",
    ]


def test_one_parameter_without_a_role_is_told():
    with pytest.raises(UserError, match=r"^roles: newline is in no role; state a prefix for each parameter$"):
        roles_of(toy(), {"vision_tower": ("tower",), "language_model": ("embed", "head", "merger")})


def test_a_prefix_is_not_a_beginning_of_letters():
    assert is_under("model.visual.merger.proj.weight", "model.visual.merger")
    assert is_under("model.image_newline", "model.image_newline")
    assert not is_under("model.visual.merger_list.0.weight", "model.visual.merger")


def test_a_tied_head_may_be_named():
    roles = {"vision_tower": ("tower", "merger", "newline"), "language_model": ("embed", "head")}
    assert roles_of(toy(), roles)["embed.weight"] == "language_model"


def test_the_tree_of_an_unknown_model_shows_what_roles_are_made_of(loaded_vlm: Loaded):
    assert module_tree(toy()).splitlines() == [
        "  newline  2",
        "  tower    21",
        "  merger   6",
        "  embed    4",
        "to be filled in, each parameter in one role:",
        "  model:",
        "    options:",
        "      roles:",
        "        vision_tower: []",
        "        multi_modal_projector: []",
        "        language_model: []",
    ]
    lines = module_tree(loaded_vlm("llava_next")[0]).splitlines()
    shown = [line.split()[0] for line in lines[: lines.index("to be filled in, each parameter in one role:")]]
    assert shown == [
        "model", "model.image_newline", "model.vision_tower", "model.vision_tower.embeddings",
        "model.vision_tower.pre_layrnorm", "model.vision_tower.encoder", "model.vision_tower.post_layernorm",
        "model.multi_modal_projector", "model.multi_modal_projector.linear_1",
        "model.multi_modal_projector.linear_2", "model.language_model", "model.language_model.embed_tokens",
        "model.language_model.layers", "model.language_model.norm", "lm_head",
    ]  # fmt: skip
