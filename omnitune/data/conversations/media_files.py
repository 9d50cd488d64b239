"""Look up the pictures and clips that conversations name, each file once."""

from collections.abc import Callable, Iterable, Sequence

from ...errors import UserError
from ...files import Hashes, Openable
from ..media import Probe
from ..sources import probe_all
from .conversation import Media, NamedMedia

MOST_ASPECT = 200
"""Long side over short side: Qwen's processors refuse more."""


class MediaFiles:
    """What files are, by the names that a source opens them by, or what is wrong with each."""

    def __init__(self, files: Iterable[str], opener: Callable[[str], Openable], memo: Hashes):
        self.opener, self.found = opener, probe_all(files, opener, memo)

    def media(self, named: NamedMedia, problems: list[str]) -> Media | None:
        """A picture or a clip as probed."""
        before = len(problems)
        probes = [self._probe(named, file, problems) for file in named.files]
        sizes = [(probe.width, probe.height) for probe in probes if probe]
        if len(problems) == before:
            problems += _wrong_sizes(named, sizes)
        first = probes[0]
        if first is None or len(problems) > before:
            return None
        files = tuple(map(self.opener, named.files))
        num_frames = len(files) if named.pictures else first.num_frames
        return Media(named.kind, files, first.width, first.height, num_frames, first.fps)

    def _probe(self, named: NamedMedia, file: str, problems: list[str]) -> Probe | None:
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


def _wrong_sizes(named: NamedMedia, sizes: Sequence[tuple[int, int]]) -> list[str]:
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
