"""Conversations of JSON files, and of the data sets of a `dataset_info.json`."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Literal

from ...errors import UserError
from ...files import File
from ...options import option
from ..json_items import SUFFIXES, JsonItem, read_items
from ..sources import Findings, PathSource, broken_link, readable, wrong_file
from . import dataset_info
from .conversation import ParsedConversation
from .formats import ItemFormat, Names, Table, find_format, wrong_names
from .parse_items import ItemParser


@option
class ConversationSource(PathSource):
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

    def file(self, base: Path) -> Path:
        """The file that is read: `path`, or the dataset_info.json in it."""
        return self.path / dataset_info.FILE if (base / self.path).is_dir() else self.path

    def items(self, base: Path, findings: Findings) -> Iterator[ParsedConversation]:
        with findings.noted():
            for table in _tables(self, base, findings):
                with findings.noted():
                    yield from _parsed(table, findings)

    def open(self, base: Path, file: str) -> File:
        root = base / (self.media or self.file(base).parent)
        if problem := wrong_file(root, file):
            raise UserError(f"{file!r} {problem}")
        return File(root / file)


def _tables(source: ConversationSource, base: Path, findings: Findings) -> list[Table]:
    """The files of a source."""
    shown = source.file(base)
    where = f"data.sources: {shown}"
    if shown != source.path and not (base / shown).is_file():
        raise UserError(
            f"data.sources: {source.path}: is a folder without {dataset_info.FILE}; "
            "name a .json or .jsonl file in it"
        )
    if source.media and not (base / source.media).is_dir():
        raise UserError(f"{where}: media {source.media} is no folder (looked for {base / source.media})")
    if shown.name == dataset_info.FILE:
        return _described(source, shown, base, findings)
    if source.dataset is not None:
        findings.mistakes.append(f"{where}: dataset has no effect, this is no {dataset_info.FILE}; remove it")
    names = Names(source.format, source.columns, source.tags)
    return [Table(shown, base / shown, where, where, names, source.num_samples)]


def _described(source: ConversationSource, shown: Path, base: Path, findings: Findings) -> list[Table]:
    """The files of a dataset_info.json."""
    if not (base / shown).is_file():
        raise UserError(f"data.sources: {shown}: does not exist (looked for {base / shown})")
    stated = {"format": source.format != "auto", "columns": source.columns, "tags": source.tags}
    findings.mistakes += [
        f"data.sources: {shown}: {key} has no effect, {dataset_info.FILE} states it; remove it"
        for key, held in stated.items()
        if held
    ]
    tables = dataset_info.read_info(shown, base, source.datasets, findings)
    return [replace(one, num_samples=source.num_samples or one.num_samples) for one in tables]


def _parsed(table: Table, findings: Findings) -> Iterator[ParsedConversation]:
    """The conversations of a file, in its order."""
    _check(table)
    if stated := read_items(table.shown, table.path, findings.mistakes):
        parser = ItemParser(_item_format(table, stated), table.path.stem)
        yield from map(parser.parse, _spread(table, stated, findings))
        if parser.unread:
            keys = readable(", ".join(sorted(parser.unread)))
            findings.notes.append(f"{table.shown}: keys that nothing reads: {keys}")


def _check(table: Table) -> None:
    """Raise UserError for a file that cannot be read, or for names that there are none of."""
    mistakes = [f"{table.where}: {problem}" for problem in wrong_names(table.names)]
    # Unlike those of Path, these take names of any length.
    if problem := broken_link(table.path):
        mistakes.append(f"{table.file}: {problem}")
    elif os.path.isdir(table.path):
        mistakes.append(f"{table.file}: is a folder; name a .json or .jsonl file")
    elif not os.path.isfile(table.path):
        mistakes.append(f"{table.file}: does not exist (looked for {table.path})")
    elif table.path.suffix.lower() not in SUFFIXES:
        mistakes.append(f"{table.file}: is no {' or '.join(SUFFIXES)} file; convert it")
    if mistakes:
        raise UserError("\n".join(mistakes))


def _item_format(table: Table, stated: Sequence[JsonItem]) -> ItemFormat:
    """How the items of a file are written."""
    keys = set[str]().union(*(item.value for item in stated))
    item_format = find_format(table.names, keys, stated[0].value)
    if item_format is None:
        raise UserError(
            f"{stated[0].where}: has none of messages, conversations and instruction; "
            "state the format, and other names as columns"
        )
    problems = wrong_names(Names(item_format.format, table.names.columns, table.names.tags))
    if problems := problems or item_format.absent(keys):
        raise UserError("\n".join(f"{table.where}: {problem}" for problem in problems))
    return item_format


def _spread(table: Table, stated: Sequence[JsonItem], findings: Findings) -> Sequence[JsonItem]:
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
