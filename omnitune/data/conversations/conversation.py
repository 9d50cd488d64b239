"""Conversations with pictures and clips: as sources state them, and with their files looked up."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...files import Openable

Role = Literal["system", "user", "assistant", "tool"]
MediaKind = Literal["image", "video"]


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Where the next file of its kind is shown."""

    kind: MediaKind


@dataclass(frozen=True, slots=True)
class NamedMedia:
    """A picture or a clip as a source names it: one file, or the pictures of a clip."""

    kind: MediaKind
    files: tuple[str, ...]
    """What the source opens them by."""
    pictures: bool = False
    """Whether a clip is stated as a list of its pictures."""


Part = str | Placeholder | NamedMedia


@dataclass(slots=True)
class ParsedMessage:
    """A message before what it shows is looked up."""

    role: Role
    parts: list[Part]
    train: bool | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()


@dataclass
class ParsedConversation:
    """A conversation as a source yields it, before its files are looked up."""

    id: str
    """Stable name within the data, independent of where the source lies."""
    where: str
    """Where it is stated (`train.json: item 12`), for messages."""
    messages: list[ParsedMessage] = field(default_factory=list)
    tools: tuple[Mapping[str, Any], ...] = ()
    unplaced: list[NamedMedia] = field(default_factory=list)
    """What it names beside its messages, looked up to tell all that is wrong."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with it; it is told, and the conversation is not trained on."""

    @property
    def named(self) -> list[NamedMedia]:
        """Everything that it names, each once."""
        shown = [part for message in self.messages for part in message.parts]
        return list(dict.fromkeys([*(p for p in shown if isinstance(p, NamedMedia)), *self.unplaced]))


@dataclass(frozen=True, slots=True)
class Media:
    """A picture or a clip that a message shows, as probed."""

    kind: MediaKind
    files: tuple[Openable, ...]
    """One file, or the pictures that a clip is stated as, in order."""
    width: int
    """Pixels as shown, that is after rotation metadata."""
    height: int
    num_frames: int = 1
    fps: float = 0.0
    """Frames per second of a clip file; 0 for a picture, and for a clip that is stated as pictures."""
    times: tuple[float, ...] = ()
    """Seconds from the first frame to each, of a clip of variable rate."""


@dataclass(frozen=True, slots=True)
class Message:
    """What one side says in a turn. Placeholders are parts of their own, in the order of the text."""

    role: Role
    parts: tuple["str | Media", ...]
    """Text and media as they follow each other; no empty texts."""
    train: bool | None = None
    """Whether an answer is learned, where the data say so for this message alone."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """What an assistant asks tools for, as `{"name": ..., "arguments": {...}}`."""

    @property
    def text(self) -> str:
        """Its text, media left out."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Conversation:
    """One item of a vision-language data set: messages that alternate, the last an answer."""

    id: str
    """Stable name within the data: file name and number of the item, independent of where the file lies."""
    messages: tuple[Message, ...]
    where: str
    """Where it is stated (`train.json: item 12`), for messages."""
    tools: tuple[Mapping[str, Any], ...] = field(default=())
    """Tools that the assistant may call, as JSON schemas."""

    @property
    def media(self) -> Sequence[Media]:
        """Everything shown, in order."""
        return [part for message in self.messages for part in message.parts if isinstance(part, Media)]

    def of(self, kind: MediaKind) -> Iterator[Media]:
        return (media for media in self.media if media.kind == kind)
