"""Say what a run would do: the model on the meta device, no weights, no data in memory."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from .. import config
from ..resolve import Job
from ..stages import Stage
from ..trainable.freezing import role_table
from .train import worked_out

if TYPE_CHECKING:
    from ..config.run import Run
    from ..data.captions.index import Index


def print_plan(run: "Run") -> None:
    for line in lines(run):
        print(line)


def lines(run: "Run") -> Iterator[str]:
    """The plan, line by line; raises UserError for what `train` would refuse."""
    job = Job(run.parts()[0].run, config.validate_options)
    missing = [str(source.path) for source in run.data.sources if not source.path.exists()]
    # Sources that are not here yet leave a plan; beside mistakes they are told with them.
    index = job.index() if job.mistakes.errors or not missing else None
    yield f"run {run.name}: {job.family_class.name}, {run.objective.name}, {run.model.dtype}"
    yield f"model: {run.model.path}, from {job.shape.source}"
    for part, own in worked_out(run) if run.phases else [(None, job)]:
        yield ""
        if part is not None:
            yield f"phase of steps {part.start + 1} to {part.end}"
        yield from _components(own)
        if set(own.shape.roles) != set(own.shape.components):
            yield ""
            yield from _roles(own)
        yield ""
        yield from _rules(own)
        yield ""
        yield from _stages(own)
        yield from _memory(own)
    yield ""
    yield f"{run.steps} steps of {run.data.batch_size} samples"
    if index is None:
        yield from job.notes
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


def _components(job: Job) -> Iterator[str]:
    yield "components                            parameters     trainable        frozen"
    for name, module in job.shape.components.items():
        total = sum(p.numel() for p in module.parameters())
        trains = trainable_count(job, name)
        frozen = total - sum(
            p.numel() for n, p in module.named_parameters() if f"{name}.{n}" in job.claims.direct
        )
        yield _row(f"{name} ({type(module).__name__})", total, trains, frozen)
        for child_name, child in module.named_children():
            size = sum(p.numel() for p in child.parameters())
            if size:
                yield f"  {_child(child_name, child):36}{count(size):>12}"
    if job.claims.adapted:
        yield "  (adapters count as trainable, beside the frozen weights that they adapt)"


def _roles(job: Job) -> Iterator[str]:
    yield "roles                                 parameters     trainable  method, learning rate"
    for line in role_table(job.shape.components, job.claims, job.shape.roles, job.run.optimizer.lr):
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


def trainable_count(job: Job, component: str = "") -> int:
    """Parameters that train in a component: its own, and those of adapters."""
    prefix = f"{component}." if component else ""
    params = dict(job.shape.components.named_parameters())
    own = sum(params[n].numel() for n in job.claims.direct if n.startswith(prefix))
    adapted = [m for m in job.claims.adapted if m.startswith(prefix)]
    return own + sum(job.claims.adapter_size(m, params[f"{m}.weight"]) for m in adapted)


def _rules(job: Job) -> Iterator[str]:
    run, params = job.run, dict(job.shape.components.named_parameters())
    for i, rule in enumerate(job.claims.rules):
        lr = run.optimizer.lr if rule.lr is None else rule.lr
        decay = run.optimizer.weight_decay if rule.weight_decay is None else rule.weight_decay
        head = f"trainable.{i}: {', '.join(rule.globs)}"
        tail = f"lr {lr:g}, weight decay {decay:g}"
        if rule.layer_decay is not None:
            tail += f", from layer to layer x {rule.layer_decay:g}"
        if rule.last_layers is not None:
            head += f", the last {rule.last_layers} of each list of layers"
        if rule.lora is None:
            mine = [n for n, j in job.claims.direct.items() if j == i]
            yield (
                f"{head}\n  {len(mine)} tensors, {count(sum(params[n].numel() for n in mine))} "
                f"parameters; {tail}"
            )
            continue
        mine = [m for m, j in job.claims.adapted.items() if j == i]
        size = sum(job.claims.adapter_size(m, params[f"{m}.weight"]) for m in mine)
        alpha = rule.lora.alpha or rule.lora.rank
        yield (
            f"{head}\n  LoRA rank {rule.lora.rank}, alpha {alpha:g} on {len(mine)} layers, "
            f"{count(size)} parameters; {tail}"
        )
        if left := [n for n, j in job.claims.unadaptable.items() if j == i]:
            yield (
                f"  {len(left)} tensors stay frozen, no adapter can carry them: "
                f"{', '.join(left[:3])}{' ...' * (len(left) > 3)}"
            )


def _stages(job: Job) -> Iterator[str]:
    for stage in job.shape.stages:
        state = "cached" if stage.name in job.cached_names else "live"
        yield f"stage {stage.name}: {state}: {why(job, stage)}"
    unloaded = [name for name in job.shape.components if name not in job.train_components]
    if unloaded:
        yield f"not loaded while training: {', '.join(unloaded)}"


def _memory(job: Job) -> Iterator[str]:
    if (method := job.run.memory.checkpointing) != "none":
        found = [f"{len(blocks)} blocks of {name}" for name, blocks in job.learning_blocks(job.shape).items()]
        yield f"activation checkpointing: {method}, {', '.join(found)}"


def why(job: Job, stage: Stage) -> str:
    """The reason why a stage is cached or runs in every step."""
    if job.run.data.cache is None:
        return "data.cache is null"
    if stage.draws:
        return f"it draws {', '.join(stage.draws)} anew each time"
    trained = [
        use for use in stage.uses if any(n == use or n.startswith(f"{use}.") for n in job.claims.names)
    ]
    if trained:
        return f"a rule trains {', '.join(trained)}"
    sources = [s.name for s in job.live if set(s.gives) & set(stage.needs)]
    if sources:
        return f"it needs the output of {', '.join(sources)}"
    frozen = f"{', '.join(stage.uses)} stays frozen and " if stage.uses else ""
    return f"{frozen}it draws nothing"


def _data(run: "Run", index: "Index") -> Iterator[str]:
    yield from index.notes
    for bucket, members in sorted(index.by_bucket.items()):
        yield f"bucket {bucket}: {len(members)} samples"
    epochs = run.steps * run.data.batch_size / len(index.items)
    yield f"{len(index.items)} samples, {epochs:.3g} epochs"
