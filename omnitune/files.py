"""Files that are either whole or not there, and hashes of files that are remembered."""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any


def digest(*parts: str) -> str:
    """128 bits of hash over strings, in hex."""
    return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success its file is synced and takes the name, else it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
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
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
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


class Hashes:
    """Content hashes of files, remembered by path, size and modification time."""

    def __init__(self, folder: Path, verify: bool = False):
        folder.mkdir(parents=True, exist_ok=True)
        self.verify = verify
        self.db = sqlite3.connect(folder / "hashes.sqlite", timeout=60)
        self.db.execute("pragma synchronous = off")  # what is lost with the power is hashed again
        self.db.execute(
            "create table if not exists hashes (path text primary key, size int, mtime int, hash text)"
        )

    def of(self, path: Path) -> str:
        return self.of_all([path])[0]

    def of_all(self, paths: Iterable[Path]) -> list[str]:
        return [self._of(path) for path in paths]

    def _of(self, path: Path) -> str:
        stat, name = path.stat(), str(path.resolve())
        row = self.db.execute("select size, mtime, hash from hashes where path = ?", (name,)).fetchone()
        if row and not self.verify and row[:2] == (stat.st_size, stat.st_mtime_ns):
            return str(row[2])
        value = hash_file(path)
        with self.db:  # a file at a time: a kill loses one, and other runs wait for none
            self.db.execute(
                "insert or replace into hashes values (?,?,?,?)",
                (name, stat.st_size, stat.st_mtime_ns, value),
            )
        return value
