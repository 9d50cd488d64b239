"""Tiny random pipelines in the published layout, with real tokenizers trained on captions."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from ..families import BUNDLED

CAPTIONS = (
    "a fox runs through snow", "two boats on a lake", "smiling face with sunglasses", "a red apple",
    "an airplane flies over the sea, seen from below", "rocket", "a cat plays with a ball of wool", "tornado",
)  # fmt: skip
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>")
"""Special tokens of prompt templates on Llama 3."""
TEMPLATE_WORDS = """system

user
assistant
Describe the video by detailing following aspects according to reference image main content and theme of color
 shape size texture quantity text spatial relationships objects Actions events behaviors temporal physical
 movement changes background environment light style atmosphere camera angles movements transitions used in
 The
"""
"""Words of these templates. In Llama 3 each is one token, and the pipelines cut the templates off by a count
of tokens: 95, or 103 with a picture."""


def train_tokenizer(
    captions: Sequence[str],
    folder: Path,
    vocab_size: int = 512,
    kind: Literal["t5", "clip", "llama", "glm"] = "t5",
) -> int:
    """Train a tokenizer in the layout of a published text encoder, save it, return its vocabulary size.

    `vocab_size` bounds what is learned of the captions. Beside that, `t5` (UMT5 too) has nothing; `clip`,
    `llama` (Llama 3) and `glm` (GLM-4) have the special tokens that pipelines ask for
    and all bytes, so that they spell any text.
    """
    wrapped = {"t5": _t5, "clip": _clip, "llama": _llama, "glm": _glm}[kind](captions, vocab_size)
    wrapped.save_pretrained(folder)
    return len(wrapped)


def _t5(captions: Sequence[str], vocab_size: int) -> Any:
    """A unigram model."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import T5TokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_ids=0
    )


def _clip(captions: Sequence[str], vocab_size: int) -> Any:
    """Byte-level BPE in lower case; the end of text is the last id: CLIP pools at the largest."""
    from transformers import CLIPTokenizer

    layout = CLIPTokenizer().backend_tokenizer
    pieces, merges = _learn(captions, vocab_size, layout.pre_tokenizer, layout.normalizer, "</w>")
    vocab = _numbered(_byte_letters(), pieces, ["<|startoftext|>", "<|endoftext|>"])
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def _llama(captions: Sequence[str], vocab_size: int) -> Any:
    """BPE with bytes for letters that it has not learned.

    Llama 3 is byte-level, but LlamaTokenizerFast, which the pipelines name, reads no such file (transformers
    5.23 gives it SentencePiece's spaces whatever the file says).
    """
    from tokenizers import Regex, pre_tokenizers
    from transformers import LlamaTokenizerFast

    words = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\n+|\s+"), "isolated")
    spaces = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    cut = pre_tokenizers.Sequence([words, spaces])
    template, first = _learn([TEMPLATE_WORDS], len(TEMPLATE_WORDS), cut)
    pieces, then = _learn(captions, vocab_size, cut)
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<pad>"}
    any_byte = [f"<0x{value:02X}>" for value in range(256)]
    return LlamaTokenizerFast(
        vocab=_numbered(any_byte, template, pieces, special.values(), HEADERS),
        merges=list(dict.fromkeys([*first, *then])),
        unk_token=None,
        **special,
        extra_special_tokens=list(HEADERS),
        add_bos_token=True,
        add_prefix_space=False,
        padding_side="right",
        model_max_length=8192,
    )


def _glm(captions: Sequence[str], vocab_size: int) -> Any:
    """Byte-level BPE; every text begins with `[gMASK]<sop>`."""
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
    special += ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(captions, vocab_size, special, ["[gMASK]", "<sop>"]),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=special[1:],
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=128000,
    )


def byte_level(texts: Sequence[str], size: int, special: Sequence[str], start: Sequence[str]) -> Any:
    """Byte-level BPE of up to `size` pieces and special tokens; a text begins with those of `start`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces, merges = _learn(texts, size, cut)
    vocab = _numbered(_byte_letters(), pieces, special)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = cut, decoders.ByteLevel()
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*start, "$A"]), special_tokens=[(name, vocab[name]) for name in start]
        )
    return tokenizer


def _byte_letters() -> list[str]:
    """The letters by which byte-level BPE writes the 256 bytes."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _learn(
    texts: Sequence[str], size: int, pre_tokenizer: Any, normalizer: Any = None, end: str = ""
) -> tuple[list[str], list[tuple[str, str]]]:
    """Up to `size` pieces of BPE, letters first, and the merges that make them.

    With an `end` of words, all bytes that end one come before. Given so, they have an order: the trainer
    numbers those it finds as it happens, and breaks ties by number.
    """
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=end))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    last = [letter + end for letter in _byte_letters()] if end else []
    trainer = trainers.BpeTrainer(
        vocab_size=len(last) + size, special_tokens=last, end_of_word_suffix=end, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]


def _numbered(*groups: Iterable[str]) -> dict[str, int]:
    """Ids of pieces in the order in which they first occur."""
    return {piece: i for i, piece in enumerate(dict.fromkeys(chain(*groups)))}


def build_tiny(
    folder: Path,
    family: str = BUNDLED,
    variant: str | None = None,
    *,
    captions: Sequence[str] = CAPTIONS,
    seed: int = 0,
    **settings: Mapping[str, Any],
) -> Path:
    """Save a random pipeline of a family: a published configuration with the family's small sizes.

    `variant` is one of the family's, by default its first; `settings` replace more of the configuration, by
    component.
    """
    import torch

    from ..families import resolve
    from ..families.diffusion.files import ModelFiles
    from ..families.files import quiet

    cls: Any = resolve(family)
    quiet(*cls.libraries)
    files = ModelFiles(cls.checkpoint(variant).path, configs=cls.configs)
    assert files.shipped is not None
    index = {"_class_name": cls.pipeline_class.__name__, **files.pipeline_config}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {
            name: train_tokenizer(captions, folder / name, kind=kind) for name, kind in cls.tokenizers.items()
        }
        for name, (library, kind) in files.classes.items():
            index[name] = [library, kind]
            if name in sizes:
                continue
            small = files.shipped["components"][name].get("small", {})
            config = {**files.config(name), **small, **settings.get(name, {})}
            tokenizer = name.replace("text_encoder", "tokenizer")
            if tokenizer in sizes:
                config = _embedding(config, sizes[tokenizer], folder / tokenizer)
            made = _random(files.find_class(name), config)
            made.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def _embedding(config: dict[str, Any], rows: int, tokenizer: Path) -> dict[str, Any]:
    """A text encoder's configuration for a tokenizer of so many tokens; LLaVA's names two of them."""
    if "text_config" not in config:
        return {**config, "vocab_size": rows}
    added = json.loads((tokenizer / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    return {
        **config,
        "text_config": {**config["text_config"], "vocab_size": rows},
        "image_token_index": ids["<image>"],
        "pad_token_id": ids["<pad>"],
    }


def _random(cls: Any, config: dict[str, Any]) -> Any:
    """A network with random weights; a scheduler or an image processor as its configuration says."""
    if hasattr(cls, "from_config"):
        made = cls.from_config(config)
    elif hasattr(cls, "config_class"):
        made = cls(cls.config_class.from_dict(config))
    else:
        return cls(**config)
    if not hasattr(made, "eval"):
        return made
    for name, buffer in made.named_buffers():
        if name in ("latents_mean", "latents_std"):  # some autoencoders have them among their weights
            buffer.uniform_(0.5, 1.5)
    return made.eval()
