"""A step of every family on a device that is not the CPU: nothing mixes, nothing waits, equal losses."""

import json
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

OPEN: dict[str, Any] = {
    "trainable": "full", "freeze_vision_tower": False, "freeze_multi_modal_projector": False,
}  # fmt: skip
CACHED: dict[str, Any] = {"trainable": "full", "train_mm_proj_only": True}


def step_on(training: Training, run: config.Run) -> tuple[float, float, Counter[str]]:
    """The loss of the first step on the CPU, the loss on the device, and what the latter waited for."""
    trainer = training.trainer
    batches = next(trainer.read())
    kept = {name: p.detach().clone() for name, p in trainer.weights().items()}
    trainer.wants_rows = True
    expected = trainer.train_step(batches).read()
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
        rows = measured.rows.read() if measured.rows else None
    assert rows is not None
    assert expected.rows is not None
    tolerance = 1e-5 if run.model.dtype == "float32" else 1e-2  # attention rounds in other places
    assert rows.losses == pytest.approx(expected.rows.losses, rel=tolerance)
    return expected.loss, float(unwrap(measured.values)[0]), found


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


def check(
    apart: ProcessPoolExecutor, file: Path, folder: Path, *allowed: str, tolerance: float = 1e-6
) -> None:
    """Hold the device's loss against the CPU's; nothing waits for it but what is allowed."""
    expected, found, waited = apart.submit(stepped, file, folder).result()
    assert found == pytest.approx(expected, rel=tolerance)
    assert [wait for wait in waited if not wait.endswith(allowed)] == []


QUICK = (
    "hunyuan_video-i2v-first", "cogvideox-5b-i2v-first", "cogview4-t2i", "flux-dev", "wan-t2v-a14b",
    "wan-ti2v-5b-first", "ltx_video-0.9.5-first",
)  # fmt: skip
CASES = [pytest.param(c, id=str(c), marks=() if str(c) in QUICK else pytest.mark.slow) for c in cases()]
QUICK_TYPES = ("llava", "qwen3_vl", "mllama")


@pytest.mark.parametrize("case", CASES)
def test_a_diffusion_step_is_that_of_the_cpu_and_waits_for_nothing(
    apart: ProcessPoolExecutor, case: Case, tmp_path: Path
) -> None:
    model = build_tiny(tmp_path / "model", case.family, case.variant)
    check(apart, run_of(case, model, tmp_path), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_diffusion_step_waits_in_live_stages_alone(
    apart: ProcessPoolExecutor, case: Case, tmp_path: Path
) -> None:
    model = build_tiny(tmp_path / "model", case.family, case.variant)
    check(apart, run_of(case, model, tmp_path, cached=False), tmp_path, "in a stage")


@pytest.mark.parametrize(
    ("model_type", "keys"),
    [
        pytest.param(name, keys, id=f"{name}-{what}", marks=() if quick else pytest.mark.slow)
        for name in tiny_types()
        for what, keys in (("open", OPEN), ("cached tower", CACHED))
        for quick in [(name in QUICK_TYPES and what == "open") or (name, what) == ("llava", "cached tower")]
    ],
)
def test_a_step_of_a_vision_language_model_waits_in_the_published_model_alone(
    apart: ProcessPoolExecutor,
    tiny_vlm: Callable[..., Path],
    tmp_path: Path,
    model_type: str,
    keys: dict[str, Any],
) -> None:
    texts = 2 if TYPES[model_type].text_only else 0
    run = small_chat_run(tiny_vlm(model_type), tmp_path / "chats", pictures=2, texts=texts, **keys)
    check(apart, write_run(tmp_path / "run.yaml", run), tmp_path, "in a library")


@pytest.mark.parametrize(
    "kind", ["flux", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("wan folded", "llava"))]
)
def test_a_step_in_bfloat16_with_activation_checkpointing(
    apart: ProcessPoolExecutor, tiny_vlm: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    if kind == "llava":
        run = small_chat_run(tiny_vlm("llava"), tmp_path / "chats", pictures=2, texts=2, **OPEN)
    else:
        case = Case("flux", "dev", None) if kind == "flux" else Case("wan", "t2v", None)
        model = build_tiny(tmp_path / "model", case.family, case.variant)
        run = json.loads(run_of(case, model, tmp_path).read_text())
        if kind == "wan folded":
            run["model"]["options"] = {"fold_padding": True}
    run["model"]["dtype"] = "bfloat16"
    run["memory"] = {"checkpointing": "full"}
    allowed = ["in a library"] if kind == "llava" else []
    check(apart, write_run(tmp_path / "run.yaml", run), tmp_path, *allowed, tolerance=1e-2)


def mixed() -> str:
    with pretended():
        try:
            torch.ones(2, device=device()) + torch.ones(2)
        except RuntimeError as error:
            return str(error)
    return ""


def waits() -> list[str]:
    with pretended() as found:
        there = torch.ones(2, 3).to(device(), non_blocking=True)
        _ = there.sum() / 2
        assert dict(found) == {}
        there.sum().item()
        there.cpu()
        torch.ones(2).to(device())
        torch.tensor([1.0], device=device())
        there[there > 0]
        return sorted(found)


def test_the_device_refuses_what_a_card_refuses_and_counts_what_waits(apart: ProcessPoolExecutor) -> None:
    assert "same device" in apart.submit(mixed).result()
    told = [wait.removesuffix(" in a library") for wait in apart.submit(waits).result()]
    assert told == ["blocking copy to the device", "copy to the host", "index by a mask", "item"]
