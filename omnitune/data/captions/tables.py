"""Read tables of captions in folders, as this and other tools write them: JSON lines, JSON, CSV."""

import csv
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..json_items import JsonItem, half_character, of_lines, read_json
from ..sources import Findings, readable

METADATA = ("metadata.jsonl", "metadata.csv")
OTHERS = ("metadata.json", "captions.jsonl", "captions.json", "captions.csv")
"""Tables that are read where no caption lies beside a file."""
FILES = (
    "file_name", "file", "filename", "file_path", "filepath", "path", "image", "video", "media",
    "image_path", "video_path", "image_file", "video_file",
)  # fmt: skip
"""What the column of files may be called; beside the first, the others are not read."""
CAPTIONS = ("caption", "text", "prompt")
"""What the column of captions may be called."""
OTHER_CAPTIONS = ("captions", "description", "tags")
"""What stands for it where there is none of those."""


@dataclass(frozen=True)
class Row:
    """What a row of a table states."""

    number: int
    where: str
    file: str
    caption: str
    media: Mapping[str, str]
    """Column -> file of those that `media` of the source names."""


@dataclass
class Table:
    """A table of captions."""

    shown: Path
    path: Path
    media: Collection[str]
    """Columns that name further files."""
    findings: Findings
    default: str | None = None
    """The caption of rows without one."""
    unread: set[str] = field(default_factory=set)
    """Columns that nothing reads."""

    def rows(self) -> Iterator[Row]:
        """The rows that are right, one by one; what is wrong with others is added to the findings."""
        for stated in self.stated():
            columns, wrong = self.columns(stated.value)
            if not wrong:
                texts = {key: stated.value[key] for key in (*columns, *self.media)}
                wrong = [f"{key} is {value!r}, not text" for key, value in texts.items()
                         if not isinstance(value, str)]  # fmt: skip
            if wrong:
                place = f"{self.shown.as_posix()}:{stated.number}"
                place = stated.where if self.path.suffix.lower() == ".json" else place
                self.findings.mistakes += [f"{place}: {problem}" for problem in wrong]
                continue
            file, *captions = (stated.value[column] for column in columns)
            caption = "".join(captions).strip() or self.default or ""
            media = {column: stated.value[column] for column in self.media}
            yield Row(stated.number, stated.where, file, caption, media)
        if self.unread:
            keys = readable(", ".join(sorted(self.unread)))
            self.findings.notes.append(f"{self.shown}: columns that nothing reads: {keys}")

    def stated(self) -> Iterator[JsonItem]:
        """The rows of either kind of table, as they stand."""
        suffix = self.path.suffix.lower()
        if suffix == ".json":
            yield from self.json_rows()
            return
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as lines:
                if suffix == ".csv":
                    yield from self.csv_rows(lines)
                else:
                    shape = '{"file_name": "a.png", "caption": "..."}'
                    yield from of_lines(self.shown, lines, self.findings.mistakes, shape)
        except UnicodeDecodeError as error:
            raise UserError(f"{self.shown}: is not UTF-8 ({error.reason}); save it as UTF-8") from error
        except csv.Error as error:
            raise UserError(f"{self.shown}: is not CSV ({error}); write it anew") from error

    def csv_rows(self, lines: Iterable[str]) -> Iterator[JsonItem]:
        reader = csv.reader(lines)
        names = [name.strip() for name in next(reader, [])]
        if wrong := self.columns(names)[1]:
            raise UserError("\n".join(f"{self.shown}:1: {mistake}" for mistake in wrong))
        for cells in filter(None, reader):
            where = f"{self.shown.as_posix()}:{reader.line_num}"
            if len(cells) == len(names):
                yield JsonItem(reader.line_num, where, dict(zip(names, cells, strict=True)))
            else:
                self.findings.mistakes.append(
                    f"{where}: {len(names)} columns but a row of {len(cells)}; "
                    "put captions with commas in double quotes"
                )

    def json_rows(self) -> Iterator[JsonItem]:
        """A list of objects, or a mapping from files to captions, or to objects that have one."""
        held = read_json(self.shown, self.path)
        if isinstance(held, dict):
            held = [_row_of(file, value) for file, value in held.items()]
        if not isinstance(held, list):
            raise UserError(f"{self.shown}: is neither a list nor a mapping of files; write one of both")
        for number, value in enumerate(held, start=1):
            where = f"{self.shown.as_posix()}: item {number}"
            if isinstance(value, dict):
                yield JsonItem(number, where, value)
            else:
                self.findings.mistakes.append(f"{where}: is {value!r:.40}, not an object; write one")

    def columns(self, names: Collection[str]) -> tuple[list[str], list[str]]:
        """The columns of the file and of its caption, and what is wrong with them."""
        free = [name for name in names if name not in self.media]
        files = [name for name in free if name in FILES]
        files = ["file_name"] if "file_name" in files else files
        captions = [name for name in free if name in CAPTIONS]
        captions = captions or [name for name in free if name in OTHER_CAPTIONS][:1]
        other = [name for name in free if name not in (*FILES, *captions)]
        lacking = [*([] if files else ["file_name"]), *([] if captions or self.default else CAPTIONS)]
        wrong = [
            f"{name!r} is not a column; did you mean {near[0]}?"
            for name in other
            if (near := get_close_matches(name, lacking, 1))
        ]
        if not files:
            wrong.append("file_name is missing; add it, relative to the folder")
        wrong += [f"{name} is missing, which media names" for name in self.media if name not in names]
        if not captions and not self.default:
            wrong.append(f"the caption is missing; add one of {', '.join(CAPTIONS)}")
        for several, what in ((files, "files"), (captions, "captions")):
            if len(several) > 1:
                wrong.append(f"{' and '.join(several)} are both {what}; keep one")
        if not wrong:
            self.unread.update(name for name in free if name not in (*files, *captions))
        return [*files, *captions], wrong


def _row_of(file: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {**value, "file_name": file}
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    return {"file_name": file, "caption": value}


def wrong_caption(file: str, caption: str, way: str) -> str | None:
    """What is wrong with a caption, with the way out of a blank one."""
    if not caption.strip():
        return f"the caption of {file!r} is blank; {way}"
    problem = half_character(caption)
    return problem and f"the caption of {file!r} {problem}"
