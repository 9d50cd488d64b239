"""What activation checkpointing keeps between forward and backward, and how much longer a step takes with it.

    OMP_NUM_THREADS=1 python benchmarks/checkpointing.py

On small random models in fp32: LLaVA's projector alone, through a frozen language model, and LoRA on Wan. Two
trainers of each, without and with it, step alternately over batches that were read before; bytes are those of
the tensors that the forward pass makes and that are still there at its end. Prints medians of ratios.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kept import kept
from small_chats import small_chat_run
from tiny_run import machine, verdict, wan

from omnitune import config
from omnitune.testing.runs import small_run, write_run
from omnitune.testing.tiny import build_tiny
from omnitune.testing.tiny_vlm import build_tiny_vlm
from omnitune.testing.training import start_training
from omnitune.trainer import Trainer

MOST_KEPT = {"projector through a frozen language model": 0.15, "LoRA on Wan": 0.1}
WIDTH, LAYERS, IMAGE, PATCH = 256, 8, 140, 14
WARM_UP = 3


@dataclass(frozen=True)
class Measured:
    """Without and with checkpointing."""

    kept: tuple[int, int]
    """Bytes."""
    seconds: tuple[float, float]
    """Medians of a step."""
    slower: float
    """The median of ratios."""

    @property
    def share(self) -> float:
        return self.kept[1] / self.kept[0]

    def __str__(self) -> str:
        (before, after), (short, long) = self.kept, self.seconds
        return (
            f"{before / 1e6:.1f} MB kept without, {after / 1e6:.1f} MB with: {self.share:.3f}; "
            f"a step {short * 1000:.0f} ms without, {long * 1000:.0f} ms with: {self.slower:.3f}"
        )


def projector_only(folder: Path, steps: int) -> dict[str, Any]:
    side = {"height": IMAGE, "width": IMAGE}
    changes = {
        "config": {
            "image_seq_length": (IMAGE // PATCH) ** 2,
            "vision_config": {"image_size": IMAGE, "patch_size": PATCH},
            "text_config": {
                "hidden_size": WIDTH, "intermediate_size": 688, "num_hidden_layers": LAYERS,
                "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": WIDTH // 4,
            },
        },
        "processor": {"image_processor": {"size": {"shortest_edge": IMAGE}, "crop_size": side}},
    }  # fmt: skip
    model = build_tiny_vlm(folder / "llava", "llava", changes=changes)
    keys = {"trainable": "full", "train_mm_proj_only": True, "schedule": {"steps": steps}}
    return small_chat_run(model, folder / "chats", pictures=3, texts=0, **keys)


def lora(folder: Path, steps: int) -> dict[str, Any]:
    model = build_tiny(folder / "wan", transformer=wan(layers=LAYERS, heads=4, head_dim=WIDTH // 4))
    run = small_run(model, folder / "cache", trainable={"lora": {}}, schedule={"steps": steps})
    run["data"] |= {"buckets": {"frames": [9], "sizes": ["128x128"]}, "batch_size": 1}
    run["data"]["sources"] = run["data"]["sources"][:1]  # clips
    return run


def seconds(trainer: Trainer, batches: Any) -> float:
    start = time.perf_counter()
    trainer.train_step(batches)
    trainer.step += 1
    return time.perf_counter() - start


def measure(folder: Path, described: Mapping[str, Any], rounds: int) -> Measured:
    file = write_run(folder / "run.yaml", described)
    runs = [config.load(file, [f"memory.checkpointing={word}"])[0] for word in ("none", "full")]
    trainers = [start_training(run, folder).trainer for run in runs]
    steps = list(trainers[0].read())
    sizes = [kept(trainer, steps[0][0]) for trainer in trainers]
    pairs = []
    for number, batches in enumerate(steps[: rounds + WARM_UP]):
        order = trainers if number % 2 else list(reversed(trainers))
        spent = {id(trainer): seconds(trainer, batches) for trainer in order}
        pairs.append(tuple(spent[id(trainer)] for trainer in trainers))
    plain, full = zip(*pairs[WARM_UP:], strict=True)
    return Measured(
        kept=(sizes[0], sizes[1]),
        seconds=(statistics.median(plain), statistics.median(full)),
        slower=statistics.median(b / a for a, b in zip(plain, full, strict=True)),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    print(machine())
    found: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as name:
        for what, describe in zip(MOST_KEPT, (projector_only, lora), strict=True):
            folder = Path(name) / describe.__name__
            folder.mkdir()
            found[what] = measure(folder, describe(folder, rounds + WARM_UP), rounds)
            print(f"{what}: {found[what]}")
    holds = all(one.share <= MOST_KEPT[what] for what, one in found.items())
    shares = "; ".join(
        f"{what} keeps {one.share:.3f} of the bytes, bound {MOST_KEPT[what]}, in {one.slower:.2f} of the time"
        for what, one in found.items()
    )
    return verdict(f"checkpointing: {shares}", holds)


if __name__ == "__main__":
    sys.exit(main())
