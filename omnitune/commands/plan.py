"""Say what a run would do: the model on the meta device, no weights, no data in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ..progress import Working
from ..resolve import ResolvedRun, resolve_first, resolve_phases
from ..stages import Stage, is_under
from ..trainable.freezing import role_table

if TYPE_CHECKING:
    from ..config.run import Run
    from ..data.dataset import Index


def plan(run: "Run") -> list[str]:
    """Say what a run would do, line by line; raises UserError for what `train` would refuse."""
    return list(_lines(run))


def _lines(run: "Run") -> Iterator[str]:
    first = resolve_first(run)
    missing = [lack for source in run.data.sources if (lack := source.missing(Path.cwd()))]
    # Sources that are not here yet leave a plan; beside mistakes they are told with them.
    with Working("reading the data"):
        index = first.index() if first.mistakes.errors or not missing else None
    yield f"run {run.name}: {first.family_class.name}, {run.objective.name}, {run.model.dtype}"
    yield f"model: {run.model.path}, from {first.shape.files.source}"
    for phase in resolve_phases(run) if run.phases else [first]:
        yield ""
        if phase.part.of_phases:
            yield f"phase of steps {phase.part.start + 1} to {phase.part.end}"
        yield from _components(phase)
        if set(phase.shape.roles) != set(phase.shape.components):
            yield ""
            yield from _roles(phase)
        yield ""
        yield from _rules(phase)
        yield ""
        yield from _stages(phase)
        yield from _memory(phase)
    yield ""
    yield f"{run.steps} steps of {run.data.batch_size} samples"
    if index is None:
        yield from first.bound.notes
        yield f"data: {', '.join(missing)} is not here, so epochs and buckets are unknown"
    else:
        yield from _data(run, index)


def count(number: float) -> str:
    """12.3 M and the like."""
    for unit in ("", " K", " M", " B"):
        if number < 1000 or unit == " B":
            return f"{number:.4g}{unit}"
        number /= 1000
    raise AssertionError(number)


def _components(resolved: ResolvedRun) -> Iterator[str]:
    yield "components                            parameters     trainable        frozen"
    for name, module in resolved.shape.components.items():
        total = sum(p.numel() for p in module.parameters())
        trains = trainable_count(resolved, name)
        frozen = total - sum(
            p.numel() for n, p in module.named_parameters() if f"{name}.{n}" in resolved.claims.direct
        )
        yield _row(f"{name} ({type(module).__name__})", total, trains, frozen)
        for child_name, child in module.named_children():
            size = sum(p.numel() for p in child.parameters())
            if size:
                yield f"  {_child(child_name, child):36}{count(size):>12}"
    if resolved.claims.adapted:
        yield "  (adapters count as trainable, beside the frozen weights that they adapt)"


def _roles(resolved: ResolvedRun) -> Iterator[str]:
    yield "roles                                 parameters     trainable  method, learning rate"
    for line in role_table(
        resolved.shape.components, resolved.claims, resolved.shape.roles, resolved.run.optimizer.lr
    ):
        rates = ", ".join(f"{rate:g}" for rate in line.rates)
        how = f"{line.method}, {rates}" if rates else line.method
        yield f"{line.role:38}{count(line.parameters):>12}  {count(line.trainable):>12}  {how}"


def _child(name: str, child: nn.Module) -> str:
    if not isinstance(child, nn.ModuleList):
        return f"{name} ({type(child).__name__})"
    kinds = sorted({type(m).__name__ for m in child})
    return f"{name} ({len(child)} x {', '.join(kinds)})"


def _row(name: str, *numbers: int) -> str:
    return f"{name:38}" + "".join(f"{count(n):>12}  " for n in numbers).rstrip()


def trainable_count(resolved: ResolvedRun, component: str = "") -> int:
    """Parameters that train in a component: its own, and those of adapters."""
    prefix = f"{component}." if component else ""
    sizes = resolved.claims.sizes(dict(resolved.shape.components.named_parameters()))
    return sum(size for name, size in sizes.items() if name.startswith(prefix))


def _rules(resolved: ResolvedRun) -> Iterator[str]:
    run, claims = resolved.run, resolved.claims
    sizes = claims.sizes(dict(resolved.shape.components.named_parameters()))
    for i, rule in enumerate(claims.rules):
        mine = [name for name, j in claims.trained.items() if j == i]
        size = count(sum(sizes[name] for name in mine))
        lr = run.optimizer.lr if rule.lr is None else rule.lr
        decay = run.optimizer.weight_decay if rule.weight_decay is None else rule.weight_decay
        head = f"trainable.{i}: {', '.join(rule.globs)}"
        tail = f"lr {lr:g}, weight decay {decay:g}"
        if rule.layer_decay is not None:
            tail += f", from layer to layer x {rule.layer_decay:g}"
        if rule.last_layers is not None:
            head += f", the last {rule.last_layers} of each list of layers"
        if rule.lora is None:
            yield f"{head}\n  {len(mine)} tensors, {size} parameters; {tail}"
            continue
        alpha = rule.lora.alpha or rule.lora.rank
        yield (
            f"{head}\n  LoRA rank {rule.lora.rank}, alpha {alpha:g} on {len(mine)} layers, "
            f"{size} parameters; {tail}"
        )
        if left := [n for n, j in claims.unadaptable.items() if j == i]:
            yield (
                f"  {len(left)} tensors stay frozen, no adapter can carry them: "
                f"{', '.join(left[:3])}{' ...' * (len(left) > 3)}"
            )


def _stages(resolved: ResolvedRun) -> Iterator[str]:
    for stage in resolved.shape.stages:
        state = "cached" if stage.name in {one.name for one in resolved.cached} else "live"
        yield f"stage {stage.name}: {state}: {why(resolved, stage)}"
    unloaded = [name for name in resolved.shape.components if name not in resolved.train_components]
    if unloaded:
        yield f"not loaded while training: {', '.join(unloaded)}"


def _memory(resolved: ResolvedRun) -> Iterator[str]:
    if (method := resolved.run.memory.checkpointing) != "none":
        found = [
            f"{len(blocks)} blocks of {name}"
            for name, blocks in resolved.learning_blocks(resolved.shape).items()
        ]
        yield f"activation checkpointing: {method}, {', '.join(found)}"


def why(resolved: ResolvedRun, stage: Stage) -> str:
    """The reason why a stage is cached or runs in every step."""
    if resolved.run.data.cache is None:
        return "data.cache is null"
    if stage.draws:
        return f"it draws {', '.join(stage.draws)} anew each time"
    trained = [use for use in stage.uses if any(is_under(name, use) for name in resolved.claims.trained)]
    if trained:
        return f"a rule trains {', '.join(trained)}"
    sources = [s.name for s in resolved.live if set(s.gives) & set(stage.needs)]
    if sources:
        return f"it needs the output of {', '.join(sources)}"
    frozen = f"{', '.join(stage.uses)} stays frozen and " if stage.uses else ""
    return f"{frozen}it draws nothing"


def _data(run: "Run", index: "Index") -> Iterator[str]:
    yield from index.notes
    for bucket in sorted(index.by_bucket):
        yield f"bucket {bucket}: {len(index.by_bucket[bucket])} samples"
    epochs = run.steps * run.data.batch_size / len(index.items)
    yield f"{len(index.items)} samples, {epochs:.3g} epochs"
