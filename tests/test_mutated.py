"""Damage is told in a message that names it: no traceback, no hang, an exit code that says whose it is."""

import io
import json
import os
import random
import re
import resource
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from forked import Forked
from mutations import mutated_bytes, mutated_text, mutated_tree

from omnitune import config
from omnitune.cli import main
from omnitune.data import media
from omnitune.errors import UserError
from omnitune.testing.runs import write_run

SECONDS = 60
"""Any one command on these small files that takes longer hangs."""


def draws(quick: int, all_of: int) -> Any:
    """How many mutations a test tries: few in every run of the tests, many in `make test-slow`."""
    slow = pytest.param(quick, all_of, id="slow", marks=pytest.mark.slow)
    return pytest.mark.parametrize(("first", "last"), [pytest.param(0, quick, id="quick"), slow])


@contextmanager
def limited(what: str) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"{what}: hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ended(what: str, words: Sequence[str]) -> tuple[int, str]:
    """Run a command in this process: its exit code, and what it wrote to stderr."""
    told = io.StringIO()
    with limited(what), redirect_stderr(told), redirect_stdout(io.StringIO()):
        code = main(words)
    return code, told.getvalue()


def faults_of(name: str, first: int, last: int, one: Callable[[random.Random, str], str | None]) -> list[str]:
    """Try mutations; each that ends as it must not, with its number and the last lines of its traceback."""
    found = []
    for number in range(first, last):
        what = f"{name} {number}"
        try:
            fault = one(random.Random(what), what)
        except (AssertionError, Exception) as error:
            fault = "".join(traceback.format_exception(error)[-3:])
        if fault:
            found.append(f"{what}: {fault}")
    return found


def judged(code: int, told: str, names: str) -> str | None:
    """What is wrong with how a command ended; its message has to name a file or key."""
    if code not in (0, 2, 3):
        return f"exit code {code}: {told}"
    if code and not re.search(names, told):
        return f"names nothing: {told}"
    return None


def no_faults(found: list[str], tried: int) -> None:
    assert not found, f"{len(found)} of {tried}:\n" + "\n".join(found[:8])


# YAML files

KEYS = r"run\.yaml|[a-z_]+\.[a-z_0-9]+|\b(name|model|data|trainable|phases|validation|conditions)\b"
PHASES = [
    {"train_mm_proj_only": True, "trainable": "full", "schedule": {"steps": 2}},
    {"trainable": {"lora": {"rank": 2}, "lr": 1e-4}, "freeze_vision_tower": True,
     "schedule": {"steps": 3, "warmup": 1, "decay": "cosine", "floor": 0.1}},
]  # fmt: skip


@pytest.fixture
def place(tiny_wan: Path, tiny_vlm: Callable[..., Path], tmp_path: Path, monkeypatch: Any) -> Path:
    """A folder with pictures, clips, conversations and models, which is the current one."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    work = tmp_path / "one" / "two"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    os.symlink(tiny_wan, "wan")
    os.symlink(tiny_vlm("llava"), "llava")
    (work / "clips").mkdir()
    shown = {"fox.mp4": "a fox", "cat.png": "a cat", "boat.png": "a boat"}
    for i, name in enumerate(shown):
        pixels = np.random.default_rng(i).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
        if name.endswith("mp4"):
            media.write_video(Path("clips", name), pixels, fps=8)
        else:
            media.write_image(Path("clips", name), pixels[0])
    rows = [{"file_name": name, "caption": caption} for name, caption in shown.items()]
    Path("clips/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = [
        {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "Cat."}],
         "images": ["clips/cat.png"]},
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "You."}]},
    ]  # fmt: skip
    Path("talks.json").write_text(json.dumps(said))
    return work


DIFFUSION: dict[str, Any] = {
    "model": {"family": "wan", "path": "wan", "dtype": "float32", "options": {"text_length": 64}},
    "trainable": [
        {"params": "transformer.blocks.*.attn*", "lr": 1e-3, "lora": {"rank": 2, "alpha": 4}},
        {"params": "transformer.blocks.1.ffn"},
    ],
    "data": {
        "sources": [{"path": "clips"}],
        "buckets": {"frames": [1, 5], "sizes": ["16x16"]},
        "batch_size": 2, "cache": ".cache", "crop": "random", "variants": 2,
    },
    "objective": {"name": "flow_matching", "timesteps": "logit_normal", "shift": 3},
    "conditions": [{"name": "caption_dropout", "probability": 0.1}],
    "optimizer": {"name": "adamw", "lr": 1e-4, "betas": [0.9, 0.99]},
    "schedule": {"steps": 4, "warmup": 1, "decay": "cosine", "floor": 0.1},
    "validation": {"prompts": ["a fox"], "every": 2, "size": "5x16x16", "steps": 2, "media": {}},
    "checkpoint": {"every": 2, "keep": 2}, "ema": {"decay": 0.9}, "seed": 3,
    "parallel": {"micro_batch_size": 1}, "memory": {"checkpointing": "full"}, "tracking": {"draws": True},
}  # fmt: skip
VISION_LANGUAGE: dict[str, Any] = {
    "model": {"family": "vlm", "path": "llava", "dtype": "float32", "options": {"attention": "sdpa"}},
    "phases": PHASES,
    "data": {
        "name": "conversations",
        "sources": [{"path": "talks.json"}],
        "batch_size": 2,
        "max_length": 256,
    },
    "objective": {"name": "causal_lm", "label_smoothing": 0.1},
    "optimizer": {"name": "adam", "lr": 1e-4},
    "validation": {"prompts": ["What?"], "images": ["clips/cat.png"], "max_tokens": 4},
}
RUNS = {"diffusion": DIFFUSION, "vision-language": VISION_LANGUAGE}


def damaged_run(draw: random.Random, run: dict[str, Any]) -> str:
    """A run's YAML with something changed: of its values three times of four, else of its text."""
    if draw.randrange(4):
        return yaml.safe_dump(mutated_tree(draw, run), sort_keys=False, allow_unicode=draw.random() < 0.5)
    return mutated_text(draw, yaml.safe_dump(run, sort_keys=False, default_flow_style=draw.random() < 0.2))


@pytest.mark.parametrize("kind", RUNS)
@draws(60, 5000)
def test_a_damaged_yaml_is_read_or_refused(place: Path, kind: str, first: int, last: int) -> None:
    def one(draw: random.Random, what: str) -> str | None:
        text = damaged_run(draw, RUNS[kind])
        Path("run.yaml").write_text(text, errors="surrogatepass")
        try:
            with limited(what):
                config.load(Path("run.yaml"))
        except UserError as error:
            return judged(2, str(error), KEYS)
        return None

    no_faults(faults_of(kind, first, last, one), last - first)


@pytest.mark.parametrize("kind", RUNS)
@draws(4, 250)
def test_a_damaged_run_is_checked_or_refused(place: Path, kind: str, first: int, last: int) -> None:
    def one(draw: random.Random, what: str) -> str | None:
        Path("run.yaml").write_text(damaged_run(draw, RUNS[kind]), errors="surrogatepass")
        return judged(*ended(what, ["check", "run.yaml"]), KEYS)

    assert ended("whole", ["check", str(write_run(Path("whole.yaml"), RUNS[kind]))])[0] == 0
    no_faults(faults_of(f"check {kind}", first, last, one), last - first)


# Models


def damaged_file(draw: random.Random, file: Path) -> str:
    """Damage a file, or take it away; returns what was done."""
    kind = draw.randrange(8)
    if kind == 0:
        file.unlink()
        return "gone"
    if kind == 1:
        file.unlink()
        file.mkdir()
        return "a folder"
    if file.suffix in (".json", ".yaml") and kind < 6:
        read, write = (json.loads, json.dumps) if file.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
        file.write_text(write(mutated_tree(draw, read(file.read_text()))))
        return "other values"
    file.write_bytes(mutated_bytes(draw, file.read_bytes()))
    return "other bytes"


@pytest.mark.parametrize("kind", RUNS)
@draws(4, 100)
def test_a_damaged_model_is_refused(place: Path, kind: str, first: int, last: int) -> None:
    model = RUNS[kind]["model"]["path"]
    whole = place / model
    run = {**RUNS[kind], "model": {**RUNS[kind]["model"], "path": "model"}}
    if kind == "diffusion":
        run = {**run, "schedule": {"steps": 1}, "checkpoint": {}, "validation": {}}
    else:
        run = {**run, "phases": [{**PHASES[0], "schedule": {"steps": 1}}]}

    def one(draw: random.Random, what: str) -> str | None:
        for name in ("model", "runs", ".cache"):
            shutil.rmtree(name, ignore_errors=True)
        shutil.copytree(whole, "model")
        files = sorted(path for path in Path("model").rglob("*") if path.is_file())
        jsons = [path for path in files if path.suffix == ".json" and path.stat().st_size < 20_000]
        file = draw.choice(jsons if draw.random() < 0.6 else files)
        if file.suffix == ".safetensors" and draw.random() < 0.4:  # the older layout, whatever it holds
            file = file.rename(file.with_name("diffusion_pytorch_model.bin"))
            if kind != "diffusion" or "encoder" in str(file):
                file = file.rename(file.with_name("pytorch_model.bin"))
        done = damaged_file(draw, file)
        fault = judged(*ended(what, ["train", "run.yaml"]), r"model|init_from|talks\.json")
        return f"{file} {done}: {fault}" if fault else None

    write_run(Path("run.yaml"), run)
    no_faults(faults_of(f"model {kind}", first, last, one), last - first)


class Poison:
    """Runs a command where a pickle is trusted."""

    def __reduce__(self) -> Any:
        return os.system, ("touch poisoned",)


def change(file: str, **values: Any) -> None:
    path = Path("model", file)
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def poison() -> None:
    import pickle

    Path("model/transformer/diffusion_pytorch_model.safetensors").unlink()
    Path("model/transformer/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Poison()))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (poison, "model.path: model/transformer cannot be loaded: "),
        (lambda: change("model_index.json", vae=["os", "system"]), "vae is 'system' of 'os', which"),
        (lambda: change("model_index.json", vae=["diffusers", "No"]), "vae is 'No' of 'diffusers', which"),
        (lambda: change("model_index.json", vae=[3, []]), "'model' has no vae; family wan needs it"),
        (
            lambda: change("model_index.json", transformer=["diffusers", "AutoencoderKLWan"]),
            "model/transformer/config.json states ",
        ),
        (
            lambda: Path("model/transformer/config.json").write_text("{}"),
            "model.path: model/transformer lacks ",
        ),
        (
            lambda: change("transformer/config.json", patch_size="1x2x2"),
            "model/transformer/config.json states patch_size of '1x2x2', which is no ",
        ),
        (
            lambda: change("transformer/config.json", num_layers=10**9),
            "model/transformer/config.json states num_layers of 1000000000; fetch it again",
        ),
        (
            lambda: Path("model/transformer/config.json").write_text("[" * 100_000),
            "model/transformer/config.json is not JSON (Nested too deeply); fetch it again",
        ),
        (lambda: change("text_encoder/config.json", d_kv="x"), "config.json of text_encoder cannot be "),
        (
            lambda: change("tokenizer/tokenizer.json", decoder={"type": "none"}),
            "model/tokenizer cannot be loaded: Exception: data did not match any variant",
        ),
    ],
)  # fmt: skip
def test_what_is_damaged_in_a_model_is_named(place: Path, damage: Callable[[], None], told: str) -> None:
    shutil.copytree("wan", "model")
    damage()
    run = {**DIFFUSION, "model": {**DIFFUSION["model"], "path": "model"}}
    code, err = ended(told, ["train", str(write_run(Path("run.yaml"), run))])
    assert code == 2
    assert told in err
    assert not Path("poisoned").exists()


# Run folders


@draws(6, 300)
def test_a_damaged_run_folder_goes_on_or_is_refused(place: Path, first: int, last: int) -> None:
    run = {**DIFFUSION, "validation": {}, "checkpoint": {"every": 2}}
    write_run(Path("run.yaml"), run)
    assert ended("whole", ["train", "run.yaml"])[0] == 0
    for name in ("runs", ".cache"):
        shutil.move(name, f"whole-{name}")

    def one(draw: random.Random, what: str) -> str | None:
        for name in ("runs", ".cache"):
            shutil.rmtree(name, ignore_errors=True)
            shutil.copytree(f"whole-{name}", name, symlinks=True)
        folder = draw.choice(("runs/run", "runs/run", "runs/run", "runs/run/checkpoints", ".cache"))
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink())
        top = [path for path in files if path.parent == Path(folder)]
        file = draw.choice(top if top and draw.random() < 0.7 else files)
        done = damaged_file(draw, file)
        words = draw.choice((
            ["train", "run.yaml", "schedule.steps=6", "schedule.extend=restart"], ["train", "run.yaml"],
            ["sample", "runs/run", "--prompt", "a fox", "--steps", "1"], ["report", "runs/run"],
            ["export", "runs/run", "--out", "out"],
        ))  # fmt: skip
        shutil.rmtree("out", ignore_errors=True)
        fault = judged(*ended(what, words), r"runs/run|\.cache|data\.|model\.|schedule\.|run\.yaml")
        return f"{file} {done}, {words[0]}: {fault}" if fault else None

    no_faults(faults_of("run folder", first, last, one), last - first)


# Disks


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("size", [1 << 10, 20 << 10, 60 << 10, 300 << 10])
def test_a_file_that_may_not_grow_further_is_the_machines_fault(place: Path, size: int) -> None:
    write_run(Path("run.yaml"), {**DIFFUSION, "validation": {}})
    done = Forked("train", "run.yaml", cwd=place, before=partial(limit_files, size)).wait()
    assert done.code == 3, done.err
    assert "Traceback" not in done.err
    assert "the last complete checkpoint is intact" in done.err
