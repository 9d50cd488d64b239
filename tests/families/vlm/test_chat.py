"""Conversations through the processor of every type: its tokens, its masks, its batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_items import CLIP, PICTURE, PICTURES, TEXT, TURNS, chat, encoded, processors, spoken
from PIL import Image
from tiny_chats import ONE_PICTURE, SHOWS_CLIPS
from torch import Tensor

from omnitune.data.conversations.conversation import Conversation, Media
from omnitune.data.conversations.options import ChatOptions
from omnitune.data.conversations.tokens import Encoded, LeftOut
from omnitune.errors import UserError
from omnitune.families.vlm.collate import collate
from omnitune.families.vlm.encoder import ConversationEncoder
from omnitune.families.vlm.types import TYPES
from omnitune.testing.tiny_vlm import tiny_types

TYPE_NAMES = tiny_types()
TEMPLATED = [name for name in TYPE_NAMES if TYPES[name].prompt is None]
NESTED = ("gemma3", "mllama", "idefics3", "smolvlm", "llava_onevision")
"""Types whose processors want the pictures of each item as a list."""
WITHOUT_MASK = ("mllama",)
"""Types whose processor cannot mark what the assistant says."""
WHOLE_PROMPT = ("paligemma", "instructblip")
CHATML = "rocket|<|im_end|>|a| red| apple|<|im_end|>"
VICUNA = " |rocket|</s>| a| red| apple|</s>"
SPOKEN = {
    "blip-2": " |rocket|</s>| a| red| apple|</s>",
    "gemma3": "rocket|<end_of_turn>|a| red| apple|<end_of_turn>",
    "glm4v": "rocket|<|endoftext|>|a| red| apple|<|endoftext|>",
    "idefics3": " |rocket|<end_of_utterance>| a| red| apple|<end_of_utterance>",
    "instructblip": " a| red| apple|</s>",
    "internvl": CHATML,
    "llama4": "rocket|<|eot|>|a| red| apple|<|eot|>",
    "llava": VICUNA,
    "llava_next": VICUNA,
    "llava_onevision": CHATML,
    "mistral3": "rocket|</s>|a| red| apple|</s>",
    "mllama": "rocket|<|eot_id|>|a| red| apple|<|eot_id|>",
    "paligemma": "a| red| apple|<eos>",
    "qwen2_5_omni_thinker": CHATML,
    "qwen2_5_vl": CHATML,
    "qwen2_vl": CHATML,
    # Past thoughts are left out, the last answer's are there; the prompt opens them.
    "qwen3_5": "rocket|<|im_end|>|\n|</think>|\n|\n|a| red| apple|<|im_end|>",
    "qwen3_vl": CHATML,
    "qwen3_vl_moe": CHATML,
    "smolvlm": " |rocket|<end_of_utterance>| a| red| apple|<end_of_utterance>",
    "video_llava": VICUNA,
}
"""What is learned of "rocket" and "a red apple", token by token, checked by hand for each prompt style."""


@pytest.fixture(scope="module")
def processor(tiny_vlm: Callable[..., Path]) -> Callable[..., Any]:
    return processors(tiny_vlm)


def opened(conversation: Conversation) -> list[Any]:
    return [Image.open(each.files[0].path).convert("RGB") for each in conversation.media]


def plain(conversation: Conversation, pictures: bool = True) -> list[dict[str, Any]]:
    """Messages as a user of transformers writes them."""

    def part(each: str | Media) -> dict[str, Any]:
        if isinstance(each, str):
            return {"type": "text", "text": each}
        if not pictures:
            return {"type": each.kind}
        return {"type": "image", "image": Image.open(each.files[0].path).convert("RGB")}

    return [{"role": m.role, "content": [part(each) for each in m.parts]} for m in conversation.messages]


def takes(model_type: str, conversation: Conversation) -> bool:
    count = len(conversation.media)
    return (count > 0 or TYPES[model_type].text_only) and (count < 2 or model_type not in ONE_PICTURE)


@pytest.mark.parametrize("model_type", TEMPLATED)
def test_tokens_and_labels_are_those_of_the_processor(model_type: str, processor: Any) -> None:
    own = processor(model_type)
    ours = chat(own, model_type)
    for conversation in (TEXT, PICTURE, TURNS, PICTURES):
        found = encoded(ours, conversation)
        settings = {} if model_type in WITHOUT_MASK else {"return_assistant_tokens_mask": True}
        expected = own.apply_chat_template(plain(conversation), tokenize=True, return_dict=True, **settings)
        ids = torch.as_tensor(expected["input_ids"])[0]
        assert found.tokens["input_ids"].tolist() == ids.tolist()
        if settings:
            mask = torch.tensor(expected["assistant_masks"][0], dtype=torch.bool)
            assert mask.any()
            assert found.tokens["labels"].tolist() == torch.where(mask, ids, -100).tolist()


@pytest.mark.parametrize("model_type", TYPE_NAMES)
def test_answers_are_found_without_generation_tags(model_type: str, processor: Any) -> None:
    own = processor(model_type, generation_tags=False)
    row = encoded(chat(own, model_type, mask_history=model_type in WHOLE_PROMPT), TURNS)
    assert spoken(own, row.tokens) == SPOKEN[model_type]


@pytest.mark.parametrize("model_type", TYPE_NAMES)
def test_collated_rows_are_the_processors_batch(model_type: str, processor: Any) -> None:
    own = processor(model_type)
    items = [each for each in (TURNS, TEXT, PICTURES, PICTURE) if takes(model_type, each)]
    ours = chat(own, model_type, mask_history=True)
    rows = [encoded(ours, item) for item in items]
    batch = collate([{**row.tokens, **row.media} for row in rows], own.tokenizer.pad_token_id)
    assert batch.pop("labels").shape == batch["input_ids"].shape
    expected = processor_batch(own, model_type, items)
    assert set(batch) == set(expected)
    if model_type == "instructblip":  # what another tokenizer pads with is hidden by the mask
        batch["qformer_input_ids"] *= batch["qformer_attention_mask"]
        expected["qformer_input_ids"] *= expected["qformer_attention_mask"]
    for name, value in expected.items():
        assert batch[name].dtype == value.dtype, name
        assert torch.equal(batch[name], value), name


def processor_batch(own: Any, model_type: str, items: list[Conversation]) -> dict[str, Tensor]:
    """What the processor gives for all items at once."""
    template = own.chat_template or TYPES[model_type].prompt

    def render(messages: list[dict[str, Any]], ask: bool = False) -> str:
        return str(own.apply_chat_template(messages, chat_template=template, add_generation_prompt=ask))

    texts = [render(plain(item, pictures=False)) for item in items]
    prompts = [render(plain(item, pictures=False)[:-1], ask=True) for item in items]
    pictures: list[Any] = [opened(item) for item in items]
    if model_type == "llava_onevision":
        pictures = [each for each in pictures if each]
    elif model_type not in NESTED:
        pictures = [each for row in pictures for each in row]
    settings: dict[str, Any] = {"padding": "longest", "padding_side": "right", "return_tensors": "pt"}
    if model_type == "paligemma":
        end = own.tokenizer.eos_token
        settings["suffix"] = [
            text.removeprefix(prompt).removesuffix(end) for text, prompt in zip(texts, prompts, strict=True)
        ]
        texts = [prompt.removesuffix("\n") for prompt in prompts]
    if own.tokenizer.bos_token and texts[0].startswith(own.tokenizer.bos_token):
        settings["add_special_tokens"] = False
    found = dict(own(text=texts, images=pictures, **settings))
    if model_type == "instructblip":
        asked = own.qformer_tokenizer(prompts, padding="longest", padding_side="right", return_tensors="pt")
        found |= {f"qformer_{name}": asked[name] for name in ("input_ids", "attention_mask")}
    found.pop("labels", None)
    return found


@pytest.mark.parametrize("model_type", SHOWS_CLIPS)
def test_clips_give_as_many_tokens_as_the_model_makes_features(
    model_type: str, processor: Any, loaded_vlm: Any
) -> None:
    own = processor(model_type)
    row = encoded(chat(own, model_type, video_frames=3), CLIP)
    assert "tornado" in spoken(own, row.tokens).replace("|", "")
    model, _ = loaded_vlm(model_type)
    batch = collate([{**row.tokens, **row.media}], own.tokenizer.pad_token_id)
    del batch["labels"]
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.shape[1] == len(row)
    assert logits.isfinite().all()


@pytest.mark.parametrize("model_type", TYPE_NAMES)
def test_asking_ends_where_the_answer_begins(model_type: str, processor: Any) -> None:
    own = processor(model_type, generation_tags=False)
    ours = chat(own, model_type)
    asked = ours.encode_prompt(Conversation("question", PICTURE.messages[:1], "question"))
    row = encoded(ours, PICTURE)
    learned = (row.tokens["labels"] != -100).nonzero()[:, 0]
    head = asked["input_ids"][0]
    if (
        not (own.chat_template or "")
        .rstrip()
        .endswith("{{ '<|im_start|>assistant\\n<think>\\n' }}{%- endif -%}")
    ):
        assert row.tokens["input_ids"][: learned[0]].tolist() == head.tolist()
    assert set(asked) >= set(row.media)


def test_types_without_a_form_for_text_alone_refuse_it(processor: Any) -> None:
    for model_type in ("paligemma", "blip-2", "instructblip"):
        with pytest.raises(UserError) as told:
            chat(processor(model_type), model_type).encode(TEXT)
        assert str(told.value) == (
            f"train.json: item 1: shows no picture, and {model_type} takes no text alone; remove the item"
        )


def test_the_qformer_does_not_read_the_answer(processor: Any) -> None:
    own = processor("instructblip")
    row = encoded(chat(own, "instructblip"), PICTURE)
    assert own.qformer_tokenizer.decode(row.tokens["qformer_input_ids"]).endswith("What is in this picture?")


def test_earlier_answers_are_not_learned_where_the_prompt_is_seen_whole(processor: Any) -> None:
    own = processor("paligemma")
    with pytest.raises(
        UserError, match="item 1: has 2 answers to learn, and paligemma sees the earlier ones whole"
    ):
        chat(own, "paligemma").encode(TURNS)
    row = encoded(chat(own, "paligemma", mask_history=True), TURNS)
    assert spoken(own, row.tokens) == "a| red| apple|<eos>"
    assert row.tokens["token_type_ids"].tolist() == (row.tokens["labels"] != -100).long().tolist()


def test_fingerprint_follows_what_decides_the_tokens(processor: Any, tiny_vlm: Any, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    own = processor("qwen2_vl")
    first = chat(own, "qwen2_vl").fingerprint
    assert chat(AutoProcessor.from_pretrained(tiny_vlm("qwen2_vl")), "qwen2_vl").fingerprint == first
    others = [
        chat(own, "qwen2_vl", max_length=7).fingerprint,
        chat(own, "qwen2_5_vl").fingerprint,
        ConversationEncoder(own, "qwen2_vl", ChatOptions(), own.chat_template + " ").fingerprint,
    ]
    changed = AutoProcessor.from_pretrained(tiny_vlm("qwen2_vl"))
    changed.image_processor.image_mean = [0.5, 0.5, 0.5]
    others.append(chat(changed, "qwen2_vl").fingerprint)
    assert len({first, *others}) == 5


def test_an_item_that_is_too_long_is_dropped(processor: Any) -> None:
    own = processor("qwen2_vl")
    length = len(encoded(chat(own, "qwen2_vl"), PICTURE))
    assert isinstance(chat(own, "qwen2_vl", max_length=length).encode(PICTURE), Encoded)
    assert chat(own, "qwen2_vl", max_length=length - 1).encode(PICTURE) == LeftOut(
        f"train.json: item 1: {length} tokens, and max_length is {length - 1}"
    )


def test_positions_and_segments_of_packed_rows_are_padded() -> None:
    rows = [
        {
            "input_ids": torch.arange(n),
            "labels": torch.arange(n),
            "segment": torch.ones(n, dtype=torch.long),
            "position_ids": torch.arange(4 * n).view(4, n),
        }
        for n in (2, 3)
    ]
    batch = collate(rows, pad_token_id=9)
    assert batch["input_ids"].tolist() == [[0, 1, 9], [0, 1, 2]]
    assert batch["labels"].tolist() == [[0, 1, -100], [0, 1, 2]]
    assert batch["segment"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["position_ids"].shape == (4, 2, 3)
    assert batch["position_ids"][3].tolist() == [[6, 7, 0], [9, 10, 11]]
