"""How files of conversations are written: sharegpt, openai and alpaca, and other names for their keys."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, get_args

Format = Literal["sharegpt", "openai", "alpaca"]
Said = Literal["system", "user", "assistant", "tool", "call"]
"""A role as files state it: a call is an answer that asks a tool."""

BESIDE = {"system": "system", "tools": "tools", "images": "images", "videos": "videos"}
TURNS = {"messages": "conversations"}
PAIR = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
COLUMNS: Mapping[Format, Mapping[str, str]] = {
    "sharegpt": {**TURNS, **BESIDE},
    "openai": {"messages": "messages", **BESIDE},
    "alpaca": {**PAIR, **BESIDE},
}
SHAREGPT_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
TAGS: Mapping[Format, Mapping[str, str]] = {
    "sharegpt": SHAREGPT_TAGS,
    "openai": {
        **SHAREGPT_TAGS,
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
    },
    "alpaca": {},
}
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


@dataclass(frozen=True)
class ItemFormat:
    """Where in an item its parts are."""

    format: Format
    columns: Mapping[str, str]
    """Part -> key of the item."""
    stated: frozenset[str]
    """Parts whose keys the user states."""
    role_tag: str = ""
    content_tag: str = ""
    roles: Mapping[str, Said] = field(default_factory=dict)

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
    formats: Sequence[Format] = get_args(Format) if names.format == "auto" else (names.format,)
    columns = {part for one in formats for part in COLUMNS[one]}
    tags = {tag for one in formats for tag in TAGS[one]}
    problems = [
        _unknown("columns", part, columns, names.format) for part in names.columns if part not in columns
    ]
    problems += [_unknown("tags", tag, tags, names.format) for tag in names.tags if tag not in tags]
    problems += [
        f"{kind}.{key} is blank; write the name, or remove it"
        for kind, stated in (("columns", names.columns), ("tags", names.tags))
        for key, name in stated.items()
        if not name.strip()
    ]
    if names.format != "alpaca" and not problems:
        problems += _same(names)
    return problems


def _unknown(kind: str, key: str, known: Collection[str], stated: str) -> str:
    if key in UNTRAINED:
        return f"{kind}.{key}: {UNTRAINED[key]}; remove it"
    if any(key in one for one in (*COLUMNS.values(), *TAGS.values())):
        return f"{kind}.{key} has no effect on {stated} items; remove it, or state another format"
    near = get_close_matches(key, known, 1)
    way = f"did you mean {near[0]}?" if near else f"choose from {', '.join(sorted(known))}"
    return f"{kind}.{key} is not known; {way}"


def _same(names: Names) -> list[str]:
    """Tags of two roles that are one word, and columns of two parts that are one key."""
    base = TAGS["openai" if names.format == "openai" else "sharegpt"]
    tags = {tag: name for tag, name in {**base, **names.tags}.items() if tag in ROLES}
    problems = _twice("tags", tags, names.tags) + _twice("columns", names.columns, names.columns)
    named = {**base, **names.tags}
    if named["role_tag"] == named["content_tag"]:
        problems.append(f"tags.role_tag and tags.content_tag are both {named['role_tag']!r}; correct one")
    return problems


def _twice(kind: str, names: Mapping[str, str], stated: Collection[str]) -> list[str]:
    first: dict[str, str] = {}
    problems = []
    for key, name in names.items():
        other = first.setdefault(name, key)
        if other != key and (key in stated or other in stated):
            problems.append(f"{kind}.{other} and {kind}.{key} are both {name!r}; correct one")
    return problems


def find_format(names: Names, keys: Collection[str], first: Mapping[str, Any]) -> ItemFormat | None:
    """Find how items are written from what is stated, the keys of all items, and the first item."""
    found = _format(names, keys, first) if names.format == "auto" else names.format
    if found is None:
        return None
    columns = {**COLUMNS[found], **names.columns}
    if found == "alpaca":
        return ItemFormat(found, columns, frozenset(names.columns))
    columns["messages"] = _messages(names, found, keys)
    tags = {**TAGS[found], **names.tags}
    roles = {tags[tag]: said for tag, said in ROLES.items()}
    return ItemFormat(found, columns, frozenset(names.columns), tags["role_tag"], tags["content_tag"], roles)


def _messages(names: Names, found: Format, keys: Collection[str]) -> str:
    """The key of messages: as stated, or as it is called in the format, or in the other one."""
    if "messages" in names.columns:
        return names.columns["messages"]
    usual = COLUMNS[found]["messages"]
    other = "conversations" if usual == "messages" else "messages"
    return other if usual not in keys and other in keys else usual


def _format(names: Names, keys: Collection[str], first: Mapping[str, Any]) -> Format | None:
    """The format that an item is of, by its keys and those of its first message."""
    if any(part in names.columns for part in PAIR):
        return "alpaca"
    messages = _messages(names, "sharegpt", keys)
    if messages in keys or "messages" in names.columns:
        return _of_messages(names, messages, first.get(messages))
    return "alpaca" if {"instruction", "input", "output"}.intersection(keys) else None


def _of_messages(names: Names, key: str, messages: object) -> Format:
    """Which of the two formats of messages these are of."""
    if role := names.tags.get("role_tag"):
        return "openai" if role == "role" else "sharegpt"
    said = messages[0] if isinstance(messages, list) and messages else None
    if isinstance(said, dict) and ("role" in said) != ("from" in said):
        return "openai" if "role" in said else "sharegpt"
    return "openai" if key == "messages" else "sharegpt"
