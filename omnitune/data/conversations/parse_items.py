"""Parse the items of a file into conversations, each with what is wrong with it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..json_items import JsonItem, brief
from .conversation import MediaKind, NamedMedia, ParsedConversation, ParsedMessage, Placeholder, Role
from .formats import ItemFormat
from .parse_messages import (
    ESCAPE,
    parse_media,
    parse_message,
    parse_parts,
    present,
    read_tools,
    wrong_message,
)

LISTS: Mapping[str, MediaKind] = {"images": "image", "videos": "video"}
"""Columns of files, whose usual name may also be in the singular."""


class ItemParser:
    """Parses the items of one file."""

    def __init__(self, item_format: ItemFormat, stem: str):
        self.item_format, self.stem = item_format, stem
        self.known = {*item_format.columns.values()}
        self.known.update(kind for part, kind in LISTS.items() if part not in item_format.stated)
        self.unread: set[str] = set()
        """Keys of items and messages that nothing reads."""

    def parse(self, stated: JsonItem) -> ParsedConversation:
        parsed = ParsedConversation(f"{self.stem}/{stated.number}", stated.where)
        item = present(stated.value)
        self.unread.update(item.keys() - self.known)
        if self.item_format.format == "alpaca":
            parsed.messages = self._pairs(item, parsed.problems)
        else:
            parsed.messages = self._messages(item, parsed.problems)
            parsed.problems += [] if parsed.problems else wrong_order(parsed.messages)
        self._system(item, parsed)
        tools = self.item_format.columns["tools"]
        parsed.tools = read_tools(item.get(tools), tools, parsed.problems)
        parsed.unplaced = [named for part in LISTS for named in self._files(item, part, parsed.problems)]
        if not parsed.problems:
            parsed.problems += unlearned(parsed.messages)
            self._show(parsed)
        return parsed

    def _messages(self, item: Mapping[str, Any], problems: list[str]) -> list[ParsedMessage]:
        key = self.item_format.columns["messages"]
        messages = item.get(key)
        if messages is None:
            problems.append(f"{key!r} is missing; add it")
        elif not isinstance(messages, list):
            problems.append(f"{key!r} is {brief(messages)}, not a list of messages; correct it")
        elif not messages:
            problems.append(f"{key!r} is empty; add messages")
        parsed = []
        for number, message in enumerate(messages if isinstance(messages, list) else (), start=1):
            found: list[str] = []
            one = parse_message(message, self.item_format, found, self.unread)
            problems += [f"message {number}: {problem}" for problem in found]
            parsed += [one] if one else []
        return parsed

    def _pairs(self, item: Mapping[str, Any], problems: list[str]) -> list[ParsedMessage]:
        """Messages of an instruction, its input and output, behind those of its history."""
        prompt, query, response, history = (
            self.item_format.columns[part] for part in ("prompt", "query", "response", "history")
        )
        messages = list(_history(item.get(history, []), history, problems))
        asked = {key: item[key] for key in (prompt, query) if item.get(key, "") != ""}
        wrong = [key for key, value in asked.items() if not isinstance(value, str)]
        problems += [f"{key} is {brief(asked[key])}, not text; put it in quotes" for key in wrong]
        if not wrong:
            messages += _spoken("user", "\n".join(asked.values()), prompt, problems)
        if response in item:
            messages += _spoken("assistant", item[response], response, problems)
        else:
            problems.append(f"{response!r} is missing; add it")
        return messages

    def _system(self, item: Mapping[str, Any], parsed: ParsedConversation) -> None:
        key = self.item_format.columns["system"]
        if item.get(key, "") == "":
            return
        if parsed.messages and parsed.messages[0].role == "system":
            parsed.problems.append(f"{key!r} and message 1 are both system messages; keep one")
        parsed.messages[:0] = _spoken("system", item[key], key, parsed.problems)

    def _files(self, item: Mapping[str, Any], part: str, problems: list[str]) -> list[NamedMedia]:
        """What a list of files names; a file alone stands for a list of one."""
        keys = [self.item_format.columns[part]]
        if part not in self.item_format.stated:
            keys.append(LISTS[part])
        stated = [key for key in keys if item.get(key, []) not in ("", [])]
        if len(stated) > 1:
            problems.append(f"{stated[0]!r} and {stated[1]!r} both name files; keep one")
        if not stated:
            return []
        key, value = stated[0], item[stated[0]]
        values = value if isinstance(value, list) else [value]
        return [
            named
            for number, one in enumerate(values, start=1)
            for named in parse_media(LISTS[part], one, f"{key} {number}", problems)
        ]

    def _show(self, parsed: ParsedConversation) -> None:
        """Put files where placeholders stand, or tell that their numbers differ."""
        marks = [p for message in parsed.messages for p in message.parts if isinstance(p, Placeholder)]
        left = {}
        for part, kind in LISTS.items():
            files = [named for named in parsed.unplaced if named.kind == kind]
            number, left[kind] = marks.count(Placeholder(kind)), iter(files)
            if number != len(files):
                column = self.item_format.columns[part]
                parsed.problems.append(_unequal(kind, number, len(files), column))
        if parsed.problems or not marks:
            return
        for message in parsed.messages:
            message.parts = [next(left[p.kind]) if isinstance(p, Placeholder) else p for p in message.parts]


def _unequal(kind: MediaKind, placeholders: int, files: int, column: str) -> str:
    if not placeholders:
        way = f"write <{kind}> where each is shown"
    elif placeholders > files:
        way = f"name one file for each, or write {ESCAPE}<{kind}> for the text itself"
    else:
        way = "remove files or add placeholders"
    return f"{placeholders} <{kind}> but {files} in {column}; {way}"


def _spoken(role: Role, text: object, name: str, problems: list[str]) -> list[ParsedMessage]:
    """A message of text alone."""
    if not isinstance(text, str):
        problems.append(f"{name} is {brief(text)}, not text; put it in quotes")
        return []
    before = len(problems)
    message = ParsedMessage(role, parse_parts(text, name, problems))
    if len(problems) == before and (problem := wrong_message(message)):
        problems.append(f"{name}: {problem}")
    return [message]


def _history(value: object, name: str, problems: list[str]) -> Iterator[ParsedMessage]:
    if not isinstance(value, list):
        problems.append(f"{name} is {brief(value)}, not a list of pairs; correct it")
        return
    for number, pair in enumerate(value, start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            problems.append(f'{name} {number} is {brief(pair)}; write ["question", "answer"]')
            continue
        yield from _spoken("user", pair[0], f"{name} {number}", problems)
        yield from _spoken("assistant", pair[1], f"{name} {number}", problems)


def wrong_order(messages: Sequence[ParsedMessage]) -> list[str]:
    """The first message that is not where it may be."""
    roles = [message.role for message in messages]
    if not roles:
        return ["has no messages; add a question and its answer"]
    start = 1 if roles[0] == "system" else 0
    if len(roles) == start:
        return ["has a system message alone; add a question and its answer"]
    if roles[start] != "user":
        return [f"message {start + 1}: {roles[start]} begins; put what user says before it"]
    for number, (last, role) in enumerate(pairwise(roles[start:]), start=start + 2):
        if role == "system":
            return [f"message {number}: system stands behind {last}; it comes first, or not at all"]
        # One answer may ask several tools.
        if (last == "assistant") == (role == "assistant") and (last, role) != ("tool", "tool"):
            return [f"message {number}: {role} follows {last}; join the two, or add what comes between"]
    if roles[-1] != "assistant":
        return [f"ends with {roles[-1]}; add the answer, or remove that message"]
    return []


def unlearned(messages: Sequence[ParsedMessage]) -> list[str]:
    if all(message.train is False for message in messages if message.role == "assistant"):
        return ["none of its answers is learned; set train to true in one, or remove the item"]
    return []
