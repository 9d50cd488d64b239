"""Files that a source states with their captions, and the items that are probed of them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...errors import UserError
from ...files import Hashes, Version
from .. import media
from .item import Item

PROBE = "probe 1"
"""The name by which probes are remembered; another number when probing comes to find something else."""


@dataclass(frozen=True)
class Entry:
    """A file, relative to its folder, or absolute, and its caption, as stated."""

    file: str
    caption: str
    where: str
    image: str | None = None
    """Picture that takes the place of the file's first frame, stated like the file."""
    image_where: str = ""


@dataclass
class Findings:
    """Fills up while a source is read, so that all its mistakes are told at once."""

    mistakes: list[str]
    notes: list[str]


def broken_link(path: Path) -> str | None:
    """What is wrong with a link that leads nowhere."""
    if path.exists() or not path.is_symlink():
        return None
    return f"is a link to {os.readlink(path)!r}, which is not there; mend the link or remove it"


def is_text(text: str) -> bool:
    """Whether text can be written: a surrogate stands for half a character, or a byte that is none."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def readable(path: Path | str) -> str:
    """A path with its bytes that are no text spelt out."""
    return str(path).encode(errors="backslashreplace").decode()


def is_media(file: str) -> bool:
    return PurePosixPath(file).suffix.lower() in media.EXTENSIONS


def wrong_file(root: Path, file: str) -> str | None:
    """What is wrong with the name of a media file, relative to its folder or absolute."""
    path = root / file
    if os.path.islink(path) and (problem := broken_link(path)):
        return problem
    if not os.path.isfile(path):  # unlike Path.is_file, takes names of any length
        place = "" if os.path.isabs(file) else f" in {root}"
        return f"does not exist{place}; correct the name or remove the line"
    return None if is_media(file) else f"is not one of {kinds()}; convert it"


def kinds() -> str:
    return " ".join(sorted(extension[1:] for extension in media.EXTENSIONS))


def probed(root: Path, entries: Sequence[Entry], findings: Findings, memo: Hashes) -> list[Item]:
    """What entries and their files say; results and mistakes keep the order of the entries."""
    folder = folder_name(root)
    pictures = list(dict.fromkeys(entry.image for entry in entries if entry.image))
    shown = dict(zip(pictures, _probes([root / picture for picture in pictures], memo), strict=True))
    items = []
    for entry, found in zip(entries, _probes([root / entry.file for entry in entries], memo), strict=True):
        image = shown[entry.image] if entry.image else None
        if isinstance(image, UserError):
            findings.mistakes.append(f"{entry.image_where}: {image}")
        elif image and image.kind == "video":
            findings.mistakes.append(f"{entry.image_where}: {entry.image!r} is a clip; name a picture")
        if isinstance(found, UserError):
            findings.mistakes.append(f"{entry.where}: {found}")
            continue
        items.append(
            Item(
                id=f"{folder}/{entry.file}",
                path=root / entry.file,
                kind=found.kind,
                caption=entry.caption,
                width=found.width,
                height=found.height,
                num_frames=found.num_frames,
                fps=found.fps,
                where=entry.where,
                times=found.times,
                image=root / entry.image if entry.image else None,
            )
        )
    return items


def _probes(paths: Sequence[Path], memo: Hashes) -> list[media.Probe | UserError]:
    """Probe in parallel what is not remembered; what cannot be probed is not remembered either."""

    def probe(path: Path) -> media.Probe | UserError:
        try:
            _check_name(path)
            return media.probe(path)
        except UserError as error:
            return error

    versions = [Version.of(path) for path in paths]
    known = [memo.recall(PROBE, version) if is_text(version.path) else None for version in versions]
    with ThreadPoolExecutor() as pool:
        opened = pool.map(probe, [path for path, text in zip(paths, known, strict=True) if text is None])
        found: list[media.Probe | UserError] = []
        for version, text in zip(versions, known, strict=True):
            one = next(opened) if text is None else media.Probe.parse(text)
            if text is None and isinstance(one, media.Probe):
                memo.remember(PROBE, version, one.text())
            found.append(one)
    return found


def _check_name(path: Path) -> None:
    """Refuse a file whose own name, or that of a folder above it, is not UTF-8: ids and the memo are text."""
    for name in (path, path.resolve()):
        if not is_text(str(name)):
            raise UserError(
                f"{os.fsencode(name)!r} is a name that is not UTF-8; rename it, say with "
                "`convmv -f latin1 -t utf8 --notest`"
            )


def folder_name(root: Path) -> str:
    """The name a source's ids begin with; `path: .` and `path: x/..` have one too."""
    return Path(os.path.abspath(root)).name
