"""Files that are either whole or not there, and hashes of files that are remembered."""

import json
import os
import platform
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any


def digest(*parts: str) -> str:
    """128 bits of hash over strings, in hex."""
    return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def _temporary(path: Path) -> Path:
    """A name beside `path` that tells whose it is; what killed processes left in that folder goes."""
    for file in path.parent.iterdir():
        owner = re.fullmatch(rf"\..+\.{re.escape(platform.node())}\.(\d+)\.tmp", file.name)
        if owner and not _is_running(int(owner[1])):
            _remove(file)
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _remove(path: Path) -> None:
    """Delete a file or folder, if it is there: another process may be at it too."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success its file is synced and takes the name, else it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `path`; on success it takes the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def hash_file(path: Path) -> str:
    state = blake2b(digest_size=16)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            state.update(chunk)
    return state.hexdigest()


@dataclass(frozen=True)
class Version:
    """A file as it was at one moment: what is remembered of it holds while these stay."""

    path: str
    size: int
    mtime: int
    """Nanoseconds."""

    @staticmethod
    def of(path: Path) -> "Version":
        stat = path.stat()
        return Version(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


class Hashes:
    """Content hashes of files, and other facts about them, remembered by path, size and modification time."""

    def __init__(self, folder: Path, verify: bool = False):
        folder.mkdir(parents=True, exist_ok=True)
        self.verify = verify
        self.db = sqlite3.connect(folder / "hashes.sqlite", timeout=60)
        self.db.execute("pragma synchronous = off")  # what is lost with the power is found out again
        self.db.execute(
            "create table if not exists facts (fact text, path text, size int, mtime int, value text, "
            "primary key (fact, path))"
        )

    def of(self, path: Path) -> str:
        return self.of_all([path])[0]

    def of_all(self, paths: Iterable[Path]) -> list[str]:
        return [self._of(path) for path in paths]

    def recall(self, fact: str, version: Version) -> str | None:
        """What `remember` was given for this fact about the file, unless the file changed since."""
        if self.verify:
            return None
        found = self.db.execute(
            "select value from facts where fact = ? and path = ? and size = ? and mtime = ?",
            (fact, version.path, version.size, version.mtime),
        ).fetchone()
        return str(found[0]) if found else None

    def remember(self, fact: str, version: Version, value: str) -> None:
        with self.db:  # a file at a time: a kill loses one, and other runs wait for none
            self.db.execute(
                "insert or replace into facts values (?,?,?,?,?)",
                (fact, version.path, version.size, version.mtime, value),
            )

    def _of(self, path: Path) -> str:
        version = Version.of(path)
        value = self.recall("hash", version)
        if value is None:
            value = hash_file(path)
            self.remember("hash", version, value)
        return value
