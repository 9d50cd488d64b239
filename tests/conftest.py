"""Tiny models and one cache, made once a test process and shared by all tests that train."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: test processes share few cores
sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("recipes/vlm", "benchmarks")]

LONG = (
    "test_resume.py", "test_bad_input.py", "test_family_whole.py", "test_training.py",
    "test_family_export.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from omnitune.testing.tiny import build_tiny

    return build_tiny(tmp_path_factory.mktemp("tiny-wan"))


@pytest.fixture(scope="session")
def wide_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that an adapter takes more than a megabyte."""
    from omnitune.testing.tiny import build_tiny

    return build_tiny(
        tmp_path_factory.mktemp("wide-wan"),
        transformer={"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": 512},
    )


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives the folder of a tiny vision-language model of a type; tests do not write to it."""
    made: dict[tuple[str, bool], Path] = {}

    def of(model_type: str, generation_tags: bool = True) -> Path:
        from omnitune.testing.tiny_vlm import build_tiny_vlm

        if model_type == "smolvlm":
            pytest.importorskip("num2words", reason="the processor of smolvlm needs the package num2words")
        key = model_type, generation_tags
        if key not in made:
            folder = tmp_path_factory.mktemp(model_type) / "model"
            made[key] = build_tiny_vlm(folder, model_type, generation_tags=generation_tags)
        return made[key]

    return of


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoded samples, found by the hash of all that decides them: every run of the session may share it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def pretrained_vlm() -> Path:
    """A vision-language base of pretrained parts; skips, naming the packages, where they are absent."""
    from base import build_or_skip

    found: Path = build_or_skip()
    return found


@pytest.fixture
def read_only() -> Callable[[Path], AbstractContextManager[None]]:
    """Makes a folder unwritable; for root, whom permissions do not bind, by a mount."""
    return _mounted_read_only if os.geteuid() == 0 else _read_only_mode


@contextmanager
def _mounted_read_only(folder: Path) -> Iterator[None]:
    bind = ["mount", "--bind", folder, folder]
    if shutil.which("mount") is None or subprocess.run(bind, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def _read_only_mode(folder: Path) -> Iterator[None]:
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)
