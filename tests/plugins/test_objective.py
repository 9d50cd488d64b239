"""An objective of another package."""

from pathlib import Path

import direction
import pytest
import torch
from documented import shows

from omnitune import cli
from omnitune.families.base import Noisy
from omnitune.testing.runs import ASSETS, metrics, small_run, write_run


def test_the_guide_shows_what_is_tested() -> None:
    assert shows("extending.md", direction)


def test_its_loss_is_0_at_the_target_and_adds_the_angle() -> None:
    objective = direction.Direction(name="direction:Direction", strength=0.5)
    target = torch.tensor([[[[1.0]], [[0.0]]]])
    noisy = Noisy({}, {}, torch.tensor([0.5]), target={"x": target})
    assert objective.row_losses(noisy, {"x": target}).tolist() == pytest.approx([0])
    assert objective.row_losses(noisy, {"x": -target}).tolist() == pytest.approx([4 / 2 + 0.5 * 2])


def test_it_trains_and_is_measured_on_held_out_data(
    tiny_wan: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stated = {"name": "direction:Direction", "strength": 0.5}
    write_run(tmp_path / "run.yaml", small_run(tiny_wan, cache, objective=stated))
    assert cli.main(["train", "run.yaml"]) == 0
    assert all(row["loss"] > 0.5 / 2 for row in metrics(Path("runs/run")))
    words = ["--data", str(ASSETS / "clips" / "validation"), "--metrics", "loss", "--out", "loss.json"]
    assert cli.main(["evaluate", "runs/run", *words]) == 0
    assert '"held-out loss (u = 0.062)"' in Path("loss.json").read_text()
