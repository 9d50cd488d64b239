"""What a step computes on a tiny model of every type, held against transformers' own loss."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_items import CLIP, PICTURE, PICTURES, TEXT, TURNS, answer, picture, talk, user
from tiny_chats import ONE_PICTURE, SHOWS_CLIPS
from torch import Tensor

from omnitune.data.conversations.conversation import Conversation
from omnitune.data.conversations.options import ChatOptions
from omnitune.families.vlm.collate import collate
from omnitune.families.vlm.family import Vlm, VlmOptions
from omnitune.families.vlm.types import TYPES
from omnitune.random import Draw
from omnitune.sampling import Question
from omnitune.stages import is_under
from omnitune.testing.tiny_vlm import build_tiny_vlm, tiny_types
from omnitune.testing.vlm import assert_packed_is_apart, rows_of

ONE_ANSWER = ("paligemma", "instructblip")
"""They see all of a conversation but its last answer at once."""
OTHER = talk(user(picture("cactus"), "What do you see here?"), answer("a red apple"))
APART = ("glm4v", "smolvlm")
"""Their code takes no batch of both pictures and clips."""


def items(model_type: str) -> list[Conversation]:
    """What a type takes in one batch: several pictures, one, none."""
    found = [PICTURE, OTHER if model_type in ONE_ANSWER else TURNS]
    if model_type not in (*ONE_PICTURE, "mllama"):  # mllama: padding pictures reach the words before them
        found.append(PICTURES)
    if TYPES[model_type].text_only:
        found.append(TEXT)
    if model_type in SHOWS_CLIPS and model_type not in APART:
        found.append(CLIP)
    return found


def entry(chat: Any, conversation: Conversation) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tokens with the shapes of pixels, as the cache of tokens holds them, and all of an item."""
    made = chat.encode(conversation)
    shapes = {f"shape.{name}": torch.tensor(value.shape) for name, value in made.media.items()}
    return {**made.tokens, **shapes}, {**made.tokens, **made.media}


@pytest.fixture(scope="module")
def prepared(tiny_vlm: Callable[..., Path]) -> Callable[[str], Any]:
    """Gives a type's family, whole, as a step has it, and its items encoded."""

    @cache
    def of(model_type: str) -> tuple[Vlm, Vlm, list[Any]]:
        path = str(tiny_vlm(model_type))
        whole = Vlm.load(path, "cpu", torch.float32)
        live = Vlm.load(path, "cpu", torch.float32, without=())
        chat = whole.conversation_encoder(ChatOptions(max_length=4096))
        return whole, live, [entry(chat, one) for one in items(model_type)]

    return of


def losses(family: Vlm, given: dict[str, Any], chunk: int = 7) -> Tensor:
    return family.token_losses(given, chunk=chunk, label_smoothing=0.0)


@pytest.mark.parametrize("model_type", tiny_types())
def test_the_loss_is_that_of_the_model_itself(prepared: Any, model_type: str) -> None:
    _, family, encoded = prepared(model_type)
    for tokens, media in encoded:
        row = collate([media], 0)
        expected = family.model(**family._cast(row), use_cache=False).loss
        counted = int((media["labels"][1:] != -100).sum())
        mine = losses(family, rows_of([(tokens, media)]))
        assert counted > 0
        torch.testing.assert_close(mine, (expected * counted)[None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", tiny_types())
def test_a_mixed_batch_is_its_items_alone(prepared: Any, model_type: str) -> None:
    _, family, encoded = prepared(model_type)
    alone = torch.cat([losses(family, rows_of([one])) for one in encoded])
    together = losses(family, rows_of(*([one] for one in encoded)))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", tiny_types())
def test_a_stored_tower_is_the_live_one_and_its_weights_are_not_there(
    prepared: Any, tiny_vlm: Any, model_type: str
) -> None:
    whole, live, encoded = prepared(model_type)
    given = rows_of(*([one] for one in encoded))
    (stage,) = whole.stages
    stored = stage.run(given, Draw(0, [0] * len(encoded)))
    stripped = Vlm.load(str(tiny_vlm(model_type)), "cpu", torch.float32, without=stage.uses)
    left = {name for name, _ in stripped.components.named_parameters()}
    assert not any(name == use or name.startswith(f"{use}.") for name in left for use in stage.uses)
    assert len(left) < len(list(live.components.parameters()))
    played = losses(stripped, {"tokens": given["tokens"], **stored})
    torch.testing.assert_close(played, losses(live, given), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model_type", tiny_types())
def test_gradients_through_a_stored_tower_are_those_through_a_live_one(
    prepared: Any, tiny_vlm: Any, model_type: str
) -> None:
    whole, live, encoded = prepared(model_type)
    given = rows_of(*([one] for one in encoded))
    (stage,) = whole.stages
    stripped = Vlm.load(str(tiny_vlm(model_type)), "cpu", torch.float32, without=stage.uses)
    stored = stage.run(given, Draw(0, [0] * len(encoded)))
    projector = whole.roles["multi_modal_projector"]
    found = []
    for family, rows in ((live, given), (stripped, {"tokens": given["tokens"], **stored})):
        mine = {n: p for n, p in family.components.named_parameters() if n.startswith(projector)}
        for param in mine.values():
            param.requires_grad_(True)
        found.append(torch.autograd.grad(losses(family, rows).sum(), list(mine.values()), allow_unused=True))
        for param in mine.values():
            param.requires_grad_(False)
    assert any(grad is not None and grad.abs().max() > 0 for grad in found[0])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", [name for name in tiny_types() if TYPES[name].packing is None])
def test_a_packed_row_is_its_conversations_alone(
    prepared: Any, tiny_vlm: Any, model_type: str, attention: str
) -> None:
    _, family, encoded = prepared(model_type)
    if attention != family.options.attention:
        options = VlmOptions(attention="eager")
        family = Vlm.load(str(tiny_vlm(model_type)), "cpu", torch.float32, options=options, without=())
        assert family.model.config.get_text_config()._attn_implementation == attention
    assert_packed_is_apart(family, encoded)


@pytest.mark.parametrize("model_type", ["llava", "qwen3_vl", "mllama"])
def test_the_chunk_changes_nothing_and_smoothing_is_that_of_torch(prepared: Any, model_type: str) -> None:
    _, family, encoded = prepared(model_type)
    given = rows_of([encoded[0]])
    torch.testing.assert_close(losses(family, given, 1), losses(family, given, 10_000))
    media = encoded[0][1]
    logits = family.model(**family._cast(collate([media], 0)), use_cache=False).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(
        logits, media["labels"][1:], reduction="sum", label_smoothing=0.1
    )
    mine = family.token_losses(given, chunk=3, label_smoothing=0.1)
    torch.testing.assert_close(mine, expected[None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", tiny_types())
def test_an_answer_is_what_the_library_generates(
    prepared: Any, loaded_vlm: Any, tiny_vlm: Any, model_type: str
) -> None:
    whole, _, _ = prepared(model_type)
    shown = PICTURE.media[0].files[0].path
    (said,) = whole.sample([Question("What is this?", shown, 4)])
    model, processor = loaded_vlm(model_type)
    given = whole.conversation_encoder(ChatOptions()).encode_prompt(
        talk(user(PICTURE.media[0], "What is this?"))
    )
    given = {k: v.float() if v.is_floating_point() else v for k, v in given.items()}
    made = model.generate(**given, max_new_tokens=4, do_sample=False)
    new = made[0, given["input_ids"].shape[1] :]
    assert said == processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    # The same from a model whose tower is not there: it alone is loaded, for as long as answers take.
    (stage,) = whole.stages
    stripped = Vlm.load(str(tiny_vlm(model_type)), "cpu", torch.float32, without=stage.uses)
    assert stripped.sample([Question("What is this?", shown, 4)]) == [said]
    tower = stripped.files.load_tower([use.removeprefix("model.") for use in stage.uses], torch.float32)
    prefixes = [use.removeprefix("model.") for use in stage.uses]
    beside = {name for name, _ in tower.named_parameters() if not is_under(name, *prefixes)}
    assert beside <= {"query_tokens", "model.image_newline"}
    assert {name for name, _ in tower.named_parameters()} - beside == {
        name for name, _ in model.named_parameters() if is_under(name, *prefixes)
    }


@pytest.mark.parametrize("number", [1, 2, 4])
def test_deeper_features_of_any_number_are_stored(tmp_path: Path, number: int) -> None:
    changes = {"config": {"vision_config": {"depth": 5, "deepstack_visual_indexes": [*range(number)]}}}
    path = str(build_tiny_vlm(tmp_path / "model", "qwen3_vl", changes=changes))
    live = Vlm.load(path, "cpu", torch.float32, without=())
    whole = Vlm.load(path, "cpu", torch.float32)
    chat = live.conversation_encoder(ChatOptions())
    given = rows_of(*([entry(chat, one)] for one in (PICTURE, CLIP, TEXT)))
    (stage,) = whole.stages
    assert len(stage.gives) == 2 * (1 + number)
    stored = stage.run(given, Draw(0, [0] * 3))
    stripped = Vlm.load(path, "cpu", torch.float32, without=stage.uses)
    played = losses(stripped, {"tokens": given["tokens"], **stored})
    torch.testing.assert_close(played, losses(live, given), rtol=1e-6, atol=1e-6)
