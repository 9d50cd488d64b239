"""What a message says: text, placeholders and the names of files, before any file is looked up."""

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from ..json_items import brief, half_character
from .conversation import MediaKind, NamedMedia, Part, Placeholder

MARKS = re.compile("(<image>|<video>)")
AUDIO = "<audio>"
KINDS: Mapping[str, MediaKind] = {
    "image": "image",
    "image_url": "image",
    "video": "video",
    "video_url": "video",
}
"""Types of parts that show something."""


PLACEHOLDERS: Mapping[str, Placeholder] = {
    "<image>": Placeholder("image"),
    "<video>": Placeholder("video"),
}


def present(value: Mapping[str, Any]) -> dict[str, Any]:
    """What an object states: null is how tables spell that a key is absent."""
    return {key: held for key, held in value.items() if held is not None}


def unknown_keys(stated: Collection[str], known: Collection[str], thing: str) -> list[str]:
    problems = []
    for key in stated:
        if key not in known:
            near = get_close_matches(key, known, 1)
            way = f"did you mean {near[0]}?" if near else "remove it"
            problems.append(f"{key!r} is not a key of {thing}; {way}")
    return problems


def parse_parts(value: object, name: str, problems: list[str]) -> list[Part]:
    """Text with placeholders, or a list of parts."""
    if isinstance(value, str):
        return split_text(value, name, problems)
    if isinstance(value, list):
        parts: list[Part] = []
        for number, part in enumerate(value, start=1):
            found: list[str] = []
            parts += _parse_part(part, found)
            problems += [f"part {number}: {problem}" for problem in found]
        return parts
    if value is not None:
        problems.append(f"{name} is {brief(value)}, not text; put it in quotes")
    return []


def split_text(text: str, name: str, problems: list[str]) -> list[Part]:
    """Text and placeholders as they follow each other; no empty texts."""
    if problem := half_character(text):
        problems.append(f"{name} {problem}")
    if AUDIO in text:
        problems.append(f"{name} holds {AUDIO}, but audio is not trained on; remove the item")
    if "<" not in text:
        return [text] if text else []
    return [PLACEHOLDERS.get(piece, piece) for piece in MARKS.split(text) if piece]


def _parse_part(stated: object, problems: list[str]) -> list[Part]:
    if not isinstance(stated, dict):
        problems.append(f'is {brief(stated)}, not an object; write {{"type": "text", "text": "..."}}')
        return []
    part = present(stated)
    type_ = part.pop("type", None)
    if type_ == "text":
        return _text_part(part, problems)
    if isinstance(type_, str) and type_ in KINDS:
        return _media_part(KINDS[type_], part, problems)
    if isinstance(type_, str) and "audio" in type_:
        problems.append("is audio, which is not trained on; remove the item")
    elif type_ is None:
        problems.append("'type' is missing; add it: one of text, image, video")
    else:
        problems.append(f"type is {brief(type_)}; choose from text, image, video")
    return []


def _text_part(part: Mapping[str, Any], problems: list[str]) -> list[Part]:
    problems += unknown_keys(part, ("text",), "a text part")
    text = part.get("text")
    if isinstance(text, str):
        return split_text(text, "text", problems)
    problems.append("'text' is missing; add it" if text is None else f"text is {brief(text)}, not text")
    return []


def _media_part(kind: MediaKind, part: Mapping[str, Any], problems: list[str]) -> list[Part]:
    """A part that names its file, or that stands for the next file of the item's own list."""
    keys = (kind, f"{kind}_url", "path", "url")
    problems += unknown_keys(part, keys, f"{'an' if kind == 'image' else 'a'} {kind} part")
    stated = [key for key in keys if key in part]
    if len(stated) > 1:
        problems.append(f"{' and '.join(stated)} both name a file; keep one")
        return []
    if not stated:
        return [Placeholder(kind)]
    value = part[stated[0]]
    if isinstance(value, dict) and set(value) == {"url"}:
        value = value["url"]
    named = parse_media(kind, value, stated[0], problems)
    return [named] if named else []


def parse_media(kind: MediaKind, value: object, name: str, problems: list[str]) -> NamedMedia | None:
    """A picture or a clip; a clip may be a list of pictures."""
    if kind == "image" or not isinstance(value, list):
        file = _path(value, name, problems)
        return None if file is None else NamedMedia(kind, (file,))
    if not value:
        problems.append(f"{name} is an empty list; name a clip, or the pictures of one")
        return None
    files = [_path(one, f"{name}, picture {i}", problems) for i, one in enumerate(value, start=1)]
    sound = tuple(file for file in files if file is not None)
    return NamedMedia(kind, sound, pictures=True) if len(sound) == len(files) else None


def _path(value: object, name: str, problems: list[str]) -> str | None:
    if not isinstance(value, str):
        problem = f"is {brief(value)}, not a path"
    elif not value.strip():
        problem = "is blank; name a file"
    elif value.startswith(("http://", "https://")):
        problem = f"{brief(value)} is an address; download it and name the file"
    elif value.startswith("data:"):
        problem = f"{brief(value)} holds the file itself; save it and name the file"
    elif found := half_character(value):
        problem = found
    else:
        return value.removeprefix("file://")
    problems.append(f"{name} {problem}")
    return None
