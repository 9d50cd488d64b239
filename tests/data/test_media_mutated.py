"""Media with bits, ends and beginnings changed at random are read, or named in one message."""

import multiprocessing
import random
import warnings

import pytest
from conftest import Make
from display import clips, pictures

from omnitune.data.media import iter_frames, probe
from omnitune.errors import UserError

MUTATIONS, SECONDS = 600, 20


def bases(folder):
    make = Make(folder)
    films = [make.clip("alt.webm", codec="libvpx", **{"auto-alt-ref": "1", "lag-in-frames": "16"})]
    films += [make.clip("old.avi", codec="mpeg4", bf="2"), make.clip("reordered.mp4", bf="2")]
    animations = [make.animation(name) for name in ("a.gif", "a.webp", "a.png")]
    return [*films, *animations, *pictures(folder), *clips(folder)]


def mutated(content, other, rng):
    """Bytes of a file with bits flipped, cut short, or begun as another file."""
    kind = rng.choice(["bits", "bits", "bytes", "cut", "beginning", "middle"])
    changed = bytearray(content)
    reach = min(len(changed), rng.choice([64, 400, 1 << 30]))
    if kind == "bits":
        for _ in range(rng.choice([1, 3, 20])):
            changed[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        for _ in range(rng.choice([1, 3, 20])):
            changed[rng.randrange(reach)] = rng.choice([0, 1, 127, 128, 255])
    elif kind == "cut":
        del changed[rng.randrange(len(changed)) :]
    elif kind == "beginning":
        length = rng.choice([4, 16, 64, 256])
        changed[:length] = other[:length]
    else:
        start, length = rng.randrange(reach), rng.choice([1, 8, 100])
        changed[start : start + length] = bytes(length) * rng.choice([0, 1, 2])
    return bytes(changed)


def outcome(path):
    """None for a file that is read, or the message about it."""
    warnings.simplefilter("ignore")  # Pillow's, about what it leaves out
    try:
        for _ in iter_frames(path, [0, probe(path).num_frames - 1]):
            pass
    except UserError as error:
        return str(error)
    return None


@pytest.mark.slow
def test_mutated_media_are_read_or_named(tmp_path):
    rng = random.Random(14)
    whole = [(path.suffix, path.read_bytes()) for path in bases(tmp_path)]
    suffixes = sorted({suffix for suffix, _ in whole if suffix != ".avi"})
    paths = []
    for i in range(MUTATIONS):
        suffix, content = whole[i % len(whole)] if i < len(whole) else rng.choice(whole)
        named = rng.choice(suffixes) if suffix == ".avi" or rng.random() < 0.1 else suffix
        paths.append(tmp_path / f"mutated_{i}{named}")
        paths[-1].write_bytes(mutated(content, rng.choice(whole)[1], rng))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        waiting = [(path, pool.apply_async(outcome, (path,))) for path in paths]
        told = {path: one.get(SECONDS) for path, one in waiting}
    messages = {path: message for path, message in told.items() if message}
    assert MUTATIONS / 10 < len(messages) < MUTATIONS * 9 / 10
    assert all(str(path) in message for path, message in messages.items())


def test_a_mutation_changes_something():
    rng, content = random.Random(0), bytes(range(200))
    assert all(mutated(content, b"other" * 60, rng) != content for _ in range(50))
