"""Films, read by PyAV as ffmpeg shows them."""

import struct
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EIO, EPERM
from fractions import Fraction
from itertools import chain, pairwise
from math import atan2, degrees, hypot
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...files import Openable
from .probe import MACHINE_ERRORS, REVISION, Probe, timed, unreadable

if TYPE_CHECKING:
    from .probe import Pixels

SEES_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Codec -> the decoder that reads the alpha channel beside its pictures, which FFmpeg's own passes over."""
PRIMARIES = {4: "bt470m", 8: "film", 9: "bt2020", 10: "smpte428", 11: "DCI-P3", 12: "Display P3"}
CURVES = {8: "linear", 9: "log", 10: "log", 16: "PQ", 17: "smpte428", 18: "HLG"}
"""Code of ITU-T H.273 -> its name, of those that differ much from sRGB's; FFmpeg shows them as they stand."""
UNOBEYED = {
    "STEREO3D": "stereoscopic, shown with both views",
    "SPHERICAL": "spherical, shown as stored",
    "DOVI_METADATA": "of Dolby Vision, shown without it",
    "ICC_PROFILE": "of a colour profile that is not converted",
}
"""Side data of a frame -> what is told of it."""
MOST_STRETCH = 16
"""A stated pixel that is longer than so many times its other side is no true one."""
SMALLEST_MPEG4 = 16
"""Bytes: a packet that small of this codec may say that nothing is shown."""


@dataclass(frozen=True)
class _Key:
    """A frame that decoding can start from."""

    pts: int
    dts: int


@dataclass(frozen=True)
class _Timeline:
    """Times of the first frames of a film in presentation order, and of the key frames among them."""

    times: list[int]
    keys: list[_Key]
    fewer: bool = False
    """Whether packets with a time of their own show nothing."""

    def key_before(self, time: int) -> _Key:
        place = bisect_right(self.keys, time, key=lambda key: key.pts)
        return self.keys[max(place - 1, 0)]

    def stamp(self, index: int) -> tuple[int, int]:
        """(time, how many frames of the same time come before): files round times, so two may be equal."""
        time = self.times[index]
        return time, index - bisect_left(self.times, time)


class _Film:
    """The main video stream of an opened file."""

    def __init__(self, name: str, container: Any):
        stream = container.streams.best("video")
        if stream is None:
            raise UserError(f"{name}: holds no video stream; replace it or remove it")
        if stream.codec_context is None:
            raise UserError(f"{name}: is of a codec that FFmpeg cannot decode; write it anew as h264")
        self.name, self.container, self.stream = name, container, stream
        self.codec = stream.codec_context.name
        self.graphs: dict[object, Any] = {}
        # Avi gives frames no times, and FFmpeg's guesses put reordered ones in the wrong places.
        self.untimed = container.format.name == "avi"

    @property
    def alpha_decoder(self) -> str | None:
        # FFmpeg reads the element of webm as `alpha_mode`, and what others wrote as a tag in capitals.
        stated = any(
            key.lower() == "alpha_mode" and told == "1" for key, told in self.stream.metadata.items()
        )
        return SEES_ALPHA.get(self.codec) if stated else None

    def packets(self) -> Iterator[Any]:
        """Packets that hold something; an empty one ends the stream, or repeats a frame."""
        for packet in self.container.demux(self.stream):
            if packet.is_corrupt:
                raise UserError(
                    f"{self.name}: is cut short within the packet at byte {packet.pos}; "
                    "copy it again or remove it"
                )
            if packet.size:
                yield packet

    def decoded(self, key: _Key | None = None) -> Iterator[Any]:
        """Decode from a key frame on; from the start by default."""
        import av

        packets = self._from_start() if key is None or self.untimed else self._from(key)
        if self.alpha_decoder:
            decoder: Any = av.CodecContext.create(self.alpha_decoder, "r")
            found = (frame for packet in packets for frame in decoder.decode(packet if packet.size else None))
        else:
            found = (frame for packet in packets for frame in packet.decode())
        for place, frame in enumerate(found):
            if self.untimed:
                frame.pts = place
            yield frame

    def _from_start(self) -> Iterator[Any]:
        self.container.seek(0)
        packets: Iterator[Any] = self.container.demux(self.stream)
        return packets

    def _from(self, key: _Key) -> Iterator[Any]:
        # Some demuxers seek by presentation time, others by decoding time: the second may overshoot on the
        # first.
        for time in (key.pts, key.dts):
            self.container.seek(time, stream=self.stream)
            packets = self.container.demux(self.stream)
            first = next(packets)
            if first.pts is not None and first.pts <= key.pts:
                break
        return chain([first], packets)

    def timeline(self, last: int | None = None) -> _Timeline:
        """Read packets, without decoding, until the time of frame `last` is certain; all by default."""
        times: list[int] = []
        keys: list[_Key] = []
        fewer = False
        for packet in self.packets():
            if self.untimed or packet.pts is None or self._undecided(packet):
                return self._decoded_timeline()
            # No later packet is shown before it is decoded: what comes before this time is complete. Unless
            # the film is cut out of a longer one, of whose first frames some will go.
            certain = last is not None and len(times) > last and times[0] >= keys[0].pts
            if certain and packet.dts is not None and packet.dts > times[last or 0]:
                break
            if packet.is_keyframe or not keys:  # the first is where decoding starts, whatever it is
                keys.append(_Key(packet.pts, packet.pts if packet.dts is None else packet.dts))
            # Edit lists hide frames that decoding needs but nobody sees: discarded ones.
            if self._hidden(packet):
                fewer = True
            elif not packet.is_discard:
                insort(times, packet.pts)
        keys.sort(key=lambda key: key.pts)
        if times and times[0] < keys[0].pts:  # cut out of a longer film: what refers to the rest is not shown
            undecodable = bisect_left(times, self.first_frame().pts)
            times, fewer = times[undecodable:], fewer or undecodable > 0
        # Seeking to a time that two frames share may land on the other one, which decoding cannot start from.
        twins = {time for time, following in pairwise(times) if time == following}
        return _Timeline(times, [key for key in keys if key == keys[0] or key.pts not in twins], fewer)

    def _decoded_timeline(self) -> _Timeline:
        """Where packets do not tell what is shown: decode all of it."""
        times = sorted(
            frame.pts for frame in self.decoded() if frame.pts is not None and not frame.is_corrupt
        )
        return _Timeline(times, [_Key(times[0], times[0])] if times else [], fewer=True)

    def _undecided(self, packet: Any) -> bool:
        return bool(self.codec == "mpeg4" and packet.size <= SMALLEST_MPEG4)

    def _hidden(self, packet: Any) -> bool:
        """Whether a packet only holds what later frames refer to."""
        if self.codec == "vp8":
            return not packet_bits(packet, 0) >> 4 & 1
        if self.codec != "vp9" or packet_bits(packet, -1) >> 5 == 0b110:  # several frames, the last is shown
            return False
        first = packet_bits(packet, 0)
        if first >> 4 & 0b11 == 0b11:  # profile 3 has a reserved bit more
            first = first << 1 | packet_bits(packet, 1) >> 7
        return not first >> 3 & 1 and not first >> 1 & 1  # neither shows an existing frame nor itself

    def first_frame(self) -> Any:
        frame = next((frame for frame in self.decoded() if not frame.is_corrupt), None)
        if frame is None:
            raise UserError(f"{self.name}: holds no frame that can be decoded; replace it or remove it")
        return frame

    # As a viewer shows it

    def stretch(self) -> Fraction:
        """Width over height of a pixel, where that is a true one."""
        ratio = Fraction(self.stream.sample_aspect_ratio or 1)
        return ratio if 1 / MOST_STRETCH <= ratio <= MOST_STRETCH else Fraction(1)

    def shown(self, frame: Any) -> "Pixels":
        """A frame (H, W, 3) as ffmpeg shows it, of square pixels, upright, on white."""
        import numpy as np

        alpha = any(component.is_alpha for component in frame.format.components)
        filters = self.filters(frame)
        key = frame.width, frame.height, frame.format.name, tuple(filters)
        if key not in self.graphs:
            last = ("format", "pix_fmts=rgba" if alpha else "pix_fmts=rgb24")
            self.graphs = {key: _graph(frame, self.stream.time_base, [*filters, last])}
        graph = self.graphs[key]
        graph.push(frame)
        pixels: Pixels = graph.pull().to_ndarray()
        if not alpha:
            return pixels
        color, opacity = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
        return ((color * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)

    def filters(self, frame: Any) -> list[tuple[str, str]]:
        """What FFmpeg's filters do to a frame: turn it upright, then make its pixels square."""
        turns, ratio = _turns(_matrix(frame)), self.stretch()
        width, height = frame.width * max(ratio, Fraction(1)), frame.height / min(ratio, Fraction(1))
        if any(name == "transpose" for name, _ in turns):
            width, height = height, width
        return turns + [("scale", f"{round(width)}:{round(height)}")] * (ratio != 1)

    def notes(self, frame: Any) -> list[str]:
        """What a film says of its display that is not obeyed."""
        found = [told for name, told in UNOBEYED.items() if frame.side_data.get(name) is not None]
        if curve := CURVES.get(frame.color_trc):
            found.append(f"of a transfer curve ({curve}) that is not converted, without tone mapping")
        if primaries := PRIMARIES.get(frame.color_primaries):
            found.append(f"of primaries ({primaries}) that are not converted")
        if frame.interlaced_frame:
            found.append("interlaced, shown without deinterlacing")
        if self.stretch() != (self.stream.sample_aspect_ratio or 1):
            found.append("of impossible pixels (sample aspect ratio), shown as square")
        if any(name == "rotate" for name, _ in self.filters(frame)):
            found.append("turned by no quarter, with black corners")
        return found

    def shown_anew(self, frame: Any) -> bool:
        """Whether its frames were once shown in another way."""
        filters = self.filters(frame)
        turned = [value or name for name, value in filters] in ([], ["clock"], ["cclock"], ["hflip", "vflip"])
        kind = frame.format
        halved = kind.is_planar and (kind.chroma_width(16) < 16, kind.chroma_height(16) < 16)
        if halved and any(halved):
            bits = max(component.bits for component in kind.components)
            same = bits == 8 and halved[0] and (halved[1] or not filters) and kind.chroma_width(16) == 8
        else:
            same = True
        return bool(self.alpha_decoder or frame.interlaced_frame) or not turned or not same


def packet_bits(packet: Any, place: int) -> int:
    """One byte of a packet."""
    return int(memoryview(packet)[place])


def _graph(frame: Any, time_base: Fraction, filters: list[tuple[str, str]]) -> Any:
    """FFmpeg's own filters, so that pixels are those of its command line."""
    import av

    graph: Any = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format.name, time_base=time_base
    )
    graph.link_nodes(source, *(graph.add(name, value) for name, value in filters), graph.add("buffersink"))
    graph.configure()
    return graph


def _matrix(frame: Any) -> tuple[int, ...] | None:
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else struct.unpack("9i", bytes(data))


def _turns(matrix: tuple[int, ...] | None) -> list[tuple[str, str]]:
    """The filters that bring a frame upright, those of ffmpeg's `-autorotate`."""
    if matrix is None:
        return []
    a, b, _, c, d = matrix[:5]
    if not hypot(a, c) or not hypot(b, d):
        return []
    angle = round(degrees(atan2(b / hypot(b, d), a / hypot(a, c)))) % 360
    if abs(angle - 90) < 1:
        return [("transpose", "cclock_flip" if c > 0 else "clock")]
    if abs(angle - 180) < 1:
        return [("hflip", "")] * (a < 0) + [("vflip", "")] * (d < 0)
    if abs(angle - 270) < 1:
        return [("transpose", "clock_flip" if c < 0 else "cclock")]
    return [("rotate", f"{angle}*PI/180")] if angle else [("vflip", "")] * (d < 0)


@contextmanager
def _opened(file: Openable) -> Iterator[_Film]:
    """Open a film; what FFmpeg refuses is the user's file's fault."""
    import av

    try:
        # Titles in other encodings than UTF-8 are none of our business.
        with file.open() as opened, av.open(opened, metadata_errors="replace") as container:
            yield _Film(file.name, container)
    except (av.FFmpegError, OSError) as error:
        if not isinstance(error, av.FFmpegError) and error.errno in MACHINE_ERRORS:
            raise unreadable(file, error) from error
        # FFmpeg takes numbers of the system for what is no failure of it: a header cut short, say.
        cause = "it is damaged or cut short" if error.errno in (EIO, EPERM) else error.strerror
        problem = f"cannot be read as a video ({cause}); replace it or remove it"
        raise UserError(f"{file.name}: {problem}") from error


def probe(file: Openable) -> Probe:
    """Find what a film is; one decoded frame tells how it is shown and that the codec is there."""
    with _opened(file) as film:
        _check_length(film)
        timeline = film.timeline()
        times = timeline.times
        first = film.first_frame()
        rate = film.stream.average_rate or film.stream.guessed_rate
        if not times:
            raise UserError(f"{file.name}: holds no frame that can be decoded; replace it or remove it")
        if not rate:
            name = PurePosixPath(file.name).name
            raise UserError(
                f"{file.name}: states no frame rate; write it anew: ffmpeg -i {name} -r 24 new.mp4"
            )
        height, width, _ = film.shown(first).shape
        unit = 1 / rate if film.untimed else film.stream.time_base
        fps, seconds = timed([time * unit for time in times], rate)
        notes = tuple(film.notes(first))
        revision = REVISION if film.shown_anew(first) or timeline.fewer else ""
        return Probe("video", width, height, len(times), fps, seconds, notes, revision)


def _check_length(film: _Film) -> None:
    """Refuse a file cut short behind its sample table: it still states all its frames."""
    end = max((entry.pos + entry.size for entry in film.stream.index_entries), default=0)
    if film.stream.frames and end > film.container.size:
        raise UserError(
            f"{film.name}: is cut short at byte {film.container.size}, its frames reach to {end}; "
            "copy it again or remove it"
        )


def durations(file: Openable) -> list[int]:
    """Milliseconds of each frame of a gif."""
    with _opened(file) as film:
        return [round(1000 * packet.duration * film.stream.time_base) for packet in film.packets()]


def frames(file: Openable, wanted: list[int]) -> Iterator[tuple[int, "Pixels"]]:
    with _opened(file) as film:
        timeline = film.timeline(wanted[-1])
        if wanted[-1] >= len(timeline.times):
            raise UserError(
                f"{file.name}: frame {wanted[-1]} cannot be read, there are {len(timeline.times)} frames; "
                "replace it or remove it"
            )
        for run in _runs(timeline, wanted):
            yield from _run_frames(film, timeline, run)


def _runs(timeline: _Timeline, wanted: list[int]) -> list[list[int]]:
    """Split frames where a key frame between two of them lets decoding skip some."""
    runs = [[wanted[0]]]
    for index in wanted[1:]:
        following = timeline.times[runs[-1][-1] + 1]
        if timeline.key_before(timeline.times[index]).pts > following:
            runs.append([index])
        else:
            runs[-1].append(index)
    return runs


def _run_frames(film: _Film, timeline: _Timeline, run: list[int]) -> Iterator[tuple[int, "Pixels"]]:
    import av

    left = {timeline.stamp(index): index for index in run}
    last, given = timeline.times[run[-1]], Counter[int]()
    try:
        for frame in film.decoded(timeline.key_before(timeline.times[run[0]])):
            stamp = (frame.pts, given[frame.pts])
            given[frame.pts] += 1
            if stamp in left and not frame.is_corrupt:
                yield left.pop(stamp), film.shown(frame)
            if not left or (frame.pts is not None and frame.pts > last):
                break
        cause = "it is damaged"
    except av.FFmpegError as error:
        cause = str(error.strerror)
    if left:
        raise UserError(
            f"{film.name}: frame {min(left.values())} cannot be decoded ({cause}); "
            "replace the file or remove it"
        )
