"""Items of JSON and JSON lines files, each with its place in the file."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("Nested too deeply", text, 0) from None
    except ValueError as error:  # a number of more than 4300 digits
        raise json.JSONDecodeError(str(error).split(";")[0], text, 0) from None


def read_text(shown: Path, path: Path, mistakes: list[str]) -> str | None:
    """A text file; None where it is none."""
    held = path.read_bytes()
    try:
        return held.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = held.count(b"\n", 0, error.start) + 1
        mistakes.append(f"{shown}:{line}: is not UTF-8 ({error.reason}); save it as UTF-8")
        return None


def read_items(shown: Path, path: Path, mistakes: list[str]) -> list[JsonItem]:
    """All items of a file that are objects, in order."""
    before = len(mistakes)
    if path.suffix.lower() == ".jsonl":
        text = read_text(shown, path, mistakes)
        # Not splitlines: texts may hold U+2028.
        found = [] if text is None else list(of_lines(shown, text.split("\n"), mistakes))
    else:
        found = list(_of_list(shown, path, mistakes))
    if not found and len(mistakes) == before:
        mistakes.append(f"{shown}: holds no items; write at least one")
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
            value = parsed(line)
        except json.JSONDecodeError as error:
            mistakes.append(
                f"{where}: is not JSON ({error.msg} at column {error.colno}); write {shape} on each line"
            )
            continue
        if isinstance(value, dict):
            yield JsonItem(number, where, value)
        else:
            mistakes.append(f"{where}: is {brief(value)}, not an object; write {shape} on each line")


def read_json(shown: Path, path: Path, mistakes: list[str]) -> Any:
    """What a JSON file holds; None, with a mistake told, where it is none."""
    text = read_text(shown, path, mistakes)
    if text is None:
        return None
    if not text.strip():
        mistakes.append(f"{shown}: is empty; write JSON into it")
        return None
    try:
        return parsed(text)
    except json.JSONDecodeError as error:
        lines = error.msg == "Extra data"
        way = f"rename it to {shown.stem}.jsonl if each line is an item" if lines else "correct it there"
        mistakes.append(f"{shown}:{error.lineno}: is not JSON ({error.msg} at column {error.colno}); {way}")
        return None


def _of_list(shown: Path, path: Path, mistakes: list[str]) -> Iterator[JsonItem]:
    before, values = len(mistakes), read_json(shown, path, mistakes)
    if not isinstance(values, list):
        if len(mistakes) == before:
            mistakes.append(f"{shown}: is {brief(values)}, not a list; write [ before it and ] behind it")
        return
    for number, value in enumerate(values, start=1):
        where = f"{shown.as_posix()}: item {number}"
        if isinstance(value, dict):
            yield JsonItem(number, where, value)
        else:
            mistakes.append(f"{where}: is {brief(value)}, not an object; write one or remove it")
