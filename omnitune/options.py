"""Frozen dataclasses that YAML can spell, and unions of them that other packages can add to."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_type_hints

from typing_extensions import get_protocol_members, is_protocol

T = TypeVar("T")

NOT_LEARNED = "does not change what is learned"
"""Annotates an option that may change when a run is resumed: `Annotated[int, NOT_LEARNED]`."""
LEARNED = "changes what is learned, with all that it holds"
"""Annotates an option whose own options all count, also those that are NOT_LEARNED elsewhere."""
EXTERNAL = "package.module:Class"
SHORT = "a short form"
BROKEN_MODULE = (ImportError, AttributeError, NameError, SyntaxError, TypeError, ValueError)
"""What an import of another package's module may raise."""
EXTERNAL_MARK = ":"
"""Stands in the name of a class of another package, and in no name of this one."""
EXTERNAL_NAME = r"[^\W\d][\w.]*:[^\W\d]\w*"
"""As which a bare text is read as such a name, where it could be a path too."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def option(cls: type[T]) -> type[T]:
    """Make a frozen dataclass that YAML can spell: unknown keys, NaN and infinity are errors."""
    config = {"extra": "forbid", "use_attribute_docstrings": True, "allow_inf_nan": False}
    cls.__pydantic_config__ = config  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


def check_ranges(options: object, **intervals: str) -> None:
    """Raise ValueError for a number outside its interval, `[0, 1)` or `[1, inf)`; null is in all of them.

    YAML refuses infinity before; the command line and Python do not.
    """
    for name, interval in intervals.items():
        low, high = map(float, interval[1:-1].split(","))
        value = getattr(options, name)
        if value is None:
            continue
        after = value >= low if interval[0] == "[" else value > low
        before = value <= high if interval[-1] == "]" else value < high
        if not (after and before):
            bound = f"{low:g} or more" if interval[0] == "[" else f"above {low:g}"
            raise ValueError(f"{name} must be {bound if high == inf else f'in {interval}'}, not {value}")


def conforms(value: Any, hint: Any) -> bool:
    """Whether a value of a JSON file is of an annotated type, as far as pydantic knows that."""
    from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

    try:
        TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except PydanticSchemaGenerationError:
        return True
    except ValidationError:
        return False
    return True


def import_class(name: str, kind: type[Any] | None = None) -> type[Any]:
    """Import `package.module:Class`. Raises ValueError where it fails or is no whole `kind`."""
    module, _, cls = name.partition(":")
    try:
        found: type[Any] = getattr(import_module(module), cls)
    except BROKEN_MODULE as error:
        raise ValueError(
            f"{name!r} cannot be imported: {error}; correct it, or put the folder of {module} on PYTHONPATH"
        ) from error
    if kind is not None:
        check_kind(name, found, kind)
    return found


def check_kind(name: str, found: Any, kind: type[Any] | None) -> None:
    """Raise ValueError for a class that is no whole `kind`, a base class or the protocol of options."""
    protocol = kind is not None and is_protocol(kind)
    if kind is not None and not protocol and not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(f"{name} is not a subclass of {kind.__module__}.{kind.__name__}; make it one")
    lacking: Collection[str] = set(getattr(found, "__abstractmethods__", ()))
    if kind is not None and protocol and not lacking:
        has = {*dir(found), *(field.name for field in fields(found))}
        lacking = get_protocol_members(kind) - has
    if lacking:
        every = f", which every {kind.__name__} has" if kind else ""
        raise ValueError(f"{name} has no {', '.join(sorted(lacking))}{every}; add it")


@dataclass(frozen=True)
class ByName:
    """Annotates a union of options: `name` tells the member, a mapping without one is the default.

    A bare text is short for the name, or for the one option that the default cannot do without, if there is
    one (the path of a source). A name with a colon (`my_package.my_module:MyOption`) is an option of another
    package, which has a field `name: str`. A protocol in the union is no member: it types those of other
    packages. As of `option`, pydantic reads this class; its core schemas are plain dicts.
    """

    default: str | None = None
    kind: type[Any] | None = None
    """The class that members derive from, or the protocol that they follow."""

    def __get_pydantic_core_schema__(self, union: Any, schema_of: Callable[[Any], Any]) -> dict[str, Any]:
        built_in: list[Any] = [member for member in get_args(union) or (union,) if is_dataclass(member)]
        members = {member.name: schema_of(member) for member in built_in}
        mapping = {"type": "dict", "keys_schema": {"type": "str"}, "strict": False}
        external = {
            "type": "function-wrap", "schema": mapping,
            "function": {"type": "no-info", "function": self.build_external},
        }  # fmt: skip
        needed = _needed(next((member for member in built_in if member.name == self.default), None))
        key = needed[0] if len(needed) == 1 else None

        def build_short(text: str) -> Any:
            from pydantic import TypeAdapter

            whole = json.dumps(spell_out(key, text))  # as JSON, or strict mode takes no text for a path
            return TypeAdapter(Annotated[union, self]).validate_json(whole, strict=True)

        short = {
            "type": "function-after", "schema": {"type": "str"},
            "function": {"type": "no-info", "function": build_short},
            "metadata": {SHORT: _short_schema(key, members)},
        }  # fmt: skip
        return {
            "type": "tagged-union",
            "choices": {**members, EXTERNAL: external, SHORT: short},
            "discriminator": self.tell,
        }

    def __get_pydantic_json_schema__(self, core: Any, schema_of: Callable[[Any], Any]) -> dict[str, Any]:
        found: dict[str, Any] = schema_of(core)
        found["oneOf"][-1] = core["choices"][SHORT]["metadata"][SHORT]
        return found

    def tell(self, value: Any) -> str | None:
        """Name the member that a mapping, or an instance, is of; None for a value that has no name."""
        if isinstance(value, str):
            return SHORT
        if isinstance(value, dict):
            name = value.get("name", self.default)
            if not isinstance(name, str):
                return f"{name!r:.40}".replace(EXTERNAL_MARK, " ") if "name" in value else None
        else:
            name = getattr(value, "name", None)
        return EXTERNAL if name is not None and EXTERNAL_MARK in name else name

    def build_external(self, value: Any, _: Any) -> Any:
        """Import and validate an option of another package."""
        if not isinstance(value, dict):
            return value
        from pydantic import TypeAdapter

        cls = import_class(value["name"])
        if not is_dataclass(cls):
            raise ValueError(f"{value['name']} is no option; put @omnitune.option above its class")
        if "name" not in {field.name for field in fields(cls)}:
            raise ValueError(f"{value['name']} has no field name; give it name: str = {value['name']!r}")
        own = [field.name for field in fields(cls)]
        if unknown := [key for key in value if key not in own]:
            raise ValueError(f"{unknown[0]} is not an option of {value['name']}; it has {', '.join(own)}")
        check_kind(value["name"], cls, self.kind)
        found = TypeAdapter(cls).validate_json(json.dumps(value), strict=True)
        try:
            json.dumps(plain(found), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{value['name']} has a field that YAML cannot spell ({error}); give its fields numbers, "
                "texts, lists, mappings or paths, and make the rest of them where it is used"
            ) from None
        return found


def spell_out(key: str | None, text: str) -> dict[str, str]:
    """The mapping that a bare text is short for: with a name, or with the option `key`."""
    return {"name" if key is None or re.fullmatch(EXTERNAL_NAME, text) else key: text}


def _needed(option: type[Any] | None) -> list[str]:
    """Fields of an option that have no default."""
    own = () if option is None else fields(option)
    return [field.name for field in own if field.default is MISSING and field.default_factory is MISSING]


def _short_schema(key: str | None, names: Collection[str]) -> dict[str, Any]:
    """What JSON schema says of the short form."""
    if key is not None:
        return {"type": "string", "description": f"Short for {{{key}: ...}}."}
    pattern = "|".join([*names, EXTERNAL_NAME])
    return {"type": "string", "pattern": f"^({pattern})$", "description": "Short for {name: ...}."}


def plain(value: Any, learned_only: bool = False) -> Any:
    """Spell options as YAML does, defaults included: mappings, lists, texts, numbers.

    With `learned_only`, what is annotated as NOT_LEARNED is left out.
    """
    if is_dataclass(value) and not isinstance(value, type):
        notes = annotations_of(type(value)) if learned_only else {}
        return {
            field.name: plain(getattr(value, field.name), learned_only and LEARNED not in notes[field.name])
            for field in fields(value)
            if not learned_only or NOT_LEARNED not in notes[field.name]
        }
    if isinstance(value, Mapping):
        return {key: plain(held, learned_only) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [plain(held, learned_only) for held in value]
    return str(value) if isinstance(value, Path) else value


def annotations_of(cls: type[Any]) -> dict[str, tuple[Any, ...]]:
    """Field of an option -> what it is annotated with beside its type."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: getattr(hints[field.name], "__metadata__", ()) for field in fields(cls)}
