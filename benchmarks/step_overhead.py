"""How much longer a step of `omnitune train` takes than the same step in plain PyTorch.

Both train LoRA on the same weights and the same cached sample, in one process and alternating, so that what
else the machine does meets both. Ours is the trainer as `train` builds it, from one turn of its loop to the
next: reading the sample, drawing the posterior, padding the text, logging, asking whether to save.

In bfloat16 the bare step keeps its adapters in bfloat16 too, the least that anyone can do; ours steps fp32
masters and casts them. `python benchmarks/step_overhead.py float32` compares equal arithmetic.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from tiny_run import Settings, TinyRun, tiny_run, verdict
from torch import Tensor

from omnitune import config, session
from omnitune.parallel.mesh import Mesh
from omnitune.random import Draw
from omnitune.trainer import Trainer, encode
from omnitune.types import Batch

BOUND = 1.03
LEAST_SECONDS = 0.2
WARM_UP = 10
PAIRS = 100
# One more than is counted: the last step also writes the checkpoint.
SETTINGS = Settings(
    layers=10, heads=8, head_dim=64, frames=9, size="128x128", dtype="bfloat16", steps=WARM_UP + PAIRS + 1
)


class BareStep:
    """The loop that one would write by hand: prepared tensors, no bookkeeping."""

    def __init__(self, run: TinyRun, trainer: Trainer, batch: Batch):
        """Copy the weights and adapters that the trainer starts from, and prepare one batch for all steps."""
        model = WanTransformer3DModel.from_pretrained(
            run.model / "transformer", torch_dtype=trainer.family.dtype
        )
        ours = trainer.family.components["transformer"]
        model.requires_grad_(False).eval()
        model.add_adapter(LoraConfig(**_lora_options(ours)))
        model.load_state_dict(ours.state_dict())
        self.model = model
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.params, lr=1e-4, fused=True)
        encoded = encode(batch, Draw(0, batch["position"]), trainer.stages, trainer.mesh.device)
        self.x_0: Tensor = encoded["x0"]["x"]  # (B, C, T, H, W)
        length = trainer.family.options.text_length
        self.prompt_embeds = torch.stack(
            [F.pad(e, (0, 0, 0, length - len(e))) for e in encoded["prompt_embeds"]]
        ).to(model.dtype)  # (B, text_length, D)

    def __call__(self) -> float:
        noise, u = torch.randn_like(self.x_0), torch.rand(len(self.x_0))
        sigma = u.view(-1, 1, 1, 1, 1)
        x_t = (1 - sigma) * self.x_0 + sigma * noise
        velocity = self.model(
            hidden_states=x_t.to(self.model.dtype),
            timestep=1000 * u,
            encoder_hidden_states=self.prompt_embeds,
            return_dict=False,
        )[0]
        loss = F.mse_loss(velocity.float(), noise - self.x_0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


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
        for _ in range(SETTINGS.steps):
            start = time.perf_counter()
            self.bare_step()
            middle = time.perf_counter()
            yield next(steps)
            # The trainer asks for the next batch: its whole turn is over.
            self.bare.append(middle - start)
            self.ours.append(time.perf_counter() - middle)


def alternate(run: TinyRun) -> Alternation:
    os.chdir(run.folder)  # where the run folder goes
    chosen, _ = config.load(run.file)
    mesh = Mesh(chosen.parallel)
    job = session.make_job(chosen)
    index = job.index()
    bucket = session.sample_bucket(job, index)
    trainer, _ = session.build_trainer(job, index, mesh, session.run_folder(chosen), bucket, {})
    session.run_folder(chosen).mkdir(parents=True)
    alternation = Alternation(trainer, BareStep(run, trainer, next(trainer.read())[0]))
    trainer.read = alternation.read
    trainer.fit()
    return alternation


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("dtype", nargs="?", choices=("bfloat16", "float32"), default=SETTINGS.dtype)
    with tiny_run(replace(SETTINGS, dtype=arguments.parse_args().dtype)) as run:
        alternation = alternate(run)
    counted = slice(WARM_UP, WARM_UP + PAIRS)
    bare, ours = alternation.bare[counted], alternation.ours[counted]
    assert len(bare) == len(ours) == PAIRS, (len(bare), len(ours))
    print(f"bare {_spread(bare)}\nours {_spread(ours)}")
    if (shortest := statistics.median(bare)) < LEAST_SECONDS:
        print(f"the bare step takes {shortest:.3f} s, less than {LEAST_SECONDS} s: too short to say anything")
        return 1
    ratio = statistics.median(o / b for o, b in zip(ours, bare, strict=True))
    return verdict(f"step: median of {PAIRS} ratios {ratio:.4f}, bound {BOUND}", ratio <= BOUND)


def _spread(seconds: list[float]) -> str:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return f"median {middle * 1000:.1f} ms, quartiles {low * 1000:.1f} and {high * 1000:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
