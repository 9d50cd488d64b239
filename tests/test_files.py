"""Files are whole or not there, and what killed processes leave goes."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omnitune.files import Hashes, atomic, atomic_folder, write_text

LEAVE = """
import os, signal
from pathlib import Path
from omnitune.files import atomic, atomic_folder
with atomic(Path("a.bin")) as file, atomic_folder(Path("b")) as folder:
    file.write_text("half")
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["a.bin", "another.bin"])
def test_what_a_killed_process_left_goes_when_its_folder_is_written_to(tmp_path: Path, name: str) -> None:
    done = subprocess.run([sys.executable, "-c", LEAVE], cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    write_text(tmp_path / name, "whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_living_processes_and_other_machines_write_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    others = {
        f".a.bin.{platform.node()}.{os.getppid()}.tmp",
        f".a.bin.elsewhere.{dead.pid}.tmp",
        f"a.bin.{platform.node()}.{dead.pid}.tmp",
    }
    for name in others:
        (tmp_path / name).touch()
    with atomic(tmp_path / "c") as one, atomic_folder(tmp_path / "d") as two:
        one.touch()
        assert one.name != two.name
    assert {path.name for path in tmp_path.iterdir()} == {"c", "d", *others}


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnitune import files

    read: list[Path] = []
    plain = files.hash_file
    monkeypatch.setattr(files, "hash_file", lambda path: (read.append(path), plain(path))[1])
    file = tmp_path / "a"
    file.write_text("one")
    first = Hashes(tmp_path / "memo").of(file)
    assert Hashes(tmp_path / "memo").of(file) == first
    assert len(read) == 1
    file.write_text("three")
    assert Hashes(tmp_path / "memo").of(file) != first
    Hashes(tmp_path / "memo", verify=True).of(file)
    assert len(read) == 3
