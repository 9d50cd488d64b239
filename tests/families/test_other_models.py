"""A model of another family is refused by name, before anything of it is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Case

from omnitune.cli import main
from omnitune.errors import UserError
from omnitune.families import CONVERSATIONAL, REGISTRY, resolve
from omnitune.families.flux import Flux
from omnitune.testing.runs import small_run, write_run

DIFFUSION = [name for name in REGISTRY if name != CONVERSATIONAL]
PAIRS = [(one, other) for one in REGISTRY for other in DIFFUSION if one != other]
PAIRS += [(one, CONVERSATIONAL) for one in DIFFUSION]
QUICK = {("wan", "flux"), ("flux", "wan"), (CONVERSATIONAL, "flux"), ("flux", CONVERSATIONAL)}


def pair(one: str, other: str) -> Any:
    return pytest.param(one, other, marks=() if (one, other) in QUICK else pytest.mark.slow)


def planned(family: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.chdir(tmp_path)
    run = small_run(Path(path), tmp_path / "cache")
    run["model"]["family"] = family
    if family == CONVERSATIONAL:
        run["data"] = {"name": "conversations", "sources": [{"path": "talks.json"}], "batch_size": 1}
        run["objective"] = {"name": "causal_lm"}
        run["trainable"] = "full"
    return main(["plan", str(write_run(tmp_path / "run.yaml", run))])


@pytest.mark.parametrize(("family", "other"), [pair(*names) for names in PAIRS])
def test_the_model_of_another_family_is_refused(
    family: str,
    other: str,
    model: Callable[[Case], Path],
    tiny_vlm: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tiny_vlm("llava") if other == CONVERSATIONAL else None
    path = path or model(Case(other, next(iter(resolve(other).variants)), None))
    assert planned(family, str(path), tmp_path, monkeypatch) == 2
    err = capsys.readouterr().err
    if family == CONVERSATIONAL:
        assert f"{path} is a pipeline of diffusers" in err
    elif other == CONVERSATIONAL:
        assert "model_index.json is missing; give a folder in the diffusers layout" in err
    else:
        assert f"set family: {other}" in err


@pytest.mark.parametrize("family", DIFFUSION)
def test_a_published_model_of_another_family_is_refused(family: str) -> None:
    for other in DIFFUSION:
        for path in resolve(other).variants.values():
            if other == family:
                resolve(family).load(path, "meta", torch.float32, only=[])
            else:
                with pytest.raises(
                    UserError, match=f"is the model of another family, .* set family: {other}"
                ):
                    resolve(family).load(path, "meta", torch.float32, only=[])


def test_kontext_is_not_taken_for_flux(model: Callable[[Case], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(model(Case("flux", "dev", None)), tmp_path / "kontext")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxKontextPipeline"}))
    told = "is a FluxKontextPipeline, and family flux trains FluxPipeline .*; give a model of FluxPipeline"
    with pytest.raises(UserError, match=told):
        Flux.load(str(folder), "meta", torch.float32)
