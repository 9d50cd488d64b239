"""The table of families: what each can do."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from ..families import REGISTRY, resolve

if TYPE_CHECKING:
    from ..families.base import Checkpoint, Family


def models() -> str:
    """What each family can do, one block each."""
    return "\n".join("\n".join([name, *_block(resolve(name))]) + "\n" for name in REGISTRY)


def _block(family: "type[Family]") -> Iterator[str]:
    shown = {
        "tasks": ", ".join(family.tasks),
        "methods": f"lora ({', '.join(family.adapter_components)}), full",
        "lora targets": ", ".join(family.lora_targets),
        "options": ", ".join(family.Options.__dataclass_fields__) or "none",
        "licence": family.licence,
    }
    for key, value in shown.items():
        yield f"  {key}: {value}"
    for name in family.variants:
        variant = family.checkpoint(name)
        told = f"; {sizes(family, variant)}" if variant.defaults else ""
        yield f"  {name}: {variant.path}{told}"


def sizes(family: "type[Family]", variant: "Checkpoint") -> str:
    """Which sizes a published checkpoint takes, and the smallest of them."""
    shape = family.load(variant.path, "meta", torch.float32, only=[])
    if variant.frames and shape.lacking():
        shape.give_frames(variant.frames, optional=False, dropout=False)
    limits = shape.limits
    return f"{limits.rule}; the smallest {limits.smallest}"
