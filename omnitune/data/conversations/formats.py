"""How files of conversations are written: sharegpt, openai and alpaca, and other names for their keys."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ..json_items import did_you_mean

Format = Literal["sharegpt", "openai", "alpaca"]
Said = Literal["system", "user", "assistant", "tool", "call"]
"""A role as files state it: a call is an answer that asks a tool."""

PAIR = ("prompt", "query", "response", "history")
"""What items of alpaca alone hold."""
ROLES: Mapping[str, Said] = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "call",
    "system_tag": "system",
}
UNTRAINED = {
    "audios": "audio is not trained on",
    "chosen": "preferences are not trained on",
    "rejected": "preferences are not trained on",
    "kto_tag": "preferences are not trained on",
}


@dataclass(frozen=True)
class Names:
    """What the user states about a file, as in LLaMA-Factory's dataset_info.json."""

    format: Literal["auto"] | Format = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@cache
def usual_names() -> Mapping[Format, Names]:
    """What each format calls things, where the user states no other names."""
    stated = json.loads(Path(__file__).with_suffix(".json").read_text())
    return {name: Names(name, **one) for name, one in stated.items()}


@dataclass(frozen=True)
class Table:
    """A file of items, and how it is to be read."""

    shown: Path
    path: Path
    where: str
    """Where names and numbers are stated, for messages."""
    file: str
    """How messages name the file itself."""
    names: Names
    num_samples: int | None


@dataclass(frozen=True)
class ItemFormat:
    """Where in an item its parts are."""

    format: Format
    columns: Mapping[str, str]
    """Part -> key of the item."""
    stated: frozenset[str]
    """Parts whose keys the user states."""
    tags: Mapping[str, str]
    roles: Mapping[str, Said]
    """What a message calls its side -> the role."""

    @property
    def role_tag(self) -> str:
        return self.tags["role_tag"]

    @property
    def content_tag(self) -> str:
        return self.tags["content_tag"]

    @property
    def example(self) -> str:
        user = next((name for name, said in self.roles.items() if said == "user"), "user")
        return f'{{"{self.role_tag}": "{user}", "{self.content_tag}": "..."}}'

    def absent(self, keys: Collection[str]) -> list[str]:
        """What is wrong where no item has the key of a part, given the keys of all items."""
        problems = [
            f"columns.{part} is {self.columns[part]!r}, which no item has; correct it or remove it"
            for part in sorted(self.stated)
            if self.columns[part] not in keys
        ]
        if problems:
            return problems
        needed = [("prompt", "query"), ("response",)] if self.format == "alpaca" else [("messages",)]
        for parts in needed:
            names = [self.columns[part] for part in parts]
            if not any(name in keys for name in names):
                problems.append(
                    f"no item has {' or '.join(map(repr, names))}, as {self.format} items do; "
                    f"state its name as columns.{parts[0]}, or another format"
                )
        return problems


def wrong_names(names: Names) -> list[str]:
    """What is wrong with columns and tags, as far as the format is known."""
    usual = usual_names()
    formats = list(usual.values()) if names.format == "auto" else [usual[names.format]]
    columns, tags = ({key for one in formats for key in getattr(one, kind)} for kind in ("columns", "tags"))
    problems = []
    for kind, stated, known in (("columns", names.columns, columns), ("tags", names.tags, tags)):
        problems += [_unknown(kind, key, known, names.format) for key in stated if key not in known]
        problems += [
            f"{kind}.{key} is blank; write the name, or remove it"
            for key, name in stated.items()
            if not name.strip()
        ]
    if names.format == "alpaca" or problems:
        return problems
    # Tags of two roles that are one word, and columns of two parts that are one key.
    called = {**usual["openai" if names.format == "openai" else "sharegpt"].tags, **names.tags}
    roles = {tag: name for tag, name in called.items() if tag in ROLES}
    keys = {tag: name for tag, name in called.items() if tag not in ROLES}
    return [*_twice("tags", roles), *_twice("columns", names.columns), *_twice("tags", keys)]


def _unknown(kind: str, key: str, known: Collection[str], stated: str) -> str:
    if key in UNTRAINED:
        return f"{kind}.{key}: {UNTRAINED[key]}; remove it"
    if any(key in {**one.columns, **one.tags} for one in usual_names().values()):
        return f"{kind}.{key} has no effect on {stated} items; remove it, or state another format"
    choices = f"choose from {', '.join(sorted(known))}"
    return f"{kind}.{key} is not known; {did_you_mean(key, known, choices)}"


def _twice(kind: str, names: Mapping[str, str]) -> list[str]:
    first: dict[str, str] = {}
    return [
        f"{kind}.{first[name]} and {kind}.{key} are both {name!r}; correct one"
        for key, name in names.items()
        if first.setdefault(name, key) != key
    ]


def find_format(names: Names, keys: Collection[str], first: Mapping[str, Any]) -> ItemFormat | None:
    """Find how items are written from what is stated, the keys of all items, and the first item."""
    found = _format(names, keys, first) if names.format == "auto" else names.format
    if found is None:
        return None
    usual = usual_names()[found]
    columns, tags = {**usual.columns, **names.columns}, {**usual.tags, **names.tags}
    if found != "alpaca":
        columns["messages"] = _messages(names, found, keys)
    roles = {tags[tag]: said for tag, said in ROLES.items() if tag in tags}
    return ItemFormat(found, columns, frozenset(names.columns), tags, roles)


def _messages(names: Names, found: Format, keys: Collection[str]) -> str:
    """The key of messages: as stated, or as it is called in the format, or in the other one."""
    if "messages" in names.columns:
        return names.columns["messages"]
    usual = usual_names()[found].columns["messages"]
    other = "conversations" if usual == "messages" else "messages"
    return other if usual not in keys and other in keys else usual


def _format(names: Names, keys: Collection[str], first: Mapping[str, Any]) -> Format | None:
    """The format that an item is of, by its keys and those of its first message."""
    if any(part in names.columns for part in PAIR):
        return "alpaca"
    key = _messages(names, "sharegpt", keys)
    if key not in keys and "messages" not in names.columns:
        return "alpaca" if {"instruction", "input", "output"}.intersection(keys) else None
    if role := names.tags.get("role_tag"):
        return "openai" if role == "role" else "sharegpt"
    messages = first.get(key)
    said = messages[0] if isinstance(messages, list) and messages else None
    if isinstance(said, dict) and ("role" in said) != ("from" in said):
        return "openai" if "role" in said else "sharegpt"
    return "openai" if key == "messages" else "sharegpt"
