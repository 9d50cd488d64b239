"""A YAML file with its overrides, which knows the line of everything in it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError


@dataclass(frozen=True)
class Document:
    """A YAML file with its overrides applied, which knows the line of everything in it."""

    path: Path
    tree: yaml.Node
    data: dict[str, Any]
    overridden: frozenset[str]

    def where(self, dotted: str) -> str | None:
        """`run.yaml:4` (or `command line`) of a dotted path, or of its nearest parent that is spelt out."""
        parts = dotted.split(".")
        line, spelled = self.locate(parts)
        if any(dotted == o or dotted.startswith(o + ".") for o in self.overridden):
            return "command line"
        if len(spelled) < len(parts) and any(o.startswith(dotted + ".") for o in self.overridden):
            return "command line"
        return f"{self.path}:{line}"

    def locate(self, parts: Sequence[Any]) -> tuple[int, list[str]]:
        """(line, parts as spelt in the file); parts that are not in the file are passed over."""
        node, spelled, line = self.tree, list[str](), self.tree.start_mark.line + 1
        for part in parts:
            if isinstance(node, yaml.MappingNode):
                known = {k.value: (k, v) for k, v in node.value}
                if str(part) in known:
                    key, node = known[str(part)]
                    line = key.start_mark.line + 1
                    spelled.append(str(part))
            elif isinstance(node, yaml.SequenceNode) and part in map(str, range(len(node.value))):
                node = node.value[int(part)]
                line = node.start_mark.line + 1
                spelled.append(str(part))
        return line, spelled


class Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number and 2026-01-31 as text (YAML 1.2, not 1.1)."""


MOST_BYTES, MOST_NODES, DEEPEST = 1 << 20, 100_000, 64
"""Bounds of a file, of what it says when aliases are spelt out, and of how deep that is nested."""
KINDS = ("map", "seq", "str", "int", "float", "bool", "null", "merge", "value")
TAGS = {f"tag:yaml.org,2002:{kind}" for kind in KINDS}
UNREADABLE = re.compile("[\0\ud800-\udfff]")
"""What no path or text may hold."""
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def read(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Read a YAML file and apply `a.b.c=1` overrides. Raises UserError with file and line."""
    try:
        with path.open("rb") as stream:
            text = stream.read(MOST_BYTES + 1).decode()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `omnitune init FAMILY > {path}` writes one") from None
    except (OSError, ValueError) as error:  # no UTF-8, or a null character in the name
        raise UserError(f"{path}: cannot be read: {error}") from None
    return parse(path, text, overrides)


def parse(path: Path, text: str, overrides: Sequence[str] = ()) -> Document:
    """Parse the text of a YAML file, which messages call `path`, and apply overrides."""
    try:
        tree, data = _loaded(text, str(path))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{path}:{line}: not YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UserError(f"{path}:{line}: not YAML: {error.reason} ({chr(error.character)!r})") from None
    if not isinstance(data, dict) or tree is None:
        raise UserError(
            f"{path}:1: a run is a mapping of keys (model, data, trainable...), not {type(data).__name__}"
        )
    if twice := list(_duplicates(path, tree)):
        raise UserError("\n".join(twice))
    if UNREADABLE.search(str(path)):
        raise UserError(f"{str(path)!r}: has a character that no name has; rename it")
    keys = []
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"command line: {item!r} is not an override; write a.b.c=value")
        try:
            _override(data, key, _loaded(value, f"command line: {key}")[1])
        except yaml.YAMLError:
            raise UserError(f"command line: {key}: {value!r} is not YAML; quote it for the shell") from None
        keys.append(key)
    return Document(path, tree, data, frozenset(keys))


def _override(data: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node = data
    if len(parents) >= DEEPEST or UNREADABLE.search(key):
        raise UserError(f"command line: {key[:40]!r} does not lead anywhere in the file")
    try:
        for name in parents:
            if isinstance(node, list):
                node = node[int(name)]
            else:
                if node.get(name) is None:
                    node[name] = {}
                node = node[name]
        if isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    except (ValueError, IndexError, AttributeError, TypeError):
        raise UserError(f"command line: {key} does not lead anywhere in the file") from None


def _loaded(text: str, where: str) -> tuple[yaml.Node | None, Any]:
    """The nodes of a text and its plain values, which are few, of usual kinds and not nested deeply."""
    if len(text) > MOST_BYTES:
        raise UserError(f"{where}: is longer than {MOST_BYTES >> 20} MiB, which is no run; name another file")
    try:
        tree = yaml.compose(text, Loader=Loader)
        if tree is not None:
            _count(tree, where, {}, DEEPEST)
        return tree, _unshared(yaml.load(text, Loader=Loader))
    except RecursionError:
        raise _too_deep(where) from None
    except (ValueError, LookupError, OverflowError) as error:  # a number of 5000 digits, 0x_
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: has a value that cannot be read: {error}; correct it") from None


def _too_deep(where: str) -> UserError:
    return UserError(f"{where}: is nested deeper than {DEEPEST} levels; spell it flatter")


def _count(node: yaml.Node, where: str, counts: dict[int, int], deeper: int) -> int:
    """How many values a node comes to; raises UserError for what no run holds.

    `counts` has what was counted, 0 while it is: aliases are counted as if they were spelt out.
    """
    at = f"{where}:{node.start_mark.line + 1}"
    if deeper < 0:
        raise _too_deep(at)
    if counts.get(id(node)) == 0:
        raise UserError(f"{at}: an alias (*) stands within what it names (&); spell it out")
    if id(node) in counts:
        return counts[id(node)]
    if node.tag not in TAGS:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise UserError(f"{at}: the tag {tag} has no meaning here; write texts, numbers, lists or mappings")
    counts[id(node)] = 0
    number = 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _check_key(key, where)
            number += _count(value, where, counts, deeper - 1)
    elif isinstance(node, yaml.SequenceNode):
        number += sum(_count(child, where, counts, deeper - 1) for child in node.value)
    elif UNREADABLE.search(node.value):
        raise UserError(f"{at}: {node.value[:40]!r} has a character that no text has; remove it")
    if number > MOST_NODES:
        raise UserError(f"{at}: comes to more than {MOST_NODES} values with its aliases (*); shorten it")
    counts[id(node)] = number
    return number


def _check_key(key: yaml.Node, where: str) -> None:
    plain = isinstance(key, yaml.ScalarNode) and key.tag.endswith((":str", ":merge"))
    if not plain or UNREADABLE.search(key.value):
        told = f"{key.value[:40]!r} " if isinstance(key, yaml.ScalarNode) else ""
        raise UserError(f"{where}:{key.start_mark.line + 1}: the key {told}is no text; quote or correct it")


def _unshared(value: Any) -> Any:
    """A copy in which what aliases name stands in each place by itself: an override changes one of them."""
    if isinstance(value, dict):
        return {key: _unshared(child) for key, child in value.items()}
    return [_unshared(child) for child in value] if isinstance(value, list) else value


def _duplicates(path: Path, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                yield (
                    f"{path}:{line}: {key.value} stands here a second time, first on line "
                    f"{seen[key.value]}; keep one"
                )
            seen[key.value] = line
            yield from _duplicates(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _duplicates(path, value)
