"""Outputs of stages on disk, found by the hash of everything that decides them.

One folder a stage and fingerprint. The truth is its safetensors shards, written whole or not at all; an
index (sqlite) says which shard holds a key, and can always be built again from the shards.
"""

from __future__ import annotations

import os
import sqlite3
import time
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..files import atomic, digest, open_memo, writable
from ..lazily import torch
from ..stages import Stage

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 64 << 20
SHARD_SECONDS = 60.0
"""What was encoded is written at least this often, so a crash loses at most a minute."""
OPEN_SHARDS = 64


@dataclass(frozen=True)
class Shard:
    """An open shard, and what it holds."""

    file: Any
    names: Mapping[str, Sequence[str]]
    """Key of an entry -> its tensors."""
    checksums: Mapping[str, str] | None
    """Key of an entry -> `checksum` of its tensors; None in shards from before there were any."""

    @staticmethod
    def open(path: Path) -> "Shard":
        file = safe_open(path, framework="pt")
        return Shard(file, _names(list(file.keys())), file.metadata())  # type: ignore[no-untyped-call]

    def read(self, key: str) -> dict[str, Tensor]:
        """Read the tensors of an entry. Raises SafetensorError for bytes that are not those written."""
        if key not in self.names:
            raise SafetensorError(f"{key} is not in it")
        tensors = {name: self.file.get_tensor(f"{key}.{name}") for name in self.names[key]}
        if self.checksums is not None and self.checksums.get(key) != checksum(tensors):
            raise SafetensorError(f"the bytes of {key} are not those that were written")
        return tensors


class Store:
    """The cached outputs of one stage under one fingerprint of its weights and settings."""

    def __init__(self, folder: Path):
        self.folder, self.index = folder, folder / "index.sqlite"
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._pending_since = 0.0
        self._forget_process()

    def _forget_process(self) -> None:
        self._pid = os.getpid()
        self._db: sqlite3.Connection | None = None
        self._shards: OrderedDict[str, Shard] = OrderedDict()

    # -- reading

    def __contains__(self, key: str) -> bool:
        return self._shard_of(key) is not None

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` that are not stored, in order, each once."""
        return [key for key in dict.fromkeys(keys) if key not in self]

    def read(self, key: str) -> dict[str, Tensor]:
        shard = self._shard_of(key)
        if shard is None:
            raise UserError(
                f"data.cache: {self.folder} does not hold {key}: the model or the data changed, or did not "
                "give the same twice, after it was filled; start again, and fetch the model again if it stays"
            )
        try:
            return self._open(shard).read(key)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"data.cache: {self.folder / shard} is damaged ({error}); delete it and what it "
                "held is encoded again"
            ) from error

    def _shard_of(self, key: str) -> str | None:
        row = self.db.execute("select shard from entries where key = ?", (key,)).fetchone()
        return str(row[0]) if row else None

    @property
    def db(self) -> sqlite3.Connection:
        if self._pid != os.getpid():  # a forked worker must not share the connection
            self._forget_process()
        if self._db is None:
            self._db = open_memo(
                self.index,
                "shards (name text primary key)",
                "entries (key text primary key, shard text)",
            )
            if not writable(self.index):  # this process alone has this index
                self.refresh()
        return self._db

    def _open(self, shard: str) -> Shard:
        if shard not in self._shards:
            self._shards[shard] = Shard.open(self.folder / shard)
            if len(self._shards) > OPEN_SHARDS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(shard)
        return self._shards[shard]

    # -- writing

    def add(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Put an entry into the shard that is being filled; it is safe on disk after `flush`."""
        entry = {f"{key}.{name}": t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        if not self._pending:
            self._pending_since = time.monotonic()
        self._pending.update(entry)  # at once: an interrupt leaves no half entry to be flushed
        self._pending_bytes += sum(tensor.nbytes for tensor in entry.values())
        full = self._pending_bytes >= SHARD_BYTES
        if full or time.monotonic() - self._pending_since >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        from safetensors.torch import save_file

        if self._pending:
            path = self.folder / f"{digest(*self._pending)}.safetensors"
            with atomic(path) as temporary:
                save_file(self._pending, temporary, self._checksums())
        self._pending, self._pending_bytes = {}, 0

    def _checksums(self) -> dict[str, str]:
        """Key -> checksum of each entry of the shard that is being filled."""
        entries: dict[str, dict[str, Tensor]] = {}
        for full, tensor in self._pending.items():
            key, _, name = full.partition(".")
            entries.setdefault(key, {})[name] = tensor
        return {key: checksum(tensors) for key, tensors in entries.items()}

    def refresh(self) -> None:
        """Bring the index in line with the shards that are there; runs that share a cache take turns."""
        with self.db:
            self.db.execute("begin immediate")  # before looking: what another run adds must not seem gone
            there = {p.name for p in self.folder.glob("*.safetensors") if not p.name.startswith(".")}
            known = {row[0] for row in self.db.execute("select name from shards")}
            for gone in known - there:
                self.db.execute("delete from shards where name = ?", (gone,))
                self.db.execute("delete from entries where shard = ?", (gone,))
            for new in sorted(there - known):
                rows = [(key, new) for key in _names(_tensor_names(self.folder / new))]
                self.db.executemany("insert or replace into entries values (?, ?)", rows)
                self.db.execute("insert or ignore into shards values (?)", (new,))


class StageCache:
    """The outputs of a run's cached stages: the key of each, and the store that holds it."""

    def __init__(self, stages: Sequence[Stage], fingerprints: Mapping[str, str], folder: Path | None):
        self.stages, self.fingerprints = stages, fingerprints
        self.stores: dict[str, Store] = {}
        if folder is not None:
            root = folder.absolute()
            self.stores = {s.name: Store(root / f"{s.name}-{fingerprints[s.name][:16]}") for s in stages}

    def keys(self, inputs: Mapping[str, str]) -> dict[str, str]:
        """Stage -> key of its output for a sample, given the keys of what the sample brings.

        A key is a hash over all that decides the output.
        """
        keys, found = dict(inputs), {}
        for stage in self.stages:
            key = digest(self.fingerprints[stage.name], *(keys[need] for need in stage.needs))
            found[stage.name] = key
            keys.update({name: f"{key}.{name}" for name in stage.gives})
        return found


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Sum over names, types, shapes and bytes of an entry's tensors: flipped bits train nothing."""
    found = 0
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def _tensor_names(path: Path) -> list[str]:
    """Names in a safetensors header; opening checks that the file is as long as its header says."""
    try:
        with safe_open(path, framework="pt") as shard:
            return list(shard.keys())
    except SafetensorError as error:
        raise UserError(
            f"data.cache: {path} is damaged ({error}); delete it and what it held is encoded again"
        ) from error


def _names(tensor_names: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for full in tensor_names:
        key, _, name = full.partition(".")
        found.setdefault(key, []).append(name)
    return found


def split_rows(batch: Mapping[str, Any], rows: int) -> list[dict[str, Tensor]]:
    """One dict a row from stage outputs that are stacked, or lists where rows differ in shape."""
    for name, value in batch.items():
        assert len(value) == rows, (name, len(value), rows)
    return [{name: value[i] for name, value in batch.items()} for i in range(rows)]


def stack_rows(rows: Sequence[Mapping[str, Any]], ragged: Sequence[str]) -> dict[str, Any]:
    """The inverse of `split_rows`: tensors are stacked unless they are ragged; other values are lists."""
    names = rows[0]
    return {
        name: torch.stack([row[name] for row in rows])
        if isinstance(rows[0][name], torch.Tensor) and name not in ragged
        else [row[name] for row in rows]
        for name in names
    }
