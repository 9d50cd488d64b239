"""Read sources of conversations, look up their files and check them; nothing is decoded."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ...errors import UserError
from ...files import Hashes, Openable
from ..media import Probe
from ..sources import (
    Findings,
    Scan,
    Source,
    chunked,
    counted,
    listed,
    probe_all,
    readable,
    shared_ids,
)
from .conversation import Conversation, Media, Message, NamedMedia, ParsedConversation, ParsedMessage
from .parse_items import unlearned, wrong_order
from .parse_messages import ESCAPE

MOST_ASPECT = 200
"""Long side over short side: Qwen's processors refuse more."""


def scan(sources: Sequence[Source[ParsedConversation]], base: Path, memo: Hashes) -> Scan[list[Conversation]]:
    """Read all sources in order; every mistake in any of them is in the one error.

    `memo` remembers what pictures and clips are: a file that did not change is not opened again.
    """
    findings = Findings()
    items: list[Conversation] = []
    numbers: list[int] = []
    with _uncollected():
        for number, source in enumerate(sources):
            for chunk in chunked(source.items(base, findings)):
                names = [file for parsed in chunk for named in parsed.named for file in named.files]
                files = _Files(names, partial(source.open, base), memo)
                for file, probe in files.found.items():
                    if isinstance(probe, Probe):
                        findings.remark(file, probe)
                items += [one for parsed in chunk if (one := _conversation(parsed, files))]
                numbers += [number] * (len(items) - len(numbers))
                findings.mistakes += [f"{one.where}: {problem}" for one in chunk for problem in one.problems]
    findings.mistakes += shared_ids(
        sources, [item.id for item in items], numbers, [item.where for item in items]
    )
    if findings.mistakes:
        raise UserError("\n".join(map(readable, findings.mistakes)))
    return Scan(items, [*findings.told(), *_shown_by_answers(items)])


def _shown_by_answers(items: Sequence[Conversation]) -> list[str]:
    """A note of answers that show something: no model gives that, and their text may have been meant."""
    found = [
        item.where
        for item in items
        if any(m.role == "assistant" and any(isinstance(p, Media) for p in m.parts) for m in item.messages)
    ]
    if not found:
        return []
    return [
        f"{counted(found, 'conversation', 'shows', 'show')} a picture or a clip in an answer; write "
        f"{ESCAPE}<image> where its text is meant: {listed(found)}"
    ]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector from looking through all items again and again: half the time of reading."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _conversation(parsed: ParsedConversation, files: "_Files") -> Conversation | None:
    """The conversation, unless something is wrong with it or its files, which is added to its problems."""
    if not parsed.problems:
        parsed.problems += wrong_order(parsed.messages) or unlearned(parsed.messages)
    shown = {named: files.media(named, parsed.problems) for named in parsed.named}
    if parsed.problems:
        return None
    messages = tuple(
        Message(one.role, tuple(_parts(one, shown)), one.train, one.tool_calls) for one in parsed.messages
    )
    return Conversation(parsed.id, messages, parsed.where, parsed.tools)


def _parts(message: ParsedMessage, shown: Mapping[NamedMedia, Media | None]) -> Iterator[str | Media]:
    for part in message.parts:
        media = part if isinstance(part, str) else shown[part] if isinstance(part, NamedMedia) else None
        assert media is not None, part
        yield media


class _Files:
    """What files are, by the names that a source opens them by, or what is wrong with each."""

    def __init__(self, files: Iterable[str], opener: Callable[[str], Openable], memo: Hashes):
        self.opener, self.found = opener, probe_all(files, opener, memo)

    def media(self, named: NamedMedia, problems: list[str]) -> Media | None:
        """A picture or a clip as probed."""
        before = len(problems)
        probes = [self._probe(named, file, problems) for file in named.files]
        sizes = [(probe.width, probe.height) for probe in probes if probe]
        if len(problems) == before:
            problems += _wrong_sizes(named, sizes)
        first = probes[0]
        if first is None or len(problems) > before:
            return None
        files = tuple(map(self.opener, named.files))
        num_frames = len(files) if named.pictures else first.num_frames
        return Media(named.kind, files, first.width, first.height, num_frames, first.fps, first.times)

    def _probe(self, named: NamedMedia, file: str, problems: list[str]) -> Probe | None:
        found = self.found[file]
        if isinstance(found, UserError):
            problems.append(f"{named.kind} {found}")
        elif named.pictures and found.kind == "video":
            problems.append(f"video picture {file!r} is a clip; name it alone, or pictures")
        elif named.kind == "image" and found.kind == "video":
            problems.append(f"image {file!r} is a clip; name a picture, or state it as a video")
        elif named.kind == "video" and not named.pictures and found.kind == "image":
            problems.append(f"video {file!r} is a picture; name a clip, or a list of its pictures")
        else:
            return found
        return None


def _wrong_sizes(named: NamedMedia, sizes: Sequence[tuple[int, int]]) -> list[str]:
    """What is wrong with the (width, height) of each file."""
    width, height = sizes[0]
    if max(width, height) > MOST_ASPECT * min(width, height):
        side = f"more than {MOST_ASPECT} times as long as it is short, which models' processors refuse"
        return [f"{named.kind} {named.files[0]!r} is {width}x{height}, {side}; crop it"]
    return [
        f"video picture {file!r} is {size[0]}x{size[1]}, but the first is {width}x{height}; make them equal"
        for file, size in zip(named.files, sizes, strict=True)
        if size != sizes[0]
    ]
