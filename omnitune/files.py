"""Files that are either whole or not there, and hashes of files that are remembered."""

import errno
import fcntl
import json
import os
import platform
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from hashlib import blake2b
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, BinaryIO, Protocol

from .errors import UserError

LOCK = "lock"


def digest(*parts: str) -> str:
    """128 bits of hash over strings, in hex."""
    return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """Give a free name in a folder beside `path` that is locked while it is written to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path.parent)
    folder = Path(mkdtemp(".tmp", f".{path.name}.{platform.node()}.", path.parent))
    try:
        with _locked(folder / LOCK):
            yield folder / "content"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Delete what killed processes left half-written: a lock ends with its process, in any container."""
    for left in folder.glob(f".*.{escape(platform.node())}.*.tmp"):
        with suppress(OSError), (left / LOCK).open("r+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file that takes its name when it is locked, so that nobody finds it free."""
    unnamed = path.with_suffix(".new")
    with unnamed.open("w") as stream:
        with suppress(OSError):  # a file system without locks: what is left on it is never cleared
            fcntl.flock(stream, fcntl.LOCK_EX)
            unnamed.rename(path)
        yield


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success its file is synced and takes the name, else it goes."""
    with _scratch(path) as temporary:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text)


def parse_json(text: str | bytes) -> Any:
    """What JSON spells; whatever is wrong with it is a ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("Nested too deeply") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of a run folder. Raises UserError where it is none."""
    try:
        found = parse_json(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__} where an object belongs")
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); bring it back, or delete it") from None
    return found


def read_jsonl(path: Path, *keys: str) -> list[dict[str, Any]]:
    """Read one object a line, each with texts under these keys. Raises UserError for others.

    Only a newline ends a line: captions may hold U+2028, at which `splitlines` cuts too.
    """
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        row = parse_line(line)
        if row is not None and all(isinstance(row.get(key), str) for key in keys):
            found.append(row)
        elif line.strip():
            raise UserError(f"{path}:{number}: is damaged, no object with {', '.join(keys)}; bring it back")
    return found


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The object that a line of JSON lines holds, or None."""
    try:
        found = parse_json(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


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
    with _scratch(path) as temporary:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        sync(path.parent)


def writable(path: Path) -> bool:
    """Whether a file can be written to, or made; its folder is made where it is not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return False
    return os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))


def open_memo(path: Path, *tables: str) -> sqlite3.Connection:
    """Open a database of what can be found out again; `tables` is its SQL.

    A damaged one begins anew. What cannot be written is copied into memory, and additions end with it.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder where a file of ours belongs; remove it")
    if not writable(path):
        return _copied(path, tables)
    try:
        return _opened(path, tables)
    except sqlite3.OperationalError:  # locked, or the disk is full
        raise
    except sqlite3.DatabaseError:
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)  # or it is played into the new one
        path.unlink(missing_ok=True)
        return _opened(path, tables)


def _opened(path: Path | str, tables: Sequence[str]) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=60, uri=isinstance(path, str))
    try:
        (found,) = db.execute("pragma quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"{path}: {found}")
        for table in tables:
            db.execute(f"create table if not exists {table}")
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db


def _copied(path: Path, tables: Sequence[str]) -> sqlite3.Connection:
    """A copy in memory; empty where there is nothing, or nothing whole, to copy."""
    db, source = _opened(":memory:", tables), f"{path.absolute().as_uri()}?mode=ro"
    with suppress(sqlite3.DatabaseError), closing(_opened(source, tables)) as kept:
        kept.backup(db)
    return db


def hash_file(file: "Path | Openable") -> str:
    state = blake2b(digest_size=16)
    with file.open("rb") if isinstance(file, Path) else file.open() as stream:
        while chunk := stream.read(1 << 22):
            state.update(chunk)
    return state.hexdigest()


@dataclass(frozen=True)
class Version:
    """A file as it was at one moment: what is remembered of it holds while these stay."""

    path: str
    """Of a file, or what else tells where its bytes lie (`shards/a.tar:512`)."""
    size: int
    mtime: int
    """Nanoseconds."""

    @staticmethod
    def of(path: Path) -> "Version":
        stat = path.stat()
        return Version(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


class Openable(Protocol):
    """Bytes that can be opened anywhere in the run: a file, a member of a tar file, a cell of a table.

    Readers are sent to other processes, so it has to be picklable.
    """

    @property
    def name(self) -> str:
        """How messages call it. What it holds is told by its suffix, as of a file."""

    def open(self) -> BinaryIO:
        """Open the bytes, seekable, for one reader; other threads open them too."""

    def version(self) -> Version | None:
        """Tell what facts about the bytes (hash, size in pixels) are remembered by; None: they are not."""


@dataclass(frozen=True, slots=True)
class File:
    """A file on disk."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def open(self) -> BinaryIO:
        return self.path.open("rb")

    def version(self) -> Version:
        return Version.of(self.path)


class Hashes:
    """Content hashes of files, and other facts about them, remembered by path, size and modification time."""

    def __init__(self, folder: Path, verify: bool = False):
        self.verify = verify
        self.db = open_memo(
            folder / "hashes.sqlite",
            "facts (fact text, path text, size int, mtime int, value text, primary key (fact, path))",
        )
        self.db.execute("pragma synchronous = off")  # what is lost with the power is found out again

    def of(self, file: Path | Openable) -> str:
        """Hash a file's bytes, or remember their hash."""
        file = File(file) if isinstance(file, Path) else file
        version = file.version()
        value = self.recall("hash", version)
        if value is None:
            value = hash_file(file)
            self.remember("hash", version, value)
        return value

    def of_all(self, files: Iterable[Path | Openable]) -> list[str]:
        return [self.of(file) for file in files]

    def recall(self, fact: str, version: Version | None) -> str | None:
        """What `remember` was given for this fact about the file, unless the file changed since."""
        if self.verify or version is None:
            return None
        found = self.db.execute(
            "select value from facts where fact = ? and path = ? and size = ? and mtime = ?",
            (fact, version.path, version.size, version.mtime),
        ).fetchone()
        return str(found[0]) if found else None

    def remember(self, fact: str, version: Version | None, value: str) -> None:
        if version is None:
            return
        with self.db:  # a file at a time: a kill loses one, and other runs wait for none
            self.db.execute(
                "insert or replace into facts values (?,?,?,?,?)",
                (fact, version.path, version.size, version.mtime, value),
            )
