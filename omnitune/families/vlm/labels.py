"""Which tokens are learned: from places in the rendered text to places among the processor's tokens."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...data.conversations.conversation import Message
from ...data.conversations.options import ChatOptions
from ...errors import UserError
from .template import Span


@dataclass(frozen=True)
class Expanded:
    """A rendered text in which each placeholder has become all that stands for its picture or clip."""

    text: str
    answers: list[list[Span]]
    media: list[Span]


def expand_placeholders(
    text: str, answers: Sequence[Sequence[Span]], replaced: Sequence[Mapping[str, Any]]
) -> Expanded:
    """Expand as the processor did, and move the places of the answers along."""
    pieces, end = [], 0
    for one in replaced:
        start, stop = one["span"]
        pieces += [text[end:start], one["replacement"]]
        end = stop
    ends = [one["span"][1] for one in replaced]
    gained = [0, *(one["new_span"][1] - one["span"][1] for one in replaced)]
    moved = [
        [
            (start + gained[bisect_right(ends, start)], end + gained[bisect_right(ends, end)])
            for start, end in each
        ]
        for each in answers
    ]
    return Expanded("".join([*pieces, text[end:]]), moved, [one["new_span"] for one in replaced])


class TokenPlaces:
    """Where the characters of a text are among the tokens that the processor made of it."""

    def __init__(self, tokenizer: Any, text: str, ids: Tensor, settings: Mapping[str, Any], name: str):
        encoding = tokenizer(text, return_offsets_mapping=True, return_attention_mask=False, **settings)
        own = torch.tensor(encoding["input_ids"])
        self.skipped = len(ids) - len(own)
        """Tokens before the text: some types put their pictures there."""
        if self.skipped < 0 or not torch.equal(ids[self.skipped :], own):
            raise UserError(
                f"the processor of {name} makes other tokens than those of its chat template's text, so "
                "what is to be learned is not known; give a chat template that the processor takes as it is"
            )
        self._offsets = torch.tensor(encoding["offset_mapping"]).view(-1, 2)

    def tokens(self, spans: Sequence[Span]) -> Tensor:
        """(L,): True for each token that holds any character of the spans.

        A token that reaches over the border of an answer is learned, as in the processor's own masks.
        """
        starts, ends = self._offsets[:, 0], self._offsets[:, 1]
        held = torch.zeros(self.skipped + len(starts), dtype=torch.bool)
        for start, end in spans:
            held[self.skipped :] |= (starts < end) & (ends > start)
        return held


def learned_answers(messages: Sequence[Message], options: ChatOptions) -> list[bool]:
    """Whether each answer is learned: what the data say of one goes before what the options say of all."""
    answers = [message for message in messages if message.role == "assistant"]
    return [
        (not options.mask_history or place == len(answers) - 1) if message.train is None else message.train
        for place, message in enumerate(answers)
    ]


def learned_tokens(
    answers: Sequence[Tensor], wanted: Sequence[bool], media: Tensor, everything: bool
) -> Tensor:
    """(L,): True for what is learned, of the tokens of each answer and of those that stand for media."""
    mask = torch.full_like(media, everything)
    for tokens, yes in zip(answers, wanted, strict=True):
        if not yes:
            mask &= ~tokens
    for tokens, yes in zip(answers, wanted, strict=True):
        if yes:
            mask |= tokens
    return mask & ~media
