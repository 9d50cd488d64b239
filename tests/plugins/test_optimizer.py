"""An optimizer of another package."""

from pathlib import Path

import momentum
import pytest
from documented import shows
from safetensors.torch import load_file

from omnitune import cli
from omnitune.testing.runs import metrics, small_run, write_run


def test_the_guide_shows_what_is_tested() -> None:
    assert shows("extending.md", momentum)


def test_it_trains_and_its_state_survives_a_resume_bit_for_bit(
    tiny_wan: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    described = small_run(tiny_wan, cache, optimizer={"name": "momentum:Momentum", "lr": 0.1})
    write_run(tmp_path / "run.yaml", described)
    for words in (["name=whole", "schedule.steps=4"], ["name=halves", "schedule.steps=2"]):
        assert cli.main(["train", "run.yaml", *words]) == 0
    assert cli.main(["train", "run.yaml", "name=halves", "schedule.steps=4"]) == 0
    assert metrics(Path("runs/whole")) == metrics(Path("runs/halves"))
    whole, halves = (
        load_file(f"runs/{name}/weights/pytorch_lora_weights.safetensors") for name in ("whole", "halves")
    )
    assert whole.keys() == halves.keys()
    assert all(bool((whole[name] == halves[name]).all()) for name in whole)
    assert any(bool(value.any()) for name, value in whole.items() if "lora_B" in name)
