"""Frames are counted as they are shown, and frame k is frame k, whatever packets there are."""

from itertools import chain
from pathlib import Path

import av
import pytest

from omnitune.data.media import probe, read_frames
from omnitune.errors import UserError

B_FRAMES = {"x264-params": "bframes=3:open-gop=1:scenecut=0:b-adapt=0"}
SUPERFRAMES = Path(__file__).parents[1] / "assets/vp9_superframes.webm"
MADE = {
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "h264.mp4": B_FRAMES,
    "h264.mkv": B_FRAMES,
    "mpeg4.mp4": {"codec": "mpeg4", "bf": "2"},
    "mpeg4.avi": {"codec": "mpeg4", "bf": "2"},
    "h264.avi": B_FRAMES,
    "mpeg2.mkv": {"codec": "mpeg2video", "bf": "2"},
    "ffv1.mkv": {"codec": "ffv1"},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
}


def repacked(path, to, first_key=0, split=False):
    """Copy packets from a key frame on; `split` gives every VP9 frame, hidden or not, a packet of its own."""
    # Else FFmpeg puts frames that are hidden back into the packet of the next one.
    options = {"fflags": "-autobsf"} if split else {}
    with av.open(str(path)) as source, av.open(str(to), "w", options=options) as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
        packets = packets[keys[first_key] :]
        if split:
            every = av.BitStreamFilterContext("vp9_superframe_split", stream)
            packets = [*chain.from_iterable(every.filter(packet) for packet in packets), *every.filter(None)]
        for packet in packets:
            packet.stream = copy
            out.mux(packet)
    return to


def decoded(path):
    """Every frame that decoding all gives, in the order of the decoder."""
    with av.open(str(path)) as container:
        return [
            frame.to_ndarray(format="rgb24") for frame in container.decode(video=0) if not frame.is_corrupt
        ]


def check(path, wanted):
    """Hold a film against its frames."""
    assert probe(path).num_frames == len(wanted)
    assert (read_frames(path, range(len(wanted))) == wanted).all()
    for k in range(len(wanted)):
        assert (read_frames(path, [k])[0] == wanted[k]).all(), k
    assert (read_frames(path, [1, len(wanted) - 1]) == [wanted[1], wanted[-1]]).all()


@pytest.mark.parametrize("name", MADE)
def test_every_frame_counts_once(make, name):
    path = make.clip(name, frames=30, **MADE[name])
    if path.suffix == ".avi":
        path = path.rename(path.with_suffix(".mkv"))  # contents decide
    wanted = decoded(path)
    assert len(wanted) == 30
    check(path, wanted)
    assert (probe(path).fps, probe(path).times) == (24, ())


def test_hidden_frames_in_packets_of_their_own_are_not_counted(tmp_path):
    wanted = decoded(SUPERFRAMES)
    assert len(wanted) == 48
    check(SUPERFRAMES, wanted)
    path = repacked(SUPERFRAMES, tmp_path / "split.mkv", split=True)
    with av.open(str(path)) as container:
        assert sum(1 for packet in container.demux(video=0) if packet.size) > 48
    check(path, wanted)


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "mpeg2.mkv"])
def test_frames_that_refer_to_what_is_cut_off_are_not_counted(make, name):
    whole = make.clip(f"whole_{name}", frames=36, **MADE[name])
    path = repacked(whole, make.path(name), first_key=1)
    wanted = decoded(path)
    assert 20 < len(wanted) < 36
    check(path, wanted)


@pytest.mark.parametrize("name", ["vp9.webm", "h264.mkv", "fragmented.mp4", "h264.mp4"])
def test_films_cut_short_have_the_frames_that_they_hold_or_are_named(make, name):
    fragments = {"container": {"movflags": "+frag_keyframe+empty_moov"}} if "frag" in name else {}
    whole = make.clip(name, frames=30, **MADE.get(name, fragments)).read_bytes()
    for end in range(len(whole) // 8, len(whole), len(whole) // 8):
        path = make.path(f"cut_{end}_{name}")
        path.write_bytes(whole[:end])
        try:
            found = probe(path)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017
            continue
        wanted = decoded(path)
        assert found.num_frames == len(wanted)
        assert (read_frames(path, range(found.num_frames)) == wanted).all()
