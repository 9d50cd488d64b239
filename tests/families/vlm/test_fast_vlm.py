"""LLaVA's layout with a convolutional tower, on a base of pretrained parts: what holds for every type."""

from pathlib import Path
from typing import Any

import pytest
import torch
from chat_items import PICTURE, TEXT, TURNS, talk, user
from test_export_vlm import LORA, Left, assert_answers_alike, assert_same_logits, keys, loaded, logits
from test_family import entry, losses

from omnitune import config
from omnitune.data.conversations.options import ChatOptions
from omnitune.errors import UserError
from omnitune.families.vlm.collate import collate
from omnitune.families.vlm.family import Vlm
from omnitune.families.vlm.types import TYPES, roles_of
from omnitune.random import Draw
from omnitune.sampling import Question
from omnitune.testing.vlm import rows_of
from omnitune.trainable.freezing import Freezing, spell_rules
from omnitune.trainable.rules import Lora, LoraEverywhere

RECIPE = Path(__file__).parents[3] / "recipes" / "vlm" / "categories.yaml"
NUM_TOKENS = 49  # of a picture

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(pretrained_vlm: Path) -> tuple[Vlm, Vlm, list[Any]]:
    """The base whole, as a step with the tower live has it, and items encoded."""
    path = str(pretrained_vlm)
    whole = Vlm.load(path, "cpu", torch.float32)
    live = Vlm.load(path, "cpu", torch.float32, without=())
    chat = whole.conversation_encoder(ChatOptions(max_length=4096))
    return whole, live, [entry(chat, one) for one in (PICTURE, TURNS, TEXT)]


@pytest.fixture(scope="module")
def stripped(prepared: tuple[Vlm, Vlm, list[Any]], pretrained_vlm: Path) -> Vlm:
    (stage,) = prepared[0].stages
    return Vlm.load(str(pretrained_vlm), "cpu", torch.float32, without=stage.uses)


def test_the_recipe_loads_and_freezes_the_tower() -> None:
    run, _ = config.load(RECIPE)
    assert (run.model.family, run.name, run.freeze_vision_tower) == ("vlm", "categories", True)


@slow
def test_each_parameter_has_one_role(prepared: Any) -> None:
    model = prepared[0].model
    counts = dict.fromkeys(TYPES["fast_vlm"].roles, 0)
    owner = roles_of(model, TYPES["fast_vlm"].roles)
    for name, parameter in model.named_parameters():
        counts[owner[name]] += parameter.numel()
    assert counts["multi_modal_projector"] == (1280 + 1) * 576 + (576 + 1) * 576
    assert counts["vision_tower"] == sum(p.numel() for p in model.model.vision_tower.parameters())
    assert counts["language_model"] == sum(p.numel() for p in model.model.language_model.parameters())


@slow
def test_the_loss_is_that_of_the_model_itself(prepared: Any) -> None:
    _, family, encoded = prepared
    for tokens, media in encoded:
        expected = family.model(**collate([media], 0), use_cache=False).loss
        counted = int((media["labels"][1:] != -100).sum())
        assert counted > 0
        mine = losses(family, rows_of([(tokens, media)]))
        torch.testing.assert_close(mine, (expected * counted)[None], rtol=1e-4, atol=1e-4)


@slow
def test_a_mixed_batch_and_a_packed_row_are_their_items_alone(prepared: Any) -> None:
    _, family, encoded = prepared
    alone = torch.cat([losses(family, rows_of([one])) for one in encoded])
    together = losses(family, rows_of(*([one] for one in encoded)))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    packed = losses(family, rows_of(encoded))
    torch.testing.assert_close(packed, alone.sum()[None], rtol=1e-4, atol=1e-4)


@slow
def test_a_stored_tower_is_the_live_one_and_its_weights_are_not_there(prepared: Any, stripped: Vlm) -> None:
    whole, live, encoded = prepared
    given = rows_of(*([one] for one in encoded))
    (stage,) = whole.stages
    stored = stage.run(given, Draw(0, [0] * len(encoded)))
    assert [tuple(one.shape) for one in stored["image0"]] == [(1, NUM_TOKENS, 1280)] * 2 + [(0,)]
    assert not any("vision_tower" in name for name, _ in stripped.components.named_parameters())
    played = losses(stripped, {"tokens": given["tokens"], **stored})
    torch.testing.assert_close(played, losses(live, given), rtol=1e-5, atol=1e-5)


@slow
def test_an_answer_is_what_the_library_generates_with_the_tower_there_or_not(
    prepared: Any, stripped: Vlm
) -> None:
    whole, _, _ = prepared
    asked = Question("What is this?", PICTURE.media[0].files[0].path, 4)
    (said,) = whole.sample([asked])
    prompt = whole.conversation_encoder(ChatOptions()).encode_prompt(
        talk(user(PICTURE.media[0], "What is this?"))
    )
    made = whole.model.generate(**prompt, max_new_tokens=4, do_sample=False)
    new = made[0, prompt["input_ids"].shape[1] :]
    assert said == whole.files.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert stripped.sample([asked]) == [said]


@slow
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_batch_norms_keep_their_statistics(pretrained_vlm: Path, tmp_path: Path, frozen: bool) -> None:
    """What the tower gives for a picture does not depend on the batch, while it runs in each step too."""
    left = Left(
        pretrained_vlm, tmp_path, data={"cache": None, "num_workers": 0}, trainable="full",
        freeze_vision_tower=frozen, freeze_multi_modal_projector=False, freeze_language_model=True,
    )  # fmt: skip
    tower, base = left.family.model.model.vision_tower, loaded(pretrained_vlm).model.vision_tower
    assert [n for n, b in tower.named_buffers() if not torch.equal(b, base.get_buffer(n))] == []
    moved = [n for n, p in tower.named_parameters() if not torch.equal(p, base.get_parameter(n))]
    assert bool(moved) != frozen


@slow
def test_a_tower_of_convolutions_takes_no_lora_and_says_so(prepared: Any) -> None:
    family = prepared[0]
    word = LoraEverywhere(lora=Lora(rank=2))
    flags = Freezing(freeze_vision_tower=False)
    with pytest.raises(UserError) as told:
        spell_rules(word, flags, family.components, family.roles, family.cores, family.lora_targets)
    assert str(told.value) == (
        "freeze_vision_tower: false, but vision_tower has no linear layer to put LoRA on; "
        "train it by a rule without lora"
    )


@slow
def test_an_adapter_and_a_merged_model_are_the_live_one(pretrained_vlm: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    left = Left(pretrained_vlm, tmp_path, **{**LORA, "freeze_vision_tower": True})
    weights, merged, live = left.weights(), left.merged(), left.logits()
    wrapped = PeftModel.from_pretrained(loaded(pretrained_vlm), weights).eval()
    assert_same_logits(live, logits(wrapped, left.inputs()), atol=1e-4)
    assert_same_logits(live, logits(loaded(merged), left.inputs()), atol=1e-3)
    assert (logits(loaded(pretrained_vlm), left.inputs())[0] - live[0]).abs().max() > 0.1
    assert keys(merged) == keys(pretrained_vlm)
    for folder in (weights, merged):
        assert_answers_alike(folder, pretrained_vlm)
