"""What every family learns from what its denoiser says: the loss, its cache, its rows, its draws."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Case, cases, run_of
from torch import Tensor

from omnitune import config
from omnitune.families.base import Denoiser, Noisy
from omnitune.objectives.diffusion import Diffusion
from omnitune.testing.training import start_training
from omnitune.trainer import Trainer

EVERY = pytest.mark.parametrize("case", list(cases()), ids=str)
Model = Callable[[Case], Path]


def trainer_of(case: Case, model: Path, folder: Path, **keys: Any) -> Trainer:
    """The trainer of a run on two clips or pictures, before its first step."""
    run = config.validate(config.read(run_of(case, model, folder, **keys)))
    return start_training(run, folder).trainer


@contextmanager
def seen() -> Iterator[list[Noisy]]:
    """What objectives noised, in order."""
    found: list[Noisy] = []
    noised = Diffusion.noised

    def remember(self: Any, family: Denoiser, noisy: Noisy) -> Noisy:
        found.append(noised(self, family, noisy))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Diffusion, "noised", remember)
        yield found


def called(trainer: Trainer) -> Any:
    """The denoiser that the first step calls."""
    family: Any = trainer.family
    names = list(family.experts) or [family.core]
    if len(names) == 1:
        return family.components[names[0]]
    with seen() as found:
        loss_of(trainer)
    return family.components[found[0].expert]


def loss_of(trainer: Trainer) -> float:
    """Of the first step, as the trainer computes it, without learning from it."""
    step = trainer.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.mesh, "step", lambda optimizer, norm: torch.zeros(()))
        measured = trainer.train_step(next(trainer.read()))
    trainer.optimizer.zero_grad()
    trainer.step = step
    return measured.read().loss


@EVERY
def test_the_loss_is_the_mean_square_of_what_is_left_of_the_target(
    case: Case, model: Model, tmp_path: Path
) -> None:
    trainer = trainer_of(case, model(case), tmp_path)
    family: Any = trainer.family
    core, predictions = called(trainer), list[dict[str, Tensor]]()
    answers: dict[str, Any] = {}
    forward, denoise = core.forward, family.denoise

    def answer(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            (real, *_) = forward(*args, **kwargs)
        if "given" not in answers:
            answers["given"] = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
        answers["given"].requires_grad_(True)
        return (answers["given"],)

    def remember(noisy: Noisy, batch: Any) -> Any:
        predictions.append(denoise(noisy, batch))
        return predictions[-1]

    with pytest.MonkeyPatch.context() as patch, seen() as found:
        patch.setattr(core, "forward", answer)
        patch.setattr(family, "denoise", remember)
        loss = loss_of(trainer)
        noisy, prediction = found[-1], predictions[-1]["x"]
        x0, noise = noisy.x0["x"], noisy.noise["x"]
        target = noise - x0
        if family.alphas_cumprod is not None:
            kept = family.alphas_cumprod[(noisy.u * 1000).long()].float().view(-1, *[1] * (x0.ndim - 1))
            target = kept.sqrt() * noise - (1 - kept).sqrt() * x0
        counted = torch.ones_like(x0) if noisy.mask is None else noisy.mask.expand_as(x0)
        if noisy.u.ndim > 1:
            assert torch.equal(counted, (noisy.u > 0).float().expand_as(x0)), "what is clean is not learned"
        error = ((prediction - target) ** 2 * counted).flatten(1).sum(1) / counted.flatten(1).sum(1)
        assert loss == pytest.approx(float(error.mean().detach()), rel=1e-5)

        # A prediction is a permutation of the answer, so its transpose turns the target into one.
        (unpacked,) = torch.autograd.grad(prediction, answers["given"], target, retain_graph=False)
        answers["given"] = unpacked.detach()
        assert loss_of(trainer) == pytest.approx(0, abs=1e-9)


@EVERY
def test_what_is_cached_is_what_is_made_anew(case: Case, model: Model, tmp_path: Path) -> None:
    cached = trainer_of(case, model(case), tmp_path / "cached")
    assert not any(stage.needs == ("caption",) for stage in cached.stages), "captions are cached"
    live = trainer_of(case, model(case), tmp_path / "live", cached=False)
    assert any("pixels" in stage.needs for stage in live.stages)
    assert loss_of(live) == pytest.approx(loss_of(cached), rel=2e-5)


@EVERY
def test_two_rows_are_two_batches_of_one(case: Case, model: Model, tmp_path: Path) -> None:
    whole = trainer_of(case, model(case), tmp_path / "whole")
    apart = trainer_of(case, model(case), tmp_path / "apart", parallel={"micro_batch_size": 1})
    assert len(next(apart.read())) == 2
    assert loss_of(apart) == pytest.approx(loss_of(whole), rel=1e-5)


@EVERY
def test_every_draw_after_the_cache_differs_between_epochs(case: Case, model: Model, tmp_path: Path) -> None:
    trainer = trainer_of(case, model(case), tmp_path, certain=False, tracking={"draws": True})
    found = []
    for batches in (next(trainer.read()), None):
        measured = trainer.train_step(batches or next(trainer.read()))
        trainer.step += 1
        found.append(measured.record.draws)
    declared = {purpose for stage in trainer.stages for purpose in stage.draws}
    purposes = found[0].keys() - {"id"}
    assert declared | {"noise", "timestep"} <= purposes
    for purpose in purposes:
        first, second = (dict(zip(draws["id"], draws[purpose], strict=True)) for draws in found)
        assert first.keys() == second.keys()
        assert all(first[name] != second[name] for name in first), purpose
