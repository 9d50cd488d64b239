"""A metric of another package."""

import json
from pathlib import Path

import brightness
import pytest
from documented import shows

from omnitune import cli
from omnitune.testing.runs import ASSETS, small_run, write_run


def test_the_guide_shows_what_is_tested() -> None:
    assert shows("extending.md", brightness)


def test_it_is_measured_beside_those_of_the_package(
    tiny_wan: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run.yaml", small_run(tiny_wan, cache, schedule={"steps": 1}))
    assert cli.main(["train", "run.yaml"]) == 0
    words = ["evaluate", "runs/run", "--steps", "1", "--samples", "2", "--metrics"]
    data = ["--data", str(ASSETS / "clips" / "validation")]
    assert cli.main([*words, "loss,brightness:Brightness", *data, "--out", "found.json"]) == 0
    found = {row["name"]: row for row in json.loads(Path("found.json").read_text())["metrics"]}
    assert "held-out loss" in found
    assert found["brightness (levels)"]["count"] == 2
    row = found["brightness (levels)"]
    assert 0 < row["value"] < 255
    assert 0 < row["reference"] < 255
    assert row["value"] != row["reference"]
    assert cli.main([*words, "brightness:Brightness"]) == 2
    assert "--metrics: brightness:Brightness needs data that was not trained on" in capsys.readouterr().err
    assert cli.main([*words, "brightness:Gone", *data]) == 2
    assert "--metrics: 'brightness:Gone' cannot be imported" in capsys.readouterr().err
