"""Find captioned pictures and clips in folders: which files, which captions; nothing is opened."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

from ...errors import UserError
from ...files import File
from ...options import check_ranges, option
from ..json_items import read_text
from ..sources import Findings, PathSource, broken_link, is_media, kinds, listed, readable, wrong_file
from .item import Item
from .tables import METADATA, OTHERS, Row, Table, wrong_caption

SIDE_CARS = (".txt", ".caption", ".cap")
"""What a file of a caption may end with; of several the first."""
FEW = 3
"""Files without a caption that are told one by one."""


class FolderSource(PathSource):
    """What sources share that read a folder."""

    trigger: str | None
    repeats: int

    def open(self, base: Path, file: str) -> File:
        return File(base / self.path / file)

    def folder(self, base: Path) -> Path:
        """The folder. Raises UserError where it is none."""
        root = base / self.path
        if root.is_dir():
            return root
        problem = "is a file, not a folder" if root.is_file() else "does not exist"
        raise UserError(f"data.sources: {self.path}: {problem} (looked for {root})")

    def stated(
        self, base: Path, file: str, caption: str, where: str, media: Mapping[str, str]
    ) -> Iterator[Item]:
        """An item as often as it is repeated, each time with an id of its own.

        Ids begin with the folder's name; `path: .` and `path: x/..` have one too.
        """
        name = f"{Path(os.path.abspath(base / self.path)).name}/{file}"
        words = f"{self.trigger}, {caption}" if self.trigger else caption
        for i in range(self.repeats):
            yield Item(f"{name}#{i + 1}" if i else name, file, words, where, media=media)


@option
class Folder(FolderSource):
    """Pictures and clips of a folder; captions in `metadata.jsonl`, `metadata.csv` or `.txt` beside each.

    Captions as other tools write them are found too; docs/data.md says which.
    """

    name: Literal["folder"] = "folder"
    path: Path
    """Relative paths start at the folder in which the command runs."""
    media: dict[str, str] = field(default_factory=dict)
    """Columns of the metadata file that name further files of a sample, by what stages call them:
    `{control: control_file}`. A blank one is none."""
    trigger: str | None = None
    """Words that are put before each caption, with a comma."""
    default_caption: str | None = None
    """The caption of files that have none."""
    repeats: int = 1
    """How often an epoch holds each file; what the cache holds of it is shared."""

    def __post_init__(self) -> None:
        check_ranges(self, repeats="[1, inf)")

    @property
    def brings(self) -> Collection[str]:
        return self.media.keys()

    def items(self, base: Path, findings: Findings) -> Iterator[Item]:
        with findings.noted():
            yield from _Reader(self, base, self.folder(base), findings).items()


@dataclass
class _Reader:
    """Reads one folder."""

    source: Folder
    base: Path
    root: Path
    findings: Findings

    def items(self) -> Iterator[Item]:
        shown = self.source.path
        tables = {name: file for file in self.files if (name := file.lower()) in (*METADATA, *OTHERS)}
        known = [tables[name] for name in METADATA if name in tables]
        if not known and not any(self.side_cars.values()):
            known = [tables[name] for name in OTHERS if name in tables]
        if len(known) > 1:
            raise UserError(f"{shown}: holds both {known[0]} and {known[1]}; keep the one that is right")
        if known:
            return self.items_of_table(known[0])
        if self.source.media:
            raise UserError(
                f"{shown}: holds no metadata.jsonl or metadata.csv, whose columns media names; add one"
            )
        return self.items_of_side_cars()

    @cached_property
    def files(self) -> list[str]:
        return _files(self.root)

    @cached_property
    def media(self) -> list[str]:
        return [file for file in self.files if is_media(file)]

    # Tables

    def items_of_table(self, name: str) -> Iterator[Item]:
        shown, mistakes = self.source.path / name, self.findings.mistakes
        told = len(mistakes)
        named: dict[str, int] = {}
        """File -> the line that states it."""
        used = set[str]()
        columns = self.source.media.values()
        for row in Table(shown, self.root / name, columns, self.findings, self.source.default_caption).rows():
            wrong = self.wrong_values(row)
            file = "" if wrong else self.spelled(row.file)
            if file in named:
                wrong = [f"file_name {file!r} is also on line {named[file]}; keep one"]
            place = row.where if name.lower().endswith(".json") else f"{shown}:{row.number}"
            mistakes += [f"{place}: {problem}" for problem in wrong]
            if not wrong:
                named[file] = row.number
                media = {key: row.media[column] for key, column in self.source.media.items()}
                media = {key: self.spelled(one) for key, one in media.items() if one}
                used.update(media.values())
                yield from self.source.stated(self.base, file, row.caption, row.where, media)
        if len(mistakes) > told:
            return
        if not named:
            mistakes.append(f"{shown}: has no rows; add one a file, with file_name and caption")
        elif unnamed := [file for file in self.media if file not in {*named, *used}]:
            out = f"not named by {name} and left out: {listed(unnamed)}"
            self.findings.notes.append(f"{self.source.path}: {out}")

    @cached_property
    def by_spelling(self) -> Mapping[str, Sequence[str]]:
        """Loose name of a media file, with and without its suffix -> the files that may be meant."""
        found = defaultdict[str, list[str]](list)
        for file in self.media:
            found[_loose(file)].append(file)
            found[_loose(_stem(file))].append(file)
        return found

    def spelled(self, file: str) -> str:
        """The name of a file as the folder spells it, where only one can be meant."""
        plain = PurePosixPath(file).as_posix()
        if os.path.lexists(self.root / plain):
            return plain
        (only, *others) = self.by_spelling.get(_loose(plain)) or [plain]
        return plain if others else only

    def wrong_values(self, row: Row) -> list[str]:
        mistakes = []
        for key, file in (("file_name", row.file), *row.media.items()):
            path = PurePosixPath(file)
            if not file and key != "file_name":
                continue
            if path.is_absolute() or ".." in path.parts:
                mistakes.append(f"{key} {file!r} leaves the folder; move the file into it")
            elif problem := wrong_file(self.root, self.spelled(file)):
                mistakes.append(f"{key} {file!r} {problem}")
        if problem := wrong_caption(row.file, row.caption, "write one or remove the line"):
            mistakes.append(problem)
        return mistakes

    # Captions beside their files

    @cached_property
    def side_cars(self) -> dict[str, str | None]:
        """Media file -> the file of its caption: of the same name, or of that in other case or form."""
        there = {file for file in self.files if PurePosixPath(file).suffix.lower() in SIDE_CARS}
        found: dict[str, str | None] = {}
        for file in self.media:
            names = (f"{base}{suffix}" for suffix in SIDE_CARS for base in (_stem(file), file))
            found[file] = next((name for name in names if name in there), None)
        loose = defaultdict[str, list[str]](list)
        for car in sorted(there.difference(filter(None, found.values()))):
            loose[_loose(car)].append(car)
        for file in (file for file, car in found.items() if car is None):
            names = (_loose(f"{base}{suffix}") for suffix in SIDE_CARS for base in (_stem(file), file))
            found[file] = next((loose[name][0] for name in names if len(loose.get(name, ())) == 1), None)
        return found

    def items_of_side_cars(self) -> Iterator[Item]:
        shown = self.source.path
        if not self.media:
            raise UserError(f"{shown}: holds no pictures or clips; put {kinds()} files there")
        cars = set(self.side_cars.values())
        if unread := [file for file in self.files if not is_media(file) and file not in cars]:
            out = f"neither media nor their captions, left out: {listed(unread)}"
            self.findings.notes.append(f"{shown}: {out}")
        self.tell_missing()
        for file, car in self.side_cars.items():
            where = readable((shown / (car or file)).as_posix())
            with self.findings.noted():
                if problem := broken_link(self.root / file):
                    raise UserError(f"{readable(self.source.path / file)}: {problem}")
                caption = read_text(where, self.root / car).strip() if car else ""
                caption = caption or self.source.default_caption or ""
                if car and not caption:
                    raise UserError(f"{where}:1: {wrong_caption(file, caption, 'write one')}")
                if caption:
                    yield from self.source.stated(self.base, file, caption, where, {})

    def tell_missing(self) -> None:
        """Note the files without a caption: a few one by one, many in one line."""
        if self.source.default_caption:
            return
        shown = self.source.path
        lacking = [f for f, car in self.side_cars.items() if not car and not broken_link(self.root / f)]
        if len(lacking) > FEW:
            self.findings.mistakes.append(
                f"{readable(shown)}: {len(lacking)} files have no caption: {listed(lacking)}; write a .txt "
                "beside each, name them in metadata.jsonl, or state default_caption"
            )
            return
        for file in lacking:
            car = readable((shown / f"{_stem(file)}.txt").as_posix())
            out = f"write one to {car} or name the file in metadata.jsonl"
            self.findings.mistakes.append(f"{readable(shown / file)}: has no caption; {out}")


def _stem(file: str) -> str:
    return PurePosixPath(file).with_suffix("").as_posix()


def _loose(name: str) -> str:
    """A name without what differs between systems: case, and how accents are composed."""
    return unicodedata.normalize("NFC", name).casefold()


def _files(root: Path) -> list[str]:
    """All files, and links that lead nowhere, below a folder, relative to it, sorted, without hidden ones."""
    return sorted(Path(path).relative_to(root).as_posix() for path in _walked(str(root), frozenset()))


def _walked(folder: str, above: frozenset[str]) -> Iterator[str]:
    """Paths of files, through links to folders too, except into a folder that `above` is within."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry.path):  # unlike DirEntry.is_dir, takes links that lead to themselves
            yield from _walked(entry.path, above | {here})
        elif os.path.isfile(entry.path) or entry.is_symlink():
            yield entry.path
