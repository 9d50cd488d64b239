"""The whole way on a laptop: cache, train, sample before and after, export, report."""

import time
from importlib.resources import as_file, files
from pathlib import Path

from . import config, session
from .files import read_jsonl
from .parallel.mesh import Mesh
from .testing.tiny import build_tiny

FOLDER = session.RUNS / "demo"


def captions(folder: Path) -> list[str]:
    return [row["caption"] for row in read_jsonl(folder / "metadata.jsonl")]


def demo() -> None:
    """Train the bundled model on the bundled clips; the same command again goes on or shows the result."""
    started = time.monotonic()
    with as_file(files("omnitune") / "assets") as assets:
        sources = [assets / "clips" / "train", assets / "pictures" / "train"]
        model = session.RUNS / "demo-model"
        if not (model / "model_index.json").is_file():
            session.say(
                f"building a tiny Wan model in {model}: random weights, a tokenizer trained on the captions"
            )
            words = [caption for source in sources for caption in captions(source)]
            wider = {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 16, "ffn_dim": 128}
            build_tiny(model, captions=words, transformer=wider, vae={"base_dim": 8})
        overrides = [f"model.path={model}", *(f"data.sources.{i}.path={s}" for i, s in enumerate(sources))]
        run, _ = config.load(assets / "demo.yaml", overrides)
        session.train(run, Mesh(run.parallel))
    records = read_jsonl(FOLDER / "metrics.jsonl")
    first, last = (sum(r["loss"] for r in part) / len(part) for part in (records[:50], records[-50:]))
    print(f"loss: {first:.3f} over the first 50 steps, {last:.3f} over the last 50")
    print(f"weights: {FOLDER / 'weights'}")
    print(f"samples: {FOLDER / 'samples'}")
    print(f"report: {FOLDER / 'report.html'}")
    print(f"{time.monotonic() - started:.0f} s")
