"""A first run.yaml for a family."""

from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING

from jinja2 import StrictUndefined, Template

from ..errors import UserError
from ..families import name_of, resolve
from ..requests import InitRequest

if TYPE_CHECKING:
    from ..families.base import Checkpoint, Family


def init(request: InitRequest) -> str:
    """Write a commented run.yaml with the published defaults of a variant, by default the family's first."""
    family = resolve(request.family)
    variant = find_variant(family, request.variant)
    template = (files(__package__) / f"{family.trained_on}.yaml.jinja").read_text(encoding="utf-8")
    text_length = getattr(family.Options(), family.text_option) if family.text_option else None
    words = Template(template, trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    text: str = words.render(
        family=family,
        name=name_of(family),
        variant=variant,
        d=variant.defaults,
        clip=variant.defaults is not None and variant.defaults.size.count("x") == 2,
        text_length=text_length,
    )
    return text


def find_variant(family: "type[Family]", name: str | None) -> "Checkpoint":
    """The checkpoint of a variant; one without published settings has those of another."""
    if name is not None and name not in family.variants:
        raise UserError(
            f"--variant: {name!r} is not one of {family.name}; choose from {', '.join(family.variants)}"
        )
    variant = family.checkpoint(name)
    if variant.defaults is not None or family.trained_on == "conversations":
        return variant
    others = (family.checkpoint(other).defaults for other in family.variants)
    if defaults := next((one for one in others if one is not None), None):
        return replace(variant, defaults=defaults)
    file = f"{variant.path.replace('/', '--')}.json"
    raise UserError(
        f"{name_of(family)}: no variant states what it is trained with; write {file} with defaults"
    )
