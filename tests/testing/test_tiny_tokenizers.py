"""Tokenizers of tiny pipelines, opened by the classes that published pipelines name."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from omnitune.testing.tiny import CAPTIONS, HEADERS, train_tokenizer

CLASSES = {
    "t5": ("T5Tokenizer", "T5TokenizerFast"),
    "clip": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "llama": ("LlamaTokenizer", "LlamaTokenizerFast"),
    "glm": ("PreTrainedTokenizerFast",),
}
"""What the `model_index.json` of published pipelines name."""
KINDS = list(CLASSES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    for kind in KINDS:
        train_tokenizer(CAPTIONS, root / kind, kind=kind)
    return {kind: root / kind for kind in KINDS}


def opened(folder: Path, name: str = "AutoTokenizer") -> Any:
    return getattr(transformers, name).from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_captions_come_back_and_differ_in_length(folders: dict[str, Path], kind: str) -> None:
    tokenizer = opened(folders[kind])
    tokens = tokenizer(list(CAPTIONS)).input_ids
    found = [tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]
    assert found == [caption.replace(",", " ,") if kind == "clip" else caption for caption in CAPTIONS]
    assert len(set(map(len, tokens))) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_reads_the_same(folders: dict[str, Path], kind: str) -> None:
    text = "A rocket, unlike 2 tornados"
    first = opened(folders[kind])
    for name in CLASSES[kind]:
        other = opened(folders[kind], name)
        assert other(text).input_ids == first(text).input_ids
        assert len(other) == len(first)
        assert other.padding_side == first.padding_side
        assert other.model_max_length == first.model_max_length
        assert (other.pad_token_id, other.eos_token_id) == (first.pad_token_id, first.eos_token_id)
        assert max(first(text).input_ids) < len(first)


@pytest.mark.parametrize("kind", ["clip", "llama", "glm"])
def test_training_again_and_saving_again_give_the_same_files(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    assert train_tokenizer(CAPTIONS, tmp_path / "trained", kind=kind) == len(opened(folders[kind]))
    opened(folders[kind]).save_pretrained(tmp_path / "saved")
    first = (folders[kind] / "tokenizer.json").read_bytes()
    assert (tmp_path / "trained" / "tokenizer.json").read_bytes() == first
    assert (tmp_path / "saved" / "tokenizer.json").read_bytes() == first


@pytest.mark.parametrize("kind", ["clip", "llama", "glm"])
def test_what_was_not_in_the_captions_is_spelt_in_bytes(folders: dict[str, Path], kind: str) -> None:
    tokenizer = opened(folders[kind])
    ids = tokenizer("jazz für 3 🦊").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "jazz für 3 🦊"
    assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids[1:-1]


def test_clip_pads_with_the_end_of_text_which_is_the_last_id(folders: dict[str, Path]) -> None:
    tokenizer = opened(folders["clip"])
    found = tokenizer(list(CAPTIONS), padding="max_length", return_tensors="pt")
    assert found.input_ids.shape == (len(CAPTIONS), 77)
    assert set(found.input_ids[:, 0].tolist()) == {tokenizer.bos_token_id}
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == len(tokenizer) - 1
    # CLIPTextModel pools at the first of the largest id.
    assert torch.equal(found.input_ids.argmax(-1), found.attention_mask.sum(-1) - 1)


def test_llama_cuts_prompt_templates_where_the_pipelines_expect_it(folders: dict[str, Path]) -> None:
    from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video as text
    from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video_image2video as picture

    tokenizer = opened(folders["llama"])
    for module in (text, picture):
        template = module.DEFAULT_PROMPT_TEMPLATE
        ids = tokenizer(template["template"].format("a red apple")).input_ids
        rest = tokenizer.convert_ids_to_tokens(ids[template["crop_start"] :])
        assert rest[: rest.index("<|eot_id|>")] == tokenizer.tokenize("a red apple")
    assert ids.index(tokenizer.convert_tokens_to_ids("<image>")) == template["image_emb_start"]
    header = tokenizer.convert_tokens_to_ids("<|end_header_id|>")
    assert ids.count(header) == 3
    end = tokenizer.convert_ids_to_tokens(ids[len(ids) - ids[::-1].index(header) - 4 :])
    assert end == ["<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"]


def test_llama_has_a_pad_token_of_its_own_on_the_right(folders: dict[str, Path]) -> None:
    tokenizer = opened(folders["llama"])
    found = tokenizer(list(CAPTIONS), padding=True, return_tensors="pt")
    assert torch.equal(found.attention_mask, (found.input_ids != tokenizer.pad_token_id).long())
    assert set(found.input_ids[:, 0].tolist()) == {tokenizer.convert_tokens_to_ids("<|begin_of_text|>")}
    for name in HEADERS:
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(f"a{name}b"))[1] == (
            tokenizer.convert_tokens_to_ids(name)
        )


def test_glm_begins_each_text_with_its_prefix_and_pads_on_the_left(folders: dict[str, Path]) -> None:
    tokenizer = opened(folders["glm"])
    found = tokenizer(["rocket", CAPTIONS[4]], padding="longest", return_tensors="pt")
    prefix = tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    assert found.input_ids[1, :2].tolist() == prefix
    assert found.input_ids[0, 0] == tokenizer.pad_token_id
    real = found.input_ids[0][found.attention_mask[0].bool()].tolist()
    assert real == tokenizer("rocket").input_ids
    assert real[:2] == prefix


@pytest.mark.parametrize("kind", ["clip", "llama", "glm"])
def test_what_is_learned_of_captions_is_bounded(tmp_path: Path, kind: str) -> None:
    small, large = (train_tokenizer(CAPTIONS, tmp_path / str(size), size, kind) for size in (50, 90))
    assert small < large <= small + 40
    assert len(opened(tmp_path / "50")) == small
