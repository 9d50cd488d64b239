"""Messages as a file states them: text, names of files, calls; before any file is looked up."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from ..json_items import brief, did_you_mean, half_character, parsed
from .conversation import MediaKind, NamedMedia, ParsedMessage, Part, Placeholder, Role
from .formats import ItemFormat

NOT_READ = ("name", "tool_call_id")
"""Keys of messages that are left out: calls and what tools give follow each other in order."""
KEYS = ("train", "weight", "tool_calls", *NOT_READ)
"""What messages may hold beside who says what."""
MARKS = re.compile(r"(\\*<(?:image|video|audio)>)")
ESCAPE = "\\"
"""Before a placeholder in a plain text: it is meant as text. The first one of several goes."""
AUDIO = "<audio>"
DEEPEST = 100
"""Lists and objects inside each other in a call or a tool."""
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
    return [
        f"{key!r} is not a key of {thing}; {did_you_mean(key, known, 'remove it')}"
        for key in stated
        if key not in known
    ]


def parse_message(
    stated: object, item_format: ItemFormat, problems: list[str], unread: set[str]
) -> ParsedMessage | None:
    """Parse one message of a list."""
    if not isinstance(stated, dict):
        problems.append(f"is {brief(stated)}, not an object; write {item_format.example}")
        return None
    message, before = present(stated), len(problems)
    said, content = message.get(item_format.role_tag), message.get(item_format.content_tag)
    # Most messages hold these two alone, and there are many messages.
    plain = len(message) == 2 and said is not None and content is not None
    more = () if plain else message.keys() - {item_format.role_tag, item_format.content_tag}
    unread.update(key for key in more if key in NOT_READ)
    problems += unknown_keys(
        sorted(more), (item_format.content_tag, item_format.role_tag, *KEYS), "a message"
    )
    kind = item_format.roles.get(said) if isinstance(said, str) else None
    if kind is None:
        problems.append(_wrong_role(said, item_format))
        return None
    role: Role = "assistant" if kind == "call" else kind
    calls = message.get("tool_calls") or None
    train = _train(message, role, problems) if more else None
    if calls is not None and kind != "assistant":
        problems.append(f"tool_calls stand in a message of {said}; only an answer has them")
    elif content is None and calls is None:
        problems.append(f"{item_format.content_tag!r} is missing; add it")
    if kind == "call":
        calls, content = content, None
    parts = parse_parts(content, item_format.content_tag, problems)
    found = ParsedMessage(role, parts, train, read_calls(calls, problems) if calls else ())
    if len(problems) == before and (problem := wrong_message(found)):
        problems.append(problem)
    return found


def _wrong_role(said: object, item_format: ItemFormat) -> str:
    known = ", ".join(item_format.roles)
    if said is None:
        return f"{item_format.role_tag!r} is missing; add it: one of {known}"
    return f"{item_format.role_tag} is {brief(said)}; choose from {known}, or state other names as tags"


def _train(message: Mapping[str, Any], role: Role, problems: list[str]) -> bool | None:
    """Whether a message is learned, where it says so."""
    stated = [key for key in ("train", "weight") if key in message]
    if not stated:
        return None
    key, value = stated[0], message[stated[0]]
    if len(stated) == 2:
        problems.append("train and weight say the same thing; keep one")
    elif role != "assistant":
        problems.append(f"{key} stands in a message of {role}; only answers are learned: remove it")
    elif key == "train" and not isinstance(value, bool):
        problems.append(f"train is {brief(value)}; write true or false")
    elif key == "weight" and (isinstance(value, bool) or value not in (0, 1)):
        problems.append(f"weight is {brief(value)}; write 0 or 1")
    return bool(value)


def wrong_message(message: ParsedMessage) -> str | None:
    """What is wrong with what a message says."""
    texts = [part for part in message.parts if isinstance(part, str)]
    shows = len(texts) < len(message.parts)
    if message.role == "system" and shows:
        return "a system message shows nothing; put what it shows where user speaks"
    if message.tool_calls or "".join(texts).strip():
        return None
    if message.role == "assistant":
        return "the answer is empty; write one or remove the item"
    return None if shows else f"what {message.role} says is empty; write something or remove it"


# Parts


def parse_parts(value: object, name: str, problems: list[str]) -> list[Part]:
    """Text with placeholders, or a list of parts."""
    if isinstance(value, str):
        return _split_text(value, name, problems)
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


def _split_text(text: str, name: str, problems: list[str]) -> list[Part]:
    """Text and placeholders as they follow each other; no empty texts."""
    parts: list[Part] = []
    pieces = MARKS.split(text) if "<" in text else [text]
    if AUDIO in pieces:
        problems.append(f"{name} holds {AUDIO}, but audio is not trained on; remove the item")
    for piece in pieces:
        if piece in PLACEHOLDERS:
            parts.append(PLACEHOLDERS[piece])
        else:
            parts += _text(piece[1:] if piece.startswith(ESCAPE) and MARKS.fullmatch(piece) else piece)
    if problem := half_character(text):
        problems.append(f"{name} {problem}")
    return _joined(parts)


def _text(text: str) -> list[Part]:
    return [text] if text else []


def _joined(parts: list[Part]) -> list[Part]:
    """Texts that follow each other as one."""
    joined: list[Part] = []
    for part in parts:
        if joined and isinstance(part, str) and isinstance(last := joined[-1], str):
            joined[-1] = last + part
        else:
            joined.append(part)
    return joined


def _parse_part(stated: object, problems: list[str]) -> list[Part]:
    if not isinstance(stated, dict):
        problems.append(f'is {brief(stated)}, not an object; write {{"type": "text", "text": "..."}}')
        return []
    part = present(stated)
    type_ = part.pop("type", None)
    if isinstance(type_, str) and type_ in KINDS:
        return _media_part(KINDS[type_], part, problems)
    if type_ == "text":
        problems += unknown_keys(part, ("text",), "a text part")
        text = part.get("text")
        if isinstance(text, str):
            # A placeholder here would be a part of its own: what spells one is text.
            problems += [f"text {problem}"] if (problem := half_character(text)) else []
            return _text(text)
        problems.append("'text' is missing; add it" if text is None else f"text is {brief(text)}, not text")
    elif isinstance(type_, str) and "audio" in type_:
        problems.append("is audio, which is not trained on; remove the item")
    elif type_ is None:
        problems.append("'type' is missing; add it: one of text, image, video")
    else:
        problems.append(f"type is {brief(type_)}; choose from text, image, video")
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
    return [*parse_media(kind, value, stated[0], problems)]


def parse_media(kind: MediaKind, value: object, name: str, problems: list[str]) -> list[NamedMedia]:
    """A picture or a clip, which may be a list of pictures; nothing where a path is wrong."""
    files, pictures = {name: value}, False
    if kind == "video" and isinstance(value, list):
        pictures = True
        files = {f"{name}, picture {i}": one for i, one in enumerate(value, start=1)}
    wrong = [f"{where} {problem}" for where, file in files.items() if (problem := _wrong_path(file))]
    if not files:
        wrong = [f"{name} is an empty list; name a clip, or the pictures of one"]
    problems += wrong
    paths = tuple(str(file).removeprefix("file://") for file in files.values())
    return [] if wrong else [NamedMedia(kind, paths, pictures)]


def _wrong_path(value: object) -> str | None:
    if not isinstance(value, str):
        return f"is {brief(value)}, not a path"
    if not value.strip():
        return "is blank; name a file"
    if value.startswith(("http://", "https://")):
        return f"{brief(value)} is an address; download it and name the file"
    if value.startswith("data:"):
        return f"{brief(value)} holds the file itself; save it and name the file"
    return half_character(value)


# Calls and tools


def read_calls(value: object, problems: list[str]) -> tuple[Mapping[str, Any], ...]:
    """What an answer asks tools for: JSON, an object or a list of them."""
    return tuple(_call(one, problems) for one in _values(value, "the call", problems))


def read_tools(value: object, name: str, problems: list[str]) -> tuple[Mapping[str, Any], ...]:
    """Tools that may be called: JSON, a list of objects that have a name."""
    found = []
    for tool in _values(value, name, problems):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            found.append(tool)
        else:
            problems.append(f"{name}: {brief(tool)} is no tool; write an object with a name")
    return tuple(found)


def _values(value: object, name: str, problems: list[str]) -> list[Any]:
    """The objects of a list, of one alone, or of the JSON of either."""
    if value is None or value == "":
        return []
    decoded = _decoded(value, name, problems)
    return decoded if isinstance(decoded, list) else [] if decoded is None else [decoded]


def _decoded(value: object, name: str, problems: list[str]) -> Any:
    """What JSON in a text spells, or the value itself; None where it is none."""
    if isinstance(value, str):
        try:
            value = parsed(value)
        except json.JSONDecodeError as error:
            problems.append(f"{name} is not JSON ({error.msg} at column {error.colno}); correct it there")
            return None
    if is_deep(value):
        problems.append(f"{name} is nested more than {DEEPEST} deep; write it flatter")
        return None
    if problem := half_character(json.dumps(value, ensure_ascii=False)):
        problems.append(f"{name} {problem}")
    return value


def is_deep(value: object) -> bool:
    """Whether lists and objects hold each other deeper than templates can be relied on to write."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
        ]
    return bool(level)


def _call(stated: object, problems: list[str]) -> Mapping[str, Any]:
    held = stated.get("function", stated) if isinstance(stated, dict) else None
    if not isinstance(held, dict):
        problems.append(f'the call is {brief(stated)}; write {{"name": "...", "arguments": {{}}}}')
        return {}
    function, before = present(held), len(problems)
    problems += unknown_keys(function, ("name", "arguments", "id", "type"), "a call")
    name, arguments = function.get("name"), function.get("arguments", {})
    if not isinstance(name, str) or not name.strip():
        problems.append("the call has no name; add it")
    if isinstance(arguments, str):
        arguments = _decoded(arguments, "the arguments of the call", problems)
    if len(problems) == before and not isinstance(arguments, dict):
        problems.append(f"the arguments of the call are {brief(arguments)}, not an object; correct them")
    return {"name": name, "arguments": arguments}
