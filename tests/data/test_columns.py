"""An index in columns: the same rows again, in little memory and time, however many."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from omnitune.data.captions.crops import Clips
from omnitune.data.captions.index import CaptionIndex, assign_buckets
from omnitune.data.captions.item import Item, Items
from omnitune.data.columns import Digests, Objects, Repeated, Texts
from omnitune.data.sizes import Bucket
from omnitune.data.sources import Scan
from omnitune.files import digest

BUCKETS = [Bucket(1, 32, 32), Bucket(1, 32, 48)]


class Nothing:
    """A source that brings a control and is never read."""

    brings = ("control",)


def item(i: int) -> Item:
    shown = {"width": 640 + i % 100, "height": 480, "num_frames": 1}
    caption = f"a photograph of thing number {i}, lit from the left"
    return Item(
        f"set/{i * 7919 % 1_000_003:07}.png", f"{i:07}.png", caption, f"set/metadata.jsonl:{i}", **shown
    )


def index_of(number: int) -> CaptionIndex:
    items = Items([], Path())
    for i in range(number):
        items.append(0, item(i))
    placed = assign_buckets(Scan(items, []), BUCKETS, Clips())
    return replace(placed, hashes={"pixels": Digests(digest(name) for name in placed.items.ids)})


def test_rows_are_what_was_put_in() -> None:
    texts = ["", "a", "\ud800 half", "名前" * 20]
    assert list(Texts(texts)) == texts
    assert Texts(texts)[-1] == texts[-1]
    assert Texts(texts)[1:3] == texts[1:3]
    with pytest.raises(IndexError):
        Texts(texts)[4]
    assert list(Objects([{"a": 1}, (2, 3)])) == [{"a": 1}, (2, 3)]
    hashes = [digest("a"), digest("b")]
    assert list(Digests([hashes[0], "", hashes[1]])) == [hashes[0], "0" * 32, hashes[1]]
    repeated = Repeated("abba")
    assert list(repeated) == list("abba")
    assert {value: list(rows) for value, rows in repeated.by_value()} == {"a": [0, 3], "b": [1, 2]}


def test_items_are_what_was_put_in_and_sorted_by_id() -> None:
    items = Items([Nothing(), Nothing()], Path())
    stated = [
        Item(
            "set/b.mp4", "b.mp4", "a clip", "x:1", "video", 64, 32, 3, 12.5, (0.0, 0.1, 0.9), {"control": "c"}
        ),
        Item("set/a.png", "a.png", "a picture", "x:2", "image", 64, 32, 1),
    ]
    for i, one in enumerate(stated):
        items.append(i, one)
    assert list(items) == stated
    assert list(items.take([1, 0])) == stated[::-1]
    assert list(pickle.loads(pickle.dumps(items))) == stated


def test_a_sorted_index_has_each_item_with_its_bucket() -> None:
    index = index_of(500)
    assert list(index.items.ids) == sorted(index.items.ids)
    assert sorted(i for rows in index.by_bucket.values() for i in rows) == list(range(500))
    stated = {one.id: one for one in map(item, range(500))}
    assert all(stated[one.id] == one for one in index.items)


MEASURE = """
import pickle, sys, time
path, number = sys.argv[1], int(sys.argv[2])
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
import torch
from omnitune.data.captions.index import CaptionIndex
from omnitune.data.order import Order
before, start = resident(), time.perf_counter()
index = pickle.load(open(path, "rb"))
opened = time.perf_counter() - start
order = Order(index.by_bucket, 16, 0)
used = resident() - before
start = time.perf_counter()
for step in range(200):
    order.batch(step)
print(opened, used, (time.perf_counter() - start) / 200)
"""


def measured(tmp_path: Path, number: int) -> tuple[float, float, float]:
    """Seconds to open an index, bytes that it adds to a process, seconds of a step's order."""
    file = tmp_path / f"{number}.pickle"
    file.write_bytes(pickle.dumps(index_of(number)))
    words = [sys.executable, "-c", MEASURE, str(file), str(number)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    opened, used, step = map(float, done.stdout.split())
    return opened, used, step


def test_a_hundred_thousand_items_take_25_megabytes_and_a_tenth_of_a_second(tmp_path: Path) -> None:
    opened, used, step = measured(tmp_path, 100_000)
    assert used < 25e6
    assert opened < 0.1
    assert step < 10 * measured(tmp_path, 1000)[2]


@pytest.mark.slow
def test_a_million_items_take_200_megabytes_and_a_second(tmp_path: Path) -> None:
    opened, used, _ = measured(tmp_path, 1_000_000)
    assert used < 200e6
    assert opened < 1
