"""Items of a file as drafts of conversations, each with what is wrong with it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .conversation import MediaKind, Role
from .formats import Layout
from .json_items import Stated, brief
from .message_parts import Named, Placeholder, present, read_content, read_file
from .parse_messages import Turn, fault, read_turn
from .tool_calls import read_tools

LISTS: Mapping[str, MediaKind] = {"images": "image", "videos": "video"}
"""Columns of files, whose usual name may also be in the singular."""


@dataclass
class Draft:
    """An item before its files are looked up."""

    id: str
    where: str
    turns: list[Turn] = field(default_factory=list)
    tools: tuple[Mapping[str, Any], ...] = ()
    named: list[Named] = field(default_factory=list)
    """Everything that it names, also where it is not known where that is shown."""
    problems: list[str] = field(default_factory=list)


class ItemReader:
    """Reads the items of one file."""

    def __init__(self, layout: Layout, stem: str):
        self.layout, self.stem = layout, stem
        self.known = {*layout.columns.values()}
        self.known.update(kind for part, kind in LISTS.items() if part not in layout.stated)
        self.unread: set[str] = set()
        """Keys of items and messages that nothing reads."""

    def read(self, stated: Stated) -> Draft:
        draft = Draft(f"{self.stem}/{stated.number}", stated.where)
        item = present(stated.value)
        self.unread.update(item.keys() - self.known)
        if self.layout.format == "alpaca":
            draft.turns = self._pairs(item, draft.problems)
        else:
            draft.turns = self._messages(item, draft.problems)
            draft.problems += [] if draft.problems else _wrong_order(draft.turns)
        self._system(item, draft)
        tools = self.layout.columns["tools"]
        draft.tools = read_tools(item.get(tools), tools, draft.problems)
        files = {part: self._files(item, part, draft.problems) for part in LISTS}
        draft.named = [part for turn in draft.turns for part in turn.parts if isinstance(part, Named)]
        draft.named += [named for part in LISTS for named in files[part]]
        if not draft.problems:
            draft.problems += _unlearned(draft.turns)
            self._show(draft, files)
        return draft

    def _messages(self, item: Mapping[str, Any], problems: list[str]) -> list[Turn]:
        key = self.layout.columns["messages"]
        messages = item.get(key)
        if messages is None:
            problems.append(f"{key!r} is missing; add it")
        elif not isinstance(messages, list):
            problems.append(f"{key!r} is {brief(messages)}, not a list of messages; correct it")
        elif not messages:
            problems.append(f"{key!r} is empty; add messages")
        if not isinstance(messages, list):
            return []
        turns = []
        for number, message in enumerate(messages, start=1):
            found: list[str] = []
            turn = read_turn(message, self.layout, found, self.unread)
            problems += [f"message {number}: {problem}" for problem in found]
            turns += [turn] if turn else []
        return turns

    def _pairs(self, item: Mapping[str, Any], problems: list[str]) -> list[Turn]:
        """Turns of an instruction, its input and output, behind those of its history."""
        prompt, query, response, history = (
            self.layout.columns[part] for part in ("prompt", "query", "response", "history")
        )
        turns = list(_history(item.get(history, []), history, problems))
        asked = [(key, item[key]) for key in (prompt, query) if item.get(key, "") != ""]
        wrong = [
            f"{key} is {brief(value)}, not text; put it in quotes"
            for key, value in asked
            if not isinstance(value, str)
        ]
        problems += wrong
        if not wrong:
            turns += _spoken("user", "\n".join(text for _, text in asked), prompt, problems)
        if response in item:
            turns += _spoken("assistant", item[response], response, problems)
        else:
            problems.append(f"{response!r} is missing; add it")
        return turns

    def _system(self, item: Mapping[str, Any], draft: Draft) -> None:
        key = self.layout.columns["system"]
        if item.get(key, "") == "":
            return
        if draft.turns and draft.turns[0].role == "system":
            draft.problems.append(f"{key!r} and message 1 are both system messages; keep one")
        draft.turns[:0] = _spoken("system", item[key], key, draft.problems)

    def _files(self, item: Mapping[str, Any], part: str, problems: list[str]) -> list[Named]:
        """What a list of files names; a file alone stands for a list of one."""
        keys = [self.layout.columns[part]]
        if part not in self.layout.stated:
            keys.append(LISTS[part])
        stated = [key for key in keys if item.get(key, []) not in ("", [])]
        if len(stated) > 1:
            problems.append(f"{stated[0]!r} and {stated[1]!r} both name files; keep one")
        if not stated:
            return []
        key, value = stated[0], item[stated[0]]
        values = value if isinstance(value, list) else [value]
        named = [
            read_file(LISTS[part], one, f"{key} {number}", problems)
            for number, one in enumerate(values, start=1)
        ]
        return [one for one in named if one]

    def _show(self, draft: Draft, files: Mapping[str, Sequence[Named]]) -> None:
        """Put files where placeholders stand, or tell that their numbers differ."""
        marks = [part.kind for turn in draft.turns for part in turn.parts if isinstance(part, Placeholder)]
        for part, kind in LISTS.items():
            if marks.count(kind) != len(files[part]):
                column = self.layout.columns[part]
                draft.problems.append(_unequal(kind, marks.count(kind), len(files[part]), column))
        if draft.problems or not marks:
            return
        left = {kind: iter(files[part]) for part, kind in LISTS.items()}
        for turn in draft.turns:
            turn.parts = [next(left[p.kind]) if isinstance(p, Placeholder) else p for p in turn.parts]


def _unequal(kind: MediaKind, placeholders: int, files: int, column: str) -> str:
    if not placeholders:
        way = f"write <{kind}> where each is shown"
    else:
        way = "name one file for each" if placeholders > files else "remove files or add placeholders"
    return f"{placeholders} <{kind}> but {files} in {column}; {way}"


def _spoken(role: Role, text: object, name: str, problems: list[str]) -> list[Turn]:
    """A turn of text alone."""
    if not isinstance(text, str):
        problems.append(f"{name} is {brief(text)}, not text; put it in quotes")
        return []
    before = len(problems)
    turn = Turn(role, read_content(text, name, problems))
    if len(problems) == before and (problem := fault(turn)):
        problems.append(f"{name}: {problem}")
    return [turn]


def _history(value: object, name: str, problems: list[str]) -> Iterator[Turn]:
    if not isinstance(value, list):
        problems.append(f"{name} is {brief(value)}, not a list of pairs; correct it")
        return
    for number, pair in enumerate(value, start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            problems.append(f'{name} {number} is {brief(pair)}; write ["question", "answer"]')
            continue
        yield from _spoken("user", pair[0], f"{name} {number}", problems)
        yield from _spoken("assistant", pair[1], f"{name} {number}", problems)


def _wrong_order(turns: Sequence[Turn]) -> list[str]:
    """The first turn that is not where it may be."""
    roles = [turn.role for turn in turns]
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


def _unlearned(turns: Sequence[Turn]) -> list[str]:
    if all(turn.train is False for turn in turns if turn.role == "assistant"):
        return ["none of its answers is learned; set train to true in one, or remove the item"]
    return []
