"""Texts that spell tokens of the template or of media, and are to be read as the letters that they are."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...data.conversations.conversation import Conversation, Media
from ...errors import UserError
from .collate import PADS

FIRST = 0x100000
"""Of the private use area, in a plane that no font and no vocabulary uses: letters that stand for tokens."""


class LiteralTokens:
    """Keeps what texts spell apart from the tokens that a template writes.

    While a conversation is rendered, placed and tokenized, a letter that no data hold stands for each token
    that a text spells; then the tokens of that letter become those of the token's letters.
    """

    def __init__(self, tokenizer: Any, spelled: Sequence[str]):
        self.tokenizer = tokenizer
        self._letters = {token: chr(FIRST + i) for i, token in enumerate(spelled)}
        longest_first = sorted(spelled, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if spelled else None

    def hide(self, value: Any) -> Any:
        """Put letters in the place of tokens, in a text or whatever holds texts."""
        if isinstance(value, str):
            if self._pattern is None:
                return value
            return self._pattern.sub(lambda match: self._letters[match.group()], value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(one) for key, one in value.items()}
        return [self.hide(one) for one in value] if isinstance(value, list | tuple) else value

    def hide_in(self, conversation: Conversation) -> Conversation:
        """A conversation whose texts, calls and tools spell no token."""
        messages = [
            replace(
                message,
                parts=tuple(part if isinstance(part, Media) else self.hide(part) for part in message.parts),
                tool_calls=tuple(self.hide(message.tool_calls)),
            )
            for message in conversation.messages
        ]
        return replace(conversation, messages=tuple(messages), tools=tuple(self.hide(conversation.tools)))

    def show(self, text: str) -> str:
        """The inverse of `hide`, of a text."""
        for token, letter in self._letters.items():
            text = text.replace(letter, token)
        return text

    def sources(self, ids: Tensor, text: str) -> tuple[Tensor, Tensor] | None:
        """Tokens in which letters are spelled out, and the place that each had among `ids`.

        None where the text that they were made of has none.
        """
        used = [token for token, letter in self._letters.items() if letter in text]
        if not used:
            return None
        found: list[int] = []
        places: list[int] = []
        i, row = 0, ids.tolist()
        while i < len(row):
            token = next(
                (one for one in used if row[i : i + len(self._marks[one])] == self._marks[one]), None
            )
            new = [row[i]] if token is None else self._plain[token]
            found += new
            places += [i] * len(new)
            i += 1 if token is None else len(self._marks[token])
        return torch.tensor(found, dtype=ids.dtype), torch.tensor(places)

    @cached_property
    def _marks(self) -> dict[str, list[int]]:
        """Token -> the ids of its letter."""
        marks = {token: self._behind("a", letter) for token, letter in self._letters.items()}
        if self.tokenizer.unk_token_id in {i for ids in marks.values() for i in ids}:
            raise UserError(
                f"a text says {next(iter(marks))!r}, or another token of the model, and its tokenizer spells "
                "none of them out; write it in another way"
            )
        return marks

    @cached_property
    def _plain(self) -> dict[str, list[int]]:
        """Token -> the ids of what it is spelled with."""
        special = set(self.tokenizer.convert_tokens_to_ids([*self._letters]))
        plain = {}
        for token, letter in self._letters.items():
            ids = self._behind(letter, token)
            if special & {*ids}:  # a token that tokenizers never split
                ids = [*self._behind(letter, token[:1]), *self._behind(letter, token[1:])]
            plain[token] = ids
        return plain

    def _behind(self, before: str, text: str) -> list[int]:
        """The ids of a text in the middle of others: some tokenizers begin with a space."""
        settings = {"add_special_tokens": False, "split_special_tokens": True}
        start = self.tokenizer(before, **settings)["input_ids"]
        return list(self.tokenizer(before + text, **settings)["input_ids"][len(start) :])


def spread(outputs: Any, ids: Tensor, places: Tensor) -> None:
    """Give a processor's outputs other tokens, each with what its place had."""
    for name in (*PADS, "attention_mask"):
        if name in outputs and not name.startswith("qformer"):
            outputs[name] = outputs[name][:, places]
    outputs["input_ids"] = ids[None]
