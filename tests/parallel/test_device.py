"""Which device a rank takes, what it measures there, and what ranks wait for."""

import json
import sys
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked import Forked

from omnitune import config
from omnitune.callbacks.base import Callback, TrainerView
from omnitune.commands import train
from omnitune.errors import UserError
from omnitune.parallel import device, mesh
from omnitune.parallel.device import Meter
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.resolve import resolve_run
from omnitune.testing.runs import metrics, small_run, write_run

Patch = pytest.MonkeyPatch
MIB = 2**20


@pytest.fixture
def cards(monkeypatch: Patch) -> Callable[[str, int, str], list[int]]:
    """Pretends cards of a kind for a local rank; gives the indices that were made current."""

    def of(kind: str, count: int, local_rank: str) -> list[int]:
        chosen: list[int] = []
        found = torch.device(kind)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
        monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        return chosen

    return of


@pytest.mark.parametrize(
    ("kind", "count", "local_rank", "index", "chosen"),
    [
        ("cuda", 4, "3", 3, [3]),
        ("cuda", 1, "3", 0, []),  # each rank is shown its own card
        ("cuda", 2, "3", 1, [1]),
        ("mps", 1, "0", 0, []),
    ],
)
def test_a_rank_takes_a_card_that_it_sees(
    cards: Any, kind: str, count: int, local_rank: str, index: int, chosen: list[int]
) -> None:
    made = cards(kind, count, local_rank)
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        assert device.local_device() == torch.device(kind, index)
        assert torch.backends.cudnn.allow_tf32 == (kind != "cuda"), "fp32 is not TF32"
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert made == chosen


def test_without_an_accelerator_it_is_the_cpu() -> None:
    assert device.local_device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("cards_of_ranks", "told"),
    [(["a", "b"], None), (["a", "b", "a"], "parallel: ranks 0 and 2 have one device, a;")],
)
def test_two_ranks_of_one_card_are_refused(
    monkeypatch: Patch, cards_of_ranks: list[str], told: str | None
) -> None:
    found = Mesh(Parallel())
    found.device, found.world = torch.device("cuda", 0), len(cards_of_ranks)
    monkeypatch.setattr(mesh, "device_id", lambda card: "a")
    monkeypatch.setattr(found, "gather", lambda mine: cards_of_ranks)
    if told is None:
        found._check_own_devices()
        return
    with pytest.raises(UserError, match=told):
        found._check_own_devices()


def test_cache_keys_know_a_device_that_is_not_the_cpu(
    tiny_wan: Path, cache: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    job = resolve_run(config.load(write_run(tmp_path / "run.yaml", small_run(tiny_wan, cache)), ())[0])
    here = job.open_cache().fingerprints
    monkeypatch.setattr("omnitune.resolve.device_type", lambda: "cuda")
    there = job.open_cache().fingerprints
    assert here.keys() == there.keys()
    assert not set(here.values()) & set(there.values())


# Time and memory


class Queue:
    """The clock of a device that computes what was queued, after the host."""

    now = 0.0

    def event(self, device: torch.device, enable_timing: bool) -> Any:
        """An event: it knows its time when the device has come to it."""
        assert enable_timing
        made = SimpleNamespace(at=None)
        made.record = lambda: self.events.append(made)
        made.elapsed_time = lambda other: 1000 * (other.at - made.at)
        return made

    def __init__(self) -> None:
        self.events: list[Any] = []

    def compute(self, seconds: float) -> None:
        """The device comes to all that was queued, and then works."""
        for event in self.events:
            event.at = self.now
        self.events.clear()
        self.now += seconds


def test_a_step_is_as_long_as_its_device_takes(monkeypatch: Patch) -> None:
    queue = Queue()
    monkeypatch.setattr(torch, "Event", queue.event)
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda device: 7)
    meter = Meter(torch.device("cuda", 0))
    meter.begin()
    queue.compute(3)  # the step
    step = meter.end()
    queue.compute(50)  # samples
    meter.begin()
    queue.compute(4)
    other = meter.end()
    queue.compute(0)
    assert (step.seconds(), other.seconds(), meter.peak) == (3, 4, 7)


@pytest.mark.skipif(sys.platform != "linux", reason="a peak can be forgotten on Linux alone")
def test_the_peak_of_a_process_is_that_of_its_steps() -> None:
    meter = Meter(torch.device("cpu"))
    block = torch.ones(64 * MIB, dtype=torch.uint8)  # what lies before steps
    del block
    meter.begin()
    meter.end()
    before = meter.peak
    block = torch.ones(96 * MIB, dtype=torch.uint8)
    del block
    meter.begin()
    meter.end()
    assert meter.peak - before < 32 * MIB
    block = torch.ones(64 * MIB, dtype=torch.uint8)
    del block
    meter.end()
    assert 48 * MIB < meter.peak - before < 90 * MIB


@pytest.mark.parametrize(("system", "factor"), [("darwin", 1), ("freebsd", 1024)])
def test_macos_tells_bytes_and_others_kibibytes(monkeypatch: Patch, system: str, factor: int) -> None:
    monkeypatch.setattr(device.sys, "platform", system)
    usage = SimpleNamespace(ru_maxrss=5)
    monkeypatch.setattr(device.resource, "getrusage", lambda who: usage)
    assert device.process_peak() == 5 * factor


class Slow(Callback):
    """Takes its time between steps."""

    def on_step(self, trainer: TrainerView) -> None:
        time.sleep(0.7)


def test_what_callbacks_take_is_not_of_the_step(
    tiny_wan: Path, cache: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = config.load(write_run(tmp_path / "run.yaml", small_run(tiny_wan, cache)), ())[0]
    folder = train.train(found, Slow()).folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics(folder)) == 3
    assert min(line["seconds"] for line in lines) < 0.7
    assert all(line["samples_per_second"] == pytest.approx(4 / line["seconds"]) for line in lines)


# Ranks


def slow_main() -> None:
    """The main rank works alone for longer than ranks wait for each other in a step."""
    init, write = Mesh.__init__, train.export

    def impatient(self: Mesh, *args: Any) -> None:
        init(self, *args)
        dist.set_timeout(timedelta(seconds=3))

    def export(family: Any, claims: Any, found: Mesh, folder: Path) -> Any:
        found.on_main(lambda: time.sleep(5))
        return write(family, claims, found, folder)

    Mesh.__init__, train.export = impatient, export


def test_ranks_wait_for_one_that_works_alone(tiny_wan: Path, cache: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run.yaml", small_run(tiny_wan, cache, schedule={"steps": 1}))
    done = Forked("train", "run.yaml", cwd=tmp_path, ranks=2, before=slow_main).wait()
    assert done.code == 0, done.err
    assert (tmp_path / "runs/run/weights").is_dir()


def watch_phases() -> None:
    """Tell whether the model of the phase before is there when the next is set up."""
    set_up, before = train.set_up, list[Any]()

    def watched(*args: Any, **kwargs: Any) -> Any:
        if before:
            print("ALIVE" if before.pop()() is not None else "FREED", file=sys.stderr, flush=True)
        family = set_up(*args, **kwargs)
        before.append(weakref.ref(family.components["transformer"]))
        return family

    train.set_up = watched


@pytest.mark.parametrize("ranks", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_the_model_of_the_phase_before_is_freed(
    tiny_wan: Path, cache: Path, tmp_path: Path, ranks: int
) -> None:
    step = {"schedule": {"steps": 1}}
    phases = [{"trainable": "full", **step}, {"trainable": {"lora": {"rank": 2}}, **step}]
    validation = {"prompts": ["a fox"], "steps": 1, "size": "1x32x32", "guidance": 1}
    described = small_run(tiny_wan, cache, phases=phases, validation=validation)
    del described["schedule"], described["trainable"]
    write_run(tmp_path / "run.yaml", described)
    done = Forked("train", "run.yaml", cwd=tmp_path, ranks=ranks, before=watch_phases).wait()
    assert done.code == 0, done.err
    assert (done.err.count("FREED"), done.err.count("ALIVE")) == (ranks, 0), done.err


def test_a_mistake_of_the_machine_on_the_main_rank_ends_all(
    tiny_wan: Path, cache: Path, tmp_path: Path
) -> None:
    write_run(tmp_path / "run.yaml", small_run(tiny_wan, cache, schedule={"steps": 1}))
    done = Forked("train", "run.yaml", cwd=tmp_path, ranks=2, before=fail_to_write).wait(120)
    assert done.code == 3, done.err
    assert done.err.count("cannot be read") == 1, done.err
    assert "Traceback" not in done.err


def fail_to_write() -> None:
    from omnitune.export import diffusers

    def prove(*args: Any) -> Any:
        raise UserError("a header is short")

    diffusers.Diffusers.prove = prove
