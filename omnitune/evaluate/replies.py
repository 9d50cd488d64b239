"""Answers in text, held against those that are expected."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from ..data.conversations.conversation import Conversation
from .features import require
from .text_image import Share

MAX_TOKENS = 64
APART = re.compile(r"[\W_]+")
"""What stands between words, in any script."""


class Answerer(Protocol):
    """A family that answers in text."""

    def answers(self, chat: Any, conversations: Sequence[Conversation], max_tokens: int) -> list[str]:
        """What the model says next in each conversation, greedily."""


def answers(
    family: Answerer, chat: Any, conversations: Sequence[Conversation], max_tokens: int = MAX_TOKENS
) -> list[str]:
    """What a model says in the place of each conversation's last answer, seeing all before it.

    `chat` is the family's own with the options of training: `family.conversation_encoder(run.data)`.
    """
    return family.answers(chat, [before_the_answer(one) for one in conversations], max_tokens)


def before_the_answer(conversation: Conversation) -> Conversation:
    """All but the last message, which is an answer."""
    *said, last = conversation.messages
    assert last.role == "assistant", conversation.where
    return replace(conversation, messages=tuple(said))


def exact_match(answers: Sequence[str], expected: Sequence[str]) -> Share:
    """The share of answers that are the expected ones, but for case and for space around them."""
    pairs = zip(answers, expected, strict=True)
    return _share([float(_plain(answer) == _plain(wanted)) for answer, wanted in pairs])


def majority(expected: Sequence[str]) -> float:
    """The exact match of the most frequent answer, given to everything."""
    ((_, number),) = Counter(map(_plain, expected)).most_common(1)
    return number / len(expected)


def rouge_l(answers: Sequence[str], expected: Sequence[str]) -> Share:
    """ROUGE-L (Lin 2004): the F1 of the longest common subsequence of lower-cased words, over answers."""
    require("torchmetrics", "torchmetrics", "ROUGE-L")
    from torchmetrics.functional.text.rouge import rouge_score

    found = [
        rouge_score(answer, wanted, rouge_keys="rougeL", normalizer=_words, tokenizer=str.split)
        for answer, wanted in zip(answers, expected, strict=True)
    ]
    return _share([float(one["rougeL_fmeasure"]) for one in found])


def _share(values: Sequence[float]) -> Share:
    return Share.of(torch.tensor(values, dtype=torch.float64))


def _plain(answer: str) -> str:
    return answer.strip().casefold()


def _words(text: str) -> str:
    """Words with a space between; torchmetrics' own way keeps Latin letters alone."""
    return APART.sub(" ", text.lower())
