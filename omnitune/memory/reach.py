"""Which repeated layers gradients flow through."""

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import nn

from ..stages import Stage
from .checkpointing import outermost


def learning_blocks(
    components: Mapping[str, nn.Module],
    blocks: Callable[[str], Sequence[nn.Module]],
    stages: Sequence[Stage],
    trained: Collection[str],
) -> dict[str, list[nn.Module]]:
    """Component -> those of its blocks, each within no other, that gradients may flow through.

    They do not flow into a stage that nothing is learned through: a frozen tower or text encoder. `trained`
    are the names of what trains.
    """
    opened, closed = _uses(stages, trained)
    found: dict[str, list[nn.Module]] = {}
    for component, module in components.items():
        names = {id(m): name for name, m in module.named_modules()}
        repeated = dict.fromkeys(_repeated(names[id(block)]) for block in blocks(component))
        for block in outermost([module.get_submodule(name) for name in repeated if name]):
            name = f"{component}.{names[id(block)]}"
            if _is_within(name, opened) or not _is_within(name, closed):
                found.setdefault(component, []).append(block)
    return found


def _repeated(name: str) -> str:
    """The layer of a list that a module is, or is within; empty where it is in none.

    Some models list the attention of a layer alone, or a projector that runs once.
    """
    parts = name.split(".")
    while parts and not parts[-1].isdigit():
        parts.pop()
    return ".".join(parts)


def _uses(stages: Sequence[Stage], trained: Collection[str]) -> tuple[set[str], set[str]]:
    """What is used by stages that something is learned through, and by those of which that is not so."""
    opened, closed, learned = set[str](), set[str](), set[str]()
    for stage in stages:
        if any(_is_within(name, stage.uses) for name in trained) or learned.intersection(stage.needs):
            opened.update(stage.uses)
            learned.update(stage.gives)
        else:
            closed.update(stage.uses)
    return opened, closed


def _is_within(name: str, prefixes: Collection[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
