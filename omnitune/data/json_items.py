"""Text files, and the items of JSON and JSON lines files, each with its place in the file."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import parse_json

SUFFIXES = (".json", ".jsonl")
HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class JsonItem:
    """An item of a file."""

    number: int
    """Its place in the list, from 1; its line, in a file of lines."""
    where: str
    value: dict[str, Any]


def brief(value: object) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def half_character(text: str) -> str | None:
    """What is wrong with text that cannot be written: a surrogate stands for half a character."""
    found = None if text.isascii() else HALF.search(text)
    return f"holds {found[0]!r}, half a character; write the whole one" if found else None


def parsed(text: str) -> Any:
    """What JSON spells; whatever is wrong with it is a JSONDecodeError."""
    try:
        return parse_json(text)
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # nested too deeply, or a number of more than 4300 digits
        raise json.JSONDecodeError(str(error).split(";")[0], text, 0) from None


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """The way out of an unknown name: a known one that is near, or what else to do."""
    near = get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]}?" if near else otherwise


def read_text(shown: Path | str, path: Path) -> str:
    """Read a text file. Raises UserError with the first line that is no text."""
    held = path.read_bytes()
    try:
        return held.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = held.count(b"\n", 0, error.start) + 1
        raise UserError(f"{shown}:{line}: is not UTF-8 ({error.reason}); save it as UTF-8") from error


def read_items(shown: Path, path: Path, mistakes: list[str]) -> list[JsonItem]:
    """All items of a file that are objects, in order. Raises UserError for a file that holds none."""
    before = len(mistakes)
    if path.suffix.lower() == ".jsonl":
        # Not splitlines: texts may hold U+2028.
        found = list(of_lines(shown, read_text(shown, path).split("\n"), mistakes))
    else:
        values = read_json(shown, path)
        if not isinstance(values, list):
            raise UserError(f"{shown}: is {brief(values)}, not a list; write [ before it and ] behind it")
        found = []
        for number, value in enumerate(values, start=1):
            where = f"{shown.as_posix()}: item {number}"
            found += _object(number, where, value, "write one or remove it", mistakes)
    if not found and len(mistakes) == before:
        raise UserError(f"{shown}: holds no items; write at least one")
    return found


def of_lines(
    shown: Path, lines: Iterable[str], mistakes: list[str], shape: str = "one object"
) -> Iterator[JsonItem]:
    """The objects of JSON lines, one after the other; blank lines are none. Mistakes tell the `shape`."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{shown.as_posix()}:{number}"
        try:
            yield from _object(number, where, parsed(line), f"write {shape} on each line", mistakes)
        except json.JSONDecodeError as error:
            mistakes.append(
                f"{where}: is not JSON ({error.msg} at column {error.colno}); write {shape} on each line"
            )


def _object(number: int, where: str, value: Any, way: str, mistakes: list[str]) -> Iterator[JsonItem]:
    """The item, unless it is no object, which is told with the way out."""
    if isinstance(value, dict):
        yield JsonItem(number, where, value)
    else:
        mistakes.append(f"{where}: is {brief(value)}, not an object; {way}")


def read_json(shown: Path, path: Path) -> Any:
    """What a JSON file holds. Raises UserError where it is none."""
    text = read_text(shown, path)
    if not text.strip():
        raise UserError(f"{shown}: is empty; write JSON into it")
    try:
        return parsed(text)
    except json.JSONDecodeError as error:
        lines = error.msg == "Extra data"
        way = f"rename it to {shown.stem}.jsonl if each line is an item" if lines else "correct it there"
        raise UserError(
            f"{shown}:{error.lineno}: is not JSON ({error.msg} at column {error.colno}); {way}"
        ) from error
