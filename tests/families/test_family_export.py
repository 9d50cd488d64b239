"""What every family exports is what the published libraries load, and gives the live model's output."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Calls, Case, cases, run_of
from torch import Tensor

from omnitune import config
from omnitune.commands.train import train
from omnitune.trainer import Trainer

EVERY = pytest.mark.parametrize("case", list(cases()), ids=str)
Model = Callable[[Case], Path]
STEPS = 4


def trained(case: Case, model: Path, folder: Path, trainable: Any) -> tuple[Any, Calls, Path]:
    """The live family after some steps, what its denoisers were given, and the run's folder."""
    file = run_of(
        case, model, folder, trainable=trainable, schedule={"steps": STEPS},
        optimizer={"name": "adamw", "lr": 2e-2},
    )  # fmt: skip
    run = config.validate(config.read(file))
    calls, kept = Calls(), list[Trainer]()
    fit = Trainer.fit

    def watched(trainer: Trainer) -> None:
        for core in trainer.family.cores:
            calls.watch(core, trainer.family.components[core])
        kept.append(trainer)
        fit(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Trainer, "fit", watched)
        out = folder / train(run).folder
    return kept[0].family, calls, out


def output(module: Any, inputs: dict[str, Any]) -> Tensor:
    """Of a denoiser, for inputs that were recorded flat."""
    nested: dict[str, Any] = {}
    for name, value in inputs.items():
        key, _, place = name.partition(".")
        if place:
            nested.setdefault(key, {})[int(place)] = value
        else:
            nested[key] = value
    given = {k: tuple(v[i] for i in sorted(v)) if isinstance(v, dict) else v for k, v in nested.items()}
    with torch.no_grad():
        (made, *_) = module.eval()(**given, return_dict=False)
    return made


def check(calls: Calls, live: Any, loaded: Any, base: Any) -> None:
    """Each denoiser that was called answers as the live one, and otherwise than before training."""
    assert calls.names
    for name in set(calls.names):
        inputs = calls.inputs[calls.names.index(name)]
        answer = output(live.components[name], inputs)
        torch.testing.assert_close(output(getattr(loaded, name), inputs), answer, atol=1e-5, rtol=1e-5)
        assert (output(getattr(base, name), inputs) - answer).abs().max() > 1e-3


@EVERY
def test_an_adapter_is_loaded_with_its_alpha(case: Case, model: Model, tmp_path: Path) -> None:
    family, calls, out = trained(case, model(case), tmp_path, {"lora": {"rank": 4, "alpha": 10}})
    pipe = family.pipeline_type.from_pretrained(model(case))
    for file in sorted((out / "weights").glob("*.safetensors")):
        second = {"load_into_transformer_2": True} if file.stem.endswith("_2") else {}
        pipe.load_lora_weights(out / "weights", weight_name=file.name, **second)
    check(calls, family, pipe, family.pipeline_type.from_pretrained(model(case)))


@EVERY
def test_a_whole_denoiser_is_loaded_from_its_folder(case: Case, model: Model, tmp_path: Path) -> None:
    family, calls, out = trained(case, model(case), tmp_path, "full")
    folders = {name: out / "weights" / name for name in family.cores}
    for folder in folders.values():
        assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}
    base = family.pipeline_type.from_pretrained(model(case))
    networks = {n: type(getattr(base, n)).from_pretrained(folder) for n, folder in folders.items()}
    check(calls, family, family.pipeline_type.from_pretrained(model(case), **networks), base)
