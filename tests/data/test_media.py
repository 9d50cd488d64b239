import errno
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import av
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from omnitune.data.media import (
    Probe,
    films,
    iter_frames,
    pictures,
    probe,
    read_frames,
    read_image,
    write_image,
    write_video,
)
from omnitune.errors import MachineError, UserError
from omnitune.files import File

ZOO = {
    "h264.mp4": {},
    "fragmented.mp4": {"container": {"movflags": "+frag_keyframe+empty_moov"}},
    "open_gop.mp4": {"x264-params": "open-gop=1:bframes=3:scenecut=0"},
    "h264.mov": {},
    "h264.mkv": {},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp8.webm": {"codec": "libvpx", "auto-alt-ref": "1", "lag-in-frames": "16"},
    "ten_bit.mkv": {"pix_fmt": "yuv420p10le"},
    "all_keys.mp4": {"key_every": 1},
    "alpha.mov": {"codec": "qtrle", "pix_fmt": "argb"},
}


@pytest.mark.parametrize("name", ZOO)
def test_films_are_probed_and_read_by_presentation_order(make, shown, name):
    path = make.clip(name, **ZOO[name])
    assert replace(probe(path), revision="") == Probe("video", 48, 32, 40, 24.0)
    for wanted in ([0], [39], [5, 6, 7, 30], list(range(40)), [11, 12, 13], [20, 3, 3, 39]):
        assert shown(read_frames(path, wanted)) == wanted


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_animations_are_clips(make, shown, name):
    path = make.animation(name)
    assert probe(path) == Probe("video", 12, 8, 6, 25.0)
    assert shown(read_frames(path, [0, 5, 2, 2])) == [0, 5, 2, 2]


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_animations_of_one_frame_are_pictures(make, name):
    assert probe(make.animation(name, frames=1)) == Probe("image", 12, 8, 1, 0.0)


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_animations_without_delays_play_as_in_browsers(make, name):
    assert probe(make.animation(name, ms=0)).fps == 10.0


def test_a_run_of_frames_is_decoded_from_its_key_frame_to_its_last_frame(make, monkeypatch):
    path = make.clip("film.mp4", frames=45, **{"x264-params": "scenecut=0:bframes=0"})
    assert decoded_for(path, [26, 27], monkeypatch) == [24, 25, 26, 27]
    assert decoded_for(path, [0, 1], monkeypatch) == [0, 1]
    assert decoded_for(path, [2, 37], monkeypatch) == [0, 1, 2, 36, 37]
    assert decoded_for(path, [11, 12, 13], monkeypatch) == list(range(14))


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_reordered_frames_are_decoded_from_their_key_frame_too(make, name, monkeypatch):
    path = make.clip(name, frames=45, **{"x264-params": "scenecut=0:bframes=2"})
    assert decoded_for(path, [26, 27], monkeypatch) == [24, 25, 26, 27]


def decoded_for(path, indices, monkeypatch):
    """Which frames the decoder gave while these were read."""
    times = sorted(packet.pts for packet in packets_of(path))
    decoded, plain = [], films._Film.decoded

    def counting(*args):
        for frame in plain(*args):
            decoded.append(times.index(frame.pts))
            yield frame

    with monkeypatch.context() as patch:
        patch.setattr(films._Film, "decoded", counting)
        read_frames(path, indices)
    return decoded


def packets_of(path):
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def test_packets_behind_the_last_frame_are_not_even_read(make):
    path = make.clip("film.mp4", container={"movflags": "+faststart"})
    end = packets_of(path)[20].pos
    path.write_bytes(path.read_bytes()[:end])
    assert len(read_frames(path, [0, 5])) == 2


def test_frames_of_a_variable_rate_are_found(make, shown):
    path = make.clip("variable.mp4", frames=20, times=lambda i: i * i)
    found = probe(path)
    assert found.num_frames == 20
    assert found.times == pytest.approx([i * i / 24 for i in range(20)], abs=1e-3)
    assert found.fps == pytest.approx(24 / 19)
    assert shown(read_frames(path, [0, 7, 19])) == [0, 7, 19]


def test_an_animation_of_variable_rate_has_the_times_of_its_frames(make):
    images = [Image.new("L", (8, 8), 20 * i) for i in range(4)]
    for name in ("a.gif", "a.webp"):
        images[0].save(make.path(name), save_all=True, append_images=images[1:], duration=[40, 40, 400, 40])
        assert probe(make.path(name)).times == (0, 0.04, 0.08, 0.48)


def test_times_that_are_rounded_are_of_a_fixed_rate(make):
    assert probe(make.clip("ntsc.mkv", fps=30)).times == ()  # in milliseconds: 0, 33, 67


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_films_are_turned_upright(make, turns):
    path = make.clip("turned.mp4", frames=1, rotation=90 * turns)
    quarter = Image.fromarray(np.zeros((32, 48, 3), np.uint8)).rotate(90 * turns, expand=True)
    assert (probe(path).width, probe(path).height) == quarter.size
    assert read_frames(path, [0]).shape[1:3] == quarter.size[::-1]


def test_films_turn_in_the_direction_of_their_metadata(tmp_path):
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, :32] = 255
    path = tmp_path / "left.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        # As phones held upright write it: (x, y) is shown at (-y, x), so the left side goes to the top.
        stream.set_display_matrix([0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30])
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    frame = read_frames(path, [0])[0]
    assert frame.shape == (64, 32, 3)
    assert frame[:32].mean() > 250
    assert frame[32:].mean() < 5


def test_transparency_of_films_shows_white(tmp_path):
    path = tmp_path / "clear.mov"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("qtrle", rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "argb"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 48, 4), np.uint8), format="rgba")))
        out.mux(stream.encode())
    assert (read_frames(path, [0]) == 255).all()


def test_pictures_are_turned_upright(make):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = make.image("turned.jpg", height=8, width=12, exif=exif)
    assert probe(path) == Probe("image", 8, 12, 1, 0.0)
    assert read_image(path).shape == (1, 12, 8, 3)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.jpeg", "A.JPG", "a.webp"])
def test_pictures_of_every_kind_are_read(make, name):
    path = make.image(name)
    assert probe(path) == Probe("image", 12, 8, 1, 0.0)
    assert np.abs(read_image(path).astype(int) - 20).max() <= 1


def test_every_mode_becomes_rgb(tmp_path):
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    modes = {
        "clear.png": (clear, 255),
        "half.png": (Image.new("LA", (4, 4), (0, 128)), 127),
        "palette.png": (Image.new("RGB", (4, 4), (90, 90, 90)).quantize(4), 90),
        "bits.png": (Image.new("1", (4, 4), 1), 255),
        "sixteen.png": (Image.fromarray(np.full((4, 4), 90 * 257, np.uint16)), 90),
        "cmyk.jpg": (Image.new("CMYK", (4, 4), (0, 0, 0, 0)), 255),
    }
    for name, (image, brightness) in modes.items():
        image.save(tmp_path / name)
        pixels = read_image(tmp_path / name)
        assert pixels.shape == (1, 4, 4, 3)
        assert pixels.dtype == np.uint8
        assert set(pixels.ravel().tolist()) == {brightness}, name


def test_a_colour_that_stands_for_clear_shows_white(tmp_path):
    Image.new("L", (4, 4), 7).save(tmp_path / "key.png", transparency=7)
    assert (read_image(tmp_path / "key.png") == 255).all()


def test_a_frame_past_the_end_is_named(make):
    film, animation = make.clip("film.mp4"), make.animation("short.gif")
    with pytest.raises(
        UserError, match=r"film\.mp4: frame 40 cannot be read, there are 40 frames; replace it"
    ):
        read_frames(film, [3, 40])
    with pytest.raises(UserError, match=r"short\.gif: cannot be read .*\(at frame 6\)"):
        read_frames(animation, [3, 6])


def test_a_damaged_frame_is_named_and_the_others_are_read(make, shown):
    path = make.clip("damaged.mp4", frames=36, **{"x264-params": "scenecut=0:bframes=0"})
    packet = packets_of(path)[20]
    whole = bytearray(path.read_bytes())
    whole[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(whole)
    assert shown(read_frames(path, [12, 19, 24, 30])) == [12, 19, 24, 30]
    with pytest.raises(UserError, match=r"damaged\.mp4: frame 20 cannot be decoded \(.+\); replace the file"):
        read_frames(path, [18, 20])


@pytest.mark.parametrize("name", ["empty.png", "empty.jpg", "empty.webp", "empty.gif"])
def test_an_empty_picture_is_named(make, name):
    with pytest.raises(UserError, match=f"{name}: cannot be read as a picture .*replace it or remove it"):
        probe(make.text(name, ""))


@pytest.mark.parametrize("name", ["empty.mp4", "empty.webm"])
def test_an_empty_film_is_named(make, name):
    with pytest.raises(UserError, match=f"{name}: cannot be read as a video .*replace it or remove it"):
        probe(make.text(name, ""))


def test_a_film_without_its_end_is_named(make):
    path = make.clip("half.mp4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"half\.mp4: cannot be read as a video"):
        probe(path)


def test_a_film_that_states_more_than_it_holds_is_named(make):
    path = make.clip("cut.mp4", container={"movflags": "+faststart"})
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - 100])
    with pytest.raises(
        UserError, match=rf"cut\.mp4: is cut short at byte {size - 100}, its .* {size}; copy it"
    ):
        probe(path)


def test_a_truncated_picture_is_named(make):
    path = make.image("cut.jpg", height=64, width=64)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"cut\.jpg: cannot be read as a picture"):
        read_image(path)


def test_a_truncated_animation_is_named(make):
    path = make.animation("cut.webp")
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match=r"cut\.webp: .*; replace it or remove it"):
        probe(path)


def test_files_with_bytes_changed_at_random_are_read_or_named(make):
    wholes = [make.clip("a.mp4"), make.clip("a.mkv"), make.clip("a.webm", codec="libvpx-vp9")]
    wholes += [make.animation("a.gif"), make.animation("a.webp"), make.image("a.png"), make.image("a.jpg")]
    rng = random.Random(0)
    messages = []
    for whole in wholes * 60:
        content = bytearray(whole.read_bytes())
        for _ in range(rng.choice([1, 3, 20])):
            content[rng.randrange(min(len(content), rng.choice([200, 1 << 30])))] = rng.randrange(256)
        path = make.path(f"changed{whole.suffix}")
        path.write_bytes(content)
        try:
            for _ in iter_frames(path, [0, probe(path).num_frames - 1]):
                pass
        except UserError as error:
            messages.append((path, str(error)))
    assert 0 < len(messages) < len(wholes) * 60
    assert all(str(path) in message for path, message in messages)


def test_titles_in_other_encodings_do_not_matter(make):
    path = make.clip("old.mp4", title="TITLE")
    path.write_bytes(path.read_bytes().replace(b"TITLE", b"\xe9t\xe9!!"))
    assert b"\xe9t\xe9!!" in path.read_bytes()
    assert probe(path).num_frames == 40


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with pytest.raises(UserError, match=r"sound\.mp4: holds no video stream; replace it"):
        probe(path)


def test_frames_are_yielded_once_and_in_order(make):
    assert [index for index, _ in iter_frames(make.clip("a.mp4"), [7, 2, 7])] == [2, 7]


def test_a_written_video_is_read_back(tmp_path, shown):
    frames = np.stack([np.full((31, 45, 3), 20 + 5 * i, np.uint8) for i in range(9)])
    path = tmp_path / "out.mp4"
    write_video(path, frames, 23.976)
    found = probe(path)
    assert (found.width, found.height, found.num_frames) == (46, 32, 9)
    assert found.fps == pytest.approx(23.976, abs=1e-4)
    assert shown(read_frames(path, range(9))) == list(range(9))
    with av.open(str(path)) as container:
        assert (container.streams.video[0].codec.name, container.streams.video[0].pix_fmt) == (
            "h264",
            "yuv420p",
        )


def test_a_written_picture_is_read_back_exactly(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    write_image(tmp_path / "out.png", pixels)
    assert (read_image(tmp_path / "out.png")[0] == pixels).all()


def test_what_fails_while_writing_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="uint8"):
        write_video(path, np.zeros((2, 8, 8, 3), np.float64), 8)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_heavy_is_imported_before_media_are_opened():
    code = "import sys, omnitune.data.captions.sources, omnitune.data.buckets, omnitune.data.captions.crops\n"
    code += "assert not {'torch', 'av', 'PIL', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
@pytest.mark.parametrize("key_every", [1, 3, 12])
def test_frames_of_one_time_are_read_each(make, shown, codec, key_every):
    # 15 frames at 30 a second in a file of milliseconds, of which the seventh comes as early as the sixth.
    path = make.clip("twin.webm", frames=15, fps=10000, codec=codec, key_every=key_every,
                     times=lambda i: (i - 1 if i == 6 else i) * 333 + (4 if i == 6 else 0))  # fmt: skip
    assert len({packet.pts for packet in packets_of(path)}) == 14
    assert probe(path).num_frames == 15
    assert shown(read_frames(path, list(range(15)))) == list(range(15))
    for one in range(15):
        assert shown(read_frames(path, [one])) == [one]


@pytest.mark.parametrize("made", ["jpg", "png", "gif", "webp", "mp4", "webm"])
@pytest.mark.parametrize("named", ["jpg", "png", "gif", "webp", "mp4", "webm"])
def test_contents_decide_and_names_only_let_in(make, made, named):
    name = f"a.{made}"
    if made in ("mp4", "webm"):
        path = make.clip(name, frames=6, codec="libvpx-vp9" if made == "webm" else "libx264")
    else:
        path = make.animation(name) if made in ("gif", "webp") else make.image(name)
    found, frame = probe(path), read_frames(path, [0])
    path = path.rename(path.with_suffix(f".{named}"))
    assert probe(path) == found
    assert (read_frames(path, [0]) == frame).all()


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_other_pictures_under_the_name_of_a_known_one_are_read(make, kind):
    path = make.path("a.png")
    Image.fromarray(np.full((8, 12, 3), 90, np.uint8)).save(path, format=kind)
    assert probe(path) == Probe("image", 12, 8, 1, 0.0)
    assert np.abs(read_image(path).astype(int) - 90).max() <= 2


def test_text_and_pixels_beyond_what_pillow_is_let_read_are_told_as_its_limit(make, monkeypatch):
    path = make.path("text.png")
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * (3 << 20), zip=True)
    Image.new("RGB", (8, 8)).save(path, pnginfo=text)
    assert probe(path).width == 8
    monkeypatch.setattr(pictures, "MOST_TEXT", 1 << 20)
    with pytest.raises(UserError, match=r"text\.png: holds over 1 MiB of text or profile.*save it without"):
        read_image(path)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 40)
    with pytest.raises(UserError, match=r"large\.png: is larger than the 40 pixels that are read at most"):
        probe(make.image("large.png"))


def test_a_picture_of_200_million_pixels_is_probed_without_a_warning(make, recwarn):
    path = make.image("large.png", height=1, width=1)
    content = bytearray(path.read_bytes())
    content[16:24] = (16000).to_bytes(4) + (12500).to_bytes(4)
    content[29:33] = crc32(content[12:29]).to_bytes(4)
    path.write_bytes(content)
    assert (probe(path).width, len(recwarn)) == (16000, 0)


@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_failures_of_the_machine_are_not_the_file_s(make, name):
    class Failing(File):
        def open(self):
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(MachineError, match=rf"{name}: cannot be read \(Input/output error\)"):
        probe(Failing(make.path(name)))


def test_an_orientation_behind_the_pixels_of_a_png_is_obeyed(make):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = make.image("turned.png", exif=exif).read_bytes()
    start = content.index(b"eXIf") - 4
    chunk = content[start : start + 12 + int.from_bytes(content[start : start + 4])]
    path = make.path("late.png")
    path.write_bytes(content.replace(chunk, b"").replace(b"\0\0\0\0IEND", chunk + b"\0\0\0\0IEND"))
    assert (probe(path).width, probe(path).height) == (8, 12)
    assert read_image(path).shape == (1, 12, 8, 3)
