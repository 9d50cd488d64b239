"""Which repeated layers gradients flow through."""

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import nn

from ..stages import Stage, is_under
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
            if is_under(name, *opened) or not is_under(name, *closed):
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
    """Split parameter prefixes into those used by stages with and without gradients."""
    opened, closed, learned = set[str](), set[str](), set[str]()
    for stage in stages:
        if any(is_under(name, *stage.uses) for name in trained) or learned.intersection(stage.needs):
            opened.update(stage.uses)
            learned.update(stage.gives)
        else:
            closed.update(stage.uses)
    return opened, closed
