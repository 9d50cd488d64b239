"""Small runs through the command line, and what they leave behind."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..families import BUNDLED, CONVERSATIONAL, REGISTRY

MEASURED = ("seconds", "samples_per_second", "peak_memory_bytes")
"""Fields of metrics.jsonl that differ between two equal runs."""
PRELOADED = (
    "omnitune.commands.train", "omnitune.commands.sample", "peft", "torch.distributed.fsdp",
    *(REGISTRY[name].partition(":")[0] for name in (BUNDLED, CONVERSATIONAL)),
)  # fmt: skip
ASSETS = Path(str(files("omnitune") / "assets"))
SHOWN = ("rocket", "cactus", "frog")
"""Bundled pictures that conversations are about."""
SAID = (("Hello?", "yes"), ("How many boats are there?", "two boats"), ("Is it green?", "no"))


def small_run(model: Path, cache: Path, **keys: Any) -> dict[str, Any]:
    """Describe a run of two buckets on the bundled clips and pictures; `keys` replace top-level ones."""
    return {
        "model": {"family": BUNDLED, "path": str(model), "dtype": "float32"},
        "objective": {"name": "flow_matching", "shift": 3},
        "trainable": [{"params": "transformer.blocks.*.attn*", "lr": 1e-2, "lora": {"rank": 4, "alpha": 10}}],
        "data": {
            "sources": [{"path": str(ASSETS / kind / "train")} for kind in ("clips", "pictures")],
            "buckets": {"frames": [1, 9], "sizes": ["32x32"]},
            "batch_size": 4,
            "cache": str(cache),
        },
        "schedule": {"steps": 3},
        "tracking": {"draws": True},
        **keys,
    }


def small_chats(pictures: int = 3, texts: int = 3) -> list[dict[str, Any]]:
    """So many conversations about a bundled picture, and so many of text alone, at most three each."""

    def talk(asked: str, answer: str, **media: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return {"messages": messages, **media}

    shown = [
        talk(
            f"<image>What is in this picture, {name}?",
            name,
            images=[str(ASSETS / "pictures" / "train" / f"{name}.png")],
        )
        for name in SHOWN[:pictures]
    ]
    return [*shown, *(talk(*said) for said in SAID[:texts])]


def small_chat_run(
    model: Path, folder: Path, pictures: int = 3, texts: int = 3, **keys: Any
) -> dict[str, Any]:
    """Describe a run over all of `small_chats` in each step; `keys` replace top-level ones.

    The conversations and the cache are in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chats = small_chats(pictures, texts)
    (folder / "train.json").write_text(json.dumps(chats))
    return {
        "model": {"family": CONVERSATIONAL, "path": str(model), "dtype": "float32"},
        "objective": {"name": "causal_lm"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "data": {
            "name": "conversations",
            "sources": [{"path": str(folder / "train.json")}],
            "batch_size": len(chats),
            "cache": str(folder / "cache"),
        },
        "schedule": {"steps": 2},
        **keys,
    }


def write_run(path: Path, run: Mapping[str, Any]) -> Path:
    """Write a run as YAML (JSON is YAML)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1))
    return path


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Its exit code; minus the signal's number where one killed it."""
    out: str
    err: str


def start(*words: str | Path, cwd: Path) -> "subprocess.Popen[str]":
    """Start `omnitune WORDS` in a folder as a shell does, one thread a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "omnitune.cli", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]", seconds: float = 300) -> Ended:
    """Wait for a command that `start` gave."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Ended(process.returncode, out, err)


class Forked:
    """`omnitune WORDS` in fresh processes of their own, one a rank, without the seconds that imports take.

    They are forked from a server that has imported the libraries and done nothing else, and joined through
    the variables that any launcher sets. `own` has further words of single ranks; `before` is called in each
    process before the command.
    """

    def __init__(
        self,
        *words: str | Path,
        cwd: Path,
        ranks: int = 1,
        own: Mapping[int, Sequence[str]] | None = None,
        before: Callable[[], object] | None = None,
    ):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self.folder = tempfile.TemporaryDirectory()
        self.logs = [
            tuple(Path(self.folder.name) / f"{rank}.{name}" for name in ("out", "err"))
            for rank in range(ranks)
        ]
        named = [str(word) for word in words]
        self.processes = [
            context.Process(
                target=_run, args=([*named, *(own or {}).get(rank, ())], cwd, env, self.logs[rank], before)
            )
            for rank, env in enumerate(_variables(ranks))
        ]
        for process in self.processes:
            process.start()

    def signal(self, number: int) -> None:
        """Send a signal to every rank that is alive."""
        for process in self.processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, number)

    def wait(self, seconds: float = 300) -> Ended:
        """Wait for all ranks; the worst exit code, and what they wrote."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        out, err = ("".join(log[i].read_text() for log in self.logs if log[i].exists()) for i in (0, 1))
        codes = [process.exitcode or 0 for process in self.processes]
        return Ended(max(codes, key=abs), out, err)


def run(*words: str | Path, cwd: Path, ranks: int = 1) -> Ended:
    """Run `omnitune WORDS` in a folder, in fresh processes."""
    return Forked(*words, cwd=cwd, ranks=ranks).wait()


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What a run folder's metrics.jsonl says of each step, without what is measured by the clock."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in records]


def _variables(ranks: int) -> list[dict[str, str]]:
    if ranks == 1:
        return [{}]
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _run(
    words: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    logs: Sequence[Path],
    before: Callable[[], object] | None,
) -> None:
    from ..cli import main

    os.chdir(cwd)
    os.environ.update(env)
    for number, log in zip((1, 2), logs, strict=True):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if before is not None:
        before()
    sys.exit(main(words))
