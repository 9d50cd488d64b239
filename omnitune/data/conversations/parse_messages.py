"""Messages as a file states them, before any file that they name is looked up."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .conversation import Role
from .formats import Layout
from .json_items import brief
from .message_parts import Part, present, read_content, unknown_keys
from .tool_calls import read_calls

NOT_READ = ("name", "tool_call_id")
"""Keys of messages that are left out: calls and what tools give follow each other in order."""
KEYS = ("train", "weight", "tool_calls", *NOT_READ)
"""What messages may hold beside who says what."""


@dataclass(slots=True)
class Turn:
    """A message before what it shows is looked up."""

    role: Role
    parts: list[Part]
    train: bool | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()


def read_turn(stated: object, layout: Layout, problems: list[str], unread: set[str]) -> Turn | None:
    """One message of a list."""
    if not isinstance(stated, dict):
        problems.append(f"is {brief(stated)}, not an object; write {layout.example}")
        return None
    message, before = present(stated), len(problems)
    said, content = message.get(layout.role_tag), message.get(layout.content_tag)
    # Most messages hold these two alone, and there are many messages.
    plain = len(message) == 2 and said is not None and content is not None
    more = () if plain else message.keys() - {layout.role_tag, layout.content_tag}
    unread.update(key for key in more if key in NOT_READ)
    problems += unknown_keys(sorted(more), (layout.content_tag, layout.role_tag, *KEYS), "a message")
    kind = layout.roles.get(said) if isinstance(said, str) else None
    if kind is None:
        problems.append(_wrong_role(said, layout))
        return None
    role: Role = "assistant" if kind == "call" else kind
    calls = message.get("tool_calls") or None
    train = _train(message, role, problems) if more else None
    if calls is not None and kind != "assistant":
        problems.append(f"tool_calls stand in a message of {said}; only an answer has them")
    elif content is None and calls is None:
        problems.append(f"{layout.content_tag!r} is missing; add it")
    if kind == "call":
        calls, content = content, None
    parts = read_content(content, layout.content_tag, problems)
    turn = Turn(role, parts, train, read_calls(calls, problems) if calls else ())
    if len(problems) == before and (problem := fault(turn)):
        problems.append(problem)
    return turn


def _wrong_role(said: object, layout: Layout) -> str:
    if said is None:
        return f"{layout.role_tag!r} is missing; add it: one of {', '.join(layout.roles)}"
    return (
        f"{layout.role_tag} is {brief(said)}; choose from {', '.join(layout.roles)}, "
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


def fault(turn: Turn) -> str | None:
    """What is wrong with what a turn says."""
    texts = [part for part in turn.parts if isinstance(part, str)]
    shows = len(texts) < len(turn.parts)
    if turn.role == "system" and shows:
        return "a system message shows nothing; put what it shows where user speaks"
    if turn.tool_calls or "".join(texts).strip():
        return None
    if turn.role == "assistant":
        return "the answer is empty; write one or remove the item"
    return None if shows else f"what {turn.role} says is empty; write something or remove it"
