"""Where data lies: what every source is asked for, and what sources of all kinds share.

A source is an option, of this package or of another one (`name: my_package.my_module:MySource`).
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Generic, Protocol, TypeVar

from ..errors import UserError
from ..files import File, Hashes, Openable, Version, digest
from . import media
from .json_items import half_character

T = TypeVar("T")
ItemT = TypeVar("ItemT", covariant=True)

PROBE = "probe 2"
"""The name by which probes are remembered; another number when probing comes to find something else."""
CHUNK = 1024
"""Items that are held in memory at once, to be probed together."""


@dataclass
class Findings:
    """Fills up while sources are read, so that all their mistakes are told at once."""

    mistakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    """What is said of files, as `3 files are ...` goes on -> the files."""

    def remark(self, file: str, probe: media.Probe) -> None:
        """Keep the notes on a file, to be told once for all files that they are true of."""
        for note in probe.notes:
            self.remarks.setdefault(note, []).append(file)

    def told(self) -> list[str]:
        """All notes, one line each."""
        found = self.remarks.items()
        return [*self.notes, *(f"{counted(files, 'file')} {note}: {listed(files)}" for note, files in found)]

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Add a UserError to the mistakes and go on behind the block."""
        try:
            yield
        except UserError as error:
            self.mistakes.append(str(error))


@dataclass(frozen=True)
class Scan(Generic[T]):
    """What sources hold, and what the user should see about it."""

    items: T
    notes: list[str]


class Source(Protocol[ItemT]):
    """Yields captioned items, or conversations; what they call a file, the source can open."""

    def __str__(self) -> str:
        """How messages name it."""

    def missing(self, base: Path) -> str | None:
        """Name what is not here yet; None if all is. `plan` goes on without it."""

    def items(self, base: Path, findings: Findings) -> Iterator[ItemT]:
        """Yield items one by one; what is wrong with others is added to `findings`.

        `base` is where relative paths start.
        """

    def open(self, base: Path, file: str) -> Openable:
        """Give the bytes that an item calls `file`. Raises UserError if they are known not to be there."""


class PathSource:
    """What sources share that lie at one path."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def missing(self, base: Path) -> str | None:
        return None if (base / self.path).exists() else str(self.path)


def probe_all(
    files: Iterable[str], opener: Callable[[str], Openable], memo: Hashes
) -> dict[str, media.Probe | UserError]:
    """Probe each file once, in parallel; what was found is remembered, what cannot be probed is not."""
    found: dict[str, media.Probe | UserError] = {}
    unknown: dict[str, tuple[Openable, Version | None]] = {}
    for file in dict.fromkeys(files):
        try:
            opened = opener(file)
            version = opened.version()
        except UserError as error:
            found[file] = error
        except OSError as error:
            found[file] = UserError(f"{file}: {error.strerror}; correct the name, or bring the file back")
        else:
            nameless = version is not None and half_character(version.path)  # the memo is text
            known = None if nameless else memo.recall(PROBE, version)
            if known is None:
                unknown[file] = opened, version
            else:
                found[file] = media.Probe.parse(known)
    with ThreadPoolExecutor() as pool:
        probes = pool.map(_probe, [opened for opened, _ in unknown.values()])
        for (file, (_, version)), probe in zip(unknown.items(), probes, strict=True):
            found[file] = probe
            if isinstance(probe, media.Probe):
                memo.remember(PROBE, version, probe.text())
    return found


def shown_hash(file: Openable, hashes: Hashes) -> str:
    """Hash what is shown of a file: its bytes, and how they are shown where that was once another way."""
    version = file.version()
    known = hashes.recall(PROBE, version)
    revision = (media.Probe.parse(known) if known else media.probe(file)).revision
    content = hashes.of(file)
    return digest(content, revision) if revision else content


def _probe(file: Openable) -> media.Probe | UserError:
    try:
        _check_name(file)
        return media.probe(file)
    except UserError as error:
        return error


def _check_name(file: Openable) -> None:
    """Refuse a file whose own name, or that of a folder above it, is not UTF-8: ids and the memo are text."""
    names = [file.name, str(file.path.resolve())] if isinstance(file, File) else [file.name]
    for name in names:
        if half_character(name):
            raise UserError(
                f"{os.fsencode(name)!r} is a name that is not UTF-8; rename it, say with "
                "`convmv -f latin1 -t utf8 --notest`"
            )


def chunked(values: Iterable[T]) -> Iterator[list[T]]:
    values = iter(values)
    while chunk := list(islice(values, CHUNK)):
        yield chunk


# Files that users name


def broken_link(path: Path) -> str | None:
    """What is wrong with a link that leads nowhere."""
    # Unlike those of Path, these take names of any length.
    if os.path.exists(path) or not os.path.islink(path):
        return None
    return f"is a link to {os.readlink(path)!r}, which is not there; mend the link or remove it"


def wrong_file(root: Path, file: str) -> str | None:
    """What is wrong with the name of a media file, relative to its folder or absolute."""
    path = root / file
    if problem := broken_link(path):
        return problem
    if not os.path.isfile(path):
        place = "" if os.path.isabs(file) else f" in {root}"
        return f"does not exist{place}; correct the name or remove the line"
    return None if is_media(file) else f"is not one of {kinds()}; convert it"


def is_media(file: str) -> bool:
    return PurePosixPath(file).suffix.lower() in media.EXTENSIONS


def kinds() -> str:
    return " ".join(sorted(extension[1:] for extension in media.EXTENSIONS))


def readable(path: Path | str) -> str:
    """A path with its bytes that are no text spelt out."""
    return str(path).encode(errors="backslashreplace").decode()


def listed(names: Sequence[str]) -> str:
    """Up to three names and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return readable(", ".join(names[:3])) + more


def counted(things: Sized, noun: str, one: str = "is", more: str = "are") -> str:
    """How many there are, with the verb: `1 clip is`, `3 clips are`."""
    return f"1 {noun} {one}" if len(things) == 1 else f"{len(things)} {noun}s {more}"


def shared_ids(
    sources: Sequence[Source[T]], ids: Sequence[str], numbers: Sequence[int], wheres: Sequence[str]
) -> list[str]:
    """Name the sources that give equal ids: the cache could not tell their items apart.

    `numbers` has the source of each item, `wheres` where it is stated.
    """
    repeated = {name for name, number in Counter(ids).items() if number > 1}
    places: dict[str, list[int]] = {}
    for i, name in enumerate(ids if repeated else ()):
        if name in repeated:
            places.setdefault(name, []).append(i)
    by_sources: dict[tuple[int, ...], list[str]] = {}
    for name, found in places.items():
        by_sources.setdefault(tuple(sorted({numbers[i] for i in found})), []).append(name)
    mistakes = []
    for holders, names in by_sources.items():
        told = " and ".join(str(sources[number]) for number in holders)
        if len(holders) > 1:
            told += f" both hold {listed(names)}; rename one, or list it once"
        else:
            where = " and ".join(wheres[i] for i in places[names[0]])
            told += f": {where} both give the id {names[0]}; give ids that differ"
        mistakes.append(readable(f"data.sources: {told}"))
    return mistakes
