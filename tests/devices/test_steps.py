"""A step of every family on a device that is not the CPU: nothing mixes, nothing waits, the loss is the same."""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import PRELOADED
from pretend import device, move, pretended, unwrap
from recorded import Case, cases, run_of
from small_chats import small_chat_run

from omnitune import config
from omnitune.families.vlm.types import TYPES
from omnitune.optim import build_optimizer
from omnitune.testing.runs import write_run
from omnitune.testing.tiny import build_tiny
from omnitune.testing.tiny_vlm import tiny_types
from omnitune.testing.training import Training, start_training
from omnitune.trainable.adapters import param_groups


def step_on(training: Training, run: config.Run) -> tuple[float, float, Counter[str]]:
    """The loss of the first step on the CPU, the loss on the device, and what the latter waited for."""
    trainer = training.trainer
    batches = next(trainer.read())
    kept = {name: p.detach().clone() for name, p in trainer.weights().items()}
    expected = trainer.train_step(batches).read().loss
    with torch.no_grad():
        for name, parameter in trainer.weights().items():
            parameter.copy_(kept[name])
    for component in trainer.family.components.values():
        move(component)
    trainer.family.device = trainer.mesh.device = device()
    groups = param_groups(
        trainer.family.components, training.resolved.claims, run.optimizer.lr, run.optimizer.weight_decay
    )
    trainer.optimizer = build_optimizer(run.optimizer, groups)
    with pretended() as waited:
        measured = trainer.train_step(batches)
        found = Counter(waited)
    return expected, float(unwrap(measured.values)[0]), found


@pytest.fixture(scope="module")
def apart() -> Iterator[ProcessPoolExecutor]:
    """A process of its own: other tests shall not find a device, and have run backward passes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with ProcessPoolExecutor(1, context, initializer=device) as pool:
        yield pool


def stepped(file: Path, folder: Path) -> tuple[float, float, Counter[str]]:
    """The loss of the first step on the CPU, the loss on the device, and what the latter waited for."""
    run = config.load(file, ())[0]
    return step_on(start_training(run, folder), run)


def check(apart: ProcessPoolExecutor, file: Path, folder: Path) -> None:
    expected, found, waited = apart.submit(stepped, file, folder).result()
    assert found == pytest.approx(expected, rel=1e-6)
    assert dict(waited) == {}


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_a_diffusion_step(apart: ProcessPoolExecutor, case: Case, tmp_path: Path) -> None:
    model = build_tiny(tmp_path / "model", case.family, case.variant)
    check(apart, run_of(case, model, tmp_path), tmp_path)


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_a_diffusion_step_uncached(apart: ProcessPoolExecutor, case: Case, tmp_path: Path) -> None:
    model = build_tiny(tmp_path / "model", case.family, case.variant)
    check(apart, run_of(case, model, tmp_path, cached=False), tmp_path)


@pytest.mark.parametrize("model_type", tiny_types())
def test_a_step_of_a_vision_language_model(
    apart: ProcessPoolExecutor, tiny_vlm: Callable[..., Path], tmp_path: Path, model_type: str
) -> None:
    opened: dict[str, Any] = {
        "trainable": "full", "freeze_vision_tower": False, "freeze_multi_modal_projector": False,
    }  # fmt: skip
    texts = 2 if TYPES[model_type].text_only else 0
    run = small_chat_run(tiny_vlm(model_type), tmp_path / "chats", pictures=2, texts=texts, **opened)
    check(apart, write_run(tmp_path / "run.yaml", run), tmp_path)
