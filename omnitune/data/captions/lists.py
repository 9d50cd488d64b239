"""Read CogVideo's layout: lists of captions, clips and pictures, line i of each belongs together."""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from ...options import option
from ..sources import Findings, wrong_file
from .item import Item
from .sources import FolderSource

CAPTIONS = (Path("prompts.txt"), Path("prompt.txt"))
IMAGES = Path("images.txt")


@option
class LineLists(FolderSource):
    """Lists of captions, of clips and of pictures, in CogVideo's layout: line i of each belongs together."""

    name: Literal["line_lists"] = "line_lists"
    path: Path
    """Folder of the lists; relative paths start at the folder in which the command runs."""
    captions: Path | None = None
    """List of captions; absent: `prompts.txt` or `prompt.txt`, the one that is there."""
    media: Path = Path("videos.txt")
    """List of clips or pictures, relative to the folder of the lists or absolute."""
    images: Path | None = IMAGES
    """List of pictures that image-to-video is conditioned on in place of the clips' first frames.

    `images.txt` is read if it is there, any other must be; null: none is read.
    """
    lists: dict[str, Path] = field(default_factory=dict)
    """Lists of further files of a sample, by what stages call them: `{control: controls.txt}`."""

    def __post_init__(self) -> None:
        if "first_frame" in self.lists:
            raise ValueError("lists.first_frame is what images names; give that list as images")

    @property
    def brings(self) -> Collection[str]:
        return [*self.lists, "first_frame"] if self.images else self.lists.keys()

    def items(self, base: Path, findings: Findings) -> Iterator[Item]:
        root = self.folder(base, findings)
        if root is None:
            return
        captions = _read(self, root, _captions(self, root, findings), "captions", findings)
        media = _read(self, root, self.media, "media", findings)
        wanted: dict[str, Path | None] = {**self.lists}
        if self.images and (self.images != IMAGES or (root / IMAGES).exists()):
            wanted["first_frame"] = self.images
        further: dict[str, _Lines] = {}
        for key, name in wanted.items():
            option = "images" if key == "first_frame" else f"lists.{key}"
            if found := _read(self, root, name, option, findings):
                further[key] = found
        brought = {key: _files(named, root, findings) for key, named in further.items()}
        if media is None:
            return
        files = _once(media, _files(media, root, findings), findings)
        lists = [found for found in (captions, media, *further.values()) if found]
        if captions is None or _unequal(lists, findings):
            return
        for i, (caption, file) in enumerate(zip(captions.lines, files, strict=True)):
            if caption and file:
                own = {key: named for key, column in brought.items() if (named := column[i])}
                yield self.item(base, file, caption, media.where(i), own)


@dataclass(frozen=True)
class _Lines:
    """A list, and how messages name it."""

    shown: Path
    lines: Sequence[str]

    def where(self, index: int) -> str:
        return f"{self.shown.as_posix()}:{index + 1}"


def _captions(source: LineLists, root: Path, findings: Findings) -> Path | None:
    if source.captions:
        return source.captions
    there = [name for name in CAPTIONS if (root / name).exists()]
    if len(there) == 1:
        return there[0]
    if there:
        problem = "both prompts.txt and prompt.txt; keep one, or state it as captions"
    else:
        problem = "neither prompts.txt nor prompt.txt; write one, or state another as captions"
    findings.mistakes.append(f"data.sources: {source.path}: holds {problem}")
    return None


def _read(source: LineLists, root: Path, name: Path | None, key: str, findings: Findings) -> _Lines | None:
    """The lines of a list, stripped; blank ones at its end are none."""
    if name is None:
        return None
    shown = source.path / name
    if not (root / name).is_file():
        findings.mistakes.append(
            f"data.sources: {shown}: is no file; write it, a line a clip, or state another as {key}"
        )
        return None
    try:
        text = (root / name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        findings.mistakes.append(f"{shown}: is not UTF-8 ({error.reason}); save it as UTF-8")
        return None
    if not text.strip():
        findings.mistakes.append(f"{shown}: has no lines; write one a clip")
        return None
    # Not splitlines: captions may hold U+2028.
    found = _Lines(shown, [line.strip() for line in text.rstrip().split("\n")])
    findings.mistakes += [
        f"{found.where(i)}: is blank; fill it, or remove the line from every list"
        for i, line in enumerate(found.lines)
        if not line
    ]
    return found


def _files(named: _Lines, root: Path, findings: Findings) -> list[str | None]:
    """The files that lines name, relative to the folder where they lie in it; None for what is wrong."""
    found: list[str | None] = []
    for i, line in enumerate(named.lines):
        path, folder = PurePosixPath(line), os.path.abspath(root)
        file = (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
        up = "leaves the folder; state its absolute path" if ".." in path.parts else None
        problem = up or wrong_file(root, file)
        if line and problem:
            findings.mistakes.append(f"{named.where(i)}: {line!r} {problem}")
        found.append(None if problem else file)
    return found


def _once(media: _Lines, files: Sequence[str | None], findings: Findings) -> list[str | None]:
    """Files without those that stand on an earlier line too."""
    first: dict[str | None, int] = {}
    found: list[str | None] = []
    for i, file in enumerate(files):
        repeats = file is not None and first.setdefault(file, i) != i
        if repeats:
            findings.mistakes.append(
                f"{media.where(i)}: {file!r} is also on line {first[file] + 1}; keep one"
            )
        found.append(None if repeats else file)
    return found


def _unequal(lists: Sequence[_Lines], findings: Findings) -> bool:
    """Whether lists differ in length; tells the first line of each that another has no more."""
    short = min(lists, key=lambda found: len(found.lines))
    end = len(short.lines)
    longer = [found for found in lists if len(found.lines) > end]
    findings.mistakes += [
        f"{found.where(end)}: {short.shown.name} ends before this line; add one there or remove this one"
        for found in longer
    ]
    return bool(longer)
