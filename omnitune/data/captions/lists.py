"""Read CogVideo's layout: lists of captions, clips and pictures, line i of each belongs together."""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from ...errors import UserError
from ...options import check_ranges, option
from ..json_items import read_text
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
    trigger: str | None = None
    """Words that are put before each caption, with a comma."""
    repeats: int = 1
    """How often an epoch holds each file; what the cache holds of it is shared."""

    def __post_init__(self) -> None:
        check_ranges(self, repeats="[1, inf)")
        if "first_frame" in self.lists:
            raise ValueError("lists.first_frame is what images names; give that list as images")

    @property
    def brings(self) -> Collection[str]:
        return [*self.lists, "first_frame"] if self.images else self.lists.keys()

    def items(self, base: Path, findings: Findings) -> Iterator[Item]:
        with findings.noted():
            root = self.folder(base)
            captions = media = None
            with findings.noted():
                captions = _read(self, root, self.captions or _captions(self, root), "captions", findings)
            with findings.noted():
                media = _read(self, root, self.media, "media", findings)
            further: dict[str, _Lines] = {}
            for key, name in self._further(root).items():
                with findings.noted():
                    option = "images" if key == "first_frame" else f"lists.{key}"
                    further[key] = _read(self, root, name, option, findings)
            brought = {key: _files(named, root, findings) for key, named in further.items()}
            if media is None:
                return
            files = _once(media, _files(media, root, findings), findings)
            if captions is None or _unequal([captions, media, *further.values()], findings):
                return
            for i, (caption, file) in enumerate(zip(captions.lines, files, strict=True)):
                if caption and file:
                    own = {key: named for key, column in brought.items() if (named := column[i])}
                    yield from self.stated(base, file, caption, media.where(i), own)

    def _further(self, root: Path) -> dict[str, Path]:
        """Medium -> the list of its files."""
        if self.images and (self.images != IMAGES or (root / IMAGES).exists()):
            return {**self.lists, "first_frame": self.images}
        return self.lists


@dataclass(frozen=True)
class _Lines:
    """A list, and how messages name it."""

    shown: Path
    lines: Sequence[str]

    def where(self, index: int) -> str:
        return f"{self.shown.as_posix()}:{index + 1}"


def _captions(source: LineLists, root: Path) -> Path:
    there = [name for name in CAPTIONS if (root / name).exists()]
    if len(there) == 1:
        return there[0]
    problem = "neither prompts.txt nor prompt.txt; write one, or state another as captions"
    if there:
        problem = "both prompts.txt and prompt.txt; keep one, or state it as captions"
    raise UserError(f"data.sources: {source.path}: holds {problem}")


def _read(source: LineLists, root: Path, name: Path, key: str, findings: Findings) -> _Lines:
    """The lines of a list, stripped; blank ones at its end are none."""
    shown = source.path / name
    if not (root / name).is_file():
        raise UserError(
            f"data.sources: {shown}: is no file; write it, a line a clip, or state another as {key}"
        )
    text = read_text(shown, root / name)
    if not text.strip():
        raise UserError(f"{shown}: has no lines; write one a clip")
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
