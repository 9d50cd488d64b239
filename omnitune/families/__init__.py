"""The registry of model families: a name and where its class is, imported when it is asked for."""

from typing import TYPE_CHECKING

from ..errors import UserError
from ..options import import_class

if TYPE_CHECKING:
    from .base import Family

REGISTRY = {
    "hunyuan_video": "omnitune.families.hunyuan_video:HunyuanVideo",
    "cogvideox": "omnitune.families.cogvideox:CogVideoX",
    "cogview4": "omnitune.families.cogview4:CogView4",
    "flux": "omnitune.families.flux:Flux",
    "wan": "omnitune.families.wan:Wan",
    "ltx_video": "omnitune.families.ltx_video:LTXVideo",
    "vlm": "omnitune.families.vlm.family:Vlm",
}


BUNDLED = "wan"
"""The family of the small model that ships with the package: of the demo, and of tests that take any."""
CONVERSATIONAL = "vlm"
"""The family of tests on conversations."""


def name_of(family: "type[Family]") -> str:
    """How `model.family` spells a family."""
    own = f"{family.__module__}:{family.__qualname__}"
    return next((name for name, target in REGISTRY.items() if target == own), own)


def resolve(name: str) -> "type[Family]":
    """The class of a family, by registry name or as `package.module:Class`."""
    target = REGISTRY.get(name, name)
    if ":" not in target:
        from difflib import get_close_matches

        close = get_close_matches(name, REGISTRY, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(REGISTRY)}"
        raise UserError(
            f"model.family: {name!r} is not a family; {hint} (or name your own as package.module:Class)"
        )
    from .base import Family

    try:
        return import_class(target, Family)
    except ValueError as error:
        raise UserError(f"model.family: {error}") from error
