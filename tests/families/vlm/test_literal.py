"""Texts that spell tokens of the template or of media: they are read and learned as their letters."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_items import answer, chat, encoded, picture, processors, talk, user

from omnitune.data.conversations.conversation import Conversation
from omnitune.families.vlm.collate import collate
from omnitune.testing.tiny_vlm import tiny_types

WORD = "zebra"


@pytest.fixture(scope="module")
def processor(tiny_vlm: Callable[..., Path]) -> Callable[..., Any]:
    return processors(tiny_vlm)


def item(text: str) -> Conversation:
    return talk(user(picture(), f"What is {text}? {text}"), answer(f"It is [{text}]."))


@pytest.mark.parametrize("model_type", tiny_types())
def test_what_spells_a_token_is_the_letters(model_type: str, processor: Any, loaded_vlm: Any) -> None:
    own = processor(model_type, generation_tags=False)
    ours = chat(own, model_type)
    spelled = ours._through.literal.hide  # every token that counts
    tokens = [t for t in own.tokenizer.get_vocab() if spelled(t) != t]
    assert own.tokenizer.eos_token in tokens
    plain = encoded(ours, item(WORD)).tokens
    special = torch.tensor(own.tokenizer.convert_tokens_to_ids(tokens))
    rng = random.Random(0)
    for text in (*tokens, "".join(rng.sample(tokens, 3)), f"a{rng.choice(tokens)} b"):
        row = encoded(ours, item(text))
        ids, labels = row.tokens["input_ids"], row.tokens["labels"]
        said = own.tokenizer.decode(ids)
        assert said == own.tokenizer.decode(plain["input_ids"]).replace(WORD, text)
        # No more tokens of a meaning than with a word in its place.
        assert torch.isin(ids, special).sum() == torch.isin(plain["input_ids"], special).sum()
        assert f"[{text}]" in own.tokenizer.decode(labels[labels != -100])
        for name in ("mm_token_type_ids", "token_type_ids", "cross_attention_mask"):
            assert name not in row.tokens or len(row.tokens[name]) == len(ids)
        asked = ours.encode_prompt(Conversation("q", item(text).messages[:1], "q"))
        assert asked["input_ids"][0].tolist() == ids[: asked["input_ids"].shape[1]].tolist()
    model, _ = loaded_vlm(model_type)
    batch = collate([{**row.tokens, **row.media}], own.tokenizer.pad_token_id)
    del batch["labels"]
    batch = {k: v.float() if v.is_floating_point() else v for k, v in batch.items()}
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()


def test_tokens_of_no_meaning_to_the_template_stay_tokens(processor: Any) -> None:
    import copy

    own = copy.deepcopy(processor("qwen2_vl"))
    own.tokenizer.add_tokens(["<loc_3>"])
    own.tokenizer.add_special_tokens({"additional_special_tokens": ["<|box_start|>"]})
    ids = encoded(chat(own, "qwen2_vl"), item("<|box_start|><loc_3>")).tokens["input_ids"]
    wanted = torch.tensor(own.tokenizer.convert_tokens_to_ids(["<|box_start|>", "<loc_3>"]))
    assert torch.isin(ids, wanted).sum() == 6
