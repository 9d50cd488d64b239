"""Find captioned pictures and clips in folders: which files, which captions; nothing is opened."""

import csv
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ...errors import UserError
from ...files import File
from ...options import option
from ..json_items import JsonItem, did_you_mean, half_character, of_lines, read_text
from ..sources import Findings, PathSource, broken_link, is_media, kinds, listed, readable, wrong_file
from .item import Item

CAPTIONS = ("caption", "text", "prompt")
"""What the column of captions may be called."""
METADATA = ("metadata.jsonl", "metadata.csv")


class FolderSource(PathSource):
    """What sources share that read a folder."""

    def open(self, base: Path, file: str) -> File:
        return File(base / self.path / file)

    def folder(self, base: Path) -> Path:
        """The folder. Raises UserError where it is none."""
        root = base / self.path
        if root.is_dir():
            return root
        problem = "is a file, not a folder" if root.is_file() else "does not exist"
        raise UserError(f"data.sources: {self.path}: {problem} (looked for {root})")

    def item(self, base: Path, file: str, caption: str, where: str, media: Mapping[str, str]) -> Item:
        """An item, whose id begins with the folder's name; `path: .` and `path: x/..` have one too."""
        name = Path(os.path.abspath(base / self.path)).name
        return Item(f"{name}/{file}", file, caption, where, media=media)


@option
class Folder(FolderSource):
    """Pictures and clips of a folder; captions in `metadata.jsonl`, `metadata.csv` or `.txt` beside each."""

    name: Literal["folder"] = "folder"
    path: Path
    """Relative paths start at the folder in which the command runs."""
    media: dict[str, str] = field(default_factory=dict)
    """Columns of the metadata file that name further files of a sample, by what stages call them:
    `{control: control_file}`. A blank one is none."""

    @property
    def brings(self) -> Collection[str]:
        return self.media.keys()

    def items(self, base: Path, findings: Findings) -> Iterator[Item]:
        with findings.noted():
            yield from _Reader(self, base, self.folder(base), findings).items()


@dataclass(frozen=True)
class _Reader:
    """Reads one folder."""

    source: Folder
    base: Path
    root: Path
    findings: Findings

    def items(self) -> Iterator[Item]:
        shown, files = self.source.path, _files(self.root)
        tables = [name for name in METADATA if (self.root / name).is_file()]
        if len(tables) == 2:
            raise UserError(
                f"{shown}: holds both metadata.jsonl and metadata.csv; keep the one that is right"
            )
        if tables:
            return self.items_of_table(tables[0], files)
        if self.source.media:
            raise UserError(
                f"{shown}: holds no metadata.jsonl or metadata.csv, whose columns media names; add one"
            )
        return self.items_of_side_cars(files)

    # metadata.jsonl and metadata.csv

    def items_of_table(self, name: str, files: list[str]) -> Iterator[Item]:
        shown, mistakes = self.source.path / name, self.findings.mistakes
        told = len(mistakes)
        named: dict[str, int] = {}
        """File -> the line that states it."""
        used = set[str]()
        for stated in self.rows(shown, self.root / name):
            row = stated.value
            wrong = self.wrong_columns(row) or self.wrong_values(row)
            file = "" if wrong else PurePosixPath(row["file_name"]).as_posix()
            if file in named:
                wrong = [f"file_name {file!r} is also on line {named[file]}; keep one"]
            mistakes += [f"{shown}:{stated.number}: {problem}" for problem in wrong]
            if not wrong:
                named[file] = stated.number
                media = {key: row[column] for key, column in self.source.media.items() if row[column]}
                used.update(media.values())
                yield self.source.item(self.base, file, _caption(row).strip(), stated.where, media)
        if len(mistakes) > told:
            return
        if not named:
            mistakes.append(f"{shown}: has no rows; add one a file, with file_name and caption")
        elif unnamed := [file for file in files if is_media(file) and file not in {*named, *used}]:
            out = f"not named by {name} and left out: {listed(unnamed)}"
            self.findings.notes.append(f"{self.source.path}: {out}")

    def rows(self, shown: Path, path: Path) -> Iterator[JsonItem]:
        """The rows of either kind of table, read one by one."""
        try:
            with path.open(encoding="utf-8-sig", newline="") as lines:
                if path.suffix == ".csv":
                    yield from self.csv_rows(shown, lines)
                else:
                    shape = '{"file_name": "a.png", "caption": "..."}'
                    yield from of_lines(shown, lines, self.findings.mistakes, shape)
        except UnicodeDecodeError as error:
            raise UserError(f"{shown}: is not UTF-8 ({error.reason}); save it as UTF-8") from error
        except csv.Error as error:
            raise UserError(f"{shown}: is not CSV ({error}); write it anew") from error

    def csv_rows(self, shown: Path, lines: Iterable[str]) -> Iterator[JsonItem]:
        reader = csv.reader(lines)
        columns = next(reader, [])
        if wrong := self.wrong_columns(columns):
            raise UserError("\n".join(f"{shown}:1: {mistake}" for mistake in wrong))
        for cells in filter(None, reader):
            where = f"{shown.as_posix()}:{reader.line_num}"
            if len(cells) == len(columns):
                yield JsonItem(reader.line_num, where, dict(zip(columns, cells, strict=True)))
            else:
                self.findings.mistakes.append(
                    f"{where}: {len(columns)} columns but a row of {len(cells)}; "
                    "put captions with commas in double quotes"
                )

    def wrong_columns(self, columns: Collection[str]) -> list[str]:
        """What is wrong with the names of the columns of a table or the keys of a row."""
        media = self.source.media.values()
        known = ("file_name", *CAPTIONS, *media)
        other = "remove it, or rename it to file_name or caption"
        mistakes = [
            f"{column!r} is not a column; {did_you_mean(column, known, other)}"
            for column in columns
            if column not in known
        ]
        if "file_name" not in columns:
            mistakes.append("file_name is missing; add it, relative to the folder")
        mistakes += [f"{column} is missing, which media names" for column in media if column not in columns]
        captions = [column for column in columns if column in CAPTIONS]
        if not captions:
            mistakes.append(f"the caption is missing; add one of {', '.join(CAPTIONS)}")
        if len(captions) > 1:
            mistakes.append(f"{' and '.join(captions)} are both captions; keep one")
        return mistakes

    def wrong_values(self, row: Mapping[str, Any]) -> list[str]:
        wrong = [f"{key} is {value!r}, not text" for key, value in row.items() if not isinstance(value, str)]
        if wrong:
            return wrong
        mistakes = []
        for key in ("file_name", *self.source.media.values()):
            file = row[key]
            path = PurePosixPath(file)
            if not file and key != "file_name":
                continue
            if path.is_absolute() or ".." in path.parts:
                mistakes.append(f"{key} {file!r} leaves the folder; move the file into it")
            elif problem := wrong_file(self.root, file):
                mistakes.append(f"{key} {file!r} {problem}")
        file, caption = row["file_name"], _caption(row)
        if not caption.strip():
            mistakes.append(f"the caption of {file!r} is blank; write one or remove the line")
        if problem := half_character(caption):
            mistakes.append(f"the caption of {file!r} {problem}")
        return mistakes

    # Side-car .txt files

    def items_of_side_cars(self, files: list[str]) -> Iterator[Item]:
        shown = self.source.path
        found = [file for file in files if is_media(file)]
        if not found:
            raise UserError(f"{shown}: holds no pictures or clips; put {kinds()} files there")
        cars = {_side_car(file) for file in found}
        if unread := [file for file in files if not is_media(file) and file not in cars]:
            out = f"neither media nor their captions, left out: {listed(unread)}"
            self.findings.notes.append(f"{shown}: {out}")
        for file in found:
            with self.findings.noted():
                where = readable((shown / _side_car(file)).as_posix())
                yield self.source.item(self.base, file, self.side_caption(file, where), where, {})

    def side_caption(self, file: str, where: str) -> str:
        car = self.root / _side_car(file)
        problem = broken_link(self.root / file)
        if problem is None and not car.is_file():
            problem = f"has no caption; write one to {where} or name the file in metadata.jsonl"
        if problem:
            raise UserError(f"{readable(self.source.path / file)}: {problem}")
        if caption := read_text(where, car).strip():
            return caption
        raise UserError(f"{where}:1: the caption of {file!r} is blank; write one")


def _side_car(file: str) -> str:
    return PurePosixPath(file).with_suffix(".txt").as_posix()


def _caption(row: Mapping[str, str]) -> str:
    return next(row[key] for key in CAPTIONS if key in row)


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
