"""Nothing is lost: a run that was stopped, killed or cut off ends as the run that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from forked import Forked, run
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from omnitune import checkpoint, config
from omnitune.batch import Batch
from omnitune.callbacks import record
from omnitune.callbacks.record import Measured
from omnitune.checkpoint import Saved
from omnitune.cli import main
from omnitune.commands.train import train_on
from omnitune.parallel import launch
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.parallel.state import load_whole
from omnitune.progress import Progress
from omnitune.testing.runs import Ended, ended, metrics, small_run, start, write_run
from omnitune.trainer import Trainer


@pytest.fixture(scope="module")
def home(tiny_wan: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run.yaml in which everything that draws is on."""
    folder = tmp_path_factory.mktemp("resume")
    lora = {"rank": 4, "alpha": 10, "dropout": 0.3}
    described = small_run(
        tiny_wan, cache,
        trainable=[{"params": "transformer.blocks.*.attn*", "lr": 1e-2, "lora": lora}],
        conditions=[{"name": "caption_dropout", "probability": 0.5}],
        ema={"decay": 0.9},
    )  # fmt: skip
    write_run(folder / "run.yaml", described)
    return folder


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> Callable[..., Path]:
    """Gives the folder of a run of so many steps that nothing disturbed; trained once."""

    def train(steps: int, ranks: int = 1) -> Path:
        name = f"whole-{steps}-{ranks}"
        if not (home / "runs" / name).exists():
            done = run("train", "run.yaml", f"name={name}", f"schedule.steps={steps}", cwd=home, ranks=ranks)
            assert done.code == 0, done.err
        return home / "runs" / name

    return train


def words(name: str, steps: int, *more: str) -> list[str]:
    return ["train", "run.yaml", f"name={name}", f"schedule.steps={steps}", *more]


def train(home: Path, name: str, steps: int, *more: str) -> Ended:
    done = run(*words(name, steps, *more), cwd=home)
    assert done.code == 0, done.err
    return done


def newest(folder: Path) -> Saved:
    saved, notes = checkpoint.newest(folder / "checkpoints")
    assert saved is not None, notes
    return saved


def checkpointed(folder: Path) -> dict[str, Tensor]:
    """Weights, average and optimizer of the newest checkpoint."""
    return load_whole(newest(folder).tensors, Mesh(Parallel()))


def exported(folder: Path) -> dict[str, Tensor]:
    """The average and the raw weights as they are published."""
    files = {part: folder / part / "pytorch_lora_weights.safetensors" for part in ("weights", "weights-raw")}
    return {f"{part}/{name}": t for part, file in files.items() for name, t in load_file(file).items()}


def assert_bit_equal(one: Path, other: Path) -> None:
    """Two finished runs saw, measured, kept and published the same bits."""
    steps = [record["step"] for record in metrics(other)]
    assert steps == list(range(1, len(steps) + 1))
    assert metrics(one) == metrics(other)
    assert (one / "draws.jsonl").read_bytes() == (other / "draws.jsonl").read_bytes()
    for mine, theirs in ((checkpointed(one), checkpointed(other)), (exported(one), exported(other))):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_checkpoint_holds_weights_average_and_optimizer(undisturbed: Callable[..., Path]) -> None:
    kinds = {name.split("/")[0] for name in checkpointed(undisturbed(6))}
    assert kinds == {"weights", "ema", "optimizer"}


def test_three_steps_and_three_more_in_another_process_equal_six(
    home: Path, undisturbed: Callable[..., Path]
) -> None:
    train(home, "halves", 3)
    assert "going on after step 3 of 6" in train(home, "halves", 6).err
    assert_bit_equal(undisturbed(6), home / "runs/halves")


def test_metrics_beyond_the_checkpoint_and_a_half_line_are_cut_back(
    home: Path, undisturbed: Callable[..., Path]
) -> None:
    train(home, "ahead", 3)
    for name in ("metrics", "draws"):
        path = home / f"runs/ahead/{name}.jsonl"
        last = json.loads(path.read_text().splitlines()[-1])
        beyond = [json.dumps({**last, "step": step}) for step in (4, 5, 6)]
        path.write_text(path.read_text() + "\n".join(beyond)[:-20])
    train(home, "ahead", 6)
    assert_bit_equal(undisturbed(6), home / "runs/ahead")


def test_a_finished_run_is_left_as_it_is_unless_more_steps_are_asked_for(
    home: Path, undisturbed: Callable[..., Path]
) -> None:
    train(home, "finished", 6)
    before = (home / "runs/finished/metrics.jsonl").read_bytes()
    assert (
        "is trained to step 6 already; a larger schedule.steps extends it" in train(home, "finished", 6).err
    )
    assert (home / "runs/finished/metrics.jsonl").read_bytes() == before
    assert_bit_equal(undisturbed(6), home / "runs/finished")
    train(home, "finished", 8)
    assert_bit_equal(undisturbed(8), home / "runs/finished")


# Damage


def cut_in_half(saved: Saved) -> None:
    largest = max((p for p in saved.folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def test_a_damaged_newest_checkpoint_is_named_in_a_line_and_the_one_before_goes_on(
    home: Path, undisturbed: Callable[..., Path]
) -> None:
    train(home, "damaged", 3, "checkpoint.every=1")
    cut_in_half(newest(home / "runs/damaged"))
    done = train(home, "damaged", 6)
    (line,) = [line for line in done.err.splitlines() if "step-00000003" in line]
    assert line.startswith("runs/damaged/checkpoints/step-00000003 is passed over: ")
    assert "going on after step 2 of 6" in done.err
    assert_bit_equal(undisturbed(6), home / "runs/damaged")


def test_a_damaged_later_checkpoint_goes_and_the_one_just_saved_stays(home: Path) -> None:
    train(home, "kept", 6, "checkpoint.every=3")
    folder = home / "runs/kept/checkpoints"
    cut_in_half(newest(home / "runs/kept"))
    train(home, "kept", 4, "checkpoint.keep=1")
    assert [(saved.step, saved.fault()) for saved in checkpoint.list_saved(folder)] == [(4, None)]


def test_damaged_checkpoints_do_not_count_among_those_that_are_kept(home: Path) -> None:
    train(home, "counted", 3, "checkpoint.every=1", "checkpoint.keep=null")
    folder = home / "runs/counted/checkpoints"
    for saved in checkpoint.list_saved(folder)[1:]:
        cut_in_half(saved)
    train(home, "counted", 5, "checkpoint.every=4", "checkpoint.keep=3")
    assert [(s.step, s.fault()) for s in checkpoint.list_saved(folder)] == [(1, None), (4, None), (5, None)]


def test_a_run_without_a_whole_checkpoint_says_that_it_starts_again(
    home: Path, undisturbed: Callable[..., Path]
) -> None:
    train(home, "ruined", 3, "checkpoint.every=1")
    for saved in checkpoint.list_saved(home / "runs/ruined/checkpoints"):
        cut_in_half(saved)
    done = train(home, "ruined", 6)
    assert done.err.count("is passed over: ") == 3
    assert "no checkpoint of runs/ruined is whole: it starts again from step 0" in done.err
    assert_bit_equal(undisturbed(6), home / "runs/ruined")


# Errors


def test_a_run_that_fails_closes_the_bar_and_writes_what_it_measured(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Progress] = []
    step = Trainer.train_step

    def failing(trainer: Trainer, micro_batches: Sequence[Batch]) -> Measured:
        if trainer.step == 3:
            raise RuntimeError("the third step was the last")
        return step(trainer, micro_batches)

    monkeypatch.chdir(home)
    monkeypatch.setattr(Trainer, "train_step", failing)
    monkeypatch.setattr(record, "HOST_READ_SECONDS", 1000.0)
    monkeypatch.setattr(Progress, "close", lambda self: closed.append(self))
    with pytest.raises(RuntimeError, match="the third step"):
        train_on(config.load(home / "run.yaml", ["name=fails", "schedule.steps=5"])[0], Mesh(Parallel()))
    assert [progress.what for progress in closed].count("step") == 1
    assert [record["step"] for record in metrics(home / "runs/fails")] == [1, 2, 3]


# Signals


def wait_for(there: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.001)


def stopped_step(done: Ended, folder: Path, steps: int) -> int:
    """Check that a stopped command ended as it must; the step after which it stopped."""
    assert done.code == 75, done.err
    assert "Traceback" not in done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("stopped")]
    step = newest(folder).step
    assert line == f"stopped after step {step} of {steps}; the same command goes on"
    assert metrics(folder)[-1]["step"] == step < steps
    return step


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_saves_the_step_and_the_same_command_goes_on(
    home: Path, undisturbed: Callable[..., Path], number: signal.Signals
) -> None:
    folder = home / "runs" / number.name
    process = Forked(*words(number.name, 80), cwd=home)
    wait_for((folder / "metrics.jsonl").exists)
    process.signal(number)
    step = stopped_step(process.wait(), folder, 80)
    assert f"going on after step {step} of 80" in train(home, number.name, 80).err
    assert_bit_equal(undisturbed(80), folder)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, id="SIGTERM"),
        pytest.param(signal.SIGINT, id="SIGINT", marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_parent_of_two_processes_saves_the_step(
    home: Path, undisturbed: Callable[..., Path], number: signal.Signals
) -> None:
    name = f"{number.name}-2"
    process = start(*words(name, 40), "--nproc", "2", cwd=home)
    wait_for((home / "runs" / name / "metrics.jsonl").exists)
    process.send_signal(number)
    stopped_step(ended(process), home / "runs" / name, 40)
    done = run(*words(name, 40), cwd=home, ranks=2)
    assert done.code == 0, done.err
    assert_bit_equal(undisturbed(40, ranks=2), home / "runs" / name)


def test_a_signal_to_workers_too_saves_the_step(home: Path) -> None:
    given = ["data.cache=null", "data.num_workers=2"]
    command = [sys.executable, "-m", "omnitune.cli", *words("group", 4000, *given)]
    process = subprocess.Popen(
        command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for((home / "runs/group/metrics.jsonl").exists)
    os.killpg(process.pid, signal.SIGTERM)
    stopped_step(ended(process), home / "runs/group", 4000)


# Kills


def wait_and_kill(process: Forked, folder: Path, moment: str, delay: float) -> None:
    """Kill a process while it loads, or when it next saves, or when it next has saved."""
    checkpoints = folder / "checkpoints"
    before = {path.name for path in checkpoints.glob("step-*")}
    if moment == "saving":
        wait_for(lambda: any(checkpoints.glob(".step-*.tmp")))
    elif moment == "saved":
        wait_for(lambda: any(path.name not in before for path in checkpoints.glob("step-*")))
    time.sleep(delay)
    process.signal(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL, "it ended before it was killed"


def train_with_kills(home: Path, name: str, steps: int, kills: int) -> int:
    """Kill a run at random moments and start it again; how many kills left a checkpoint half-written."""
    chance, half_written = random.Random(name), 0
    folder = home / "runs" / name
    for i in range(kills):
        process = Forked(*words(name, steps, "checkpoint.every=1"), cwd=home)
        moment = ("saved", "saving", "loading")[i % 3]
        left = {path.name for path in (folder / "checkpoints").glob(".step-*.tmp")}
        if moment == "saving":  # what an earlier kill left must not pass for a save of this process
            wait_for(
                lambda left=left: not left & {p.name for p in (folder / "checkpoints").glob(".step-*.tmp")}
            )
        wait_and_kill(process, folder, moment, chance.uniform(0, 1.5 if moment == "loading" else 0.03))
        half_written += any((folder / "checkpoints").glob(".step-*.tmp"))
    train(home, name, steps)
    return half_written


def test_three_kills_at_random_moments_change_nothing(home: Path, undisturbed: Callable[..., Path]) -> None:
    train_with_kills(home, "kills-3", 40, 3)
    assert_bit_equal(undisturbed(40), home / "runs/kills-3")


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(home: Path, undisturbed: Callable[..., Path]) -> None:
    assert train_with_kills(home, "kills-20", 80, 20) > 0
    assert_bit_equal(undisturbed(80), home / "runs/kills-20")


# A lost rank


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers(pid: int) -> list[int]:
    """Processes below a launcher that run a command."""
    found = [one for child in children(pid) for one in [child, *workers(child)]]
    return [one for one in found if b"omnitune.cli" in Path(f"/proc/{one}/cmdline").read_bytes()]


def test_a_rank_that_is_killed_while_the_cache_fills_is_told_of(home: Path) -> None:
    process = start(*words("lost", 3, "data.cache=lost"), "--nproc", "2", cwd=home)
    wait_for(lambda: any((home / "lost").glob("*/index.sqlite")))
    os.kill(workers(process.pid)[-1], signal.SIGKILL)
    done = ended(process)
    assert done.code == 3, done.err
    assert done.err.splitlines()[-1].startswith("a rank was lost (signal 9, Killed); ")
    assert "Traceback" not in done.err


def failure(rank: int, exitcode: int, seconds: int) -> ProcessFailure:
    made = ProcessFailure(local_rank=rank, pid=rank, exitcode=exitcode, error_file="")
    made.timestamp = seconds
    return made


def test_what_the_launcher_kills_is_not_lost() -> None:
    assert launch._lost_rank([failure(0, 2, 100), failure(1, -signal.SIGTERM, 100)]) is None
    assert launch._lost_rank([failure(0, 2, 100), failure(1, -signal.SIGKILL, 130)]) is None
    assert launch._lost_rank([failure(0, 75, 101), failure(1, -signal.SIGKILL, 100)]) is not None


def test_a_stop_of_which_no_rank_tells_is_no_lost_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*words: str) -> None:
        raise SignalException("told to end", signal.SIGTERM)

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *made: stopped)
    assert launch.launch(["train", "run.yaml"], 2, 600) == (
        75, "stopped by SIGTERM; what was not saved is done again",
    )  # fmt: skip


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_of_processes_below_one_is_refused(
    home: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    assert main(["train", "run.yaml", "--nproc", str(number)]) == 2
    assert capsys.readouterr().err == f"--nproc: a run takes 1 process or more, not {number}\n"


# A full disk


class Disk:
    """A file system of so many bytes of its own, in memory."""

    def __init__(self, folder: Path):
        self.folder = folder

    def mount(self, size: int, *options: str) -> "subprocess.CompletedProcess[str]":
        given = ",".join([*options, f"size={size}"])
        command = ["mount", "-t", "tmpfs", "-o", given, "tmpfs", str(self.folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def grow(self, size: int) -> None:
        done = self.mount(size, "remount")
        assert done.returncode == 0, done.stderr


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    made = Disk(tmp_path / "disk")
    made.folder.mkdir()
    done = made.mount(1 << 20)
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", str(made.folder)], check=True)


def by_shell(*words: str, cwd: Path) -> Ended:
    return ended(start(*words, cwd=cwd))


@pytest.mark.parametrize(
    ("kibibytes", "command"),
    [pytest.param(700, by_shell, marks=pytest.mark.slow), (1024, run), (1040, run)],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_space(
    home: Path, undisturbed: Callable[..., Path], disk: Disk, kibibytes: int, command: Callable[..., Ended]
) -> None:
    disk.grow(kibibytes << 10)
    shutil.copy(home / "run.yaml", disk.folder)
    folder = disk.folder / "runs/full"
    filling = words("full", 40, "checkpoint.every=1", "checkpoint.keep=null")
    done = command(*filling, cwd=disk.folder)
    assert done.code == 3, done.err
    *progress, line = done.err.splitlines()
    assert "No space left on device" in line
    assert line.endswith("; the last complete checkpoint is intact")
    assert all(one.startswith(("cache: ", "step ")) for one in progress), done.err
    kept = checkpoint.list_saved(folder / "checkpoints")
    assert 0 < len(kept) < 40
    assert [saved.fault() for saved in kept] == [None] * len(kept)
    disk.grow(64 << 20)
    assert f"going on after step {kept[-1].step} of 40" in run(*filling, cwd=disk.folder).err
    assert_bit_equal(undisturbed(40), folder)
