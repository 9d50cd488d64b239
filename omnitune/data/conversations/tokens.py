"""Conversations as tokens and labels, kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ...errors import Mistakes
from ...files import Hashes, digest, writable
from ...lazily import torch
from ..cache import Store
from ..sources import shown_hash
from .conversation import Conversation

if TYPE_CHECKING:
    from torch import Tensor

SHRUNK = "shape.shrunk"
"""How many pictures and clips of an item were made smaller to fit."""
ENDED = "shape.ended"
"""That a token to stop at was put behind the last answer."""
THOUGHTS = "shape.thoughts"
"""How many answers of an item the chat template leaves the thoughts out of."""
REASON = "dropped"
"""Under this name a store holds why an item is left out, as bytes of text."""


@dataclass(frozen=True)
class Encoded:
    """One conversation as the model reads it."""

    tokens: dict[str, Tensor]
    """`input_ids` and `labels` (L,), whatever else has an entry a token, and what describes the media (grids,
    sizes), as the processor gives it for this item alone."""
    media: dict[str, Tensor]
    """Pixels, as the processor gives them for this item alone."""
    shrunk: dict[str, tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)
    """Pictures and clips that were made smaller to fit: (width, height) without that and with it."""

    remarks: dict[str, int] = field(default_factory=dict)
    """What is to be told of it, by `ENDED` and `THOUGHTS`; 0 is nothing."""

    def __len__(self) -> int:
        return len(self.tokens["input_ids"])


@dataclass(frozen=True)
class LeftOut:
    """Why a conversation is not trained on."""

    reason: str


class Encoder(Protocol):
    """What turns a conversation into tensors: a family's chat."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides its output."""

    def encode(self, conversation: Conversation) -> Encoded | LeftOut: ...


class Tokens:
    """Encoded conversations, kept on disk: token ids, labels, and the shapes of pixels."""

    def __init__(self, encoder: Encoder, folder: Path):
        self.encoder = encoder
        self.store = Store(folder / f"tokens-{encoder.fingerprint[:16]}")
        self.unwritten: dict[str, dict[str, Tensor]] = {}
        """What cannot be kept on disk."""

    def fill(self, conversations: Sequence[Conversation], keys: Sequence[str]) -> None:
        """Encode what is not kept yet; raises UserError with every item that cannot be encoded."""
        self.store.refresh()
        missing = set(self.store.missing(keys))
        keep = self.unwritten.__setitem__
        if missing and writable(self.store.index):
            keep = self.store.add
        mistakes = Mistakes()
        for conversation, key in zip(conversations, keys, strict=True):
            if key in missing:
                missing.discard(key)
                with mistakes.noted():
                    keep(key, self.encoded(conversation))
        if not self.unwritten:
            self.store.flush()
            self.store.refresh()
        mistakes.raise_all()

    def encoded(self, conversation: Conversation) -> dict[str, Tensor]:
        """What is kept of a conversation, encoded anew."""
        made = self.encoder.encode(conversation)
        if isinstance(made, LeftOut):
            return {REASON: torch.frombuffer(bytearray(made.reason.encode()), dtype=torch.uint8)}
        shapes = {f"shape.{name}": torch.tensor(value.shape) for name, value in made.media.items()}
        told = {SHRUNK: len(made.shrunk), **made.remarks}
        return {**made.tokens, **shapes, **{name: torch.tensor(n) for name, n in told.items() if n}}

    def read(self, key: str) -> dict[str, Tensor]:
        """Tokens of one conversation."""
        return self.unwritten[key] if key in self.unwritten else self.store.read(key)

    def media(self, conversation: Conversation) -> dict[str, Tensor]:
        """Its tokens and pixels, decoded anew."""
        made = self.encoder.encode(conversation)
        assert isinstance(made, Encoded), conversation.id
        return {**made.tokens, **made.media}


def key_of(conversation: Conversation, hashes: Hashes) -> str:
    """A hash of what a conversation says and shows, wherever it lies."""
    parts: list[str] = [repr(conversation.tools)]
    for message in conversation.messages:
        said = [
            part if isinstance(part, str) else (part.kind, *(shown_hash(file, hashes) for file in part.files))
            for part in message.parts
        ]
        parts.append(repr((message.role, said, message.train, message.tool_calls)))
    return digest(*parts)
