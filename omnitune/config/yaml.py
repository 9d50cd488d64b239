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
        text = path.read_text()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `omnitune init FAMILY > {path}` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return parse(path, text, overrides)


def parse(path: Path, text: str, overrides: Sequence[str] = ()) -> Document:
    """Parse the text of a YAML file, which messages call `path`, and apply overrides."""
    try:
        tree = yaml.compose(text, Loader=Loader)
        _check_aliases(path, tree)
        data = _unshared(yaml.load(text, Loader=Loader))
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
    keys = []
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"command line: {item!r} is not an override; write a.b.c=value")
        try:
            _override(data, key, yaml.load(value, Loader=Loader))
        except yaml.YAMLError:
            raise UserError(f"command line: {key}: {value!r} is not YAML; quote it for the shell") from None
        keys.append(key)
    return Document(path, tree, data, frozenset(keys))


def _override(data: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node = data
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


def _check_aliases(path: Path, node: yaml.Node | None, above: tuple[yaml.Node, ...] = ()) -> None:
    """Refuse an alias that stands within what it names."""
    if not isinstance(node, yaml.CollectionNode):
        return
    if node in above:
        raise UserError(
            f"{path}:{node.start_mark.line + 1}: an alias (*) stands within what it names (&); spell it out"
        )
    for child in node.value:
        for part in child if isinstance(child, tuple) else (child,):
            _check_aliases(path, part, (*above, node))


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
