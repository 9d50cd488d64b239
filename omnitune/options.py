"""Frozen dataclasses that YAML can spell."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform, get_args

if TYPE_CHECKING:
    pass


T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def option(cls: type[T]) -> type[T]:
    """Make a frozen dataclass that YAML can spell: unknown keys, NaN and infinity are errors."""
    config = {"extra": "forbid", "use_attribute_docstrings": True, "allow_inf_nan": False}
    cls.__pydantic_config__ = config  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


@dataclass(frozen=True)
class ByName:
    """Annotates a union of options: `name` tells the member, a mapping without one is the default.

    As of `option`, pydantic reads it; its core schemas are plain dicts, so nothing of it is imported here.
    """

    default: str

    def __get_pydantic_core_schema__(self, union: Any, schema_of: Callable[[Any], Any]) -> dict[str, Any]:
        members = {member.name: schema_of(member) for member in get_args(union)}
        return {"type": "tagged-union", "choices": members, "discriminator": self.tell}

    def tell(self, value: Any) -> str:
        """Name the member that a mapping, or an instance, is of."""
        return str(value.get("name", self.default) if isinstance(value, dict) else value.name)
