"""What a stored vision tower saves, and how much longer a step takes than the same step in plain PyTorch.


    OMP_NUM_THREADS=2 python benchmarks/vlm.py

Projector-only training of a small random LLaVA in fp32, whose tower's forward pass costs as much as its
language model's forward and backward. Each round times a step with the tower live, one with its output played
back, and the live step written out by hand; batches are read before. Prints medians of ratios.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from tiny_run import machine, verdict

from omnitune import config
from omnitune.families.vlm.chat import collate
from omnitune.testing.tiny_vlm import build_tiny_vlm
from omnitune.testing.training import start_training

LEAST_GAIN, MOST_OVERHEAD, BALANCE = 1.8, 1.05, (0.9, 1.1)
WIDTH, IMAGE, PATCH, TEXT_LAYERS = 256, 140, 14, 4
BATCH, WARM_UP = 4, 5
Step = Callable[[], None]


def sizes(tower_layers: int) -> dict[str, Any]:
    side = {"height": IMAGE, "width": IMAGE}
    return {
        "config": {
            "image_seq_length": (IMAGE // PATCH) ** 2,
            "vision_config": {
                "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": tower_layers,
                "num_attention_heads": 4, "image_size": IMAGE, "patch_size": PATCH,
            },
            "text_config": {
                "hidden_size": WIDTH, "intermediate_size": 688, "num_hidden_layers": TEXT_LAYERS,
                "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": WIDTH // 4,
            },
        },
        "processor": {"image_processor": {"size": {"shortest_edge": IMAGE}, "crop_size": side}},
    }  # fmt: skip


def write_data(folder: Path) -> Path:
    pictures = sorted(Path(str(files("omnitune") / "assets" / "pictures" / "train")).glob("*.png"))
    items = [
        {
            "messages": [
                {"role": "user", "content": "<image>What is in this picture?"},
                {"role": "assistant", "content": f"a {picture.stem.replace('_', ' ')}"},
            ],
            "images": [str(picture)],
        }
        for picture in pictures
    ]
    path = folder / "train.json"
    path.write_text(json.dumps(items))
    return path


def trained(folder: Path, model: Path, cache: Path | None, steps: int) -> tuple[Any, list[Any]]:
    """A trainer, and the micro-batches of its steps."""
    name = "live" if cache is None else "stored"
    run_file = folder / f"{name}.yaml"
    run_file.write_text(
        json.dumps(
            {
                "model": {"family": "vlm", "path": str(model), "dtype": "float32"},
                "objective": {"name": "causal_lm"},
                "trainable": "full",
                "train_mm_proj_only": True,
                "data": {
                    "name": "conversations", "sources": [{"path": str(write_data(folder))}],
                    "batch_size": BATCH, "cache": cache and str(cache), "num_workers": 0,
                },
                "schedule": {"steps": steps},
            }
        )
    )  # fmt: skip
    run, _ = config.load(run_file)
    trainer = start_training(run, folder / name).trainer
    return trainer, list(trainer.read())


def by_trainer(trainer: Any, batches: list[Any]) -> Step:
    def step() -> None:
        trainer.train_step(batches[trainer.step])
        trainer.step += 1

    return step


def by_hand(model_folder: Path, batches: list[Any]) -> tuple[Step, Callable[[], None]]:
    """The live step in plain PyTorch, and the tower's forward pass alone."""
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(model_folder).eval().requires_grad_(False)
    projector = list(model.model.multi_modal_projector.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(projector, lr=1e-4, weight_decay=0.01)
    rows = [collate([row[0] for row in step[0]["media"]], 0) for step in batches]
    place = 0

    def step() -> None:
        nonlocal place
        loss = model(**rows[place], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(projector, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        place += 1

    def tower() -> None:
        with torch.no_grad():
            model.model.vision_tower(rows[0]["pixel_values"], output_hidden_states=True)

    return step, tower


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(folder: Path, tower_layers: int, rounds: int) -> dict[str, float]:
    """Medians: gain, overhead, balance, milliseconds of the bare step."""
    folder.mkdir()
    model = build_tiny_vlm(folder / "model", "llava", changes=sizes(tower_layers))
    live, batches = trained(folder, model, None, rounds + WARM_UP)
    stored, played = trained(folder, model, folder / "cache", rounds + WARM_UP)
    bare, tower = by_hand(model, batches)
    works: dict[str, Step] = {
        "live": by_trainer(live, batches), "stored": by_trainer(stored, played), "bare": bare, "tower": tower,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds + WARM_UP):
        order = list(works) if i % 2 else list(reversed(works))
        for name in order:
            spent = seconds(works[name])
            if i >= WARM_UP:
                times[name].append(spent)
    pairs = list(zip(*times.values(), strict=True))
    return {
        "gain": statistics.median(a / b for a, b, _, _ in pairs),
        "overhead": statistics.median(a / c for a, _, c, _ in pairs),
        "balance": statistics.median(d / (c - d) for _, _, c, d in pairs),
        "bare": statistics.median(c for _, _, c, _ in pairs) * 1000,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        layers = 2 * TEXT_LAYERS
        for attempt in range(4):  # until the tower costs what the language model does
            found = measure(Path(name) / str(attempt), layers, rounds if attempt else 10)
            if attempt and BALANCE[0] <= found["balance"] <= BALANCE[1]:
                break
            layers = max(1, round(layers / found["balance"]))
    low, high = BALANCE
    print(
        f"tower of {layers} layers: its forward pass is {found['balance']:.2f} of the language model's "
        f"forward and backward (asked: {low} to {high}); bare step {found['bare']:.0f} ms"
    )
    print(f"live step: {found['overhead']:.4f} of the bare one, bound {MOST_OVERHEAD}")
    holds = (
        low <= found["balance"] <= high and found["overhead"] <= MOST_OVERHEAD and found["gain"] >= LEAST_GAIN
    )
    return verdict(f"vlm: {found['gain']:.3f} times faster with the tower stored, asked {LEAST_GAIN}", holds)


if __name__ == "__main__":
    sys.exit(main())
