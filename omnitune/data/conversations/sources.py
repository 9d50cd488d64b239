"""Read and check conversations with pictures and clips, and the data sets of a `dataset_info.json`."""

import gc
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...errors import UserError
from ...files import Hashes
from ...options import option
from ..captions.entries import Findings, broken_link, readable
from ..captions.sources import listed
from . import dataset_info
from .conversation import Conversation, Media, Message
from .formats import Layout, Names, layout_of, wrong_names
from .json_items import SUFFIXES, Stated, read_items
from .media_files import Exhibits
from .message_parts import Named, Placeholder
from .parse_items import Draft, ItemReader
from .parse_messages import Turn


@option
class ConversationSource:
    """Conversations of a JSON or JSON lines file, or of data sets that a `dataset_info.json` describes."""

    name: Literal["conversations"] = "conversations"
    path: Path
    """A `.json` or `.jsonl` file, a `dataset_info.json`, or the folder of one.

    Relative paths start at the folder in which the command runs.
    """
    dataset: str | list[str] | None = None
    """Names in `dataset_info.json`, as a list or with commas; absent: all data sets that lie beside it."""
    media: Path | None = None
    """Folder that paths of pictures and clips start at; absent: that of the file that `path` names."""
    format: Literal["auto", "sharegpt", "openai", "alpaca"] = "auto"
    """How items are written; auto: told from the first one."""
    columns: dict[str, str] = field(default_factory=dict)
    """Keys of items by what they hold, where they are not the usual ones: `{images: pictures}`.

    `messages`; `prompt`, `query`, `response`, `history` of alpaca; `system`, `tools`, `images`, `videos`.
    """
    tags: dict[str, str] = field(default_factory=dict)
    """Keys and roles of messages, where they are not the usual ones: `{role_tag: role, user_tag: user}`.

    `role_tag`, `content_tag`, `user_tag`, `assistant_tag`, `system_tag`, `observation_tag`, `function_tag`.
    """
    num_samples: int | None = None
    """Read so many items of each file, evenly spread over it; absent: all, or as `dataset_info.json` says."""

    def __post_init__(self) -> None:
        if self.num_samples is not None and self.num_samples < 1:
            raise ValueError(f"num_samples must be 1 or more, not {self.num_samples}")
        if self.dataset is not None and not self.datasets:
            raise ValueError("dataset names nothing; name a data set, or remove it")

    @property
    def datasets(self) -> list[str]:
        """Names that `dataset` states."""
        stated = self.dataset.split(",") if isinstance(self.dataset, str) else self.dataset or []
        return [name.strip() for name in stated if name.strip()]


@dataclass(frozen=True)
class ConversationScan:
    """What sources hold, and what the user should see about it."""

    items: list[Conversation]
    notes: list[str]


@dataclass(frozen=True)
class Table:
    """A file of items, and how it is to be read."""

    shown: Path
    path: Path
    media: Path
    where: str
    """Where names and numbers are stated, for messages."""
    file: str
    """How messages name the file itself."""
    names: Names
    num_samples: int | None


def read_conversations(sources: Sequence[ConversationSource], base: Path, memo: Hashes) -> ConversationScan:
    """Read all sources in order; every mistake in any of them is in the one error.

    `memo` remembers what pictures and clips are: a file that did not change is not opened again.
    """
    findings = Findings([], [])
    read: list[tuple[Table, list[Conversation]]] = []
    with _uncollected():
        for source in sources:
            for table in _tables(source, base, findings):
                read.append((table, _read(table, findings, memo)))
    findings.mistakes += _shared_ids(read)
    if findings.mistakes:
        raise UserError("\n".join(map(readable, findings.mistakes)))
    return ConversationScan([item for _, items in read for item in items], findings.notes)


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


# Files


def _tables(source: ConversationSource, base: Path, findings: Findings) -> list[Table]:
    """The files of a source that are there."""
    shown = source.path
    if (base / shown).is_dir():
        shown = shown / dataset_info.FILE
        if not (base / shown).is_file():
            findings.mistakes.append(
                f"data.sources: {source.path}: is a folder without {dataset_info.FILE}; "
                "name a .json or .jsonl file in it"
            )
            return []
    media = base / (source.media or shown.parent)
    if source.media and not media.is_dir():
        findings.mistakes.append(
            f"data.sources: {shown}: media {source.media} is no folder (looked for {media})"
        )
        return []
    if shown.name == dataset_info.FILE:
        tables = _described(source, shown, base, media, findings)
    else:
        where = f"data.sources: {shown}"
        if source.dataset is not None:
            findings.mistakes.append(
                f"{where}: dataset has no effect, this is no {dataset_info.FILE}; remove it"
            )
        names = Names(source.format, source.columns, source.tags)
        tables = [Table(shown, base / shown, media, where, where, names, source.num_samples)]
    return [table for table in tables if _sound(table, findings)]


def _described(
    source: ConversationSource, shown: Path, base: Path, media: Path, findings: Findings
) -> list[Table]:
    """The files of a dataset_info.json."""
    if not (base / shown).is_file():
        findings.mistakes.append(f"data.sources: {shown}: does not exist (looked for {base / shown})")
        return []
    stated = {"format": source.format != "auto", "columns": source.columns, "tags": source.tags}
    findings.mistakes += [
        f"data.sources: {shown}: {key} has no effect, {dataset_info.FILE} states it; remove it"
        for key, held in stated.items()
        if held
    ]
    info = dataset_info.read_info(shown, base / shown, source.datasets or None)
    findings.mistakes += info.mistakes
    findings.notes += info.notes
    tables = []
    for found in info.data_sets:
        file = shown.parent / found.file_name
        where = f"{shown.as_posix()}: {found.name}"
        num_samples = source.num_samples or found.num_samples
        told = f"{where}: {found.file_name}"
        tables.append(Table(file, base / file, media, where, told, found.names, num_samples))
    return tables


def _sound(table: Table, findings: Findings) -> bool:
    """Whether a file can be read, and its names are ones that there are."""
    mistakes = [f"{table.where}: {problem}" for problem in wrong_names(table.names)]
    # Unlike those of Path, these take names of any length.
    if os.path.islink(table.path) and (problem := broken_link(table.path)):
        mistakes.append(f"{table.file}: {problem}")
    elif os.path.isdir(table.path):
        mistakes.append(f"{table.file}: is a folder; name a .json or .jsonl file")
    elif not os.path.isfile(table.path):
        mistakes.append(f"{table.file}: does not exist (looked for {table.path})")
    elif table.path.suffix.lower() not in SUFFIXES:
        mistakes.append(f"{table.file}: is no {' or '.join(SUFFIXES)} file; convert it")
    findings.mistakes += mistakes
    return not mistakes


# Items


def _read(table: Table, findings: Findings, memo: Hashes) -> list[Conversation]:
    """The conversations of a file; what is wrong with each is told in the order of the file."""
    stated = read_items(table.shown, table.path, findings.mistakes)
    layout = _layout(table, stated, findings) if stated else None
    if layout is None:
        return []
    reader = ItemReader(layout, table.path.stem)
    drafts = [reader.read(item) for item in _spread(table, stated, findings)]
    if reader.unread:
        keys = readable(", ".join(sorted(reader.unread)))
        findings.notes.append(f"{table.shown}: keys that nothing reads: {keys}")
    files = dict.fromkeys(file for draft in drafts for named in draft.named for file in named.files)
    exhibits = Exhibits.of(table.media, files, memo)
    items = [_conversation(draft, exhibits) for draft in drafts]
    findings.mistakes += [f"{draft.where}: {problem}" for draft in drafts for problem in draft.problems]
    return [item for item in items if item]


def _layout(table: Table, stated: Sequence[Stated], findings: Findings) -> Layout | None:
    """How the items of a file are written; None, with a mistake told, where that does not fit."""
    keys = set[str]().union(*(item.value for item in stated))
    layout = layout_of(table.names, keys, stated[0].value)
    if layout is None:
        findings.mistakes.append(
            f"{stated[0].where}: has none of messages, conversations and instruction; "
            "state the format, and other names as columns"
        )
        return None
    problems = wrong_names(Names(layout.format, table.names.columns, table.names.tags))
    problems = problems or layout.absent(keys)
    findings.mistakes += [f"{table.where}: {problem}" for problem in problems]
    return None if problems else layout


def _spread(table: Table, stated: Sequence[Stated], findings: Findings) -> Sequence[Stated]:
    """As many items as are asked for, evenly spread: files are often sorted."""
    number, held = table.num_samples, len(stated)
    if number is None or number == held:
        return stated
    if number > held:
        findings.mistakes.append(
            f"{table.where}: num_samples is {number}, but there are {held} items; lower it"
        )
        return stated
    findings.notes.append(f"{table.shown}: {number} of {held} items are read (num_samples)")
    return [stated[i * held // number] for i in range(number)]


def _conversation(draft: Draft, exhibits: Exhibits) -> Conversation | None:
    """The conversation of a draft, whose problems come to hold those of its files."""
    shown = {named: exhibits.media(named, draft.problems) for named in dict.fromkeys(draft.named)}
    if draft.problems:
        return None
    messages = tuple(
        Message(turn.role, tuple(_parts(turn, shown)), turn.train, turn.tool_calls) for turn in draft.turns
    )
    return Conversation(draft.id, messages, draft.where, draft.tools)


def _parts(turn: Turn, shown: Mapping[Named, Media | None]) -> Iterator[str | Media]:
    for part in turn.parts:
        assert not isinstance(part, Placeholder), turn
        media = part if isinstance(part, str) else shown[part]
        assert media is not None, part
        yield media


def _shared_ids(read: Sequence[tuple[Table, Sequence[Conversation]]]) -> list[str]:
    """Name the files that give the same ids: the cache could not tell their items apart."""
    shared = Counter(item.id for _, items in read for item in items)
    files: dict[str, list[str]] = {}
    for table, _ in read:
        files.setdefault(table.path.stem, []).append(str(table.shown))
    mistakes = []
    for stem, paths in files.items():
        ids = [key for key, count in shared.items() if count > 1 and os.path.dirname(key) == stem]
        if ids:
            mistakes.append(
                f"data.sources: {' and '.join(paths)} both hold {listed(ids)}; "
                "rename one file, or list it once"
            )
    return mistakes
