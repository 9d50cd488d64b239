"""A run of phases that is stopped or killed around a phase's end ends as the run that was not."""

import importlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked, run
from small_chats import small_chat_run
from test_resume import wait_for, workers

from omnitune import checkpoint
from omnitune.checkpoint import Saved
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.parallel.state import load_whole
from omnitune.run_folder import locked
from omnitune.testing.runs import Ended, ended, metrics, start, write_run

PHASES: list[dict[str, Any]] = [
    {"trainable": "full", "train_mm_proj_only": True, "schedule": {"steps": 3}},
    {
        "trainable": {"lora": {"rank": 2, "dropout": 0.3}, "lr": 1e-2},
        "freeze_multi_modal_projector": False,
        "schedule": {"steps": 3, "warmup": 2},
    },
    {"trainable": [{"params": "vision_tower", "lr": 1e-3}], "schedule": {"steps": 2}},
]
STEPS = 8
SAVED = [2, 3, 4, 6, 8]
"""Steps after which a checkpoint is saved: every second, and the last of each phase."""


@dataclass(frozen=True)
class Moment:
    """Just before or just after a function is called for so many times, in the process that trains."""

    function: str
    """Its module and name, as `omnitune.checkpoint:save`."""
    number: int
    after: bool = False

    def __post_init__(self) -> None:
        assert callable(getattr(*self.place()))  # told when the tests are collected, slow ones too

    def place(self) -> tuple[Any, str]:
        """What holds the function, and its name there."""
        module, _, names = self.function.partition(":")
        *owners, name = names.split(".")
        owner: Any = importlib.import_module(module)
        for each in owners:
            owner = getattr(owner, each)
        return owner, name

    def __str__(self) -> str:
        word = "after" if self.after else "before"
        return f"{word}-{self.function.partition(':')[2]}-{self.number}"


def before(function: str, number: int) -> Moment:
    return Moment(function, number)


def after(function: str, number: int) -> Moment:
    return Moment(function, number, after=True)


def send_at(moment: Moment, number: int) -> None:
    """Have this process send itself a signal at a moment."""
    owner, name = moment.place()
    real, calls = getattr(owner, name), itertools.count(1)

    def watched(*args: Any, **kwargs: Any) -> Any:
        due = next(calls) == moment.number
        if due and not moment.after:
            os.kill(os.getpid(), number)
        found = real(*args, **kwargs)
        if due and moment.after:
            os.kill(os.getpid(), number)
        return found

    setattr(owner, name, watched)


@pytest.fixture(scope="module")
def home(tiny_vlm: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run.yaml of three phases: projector, adapters beside it, vision tower."""
    folder = tmp_path_factory.mktemp("phases")
    described = small_chat_run(
        tiny_vlm("llava"), folder, checkpoint={"every": 2, "keep": None}, phases=PHASES
    )
    del described["schedule"]
    described["data"]["batch_size"] = 2
    write_run(folder / "run.yaml", described)
    return folder


def words(name: str) -> list[str]:
    return ["train", "run.yaml", f"name={name}"]


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> Callable[..., Path]:
    """Gives the folder of the run that nothing disturbed, by ranks; trained once."""

    def train(ranks: int = 1) -> Path:
        folder = home / "runs" / f"whole-{ranks}"
        if not folder.exists():
            done = run(*words(folder.name), cwd=home, ranks=ranks)
            assert done.code == 0, done.err
        return folder

    return train


def saved_states(folder: Path) -> list[Saved]:
    """Checkpoints of a finished run, each complete, and nothing else beside them."""
    found = checkpoint.list_saved(folder / "checkpoints")
    names = [saved.folder.name for saved in found]
    assert sorted(os.listdir(folder / "checkpoints")) == ["latest", *names]
    assert os.readlink(folder / "checkpoints" / "latest") == names[-1]
    assert [saved.step for saved in found] == SAVED
    assert [saved.fault() for saved in found] == [None] * len(SAVED)
    return found


def published(folder: Path) -> dict[str, bytes]:
    """Every file of the exported result."""
    weights = folder / "weights"
    return {str(p.relative_to(weights)): p.read_bytes() for p in weights.rglob("*") if p.is_file()}


def assert_same(whole: Path, again: Path) -> None:
    """Two finished runs measured, kept and published the same bits."""
    assert [record["step"] for record in metrics(again)] == list(range(1, STEPS + 1))
    assert metrics(again) == metrics(whole)
    for one, other in zip(saved_states(whole), saved_states(again), strict=True):
        assert one.state() == other.state()
        mine, theirs = (load_whole(saved.tensors, Mesh(Parallel())) for saved in (one, other))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert published(whole)
    assert published(again) == published(whole)


def struck(home: Path, name: str, moment: Moment, number: int) -> Ended:
    """How a run ended that sent itself a signal."""
    return Forked(*words(name), cwd=home, before=partial(send_at, moment, number)).wait()


def goes_on(home: Path, name: str, step: int, phase: int) -> None:
    """The same command starts where it should, and ends well."""
    done = run(*words(name), cwd=home)
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("going on after step ")]
    assert lines[0] == f"going on after step {step} of {STEPS}, phase {phase} of {len(PHASES)}"


Case = tuple[Moment, int, int]
"""When it happens; the step and the phase at which the same command goes on."""


def some_slow(quick: Sequence[Case], others: Sequence[Case]) -> list[Any]:
    cases = [(case, []) for case in quick] + [(case, [pytest.mark.slow]) for case in others]
    return [pytest.param(*case, id=str(case[0]), marks=marks) for case, marks in cases]


QUICK_KILLS = (
    (before("omnitune.checkpoint:write_json", 4), 2, 1),  # the last checkpoint of a phase lacks COMPLETE
)
OTHER_KILLS = (
    (before("omnitune.parallel.state:save_tensors", 2), 2, 1),
    (after("omnitune.parallel.state:save_tensors", 2), 2, 1),
    (after("omnitune.checkpoint:write_json", 4), 2, 1),  # complete, under its temporary name
    (before("omnitune.checkpoint:_point", 2), 3, 2),  # named; `latest` is the one before
    (after("omnitune.checkpoint:save", 2), 3, 2),
    (before("omnitune.resolve:fill", 2), 3, 2),
    (before("omnitune.model:load_trained", 1), 3, 2),
    (after("omnitune.model:place", 2), 3, 2),
    (before("omnitune.trainer:Trainer.train_step", 4), 3, 2),
    (after("omnitune.trainer:Trainer.train_step", 4), 3, 2),
    (after("omnitune.parallel.state:save_tensors", 3), 3, 2),
    (after("omnitune.parallel.state:save_tensors", 4), 4, 2),
    (after("omnitune.model:load_trained", 2), 6, 3),
    (before("omnitune.trainer:Trainer.train_step", 7), 6, 3),
    (after("omnitune.trainer:Trainer.train_step", 8), 6, 3),
)


@pytest.mark.parametrize(("moment", "step", "phase"), some_slow(QUICK_KILLS, OTHER_KILLS))
def test_a_kill_around_the_end_of_a_phase_changes_nothing(
    home: Path, undisturbed: Callable[..., Path], moment: Moment, step: int, phase: int
) -> None:
    name = f"kill-{moment}".replace("_", "-")
    assert struck(home, name, moment, signal.SIGKILL).code == -signal.SIGKILL
    goes_on(home, name, step, phase)
    assert_same(undisturbed(), home / "runs" / name)


QUICK_STOPS = ((before("omnitune.trainer:Trainer.train_step", 3), 3, 2),)  # in the last step of a phase
OTHER_STOPS = (
    (before("omnitune.trainer:Trainer.train_step", 4), 4, 2),
    (before("omnitune.checkpoint:save", 2), 3, 2),
    (before("omnitune.model:load_trained", 1), 3, 2),
)


@pytest.mark.parametrize(("moment", "step", "phase"), some_slow(QUICK_STOPS, OTHER_STOPS))
def test_a_stop_around_the_end_of_a_phase_is_heeded(
    home: Path, undisturbed: Callable[..., Path], moment: Moment, step: int, phase: int
) -> None:
    name = f"stop-{moment}".replace("_", "-")
    done = struck(home, name, moment, signal.SIGTERM)
    assert done.code == 75, done.err
    assert "Traceback" not in done.err
    found, notes = checkpoint.newest(home / "runs" / name / "checkpoints")
    assert notes == []
    assert found is not None
    assert found.step == step
    assert metrics(home / "runs" / name)[-1]["step"] == step
    goes_on(home, name, step, phase)
    assert_same(undisturbed(), home / "runs" / name)


def test_a_killed_run_lets_go_of_its_folder_while_its_readers_live(tmp_path: Path) -> None:
    if (killed := os.fork()) == 0:
        with locked(tmp_path / "run"):
            if os.fork() == 0:
                time.sleep(3)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(killed, 0)
    with locked(tmp_path / "run"):
        pass


IN_TURN = (
    before("omnitune.trainer:Trainer.train_step", 2),
    before("omnitune.checkpoint:_point", 1),  # at step 2
    after("omnitune.trainer:Trainer.train_step", 1),
    after("omnitune.parallel.state:save_tensors", 1),
    after("omnitune.checkpoint:save", 1),  # at step 3, the end of the first phase
    after("omnitune.model:load_trained", 1),
    after("omnitune.trainer:Trainer.train_step", 1),
    after("omnitune.checkpoint:write_json", 1),
    after("omnitune.checkpoint:save", 1),  # at step 4
    after("omnitune.trainer:Trainer.train_step", 2),
    after("omnitune.checkpoint:save", 1),  # at step 6, the end of the second phase
    before("omnitune.model:place", 1),
    before("omnitune.trainer:Trainer.train_step", 2),
    before("omnitune.commands.train:export", 1),  # at step 8, the end
)
"""Each counted from where the kill before it left the run."""


@pytest.mark.slow
def test_one_run_that_is_killed_again_and_again_changes_nothing(
    home: Path, undisturbed: Callable[..., Path]
) -> None:
    for moment in IN_TURN:
        assert struck(home, "again", moment, signal.SIGKILL).code == -signal.SIGKILL, moment
    done = run(*words("again"), cwd=home)
    assert done.code == 0, done.err
    assert_same(undisturbed(), home / "runs/again")


@pytest.mark.slow
def test_two_processes_are_stopped_and_one_is_lost_around_the_ends_of_phases(
    home: Path, undisturbed: Callable[..., Path]
) -> None:
    folder = home / "runs/two"
    command = [*words(folder.name), "--nproc", "2"]
    process = start(*command, cwd=home)
    wait_for((folder / "checkpoints/step-00000003").exists)
    process.send_signal(signal.SIGTERM)
    done = ended(process)
    assert done.code == 75, done.err
    assert "Traceback" not in done.err
    process = start(*command, cwd=home)
    wait_for((folder / "checkpoints/step-00000006").exists)
    os.kill(workers(process.pid)[-1], signal.SIGKILL)
    done = ended(process)
    assert done.code == 3, done.err
    done = ended(start(*command, cwd=home))
    assert done.code == 0, done.err
    assert_same(undisturbed(ranks=2), folder)
