"""Tiny models of every type load, run, and write prompts as their type does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_chats import CHATS, EVERY_CASE, inputs, render

from omnitune.families.vlm.types import TYPES
from omnitune.testing.tiny_vlm import build_tiny_vlm, tiny_types

Loaded = Callable[[str], tuple[Any, Any]]

PROMPTS = {
    "llava": "USER: <image>\nWhat is it? ASSISTANT: a fox</s>",
    "qwen2_vl": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        "<|image_pad|><|vision_end|>What is it?<|im_end|>\n<|im_start|>assistant\na fox<|im_end|>\n"
    ),
    "qwen3_5": (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\na fox<|im_end|>\n"
    ),
    "gemma3": (
        "<bos><start_of_turn>user\n<start_of_image>What is it?<end_of_turn>\n<start_of_turn>model\na fox"
        "<end_of_turn>\n"
    ),
    "mllama": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>What is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\na fox<|eot_id|>"
    ),
    "llama4": (
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\n<|image|>What is it?<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\na fox<|eot|>"
    ),
    "mistral3": "<s>[INST][IMG]What is it?[/INST]a fox</s>",
    "idefics3": (
        "<|begin_of_text|>User:<image>What is it?<end_of_utterance>\nAssistant: a fox<end_of_utterance>\n"
    ),
    "glm4v": (
        "[gMASK]<sop><|user|>\n<|begin_of_image|><|image|><|end_of_image|>What is it?<|assistant|>\na fox"
        "<|endoftext|>"
    ),
    "paligemma": "<image>What is it?\na fox<eos>",
    "blip-2": "Question: What is it? Answer: a fox</s>",
    "instructblip": "What is it? a fox</s>",
}
ANSWERS = {
    "llava": " a fox</s>", "qwen2_vl": "a fox<|im_end|>", "qwen3_5": "<think>\n\n</think>\n\na fox<|im_end|>",
    "gemma3": "a fox<end_of_turn>", "mllama": "a fox<|eot_id|>", "llama4": "a fox<|eot|>",
    "mistral3": "a fox</s>", "idefics3": " a fox<end_of_utterance>", "glm4v": "a fox<|endoftext|>",
    "paligemma": "a fox<eos>", "blip-2": " a fox</s>", "instructblip": " a fox</s>",
}  # fmt: skip


@pytest.mark.parametrize(("model_type", "case"), EVERY_CASE)
def test_model_reads_what_its_processor_makes(loaded_vlm: Loaded, model_type: str, case: str):
    model, processor = loaded_vlm(model_type)
    given = inputs(processor, model_type, case)
    with torch.no_grad():
        logits = model(**given).logits
    assert logits.shape[:2] == given["input_ids"].shape
    assert torch.isfinite(logits).all()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("model_type", tiny_types())
def test_folder_is_complete_and_small(tiny_vlm: Callable[..., Path], model_type: str):
    files = {path.name: path.stat().st_size for path in tiny_vlm(model_type).iterdir() if path.is_file()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert ("chat_template.jinja" in files) == (TYPES[model_type].prompt is None)
    assert sum(files.values()) < 3_000_000


@pytest.mark.parametrize("model_type", tiny_types())
def test_processor_is_the_one_that_a_type_is_published_with(loaded_vlm: Loaded, model_type: str):
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    _, processor = loaded_vlm(model_type)
    published = PROCESSOR_MAPPING_NAMES.get(model_type, "Qwen2_5OmniProcessor")
    assert type(processor).__name__ == published


@pytest.mark.parametrize("model_type", PROMPTS)
def test_prompts_are_written_in_the_style_of_a_type(loaded_vlm: Loaded, model_type: str):
    _, processor = loaded_vlm(model_type)
    assert render(processor, model_type, "picture") == PROMPTS[model_type]


@pytest.mark.parametrize("model_type", ANSWERS)
def test_generation_tags_mark_answers_with_their_end(loaded_vlm: Loaded, model_type: str):
    _, processor = loaded_vlm(model_type)
    found = processor.tokenizer.apply_chat_template(
        CHATS["picture"],
        chat_template=processor.chat_template or TYPES[model_type].prompt,
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    marked = [i for i, mask in zip(found["input_ids"], found["assistant_masks"], strict=True) if mask]
    assert processor.tokenizer.decode(marked) == ANSWERS[model_type]


def test_tags_change_nothing_but_the_mask(tiny_vlm: Callable[..., Path]):
    from transformers import AutoProcessor

    with_tags = tiny_vlm("qwen2_vl")
    without = tiny_vlm("qwen2_vl", generation_tags=False)
    assert "generation -%}" in (with_tags / "chat_template.jinja").read_text()
    assert "generation -%}" not in (without / "chat_template.jinja").read_text()
    texts = [
        render(AutoProcessor.from_pretrained(folder), "qwen2_vl", case)
        for folder in (with_tags, without)
        for case in ("text", "pictures", "clip")
    ]
    assert texts[:3] == texts[3:]


def test_weights_are_decided_by_the_seed(tmp_path: Path, tiny_vlm: Callable[..., Path]):
    weights = [
        load_file(folder / "model.safetensors")
        for folder in (
            tiny_vlm("llava"),
            build_tiny_vlm(tmp_path / "same", "llava"),
            build_tiny_vlm(tmp_path / "other", "llava", seed=1),
        )
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not any(torch.equal(value, weights[2][name]) for name, value in weights[0].items())


def test_thoughts_of_earlier_turns_are_left_out(loaded_vlm: Loaded):
    _, processor = loaded_vlm("qwen3_5")
    said = {"role": "assistant", "content": "<think>\nred\n</think>\n\nyes"}
    asked = {"role": "user", "content": "Hello?"}
    text = processor.apply_chat_template([asked, said, asked, said], tokenize=False)
    assert text == (
        "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n<think>\nred\n</think>\n\nyes<|im_end|>\n"
    )


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen2_5_omni_thinker"])
def test_towers_with_windows_have_blocks_of_both_kinds(loaded_vlm: Loaded, model_type: str):
    model, processor = loaded_vlm(model_type)
    bounds: list[list[int]] = []
    handles = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs: bounds.append(kwargs["cu_seqlens"].tolist()), with_kwargs=True
        )
        for block in model.model.visual.blocks
    ]
    with torch.no_grad():
        model(**inputs(processor, model_type, "picture"))
    for handle in handles:
        handle.remove()
    assert bounds == [[0, 16, 32], [0, 32]]


def test_calls_of_tools_are_written_after_what_is_said(loaded_vlm: Loaded):
    _, processor = loaded_vlm("qwen2_vl")
    call = {"type": "function", "function": {"name": "count", "arguments": {"what": "boats"}}}
    chat = [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "two"},
    ]
    assert processor.tokenizer.apply_chat_template(
        chat, chat_template=processor.chat_template, tokenize=False
    ) == (
        "<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
        '\n<tool_call>\n{"name": "count", "arguments": {"what": "boats"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
    )
