"""A conversation with pictures and clips, as a source states it and before anything of it is decoded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
MediaKind = Literal["image", "video"]


@dataclass(frozen=True, slots=True)
class Media:
    """A picture or a clip that a message shows, as probed."""

    kind: MediaKind
    paths: tuple[Path, ...]
    """One file, or the pictures that a clip is stated as, in order."""
    width: int
    """Pixels as shown, that is after rotation metadata."""
    height: int
    num_frames: int = 1
    fps: float = 0.0
    """Frames per second of a clip file; 0 for a picture, and for a clip that is stated as pictures."""


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
