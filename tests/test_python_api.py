"""The Python API is what docs/python.md says."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import omnitune

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the blocks of the page leave behind, run one after the other."""
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("python"))
        for block in BLOCKS:
            exec(compile(block, str(PAGE), "exec"), found)
        found["metrics"] = [
            json.loads(line)["loss"] for line in Path("runs/second/metrics.jsonl").read_text().splitlines()
        ]
    return found


def test_five_lines_train_and_draw(names: dict[str, Any]) -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 5
    (picture,) = names["drawn"].samples
    assert picture.shape == (1, 64, 64, 3)


def test_a_callback_gets_every_record(names: dict[str, Any]) -> None:
    assert names["live"].losses == names["metrics"]
    assert len(names["metrics"]) == 3


def test_a_loop_of_one_s_own_over_the_public_parts_takes_the_trainer_s_steps(names: dict[str, Any]) -> None:
    loop = BLOCKS[-1].split("losses = []")[1]
    assert len([line for line in BLOCKS[-1].splitlines() if line and not line.startswith("from")]) <= 30, loop
    assert names["losses"] == pytest.approx(names["metrics"], rel=1e-6)


def test_every_public_name_is_there_and_in_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in omnitune.__all__:
        assert getattr(omnitune, name) is not None
        assert f"`{name}`" in page, name


def test_python_m_omnitune_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "omnitune", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, omnitune.__version__)
