"""Files are whole or not there, and what killed processes leave goes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from omnitune.files import LOCK, Hashes, Version, atomic, atomic_folder, write_text

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


def test_what_others_write_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / ".a.bin.elsewhere.abcdefgh.tmp"
    elsewhere.mkdir()
    (elsewhere / LOCK).touch()
    hold = "with atomic(Path('a.bin')) as file: file.write_text('theirs'); print(flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", f"from pathlib import Path; from omnitune.files import atomic\n{hold}"],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout
    other.stdout.readline()
    write_text(tmp_path / "a.bin", "mine")
    write_text(tmp_path / "b.bin", "mine")
    other.communicate("\n")
    assert other.returncode == 0
    assert (tmp_path / "a.bin").read_text() == "theirs"
    assert {path.name for path in tmp_path.iterdir()} == {"a.bin", "b.bin", elsewhere.name}


def test_writers_with_one_pid_do_not_meet(tmp_path: Path) -> None:
    with atomic(tmp_path / "a") as one, atomic(tmp_path / "a") as two, atomic_folder(tmp_path / "d") as three:
        one.write_text("one")
        two.write_text("two")
        (three / "file").touch()
    assert (tmp_path / "a").read_text() == "one"
    assert (tmp_path / "d/file").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "d"}


def damage_all(file: Path) -> None:
    file.write_bytes(b"garbage " * 2000)


def damage_all_but_its_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200] + os.urandom(file.stat().st_size - 200))


@pytest.mark.parametrize("damage", [damage_all, damage_all_but_its_header])
def test_a_damaged_memory_of_hashes_begins_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    (tmp_path / "a").write_text("one")
    known = Hashes(tmp_path).of(tmp_path / "a")
    damage(tmp_path / "hashes.sqlite")
    assert Hashes(tmp_path).of(tmp_path / "a") == known
    version = Version.of(tmp_path / "a")
    assert Hashes(tmp_path).recall("hash", version) == known


def test_a_memory_that_cannot_be_written_is_read_and_added_to_for_the_process(
    tmp_path: Path, read_only: Callable[[Path], AbstractContextManager[None]]
) -> None:
    (tmp_path / "memo").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    known = Hashes(tmp_path / "memo").of(tmp_path / "a")
    with read_only(tmp_path / "memo"):
        hashes = Hashes(tmp_path / "memo")
        assert hashes.recall("hash", Version.of(tmp_path / "a")) == known
        new = hashes.of(tmp_path / "b")
        assert hashes.recall("hash", Version.of(tmp_path / "b")) == new
        assert Hashes(tmp_path / "memo/absent").of(tmp_path / "b") == new
    assert Hashes(tmp_path / "memo").recall("hash", Version.of(tmp_path / "b")) is None


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
