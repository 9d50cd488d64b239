"""A first run.yaml for a family."""

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
    kind = "conversations" if variant.defaults is None else "captions"
    template = (files(__package__) / f"{kind}.yaml.jinja").read_text(encoding="utf-8")
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
    if name is not None and name not in family.variants:
        raise UserError(
            f"--variant: {name!r} is not one of {family.name}; choose from {', '.join(family.variants)}"
        )
    return family.checkpoint(name)
