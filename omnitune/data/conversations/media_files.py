"""Look up the pictures and clips that items name, each file once."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from ...files import Hashes
from ..captions.entries import _probes, wrong_file
from ..media import Probe
from .conversation import Media
from .message_parts import Named

MOST_ASPECT = 200
"""Long side over short side: Qwen's processors refuse more."""


@dataclass(frozen=True)
class Exhibits:
    """What files of a folder are, or what is wrong with each."""

    root: Path
    found: Mapping[str, Probe | UserError]

    @staticmethod
    def of(root: Path, files: Collection[str], memo: Hashes) -> "Exhibits":
        """Probe each file that is there; absolute names stand for themselves."""
        found: dict[str, Probe | UserError] = {}
        for file in files:
            if file not in found and (problem := wrong_file(root, file)):
                found[file] = UserError(f"{file!r} {problem}")
        sound = list(dict.fromkeys(file for file in files if file not in found))
        found.update(zip(sound, _probes([root / file for file in sound], memo), strict=True))
        return Exhibits(root, found)

    def media(self, named: Named, problems: list[str]) -> Media | None:
        """A picture or a clip as probed."""
        before = len(problems)
        probes = [self._probe(named, file, problems) for file in named.files]
        sizes = [(probe.width, probe.height) for probe in probes if probe]
        if len(problems) == before:
            problems += _wrong_sizes(named, sizes)
        first = probes[0]
        if first is None or len(problems) > before:
            return None
        paths = tuple(self.root / file for file in named.files)
        num_frames = len(paths) if named.pictures else first.num_frames
        return Media(named.kind, paths, first.width, first.height, num_frames, first.fps)

    def _probe(self, named: Named, file: str, problems: list[str]) -> Probe | None:
        found = self.found[file]
        if isinstance(found, UserError):
            problems.append(f"{named.kind} {found}")
        elif named.pictures and found.kind == "video":
            problems.append(f"video picture {file!r} is a clip; name it alone, or pictures")
        elif named.kind == "image" and found.kind == "video":
            problems.append(f"image {file!r} is a clip; name a picture, or state it as a video")
        elif named.kind == "video" and not named.pictures and found.kind == "image":
            problems.append(f"video {file!r} is a picture; name a clip, or a list of its pictures")
        else:
            return found
        return None


def _wrong_sizes(named: Named, sizes: Sequence[tuple[int, int]]) -> list[str]:
    """What is wrong with the (width, height) of each file."""
    width, height = sizes[0]
    if max(width, height) > MOST_ASPECT * min(width, height):
        side = f"more than {MOST_ASPECT} times as long as it is short"
        return [f"{named.kind} {named.files[0]!r} is {width}x{height}, {side}; crop it"]
    return [
        f"video picture {file!r} is {size[0]}x{size[1]}, but the first is {width}x{height}; make them equal"
        for file, size in zip(named.files, sizes, strict=True)
        if size != sizes[0]
    ]
