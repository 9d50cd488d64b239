"""Tools that an item names, and what answers ask them for."""

import json
from collections.abc import Mapping
from typing import Any

from ..json_items import brief, half_character, parsed
from .message_parts import present, unknown_keys


def read_calls(value: object, problems: list[str]) -> tuple[Mapping[str, Any], ...]:
    """What an answer asks tools for: JSON, an object or a list of them."""
    found = [_call(one, problems) for one in _values(value, "the call", problems)]
    return tuple(call for call in found if call is not None)


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
    if problem := half_character(json.dumps(value, ensure_ascii=False)):
        problems.append(f"{name} {problem}")
    return value


def _call(stated: object, problems: list[str]) -> Mapping[str, Any] | None:
    held = stated.get("function", stated) if isinstance(stated, dict) else None
    if not isinstance(held, dict):
        problems.append(f'the call is {brief(stated)}; write {{"name": "...", "arguments": {{}}}}')
        return None
    function, before = present(held), len(problems)
    problems += unknown_keys(function, ("name", "arguments", "id", "type"), "a call")
    name, arguments = function.get("name"), function.get("arguments", {})
    if not isinstance(name, str) or not name.strip():
        problems.append("the call has no name; add it")
    if isinstance(arguments, str):
        arguments = _decoded(arguments, "the arguments of the call", problems)
    if len(problems) == before and not isinstance(arguments, dict):
        problems.append(f"the arguments of the call are {brief(arguments)}, not an object; correct them")
    return {"name": name, "arguments": arguments} if len(problems) == before else None
