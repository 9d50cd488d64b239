"""The benchmarks still fit the code that they measure; what they measure is not looked at here."""

import sys
from importlib import import_module
from pathlib import Path

import memory_overhead
import pytest
import torch
from step_overhead import alternate
from tiny_run import TinyRun

from omnitune import load_run
from omnitune.commands.cache import cache as fill_cache
from omnitune.testing.runs import small_run, write_run

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_can_be_imported(name: str) -> None:
    assert import_module(name).__doc__


@pytest.fixture
def tiny(tiny_wan: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    run = TinyRun(tmp_path)
    run.model.symlink_to(tiny_wan)
    write_run(run.file, small_run(run.model, cache, schedule={"steps": 4}))
    monkeypatch.chdir(tmp_path)
    fill_cache(load_run(run.file))
    return run


def test_a_bare_step_runs_before_each_of_ours(tiny: TinyRun) -> None:
    pairs = alternate(tiny, 1)
    assert len(pairs.bare) == len(pairs.ours) == 2  # of four steps the first warms up, the last saves
    assert pairs.ratio > 0


def test_a_bare_loop_gets_the_tensors_of_a_step(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare", str(tiny.file), "tensors.pt"])
    exec(memory_overhead.PREPARE, {})
    monkeypatch.setattr(sys, "argv", ["bare", str(tiny.model / "transformer"), "tensors.pt", "1"])
    exec(memory_overhead.BARE, {})
    tensors = torch.load("tensors.pt")
    assert tensors["x_0"].ndim == 5
    assert len(tensors["prompt_embeds"]) == len(tensors["x_0"])
