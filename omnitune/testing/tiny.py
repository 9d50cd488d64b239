"""Tiny random pipelines in the published layout, with a real tokenizer trained on captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CAPTIONS = (
    "a fox runs through snow", "two boats on a lake", "smiling face with sunglasses", "a red apple",
    "an airplane flies over the sea, seen from below", "rocket", "a cat plays with a ball of wool", "tornado",
)  # fmt: skip


def train_tokenizer(captions: Sequence[str], folder: Path, vocab_size: int = 512) -> int:
    """Train a unigram tokenizer in T5's layout, save it, return its vocabulary size."""
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
    wrapped = T5TokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_ids=0
    )
    wrapped.save_pretrained(folder)
    return len(wrapped)


def build_tiny(
    folder: Path, family: str = "wan", *, captions: Sequence[str] = CAPTIONS, seed: int = 0, **sizes: int
) -> Path:
    """Save a random pipeline of a family; `sizes` are keywords of the family's `tiny`."""
    import torch
    from transformers import AutoTokenizer

    from ..families import resolve

    cls: Any = resolve(family)
    cls.quiet()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vocab_size = train_tokenizer(captions, folder / "tokenizer")
        parts = cls.tiny(vocab_size, **sizes)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    cls.pipeline_class(**parts, tokenizer=tokenizer).save_pretrained(folder)
    return folder
