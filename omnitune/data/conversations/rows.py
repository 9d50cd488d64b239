"""Rows of tokens made of conversations: which are kept, which share a row, what stages are given of them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ...batch import Batch
from ...errors import UserError
from ...files import File, Hashes, digest
from ...lazily import torch
from ..columns import Objects, Repeated
from ..dataset import Inputs
from ..sizes import AnyBucket
from ..sources import counted, listed
from .conversation import Conversation, Media, Message
from .tokens import ENDED, REASON, SHRUNK, THOUGHTS, Tokens, key_of

if TYPE_CHECKING:
    from torch import Tensor

BLANK, BLANK_SIDE = Path(__file__).parents[2] / "assets" / "blank.png", 64


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
class ConversationRow:
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


class ConversationIndex:
    """The rows of a data set, in columns."""

    def __init__(
        self, rows: Sequence[ConversationRow], buckets: Sequence[LengthBucket], notes: Sequence[str]
    ):
        self.items, self.buckets, self.notes = Objects(rows), Repeated(buckets), notes
        self.targets = array("Q", [row.targets for row in rows])
        """Tokens that are learned, of each row."""
        self.shows = any(conversation.media for row in rows for conversation in row.conversations)
        """Whether any row has pictures or clips."""

    @cached_property
    def by_bucket(self) -> Mapping[AnyBucket, Sequence[int]]:
        return dict(self.buckets.by_value())

    @property
    def largest(self) -> None:
        """None: rows have no size in pixels."""

    def take(self, rows: Sequence[int]) -> "ConversationIndex":
        """These rows, in this order."""
        items, buckets = [self.items[i] for i in rows], [self.buckets[i] for i in rows]
        return ConversationIndex(items, buckets, self.notes)

    def fingerprints(self) -> dict[str, str]:
        """Row id -> hash of what it says and shows."""
        return {item.id: digest(*item.keys) for item in self.items}

    def renamed(self, places: Sequence[int], ids: Sequence[str]) -> "ConversationIndex":
        found = self.take(places)
        found.items = Objects(replace(item, id=name) for item, name in zip(found.items, ids, strict=True))
        return found

    def caption_notes(self, cut_captions: Callable[[Sequence[str]], list[int]]) -> list[str]:
        """Nothing: no conversation is ever cut."""
        return []


class ConversationDataset:
    """Gives each row's tokens, and the keys of what its stages are given."""

    ragged = ("tokens", "media")
    media = ("media",)

    def __init__(self, index: ConversationIndex, tokens: Tokens, seed: int):
        self.index, self.tokens, self.seed = index, tokens, seed

    @cached_property
    def blank(self) -> tuple[Conversation, str]:
        """A short conversation about a picture that holds nothing, of which nothing is learned."""
        picture = Media("image", (File(BLANK),), BLANK_SIDE, BLANK_SIDE)
        said = Message("user", (picture, "What is this?")), Message("assistant", ("Nothing.",))
        return Conversation("blank", said, "the blank picture"), digest("blank")

    @cached_property
    def _blank_tokens(self) -> dict[str, Tensor]:
        found = self.tokens.encoded(self.blank[0])
        return {**found, "labels": torch.full_like(found["labels"], -100)}

    def inputs(self, i: int | None, variant: int | str = 0) -> Inputs:
        """Say which row it is; None is the blank one."""
        return {"index": i, "caption": "", "view": None}

    def variant(self, position: int) -> int:
        """0: nothing is drawn before the cache."""
        return 0

    def entries(self) -> Iterator[tuple[Inputs, LengthBucket]]:
        for i, bucket in enumerate(self.index.buckets):
            yield self.inputs(i), bucket

    def shared_entries(self, needs: Sequence[str]) -> list[Inputs]:
        """The blank picture that a batch without any is given."""
        return [self.inputs(None)] if self.index.shows and "media" in needs else []

    def _members(self, inputs: Inputs) -> list[tuple[Conversation, str]]:
        if inputs["index"] is None:
            return [self.blank]
        item = self.index.items[inputs["index"]]
        return list(zip(item.conversations, item.keys, strict=True))

    def input_keys(self, inputs: Inputs) -> dict[str, str]:
        fingerprint = self.tokens.encoder.fingerprint
        return {"media": digest(fingerprint, *(key for _, key in self._members(inputs)))}

    def load(self, name: str, inputs: Inputs) -> list[dict[str, Tensor]]:
        """`media`: tokens and pixels of each conversation of a row."""
        assert name == "media", name
        return [self.tokens.media(conversation) for conversation, _ in self._members(inputs)]

    def row_metadata(self, inputs: Inputs) -> Batch:
        """`id` and `tokens`, a mapping for each conversation of the row."""
        if inputs["index"] is None:
            return {"id": "blank", "tokens": [self._blank_tokens]}
        item = self.index.items[inputs["index"]]
        return {"id": item.id, "tokens": [self.tokens.read(key) for key in item.keys]}

    def units(self, i: int) -> Mapping[str, int]:
        return {"index": i, "tokens": self.index.targets[i]}

    def padding_row(self, rows: Sequence[Inputs]) -> Inputs | None:
        """The blank row, where no row shows anything: every rank runs the same modules."""
        if not self.index.shows or any(self._shows(inputs) for inputs in rows):
            return None
        return self.inputs(None)

    def decode_errors(self, i: int) -> list[UserError]:
        """None: everything was decoded while rows were made."""
        return []

    def _shows(self, inputs: Inputs) -> bool:
        return any(conversation.media for conversation, _ in self._members(inputs))


def make_rows(
    conversations: Sequence[Conversation], tokens: Tokens, hashes: Hashes, *, packing: int | None,
    by_length: bool, notes: Sequence[str], where: str,
) -> ConversationIndex:  # fmt: skip
    """Encode what is new, leave out what is too long, and put short ones together where asked."""
    keys = [key_of(conversation, hashes) for conversation in conversations]
    tokens.fill(conversations, keys)
    kept, dropped, shrunk, ended, thoughts = [], [], [], [], list[str]()
    for conversation, key in zip(conversations, keys, strict=True):
        entry = tokens.read(key)
        if REASON in entry:
            dropped.append(f"{conversation.where}: {bytes(entry[REASON].tolist()).decode()}")
            continue
        if SHRUNK in entry:
            shrunk.append(conversation.where)
        if ENDED in entry:
            ended.append(conversation.where)
        thoughts += [conversation.where] * int(entry.get(THOUGHTS, 0))
        targets = int((entry["labels"][1:] != -100).sum())
        kept.append(
            ConversationRow(conversation.id, (conversation,), (key,), len(entry["input_ids"]), targets)
        )
    kept.sort(key=lambda one: one.id)
    told = list(notes)
    if dropped:
        told.append(f"{counted(dropped, 'conversation')} left out: {listed(dropped)}")
    if shrunk:
        number = counted(shrunk, "conversation", "has", "have")
        told.append(f"{number} smaller pictures, to fit into a row: {listed(shrunk)}")
    if ended:
        told.append(
            "the chat template ends answers with no token to stop at: that of the tokenizer is learned "
            f"behind the last answer of {counted(ended, 'conversation', '', '').strip()}"
        )
    if thoughts:
        number = counted(thoughts, "answer", "", "").strip()
        told.append(f"the chat template leaves out the thoughts of {number}: {listed(thoughts)}")
    if not kept:
        raise UserError(f"{where}: no conversation is left to train on; {'; '.join(told)}")
    if packing is not None:
        before = len(kept)
        kept = packed(kept, packing)
        told.append(f"{before} conversations share {len(kept)} rows of up to {packing} tokens")
    longest = max(one.length for one in kept)
    buckets = [LengthBucket(_rounded(t.length) if by_length else longest) for t in kept]
    return ConversationIndex(kept, buckets, told)


def _rounded(length: int) -> int:
    """The next power of two, from 64."""
    return max(64, 1 << (length - 1).bit_length())


def packed(conversations: Sequence[ConversationRow], most: int) -> list[ConversationRow]:
    """First-fit decreasing: the longest first, each into the first row that has room."""
    rows: list[list[ConversationRow]] = []
    shortest = min(one.length for one in conversations)
    open_rows: list[tuple[int, int]] = []  # room left, number of the row
    for one in sorted(conversations, key=lambda t: (-t.length, t.id)):
        place = next((k for k, (room, _) in enumerate(open_rows) if room >= one.length), None)
        if place is None:
            place = len(open_rows)
            rows.append([])
            open_rows.append((most, len(rows) - 1))
        room, number = open_rows[place]
        rows[number].append(one)
        open_rows[place] = (room - one.length, number)
        if open_rows[place][0] < shortest:
            del open_rows[place]
    return [_joined(row) for row in rows]


def _joined(row: Sequence[ConversationRow]) -> ConversationRow:
    return ConversationRow(
        "+".join(one.id for one in row),
        tuple(c for one in row for c in one.conversations),
        tuple(k for one in row for k in one.keys),
        sum(one.length for one in row),
        sum(one.targets for one in row),
    )
