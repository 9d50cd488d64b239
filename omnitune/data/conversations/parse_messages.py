"""Messages as a file states them, before any file that they name is looked up."""

from collections.abc import Mapping
from typing import Any

from ..json_items import brief
from .conversation import ParsedMessage, Role
from .formats import ItemFormat
from .message_parts import parse_parts, present, unknown_keys
from .tool_calls import read_calls

NOT_READ = ("name", "tool_call_id")
"""Keys of messages that are left out: calls and what tools give follow each other in order."""
KEYS = ("train", "weight", "tool_calls", *NOT_READ)
"""What messages may hold beside who says what."""


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
    parsed = ParsedMessage(role, parts, train, read_calls(calls, problems) if calls else ())
    if len(problems) == before and (problem := wrong_message(parsed)):
        problems.append(problem)
    return parsed


def _wrong_role(said: object, item_format: ItemFormat) -> str:
    if said is None:
        return f"{item_format.role_tag!r} is missing; add it: one of {', '.join(item_format.roles)}"
    return (
        f"{item_format.role_tag} is {brief(said)}; choose from {', '.join(item_format.roles)}, "
        "or state other names as tags"
    )


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
