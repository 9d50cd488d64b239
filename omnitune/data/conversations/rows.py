"""Conversations as rows of tokens: which are kept, which share a row, what stages are given of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import UserError
from ...files import Hashes, digest, writable
from ..cache import Store
from ..captions.sources import listed
from ..dataset import Inputs
from .conversation import Conversation, Media, Message

BLANK, BLANK_SIDE = Path(__file__).parents[2] / "assets" / "blank.png", 64
SHRUNK = "shape.shrunk"
"""How many pictures and clips of an item were made smaller to fit."""
REASON = "dropped"
"""Under this name a store holds why an item is left out, as bytes of text."""


class Encoder(Protocol):
    """What turns a conversation into tensors: a family's chat."""

    @property
    def fingerprint(self) -> str:
        """Of everything that decides its output."""

    def encode(self, conversation: Conversation) -> Any:
        """Tokens and pixels, or why the item is left out."""


@dataclass(frozen=True, order=True)
class LengthBucket:
    """Rows of at most so many tokens."""

    tokens: int

    @property
    def size(self) -> int:
        """As a measure of what is encoded at once: a row at a time from a thousand tokens."""
        return self.tokens << 10

    def __str__(self) -> str:
        return f"up to {self.tokens} tokens"


@dataclass(frozen=True)
class Talk:
    """A row: one conversation, or several that share it."""

    id: str
    conversations: tuple[Conversation, ...]
    keys: tuple[str, ...]
    length: int
    """Tokens."""
    targets: int
    """Tokens that are learned."""

    @property
    def caption(self) -> str:
        """Its text, for lists."""
        return "\n".join(m.text for c in self.conversations for m in c.messages)


class Tokens:
    """Encoded conversations, kept on disk: token ids, labels, and the shapes of pixels."""

    def __init__(self, encoder: Encoder, folder: Path):
        self.encoder = encoder
        self.store = Store(folder / f"tokens-{encoder.fingerprint[:16]}")
        self.unwritten: dict[str, dict[str, Tensor]] | None = None

    def fill(self, conversations: Sequence[Conversation], keys: Sequence[str]) -> None:
        """Encode what is not kept yet; raises UserError with every item that cannot be encoded."""
        self.store.refresh()
        missing = set(self.store.missing(keys))
        if missing and not writable(self.store.index):
            self.unwritten = {}
        mistakes: list[str] = []
        for conversation, key in zip(conversations, keys, strict=True):
            if key not in missing:
                continue
            missing.discard(key)
            try:
                self._keep(key, self.encoded(conversation))
            except UserError as error:
                mistakes.append(str(error))
        if self.unwritten is None:
            self.store.flush()
            self.store.refresh()
        if mistakes:
            raise UserError("\n".join(mistakes))

    def _keep(self, key: str, entry: dict[str, Tensor]) -> None:
        if self.unwritten is None:
            self.store.add(key, entry)
        else:
            self.unwritten[key] = entry

    def encoded(self, conversation: Conversation) -> dict[str, Tensor]:
        """What is kept of a conversation, encoded anew."""
        made = self.encoder.encode(conversation)
        if hasattr(made, "reason"):
            return {REASON: torch.frombuffer(bytearray(made.reason.encode()), dtype=torch.uint8)}
        shapes = {f"shape.{name}": torch.tensor(value.shape) for name, value in made.media.items()}
        shrunk = {SHRUNK: torch.tensor(len(made.shrunk))} if made.shrunk else {}
        return {**made.tokens, **shapes, **shrunk}

    def read(self, key: str) -> dict[str, Tensor]:
        """Tokens of one conversation."""
        if self.unwritten is not None and key in self.unwritten:
            return self.unwritten[key]
        return self.store.read(key)

    def reason(self, key: str) -> str | None:
        """Why an item is left out."""
        entry = self.read(key)
        return bytes(entry[REASON].tolist()).decode() if REASON in entry else None

    def media(self, conversation: Conversation) -> dict[str, Tensor]:
        """Its tokens and pixels, decoded anew."""
        made = self.encoder.encode(conversation)
        assert not hasattr(made, "reason"), conversation.id
        return {**made.tokens, **made.media}


def key_of(conversation: Conversation, hashes: Hashes) -> str:
    """A hash of what a conversation says and shows, wherever it lies."""
    parts: list[str] = [repr(conversation.tools)]
    for message in conversation.messages:
        said = [p if isinstance(p, str) else (p.kind, *hashes.of_all(p.paths)) for p in message.parts]
        parts.append(repr((message.role, said, message.train, message.tool_calls)))
    return digest(*parts)


@dataclass(frozen=True)
class TalkIndex:
    """The rows of a data set."""

    items: Sequence[Talk]
    buckets: Sequence[LengthBucket]
    notes: Sequence[str]
    shows: bool
    """Whether any row has pictures or clips."""

    @cached_property
    def by_bucket(self) -> dict[LengthBucket, list[int]]:
        found: dict[LengthBucket, list[int]] = {}
        for i, bucket in enumerate(self.buckets):
            found.setdefault(bucket, []).append(i)
        return found

    @property
    def largest(self) -> None:
        """Rows have no size."""

    def fingerprints(self) -> dict[str, str]:
        """Row id -> hash of what it says and shows."""
        return {item.id: digest(*item.keys) for item in self.items}

    def caption_notes(self, cut_captions: Any) -> list[str]:
        """Nothing is ever cut."""
        return []


class TalkSamples:
    """Gives each row's tokens, and the keys of what its stages are given."""

    def __init__(self, index: TalkIndex, tokens: Tokens, seed: int):
        self.index, self.tokens, self.seed = index, tokens, seed
        self.ragged = ("tokens", "media")

    @cached_property
    def blank(self) -> tuple[Conversation, str]:
        """A short conversation about a picture that holds nothing, of which nothing is learned."""
        picture = Media("image", (BLANK,), BLANK_SIDE, BLANK_SIDE)
        said = Message("user", (picture, "What is this?")), Message("assistant", ("Nothing.",))
        return Conversation("blank", said, "the blank picture"), digest("blank")

    @cached_property
    def _blank_tokens(self) -> dict[str, Tensor]:
        found = self.tokens.encoded(self.blank[0])
        return {**found, "labels": torch.full_like(found["labels"], -100)}

    def inputs(self, i: int, variant: int | str = 0) -> Inputs:
        return {"index": i, "caption": ""}

    def every(self) -> Iterator[tuple[Inputs, LengthBucket]]:
        """What the cache is to hold."""
        for i, bucket in enumerate(self.index.buckets):
            yield self.inputs(i), bucket

    def always(self, needs: Sequence[str]) -> list[Inputs]:
        """What the cache holds beside the rows: the blank picture that a batch without any is given."""
        return [{"index": None, "caption": ""}] if self.index.shows and "media" in needs else []

    def variant(self, position: int) -> int:
        return 0

    def _members(self, inputs: Inputs) -> list[tuple[Conversation, str]]:
        if inputs["index"] is None:
            return [self.blank]
        item = self.index.items[inputs["index"]]
        return list(zip(item.conversations, item.keys, strict=True))

    def roots(self, inputs: Inputs) -> dict[str, str]:
        fingerprint = self.tokens.encoder.fingerprint
        return {"media": digest(fingerprint, *(key for _, key in self._members(inputs)))}

    def load(self, name: str, inputs: Inputs) -> Any:
        """`media`: tokens and pixels of each conversation of a row."""
        assert name == "media", name
        return [self.tokens.media(conversation) for conversation, _ in self._members(inputs)]

    def beside(self, inputs: Inputs) -> dict[str, Any]:
        """What a row has whatever stages there are."""
        if inputs["index"] is None:
            return {"id": "blank", "tokens": [self._blank_tokens]}
        item = self.index.items[inputs["index"]]
        return {"id": item.id, "tokens": [self.tokens.read(key) for key in item.keys]}

    def counts(self, i: int) -> Mapping[str, int]:
        item = self.index.items[i]
        return {"index": i, "tokens": item.targets}

    def filler(self, rows: Sequence[Inputs]) -> Inputs | None:
        """A row to add where none of a micro-batch shows anything: every rank runs the same modules."""
        if not self.index.shows:
            return None
        if any(self._shows(inputs) for inputs in rows):
            return None
        return {"index": None, "caption": ""}

    def faults(self, i: int) -> list[UserError]:
        """Everything was decoded while rows were made."""
        return []

    def _shows(self, inputs: Inputs) -> bool:
        return any(conversation.media for conversation, _ in self._members(inputs))


def deal_talks(
    conversations: Sequence[Conversation], tokens: Tokens, hashes: Hashes, *, packing: int | None,
    by_length: bool, notes: Sequence[str], where: str,
) -> TalkIndex:  # fmt: skip
    """Encode what is new, leave out what is too long, and put short ones together where asked."""
    keys = [key_of(conversation, hashes) for conversation in conversations]
    tokens.fill(conversations, keys)
    kept, dropped, shrunk = [], [], []
    for conversation, key in zip(conversations, keys, strict=True):
        entry = tokens.read(key)
        if REASON in entry:
            dropped.append(f"{conversation.where}: {tokens.reason(key)}")
            continue
        if SHRUNK in entry:
            shrunk.append(conversation.where)
        targets = int((entry["labels"][1:] != -100).sum())
        kept.append(Talk(conversation.id, (conversation,), (key,), len(entry["input_ids"]), targets))
    kept.sort(key=lambda talk: talk.id)
    told = list(notes)
    if dropped:
        number = "1 conversation is" if len(dropped) == 1 else f"{len(dropped)} conversations are"
        told.append(f"{number} left out: {listed(dropped)}")
    if shrunk:
        number = "1 conversation has" if len(shrunk) == 1 else f"{len(shrunk)} conversations have"
        told.append(f"{number} smaller pictures, to fit into a row: {listed(shrunk)}")
    if not kept:
        raise UserError(f"{where}: no conversation is left to train on; {'; '.join(told)}")
    if packing is not None:
        before = len(kept)
        kept = packed(kept, packing)
        told.append(f"{before} conversations share {len(kept)} rows of up to {packing} tokens")
    shows = any(conversation.media for talk in kept for conversation in talk.conversations)
    longest = max(talk.length for talk in kept)
    buckets = [LengthBucket(_rounded(t.length) if by_length else longest) for t in kept]
    return TalkIndex(kept, buckets, told, shows)


def _rounded(length: int) -> int:
    """The next power of two, from 64."""
    return max(64, 1 << (length - 1).bit_length())


def packed(talks: Sequence[Talk], most: int) -> list[Talk]:
    """First-fit decreasing: the longest first, each into the first row that has room."""
    rows: list[list[Talk]] = []
    shortest = min(talk.length for talk in talks)
    open_rows: list[tuple[int, int]] = []  # room left, number of the row
    for talk in sorted(talks, key=lambda t: (-t.length, t.id)):
        place = next((k for k, (room, _) in enumerate(open_rows) if room >= talk.length), None)
        if place is None:
            rows.append([talk])
            open_rows.append((most - talk.length, len(rows) - 1))
            continue
        room, number = open_rows[place]
        rows[number].append(talk)
        open_rows[place] = (room - talk.length, number)
        if open_rows[place][0] < shortest:
            del open_rows[place]
    return [_joined(row) for row in rows]


def _joined(row: Sequence[Talk]) -> Talk:
    return Talk(
        "+".join(talk.id for talk in row),
        tuple(c for talk in row for c in talk.conversations),
        tuple(k for talk in row for k in talk.keys),
        sum(talk.length for talk in row),
        sum(talk.targets for talk in row),
    )
