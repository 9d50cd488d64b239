"""Formats of weights: what a run starts from, and what it leaves behind."""

import re
from difflib import get_close_matches
from math import isfinite
from typing import TYPE_CHECKING

from ..errors import UserError
from ..options import import_class
from .base import Format

if TYPE_CHECKING:
    from ..families.base import Family

FORMATS = {
    "diffusers": "omnitune.export.diffusers:Diffusers",
    "peft": "omnitune.export.peft:Peft",
    "merged": "omnitune.export.merged:Merged",
}


def find_format(name: str, option: str) -> Format:
    """A format by its name or as `package.module:Class`; messages speak of the option that names it."""
    if name not in FORMATS and ":" not in name:
        close = get_close_matches(name, FORMATS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(FORMATS)}"
        raise UserError(
            f"{option}: {name!r} is not a format; {hint} (or name your own as package.module:Class)"
        )
    try:
        cls = import_class(FORMATS.get(name, name), Format)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from error
    found: Format = cls()
    if not re.fullmatch(r"[\w-]+", found.name) or not isfinite(found.tolerance):
        raise UserError(
            f"{option}: {name} has name = {found.name!r} and tolerance = {found.tolerance!r}; the name is "
            "part of a folder's (letters, digits, - and _), the tolerance a number"
        )
    return found


def export_format(family: "type[Family]", name: str | None) -> Format:
    """The format to export a family in: its first by default. Raises UserError for one that it lacks."""
    if name in FORMATS and name not in family.formats:
        fuses = "; its pipeline adds adapters itself (load_lora_weights, fuse_lora, save_pretrained)"
        raise UserError(
            f"--format: family {family.name} is exported as {' or '.join(family.formats)}, not as "
            f"{name}{fuses * (name == 'merged')}"
        )
    return find_format(family.formats[0] if name is None else name, "--format")
