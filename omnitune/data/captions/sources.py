"""Find captioned pictures and clips: which files, which captions, which sizes; nothing is decoded."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Literal

from ...errors import UserError
from ...files import Hashes
from ...options import option
from . import lists as line_lists
from .entries import (
    Entry,
    Findings,
    broken_link,
    folder_name,
    is_media,
    is_text,
    kinds,
    probed,
    readable,
    wrong_file,
)
from .item import Item

CAPTIONS = ("caption", "text", "prompt")
"""What the column of captions may be called."""
METADATA = ("metadata.jsonl", "metadata.csv")


@option
class Folder:
    """Pictures and clips of a folder; captions in `metadata.jsonl`, `metadata.csv` or `.txt` beside each."""

    name: Literal["folder"] = "folder"
    path: Path
    """Relative paths start at the folder in which the command runs."""


@dataclass(frozen=True)
class Scan:
    """What sources hold, and what the user should see about it."""

    items: list[Item]
    notes: list[str]


Source = Folder | line_lists.LineLists


def scan(sources: Sequence[Source], base: Path, memo: Hashes) -> Scan:
    """Read all sources in order; every mistake in any of them is in the one error.

    `memo` remembers what files hold: one that did not change is not opened again.
    """
    findings = Findings([], [])
    items: list[Item] = []
    for source in sources:
        root = base / source.path
        if root.is_dir():
            if isinstance(source, Folder):
                entries = _read_folder(source, root, findings)
            else:
                entries = line_lists.read(source, root, findings)
            items += probed(root, entries, findings, memo)
        else:
            problem = "is a file, not a folder" if root.is_file() else "does not exist"
            findings.mistakes.append(f"data.sources: {source.path}: {problem} (looked for {root})")
    findings.mistakes += _shared_ids(sources, base, items)
    if findings.mistakes:
        raise UserError("\n".join(findings.mistakes))
    return Scan(items, findings.notes)


def _read_folder(source: Folder, root: Path, findings: Findings) -> list[Entry]:
    files = _files(root)
    tables = [name for name in METADATA if (root / name).is_file()]
    if len(tables) == 2:
        findings.mistakes.append(
            f"{source.path}: holds both metadata.jsonl and metadata.csv; keep the one that is right"
        )
        return []
    if tables:
        return _from_table(source.path, root, tables[0], files, findings)
    return _from_side_cars(source.path, root, files, findings)


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


# metadata.jsonl and metadata.csv


def _from_table(shown: Path, root: Path, name: str, files: list[str], findings: Findings) -> list[Entry]:
    stated = len(findings.mistakes)
    rows = _json_rows if name.endswith("jsonl") else _csv_rows
    try:
        entries = list(_entries(shown / name, root, rows(shown / name, root / name, findings), findings))
    except UnicodeDecodeError as error:
        findings.mistakes.append(f"{shown / name}: is not UTF-8 ({error.reason}); save it as UTF-8")
        return []
    except csv.Error as error:
        findings.mistakes.append(f"{shown / name}: is not CSV ({error}); write it anew")
        return []
    if not entries and len(findings.mistakes) == stated:
        findings.mistakes.append(f"{shown / name}: has no rows; add one a file, with file_name and caption")
    known = {entry.file for entry in entries}
    unnamed = [file for file in files if is_media(file) and file not in known]
    if unnamed and len(findings.mistakes) == stated:
        findings.notes.append(f"{shown}: not named by {name} and left out: {listed(unnamed)}")
    return entries


def _json_rows(shown: Path, path: Path, findings: Findings) -> Iterator[tuple[int, dict[str, object]]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                findings.mistakes.append(
                    f"{shown}:{number}: is not JSON ({error.msg} at column {error.colno}); "
                    'write {"file_name": "a.png", "caption": "..."} on one line'
                )
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                findings.mistakes.append(
                    f"{shown}:{number}: {line.strip()[:40]!r} is not an object; "
                    'write {"file_name": "a.png", "caption": "..."}'
                )


def _csv_rows(shown: Path, path: Path, findings: Findings) -> Iterator[tuple[int, dict[str, object]]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines)
        columns = next(reader, [])
        if mistakes := _wrong_columns(columns):
            findings.mistakes += [f"{shown}:1: {mistake}" for mistake in mistakes]
            return
        for cells in reader:
            if not cells:
                continue
            if len(cells) == len(columns):
                yield reader.line_num, dict(zip(columns, cells, strict=True))
            else:
                findings.mistakes.append(
                    f"{shown}:{reader.line_num}: {len(columns)} columns but a row of {len(cells)}; "
                    "put captions with commas in double quotes"
                )


def _wrong_columns(columns: Sequence[str]) -> list[str]:
    """What is wrong with the names of the columns of a table or the keys of a row."""
    mistakes = []
    for column in columns:
        if column not in ("file_name", *CAPTIONS):
            near = get_close_matches(column, ("file_name", *CAPTIONS), 1)
            hint = f"did you mean {near[0]}?" if near else "remove it, or rename it to file_name or caption"
            mistakes.append(f"{column!r} is not a column; {hint}")
    if "file_name" not in columns:
        mistakes.append("file_name is missing; add it, relative to the folder")
    captions = [column for column in columns if column in CAPTIONS]
    if not captions:
        mistakes.append(f"the caption is missing; add one of {', '.join(CAPTIONS)}")
    if len(captions) > 1:
        mistakes.append(f"{' and '.join(captions)} are both captions; keep one")
    return mistakes


def _entries(
    shown: Path, root: Path, rows: Iterator[tuple[int, dict[str, object]]], findings: Findings
) -> Iterator[Entry]:
    lines: dict[str, int] = {}
    for number, row in rows:
        mistakes = _wrong_columns(list(row)) or _wrong_values(root, row)
        if mistakes:
            findings.mistakes += [f"{shown}:{number}: {mistake}" for mistake in mistakes]
            continue
        file = PurePosixPath(str(row["file_name"])).as_posix()
        if file in lines:
            findings.mistakes.append(
                f"{shown}:{number}: file_name {file!r} is also on line {lines[file]}; keep one"
            )
            continue
        lines[file] = number
        yield Entry(file, _caption(row).strip(), f"{shown.as_posix()}:{number}")


def _caption(row: dict[str, object]) -> str:
    return next(str(row[key]) for key in CAPTIONS if key in row)


def _wrong_values(root: Path, row: dict[str, object]) -> list[str]:
    mistakes = [f"{key} is {value!r}, not text" for key, value in row.items() if not isinstance(value, str)]
    if mistakes:
        return mistakes
    file = str(row["file_name"])
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        mistakes.append(f"file_name {file!r} leaves the folder; move the file into it")
    elif problem := wrong_file(root, file):
        mistakes.append(f"file_name {file!r} {problem}")
    caption = _caption(row)
    if not caption.strip():
        mistakes.append(f"the caption of {file!r} is blank; write one or remove the line")
    if not is_text(caption):
        half = next(character for character in caption if not is_text(character))
        mistakes.append(f"the caption of {file!r} holds {half!r}, half a character; write the whole one")
    return mistakes


# Side-car .txt files


def _from_side_cars(shown: Path, root: Path, files: list[str], findings: Findings) -> list[Entry]:
    found = [file for file in files if is_media(file)]
    if not found:
        findings.mistakes.append(f"{shown}: holds no pictures or clips; put {kinds()} files there")
        return []
    entries = [entry for file in found if (entry := _side_car(shown, root, file, findings))]
    cars = {_beside(file) for file in found}
    if unread := [file for file in files if not is_media(file) and file not in cars]:
        findings.notes.append(f"{shown}: neither media nor their captions, left out: {listed(unread)}")
    return entries


def _beside(file: str) -> str:
    return PurePosixPath(file).with_suffix(".txt").as_posix()


def _side_car(shown: Path, root: Path, file: str, findings: Findings) -> Entry | None:
    car = _beside(file)
    where = readable((shown / car).as_posix())
    problem = broken_link(root / file)
    if problem is None and not (root / car).is_file():
        problem = f"has no caption; write one to {where} or name the file in metadata.jsonl"
    if problem:
        findings.mistakes.append(f"{readable(shown / file)}: {problem}")
        return None
    try:
        caption = (root / car).read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        findings.mistakes.append(f"{where}: is not UTF-8 ({error.reason}); save it as UTF-8")
        return None
    if not caption:
        findings.mistakes.append(f"{where}:1: the caption of {file!r} is blank; write one")
        return None
    return Entry(file, caption, where)


def _shared_ids(sources: Sequence[Source], base: Path, items: list[Item]) -> list[str]:
    """Name the sources that give the same ids: the cache could not tell their items apart."""
    names = [folder_name(base / source.path) for source in sources]
    shared = Counter(item.id for item in items)
    mistakes = []
    for name in dict.fromkeys(names):
        ids = [key for key, count in shared.items() if count > 1 and key.split("/")[0] == name]
        if ids:
            paths = " and ".join(str(s.path) for s, own in zip(sources, names, strict=True) if own == name)
            mistakes.append(
                f"data.sources: {paths} both hold {listed(ids)}; rename one folder, or list it once"
            )
    return mistakes


def listed(names: Sequence[str]) -> str:
    """Up to three names and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return readable(", ".join(names[:3])) + more
