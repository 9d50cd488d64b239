"""Damage of files by chance: of bytes, of lines of text, of values in a tree of lists and mappings."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10**6, 10**12, -(2**70), 0.5, -0.5, 1e-30, 1e300, "", " ", "0", "x",
    "a b", "*", "null", "..", "./", "no/such", "a/b/c", "x" * 300, "ä😀", "a:b", "os:path", "a.b", "[", "{}",
    "\t", "-", [], {}, [[]], [None], [0], [1, 2, 3], ["x"], [{}], {"": 1}, {"name": None}, {"name": "x"},
    {"a": {"b": [1]}}, "transformer", "lora", "full", "bfloat16", "16x16", "5x16x16", "0x0", "1e9", "wan",
    "vlm", "captions",
)  # fmt: skip
"""What takes the place of a value; no path leads out of the folder of a test."""
TOKENS = (
    "[", "]", "{", "}", ":", ": ", "- ", "#", "&a ", "*a", "!!set ", "!!binary ", "!x ", "? ", "|", ">", "'",
    '"', "<<: *a", "---\n", "...\n", "%YAML 1.1\n", "\t", "\x07", "\x85", "\u2028", "\ufeff", "0x_", "=", "~",
    "\\", "\\0", '"\\0"', '"\\ud800"', "1_000", "0o8", ".inf", ".nan", "1:60", "on", "9" * 5000, "[" * 300,
    "  " * 40, "2026-01-31",
)  # fmt: skip


def mutated_text(draw: random.Random, text: str) -> str:
    """Change one to three places of a text."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        lines = text.split("\n")
        i, place = draw.randrange(len(lines)), draw.randrange(len(text) + 1)
        kind = draw.randrange(8)
        if kind == 0:
            del lines[i]
        elif kind == 1:
            lines.insert(draw.randrange(len(lines) + 1), lines[i])
        elif kind == 2:
            lines[i] = lines[i][: draw.randrange(len(lines[i]) + 1)]
        elif kind == 3:
            lines[i] = " " * draw.randrange(6) + lines[i].lstrip()
        elif kind == 4 and ":" in lines[i]:
            lines[i] = lines[i].split(":")[0] + ": " + json.dumps(draw.choice(VALUES), ensure_ascii=False)
        elif kind == 5:
            lines = [*lines[:i], draw.choice(TOKENS)]
        else:
            lines = (text[:place] + draw.choice(TOKENS) + text[place + draw.randrange(3) :]).split("\n")
        text = "\n".join(lines)
    return text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each mapping or list in a value, with each of its keys."""
    keys = range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def mutated_tree(draw: random.Random, value: Any) -> Any:
    """Change one to three values, keys or places of a tree."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if not (places := list(_places(value))):
            return draw.choice(VALUES)
        holder, key = draw.choice(places)
        kind, old = draw.randrange(6), holder[key]
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            new = draw.choice((f"{key}x", str(key)[:-1], "name", str(draw.choice(places)[1])))
            holder[new] = holder.pop(key)
        elif kind == 2 and isinstance(old, int | float) and not isinstance(old, bool):
            holder[key] = draw.choice((-old, old * 2, old + 1, old / 3, str(old), [old]))
        elif kind == 3:
            holder[key] = copy.deepcopy(draw.choice(places)[0])
        else:
            holder[key] = copy.deepcopy(draw.choice(VALUES))
    return value


def mutated_bytes(draw: random.Random, held: bytes) -> bytes:
    """Flip, cut, blank, insert or replace bytes."""
    place, number = draw.randrange(len(held) + 1), 1 << draw.randrange(8)
    kind = draw.randrange(7)
    if kind == 0:
        return held[:place]
    if kind == 1:
        return held[:place] + bytes(number) + held[place + number :]
    if kind == 2:
        return held[:place] + draw.randbytes(number) + held[place:]
    if kind == 3:
        whole = (b"", b"{}", b"[]", b"null", b"\xff" * 40, b"[" * 100_000, b"0", b'"x"', b'{"a":' * 9000)
        return draw.choice(whole)
    if kind == 4:
        return held[:place] + held[place + number :]
    flipped = bytearray(held)
    for _ in range(number if held else 0):
        flipped[draw.randrange(len(held))] ^= 1 << draw.randrange(8)
    return bytes(flipped)
