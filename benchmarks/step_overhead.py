"""How much longer a step of `omnitune train` takes than the same step in plain PyTorch.

Both train LoRA on the same weights and the same cached sample, in one process and alternating, so that what
else the machine does meets both. Ours is the trainer as `train` builds it, from one turn of its loop to the
next: reading the sample, drawing the posterior, padding the text, logging, asking whether to save.

In bfloat16 the bare step keeps its adapters in bfloat16 too, the least that anyone can do; ours steps fp32
masters and casts them. `python benchmarks/step_overhead.py float32` compares equal arithmetic.

This is Wan, at a bound of 1.03; `families.py` has every family, at 1.05.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from tiny_run import Settings, TinyRun, tiny_run, verdict, wan
from torch import Tensor

from omnitune import config
from omnitune.batch import Batch
from omnitune.random import Draw
from omnitune.run_folder import run_folder
from omnitune.stages import encode
from omnitune.testing.training import start_training
from omnitune.trainer import Trainer

BOUND = 1.03
LEAST_SECONDS = 0.2
WARM_UP = 10
PAIRS = 100
# One more than is counted: the last step also writes the checkpoint.
SETTINGS = Settings(
    wan(layers=10, heads=8, head_dim=64),
    frames=9,
    size="128x128",
    dtype="bfloat16",
    steps=WARM_UP + PAIRS + 1,
)


class BareStep:
    """The loop that one would write by hand: prepared tensors, no bookkeeping."""

    def __init__(self, run: TinyRun, trainer: Trainer, batch: Batch):
        """Copy the weights and adapters that the trainer starts from, and prepare one batch for all steps."""
        core, self.inputs = recorded(trainer, batch)
        ours: Any = trainer.family.components[core]
        model = type(ours).from_pretrained(run.model / core, torch_dtype=trainer.family.dtype)
        model.requires_grad_(False).eval()
        model.add_adapter(LoraConfig(**_lora_options(ours)))
        model.load_state_dict(ours.state_dict())
        self.model = model
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.params, lr=1e-4, fused=True)
        self.x_0: Tensor = self.inputs.pop("hidden_states").float()  # (B, ...), as the network takes latents

    def __call__(self) -> float:
        noise, u = torch.randn_like(self.x_0), torch.rand(len(self.x_0))
        sigma = u.view(-1, *[1] * (self.x_0.ndim - 1))
        x_t = (1 - sigma) * self.x_0 + sigma * noise
        prediction = self.model(hidden_states=x_t.to(self.model.dtype), **self.inputs)[0]
        # Of given frames the network is fed further channels, which it does not predict.
        target = (noise - self.x_0)[tuple(map(slice, prediction.shape))]
        loss = F.mse_loss(prediction.float(), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def recorded(trainer: Trainer, batch: Batch) -> tuple[str, dict[str, Any]]:
    """The network that a step on this batch trains, and all that the family feeds it, by name."""
    calls: list[tuple[str, dict[str, Any]]] = []
    hooks = [
        trainer.family.components[name].register_forward_pre_hook(
            lambda module, args, kwargs, name=name: calls.append((name, kwargs)), with_kwargs=True
        )
        for name in trainer.family.cores
    ]
    draw = Draw(0, batch["position"])
    with torch.no_grad():
        encoded = encode(batch, draw, trainer.stages, trainer.mesh.device)
        trainer.objective.loss(trainer.family, encoded, draw, trainer.conditions)
    for hook in hooks:
        hook.remove()
    (call,) = calls
    return call


def _lora_options(ours: torch.nn.Module) -> dict[str, object]:
    """Rank, alpha and layers of the adapters that the trainer added."""
    adapter = ours.peft_config["default"]
    return {name: getattr(adapter, name) for name in ("r", "lora_alpha", "target_modules")}


@dataclass
class Alternation:
    """Stands in for the trainer's reader: before each of our steps runs and times a bare one."""

    trainer: Trainer
    bare_step: BareStep
    bare: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)

    def read(self) -> Iterator[list[Batch]]:
        steps = Trainer.read(self.trainer)
        for _ in range(self.trainer.last_step):
            start = time.perf_counter()
            self.bare_step()
            middle = time.perf_counter()
            yield next(steps)
            # The trainer asks for the next batch: its whole turn is over.
            self.bare.append(middle - start)
            self.ours.append(time.perf_counter() - middle)


@dataclass(frozen=True)
class Pairs:
    """Seconds of steps, pair by pair."""

    bare: list[float]
    ours: list[float]

    @property
    def ratio(self) -> float:
        """The median of ours / bare."""
        return statistics.median(o / b for o, b in zip(self.ours, self.bare, strict=True))


def alternate(run: TinyRun, warm_up: int) -> Pairs:
    """Train a run, a bare step before each of its own; all pairs but the first `warm_up`.

    The last step, which saves, is in none: the trainer asks for no batch after it.
    """
    with chdir(run.folder):  # where the run folder goes
        chosen, _ = config.load(run.file)
        trainer = start_training(chosen, run_folder(chosen)).trainer
        run_folder(chosen).mkdir(parents=True)
        alternation = Alternation(trainer, BareStep(run, trainer, next(trainer.read())[0]))
        trainer.read = alternation.read
        trainer.fit()
    return Pairs(alternation.bare[warm_up:], alternation.ours[warm_up:])


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("dtype", nargs="?", choices=("bfloat16", "float32"), default=SETTINGS.dtype)
    with tiny_run(replace(SETTINGS, dtype=arguments.parse_args().dtype)) as run:
        pairs = alternate(run, WARM_UP)
    assert len(pairs.bare) == PAIRS, len(pairs.bare)
    print(f"bare {_spread(pairs.bare)}\nours {_spread(pairs.ours)}")
    if (shortest := statistics.median(pairs.bare)) < LEAST_SECONDS:
        print(f"the bare step takes {shortest:.3f} s, less than {LEAST_SECONDS} s: too short to say anything")
        return 1
    return verdict(f"step: median of {PAIRS} ratios {pairs.ratio:.4f}, bound {BOUND}", pairs.ratio <= BOUND)


def _spread(seconds: list[float]) -> str:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return f"median {middle * 1000:.1f} ms, quartiles {low * 1000:.1f} and {high * 1000:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
