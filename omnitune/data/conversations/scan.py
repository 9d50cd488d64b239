"""Read sources of conversations, look up their files and check them; nothing is decoded."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ...errors import UserError
from ...files import Hashes
from ..sources import Findings, Scan, Source, chunked, readable, shared_ids
from .conversation import Conversation, Media, Message, NamedMedia, ParsedConversation, ParsedMessage
from .media_files import MediaFiles
from .parse_items import unlearned, wrong_order


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
                files = MediaFiles(names, partial(source.open, base), memo)
                items += [one for parsed in chunk if (one := _conversation(parsed, files))]
                numbers += [number] * (len(items) - len(numbers))
                findings.mistakes += [f"{one.where}: {problem}" for one in chunk for problem in one.problems]
    findings.mistakes += shared_ids(
        sources, [item.id for item in items], numbers, [item.where for item in items]
    )
    if findings.mistakes:
        raise UserError("\n".join(map(readable, findings.mistakes)))
    return Scan(items, findings.notes)


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


def _conversation(parsed: ParsedConversation, files: MediaFiles) -> Conversation | None:
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
