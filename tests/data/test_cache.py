"""What is cached equals what would be computed, is found by all that decides it, and survives any kill."""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import Tensor

from omnitune import files
from omnitune.cli import STOPS, main
from omnitune.commands.cache import cache_on
from omnitune.commands.train import train_on
from omnitune.data import cache
from omnitune.data import encode as precompute
from omnitune.data.cache import Store, split_rows, stack_rows
from omnitune.errors import UserError
from omnitune.families.diffusion.pipeline import DiffusersFamily
from omnitune.parallel.mesh import Mesh
from omnitune.random import Draw
from omnitune.resolve import ResolvedRun

if TYPE_CHECKING:
    from core_fixtures import Workplace

pytest_plugins = ["core_fixtures"]

ReadOnly = Callable[[Path], AbstractContextManager[None]]


def entry(number: int) -> dict[str, Tensor]:
    return {"moments": torch.full((2, 3), float(number)), "length": torch.tensor(number)}


def stored(folder: Path, *numbers: int) -> Store:
    """A store with one shard that holds these entries."""
    store = Store(folder)
    for number in numbers:
        store.add(f"key{number}", entry(number))
    store.flush()
    store.refresh()
    return store


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# The store


def test_what_was_added_is_read_back(tmp_path: Path) -> None:
    store = stored(tmp_path, 1, 2)
    assert same(store.read("key1"), entry(1))
    assert same(store.read("key2"), entry(2))
    assert store.missing(["key3", "key1", "key4", "key3"]) == ["key3", "key4"]


def test_tensors_keep_their_dtype_and_shape(tmp_path: Path) -> None:
    store, ragged = Store(tmp_path), torch.randn(5, 4).bfloat16().T
    store.add("key", {"prompt_embeds": ragged})
    store.flush()
    store.refresh()
    assert same(store.read("key"), {"prompt_embeds": ragged})


def test_a_shard_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    store = Store(tmp_path / "text")
    store.add("key", entry(1))
    with pytest.raises(OSError, match="No space left"):
        store.flush()
    assert list((tmp_path / "text").iterdir()) == []


def test_shards_are_flushed_when_they_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD_BYTES", 60)  # two entries of 24 + 8 bytes
    store = Store(tmp_path)
    for number in range(5):
        store.add(f"key{number}", entry(number))
    assert len(shards(tmp_path)) == 2
    store.flush()
    store.refresh()
    assert all(same(store.read(f"key{number}"), entry(number)) for number in range(5))


def test_the_index_is_built_again_from_the_shards(tmp_path: Path) -> None:
    stored(tmp_path, 1, 2)
    stored(tmp_path, 3)
    (tmp_path / "index.sqlite").unlink()
    store = Store(tmp_path)
    assert store.missing(["key1", "key2", "key3"]) == ["key1", "key2", "key3"]
    store.refresh()
    assert same(store.read("key2"), entry(2))
    assert same(store.read("key3"), entry(3))


def test_a_damaged_index_is_built_again_from_the_shards(tmp_path: Path) -> None:
    stored(tmp_path, 1, 2)
    (tmp_path / "index.sqlite").write_bytes(b"garbage " * 2000)
    store = Store(tmp_path)
    store.refresh()
    assert same(store.read("key2"), entry(2))
    assert Store(tmp_path).missing(["key1", "key2"]) == []


def test_what_is_encoded_slowly_is_safe_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    store = Store(tmp_path)
    store.add("key1", entry(1))
    now += 59
    store.add("key2", entry(2))
    assert shards(tmp_path) == []
    now += 1
    store.add("key3", entry(3))
    now += 59
    store.add("key4", entry(4))
    assert len(shards(tmp_path)) == 1
    other = Store(tmp_path)
    other.refresh()
    assert other.missing([f"key{i}" for i in range(1, 5)]) == ["key4"]


def test_an_interrupted_entry_is_not_stored_in_half(tmp_path: Path) -> None:
    class Interrupting:
        def detach(self) -> None:
            raise KeyboardInterrupt

    store = Store(tmp_path)
    store.add("key1", entry(1))
    interrupted: Any = {**entry(2), "interrupting": Interrupting()}
    with pytest.raises(KeyboardInterrupt):
        store.add("key2", interrupted)
    store.flush()
    store.refresh()
    assert store.missing(["key1", "key2"]) == ["key2"]


def test_shards_of_another_process_are_found(tmp_path: Path) -> None:
    mine = stored(tmp_path, 1)
    stored(tmp_path, 2)
    mine.refresh()
    assert same(mine.read("key2"), entry(2))


def test_entries_of_a_deleted_shard_are_missing_again(tmp_path: Path) -> None:
    stored(tmp_path, 1, 2)
    first = shards(tmp_path)[0]
    store = stored(tmp_path, 3)
    first.unlink()
    store.refresh()
    assert store.missing(["key1", "key2", "key3"]) == ["key1", "key2"]


def test_two_runs_bring_one_index_in_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, 1, 2)
    (tmp_path / "index.sqlite").unlink()
    read = cache._tensor_names

    def slowly(path: Path) -> list[str]:
        time.sleep(0.2)
        return read(path)

    def refreshed(_: int) -> list[str]:
        store = Store(tmp_path)
        store.refresh()
        return store.missing(["key1", "key2"])

    monkeypatch.setattr(cache, "_tensor_names", slowly)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(refreshed, range(2))) == [[], []]


def test_a_file_is_hashed_while_others_may_write_and_is_remembered_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_text(path.name)
    mine, other, hashed = files.Hashes(tmp_path), files.Hashes(tmp_path), files.hash_file
    other.db.execute("pragma busy_timeout = 0")
    known: list[str] = []

    def hash_file(file: files.File) -> str:
        if file.path.name == "c":
            other.db.execute("begin immediate")  # raises where another holds the lock
            known.extend(Path(row[0]).name for row in other.db.execute("select path from facts"))
            other.db.rollback()
        return hashed(file)

    monkeypatch.setattr(files, "hash_file", hash_file)
    mine.of_all(paths)
    assert known == ["a", "b"]


def test_verify_hashes_weights_too(workplace: "Workplace", mesh: Mesh) -> None:
    shutil.copytree(workplace.model, "model")
    run = workplace.run("model.path=./model")
    list(cache_on(run, mesh))
    file = next(Path("model/vae").glob("*.safetensors"))
    stat, old = file.stat(), file.read_bytes()
    file.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    num_stores = len(list(Path(".cache").glob("moments-*")))
    list(cache_on(run, mesh, verify=True))
    assert len(list(Path(".cache").glob("moments-*"))) == num_stores + 1


@pytest.mark.parametrize("bytes_left", [0, 5, 40, -1])
def test_a_damaged_shard_is_told_with_the_way_out(tmp_path: Path, bytes_left: int) -> None:
    stored(tmp_path, 1, 2)
    shard = shards(tmp_path)[0]
    shard.write_bytes(shard.read_bytes()[:bytes_left])
    told = rf"^data.cache: {shard} is damaged \(.*\); delete it and what it held is encoded again$"
    with pytest.raises(UserError, match=told):
        Store(tmp_path).read("key1")
    (tmp_path / "index.sqlite").unlink()
    with pytest.raises(UserError, match=told):
        Store(tmp_path).refresh()


def test_no_flipped_bit_of_a_shard_is_read_as_an_entry(tmp_path: Path) -> None:
    given = {"embeds": torch.arange(6).view(2, 3).bfloat16(), "length": torch.tensor(3)}
    store = Store(tmp_path)
    store.add("key", given)
    store.flush()
    store.refresh()
    (shard,) = shards(tmp_path)
    whole, told = shard.read_bytes(), set()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(flipped)
        try:
            found = Store(tmp_path).read("key")
        except UserError as error:
            told.add(str(error).split("(")[0])
        else:
            assert same(found, given), bit
    assert told == {f"data.cache: {shard} is damaged "}
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="the bytes of key are not those that were written"):
        Store(tmp_path).read("key")


def test_shards_from_before_there_were_checksums_are_read(tmp_path: Path) -> None:
    save_file({f"key.{name}": tensor for name, tensor in entry(1).items()}, tmp_path / "old.safetensors")
    store = Store(tmp_path)
    store.refresh()
    assert same(store.read("key"), entry(1))


def test_a_shard_that_vanished_under_a_reader_is_told(tmp_path: Path) -> None:
    stored(tmp_path, 1)
    shards(tmp_path)[0].unlink()
    with pytest.raises(UserError, match=r"is damaged .*; delete it"):
        Store(tmp_path).read("key1")


def test_forked_readers_share_a_store(tmp_path: Path) -> None:
    store = stored(tmp_path, *range(20))
    assert same(store.read("key0"), entry(0))  # opens connection and shard before the fork
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def read(start: int) -> None:
        numbers = range(start, 20, 2)
        results.put(all(same(store.read(f"key{i}"), entry(i)) for _ in range(5) for i in numbers))

    readers = [context.Process(target=read, args=(start,)) for start in (0, 1)]
    for reader in readers:
        reader.start()
    assert [results.get(timeout=30) for _ in readers] == [True, True]
    for reader in readers:
        reader.join(30)
    assert same(store.read("key1"), entry(1))


def test_more_shards_than_can_be_open_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "OPEN_SHARDS", 2)
    for number in range(5):
        store = stored(tmp_path, number)
    for number in (0, 1, 2, 3, 4, 0, 4, 1):
        assert same(store.read(f"key{number}"), entry(number))
    assert len(store._shards) == 2


def test_rows_are_split_and_stacked_again() -> None:
    batch = {"moments": torch.randn(3, 2, 2), "prompt_embeds": [torch.randn(n, 4) for n in (1, 3, 2)]}
    rows = split_rows(batch, 3)
    again = stack_rows(rows, ["prompt_embeds"])
    assert torch.equal(again["moments"], batch["moments"])
    assert all(map(torch.equal, again["prompt_embeds"], batch["prompt_embeds"]))


# What is encoded


def encoded(place: "Workplace", mesh: Mesh, *overrides: str) -> dict[str, int]:
    """How many entries of each stage filling the cache encodes."""
    job = place.job(*overrides)
    return job.fill_cache(job.index(), job.open_cache(), mesh).encoded


def test_everything_is_encoded_once_and_the_empty_prompt_with_it(workplace: "Workplace", mesh: Mesh) -> None:
    assert encoded(workplace, mesh) == {"moments": 5, "text": 6}
    assert encoded(workplace, mesh) == {"moments": 0, "text": 0}
    job = workplace.job()
    samples = job.bound.dataset(job.index())
    cache = job.open_cache()
    keys = cache.keys(samples.input_keys({**samples.inputs(0), "caption": ""}))
    assert cache.stores["text"].read(keys["text"])["prompt_embeds"].shape == (1, 32)  # the end token alone


def test_equal_captions_are_encoded_once(workplace: "Workplace", mesh: Mesh) -> None:
    workplace.captions = dict.fromkeys(workplace.captions, "the same")
    workplace.write_captions()
    assert encoded(workplace, mesh) == {"moments": 5, "text": 2}


def test_a_changed_caption_encodes_one_text(workplace: "Workplace", mesh: Mesh) -> None:
    encoded(workplace, mesh)
    workplace.captions["fox.mp4"] = "a fox runs through snow"
    workplace.write_captions()
    assert encoded(workplace, mesh) == {"moments": 0, "text": 1}


def test_a_changed_file_encodes_its_moments(workplace: "Workplace", mesh: Mesh) -> None:
    encoded(workplace, mesh)
    workplace.add("apple.png", seed=77)
    assert encoded(workplace, mesh) == {"moments": 1, "text": 0}


def test_a_renamed_file_is_found_again(workplace: "Workplace", mesh: Mesh) -> None:
    encoded(workplace, mesh)
    (workplace.clips / "fox.mp4").rename(workplace.clips / "vixen.mp4")
    workplace.captions["vixen.mp4"] = workplace.captions.pop("fox.mp4")
    workplace.write_captions()
    assert encoded(workplace, mesh) == {"moments": 0, "text": 0}


def test_another_part_of_a_picture_is_another_entry(workplace: "Workplace", mesh: Mesh) -> None:
    encoded(workplace, mesh)
    assert encoded(workplace, mesh, "data.buckets.sizes=[16x16, 16x32]") == {"moments": 0, "text": 0}
    assert encoded(workplace, mesh, "data.buckets.sizes=[16x32]") == {"moments": 5, "text": 0}
    assert encoded(workplace, mesh, "data.buckets.frames=[1]") == {"moments": 2, "text": 0}


def test_variants_are_cached_side_by_side(workplace: "Workplace", mesh: Mesh) -> None:
    workplace.add("long.mp4", frames=12)
    workplace.captions = {"long.mp4": "one long clip"}
    workplace.write_captions()
    job = workplace.job("data.variants=40", "data.window=random")
    filled = job.fill_cache(job.index(), job.open_cache(), mesh)
    assert filled.encoded == {"moments": 8, "text": 2}  # 12 - 5 + 1 windows
    samples = job.bound.dataset(job.index())
    seen = {samples.inputs(0, samples.variant(position))["view"] for position in range(100)}
    assert len(seen) == 8


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("model.options.text_length=16", {"text"}),
        ("model.dtype=bfloat16", {"text", "moments"}),
        ("seed=5", set()),
        ("data.batch_size=3", set()),
        ("trainable={lora: {rank: 7}}", set()),
    ],
)
def test_what_changes_the_output_of_a_stage_changes_its_fingerprint(
    workplace: "Workplace", override: str, changed: set[str]
) -> None:
    before, after = (
        workplace.job().open_cache().fingerprints,
        workplace.job(override).open_cache().fingerprints,
    )
    assert {name for name in before if before[name] != after[name]} == changed


@pytest.mark.parametrize(
    ("component", "changed"),
    [("vae", {"moments"}), ("text_encoder", {"text"}), ("tokenizer", {"text"}), ("transformer", set())],
)
def test_other_weights_change_the_fingerprint_of_the_stages_that_use_them(
    workplace: "Workplace", tmp_path: Path, component: str, changed: set[str]
) -> None:
    shutil.copytree(workplace.model, tmp_path / "model")
    before = workplace.job().open_cache().fingerprints
    copied = workplace.job("model.path=./model").open_cache().fingerprints
    assert copied == before
    file = next(p for p in sorted((tmp_path / "model" / component).iterdir()) if p.name != "config.json")
    file.write_bytes(file.read_bytes() + b" ")
    after = workplace.job("model.path=./model").open_cache().fingerprints
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_stage_whose_weights_train_is_not_cached(workplace: "Workplace") -> None:
    assert [s.name for s in workplace.job().cached] == ["moments", "text"]
    job = workplace.job("trainable=[{params: [transformer, text_encoder]}]")
    assert ([s.name for s in job.cached], [s.name for s in job.live]) == (["moments"], ["latents", "text"])


def test_lost_indices_and_shards_cost_only_what_they_held(workplace: "Workplace", mesh: Mesh) -> None:
    encoded(workplace, mesh)
    for index in Path(".cache").rglob("index.sqlite"):
        index.unlink()
    assert encoded(workplace, mesh) == {"moments": 0, "text": 0}
    (shard,) = [s for s in shards(Path(".cache")) if s.parent.name.startswith("text")]
    shard.unlink()
    assert encoded(workplace, mesh) == {"moments": 0, "text": 6}


def test_encoding_that_was_killed_goes_on_where_it_was(
    workplace: "Workplace", mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SHARD_BYTES", 1)  # every entry is a shard
    monkeypatch.setattr(precompute, "BATCH_ROWS", 1)
    encode, calls = precompute._encode_group, []

    def killed(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        encode(*arguments)

    closed: list[precompute.Progress] = []
    monkeypatch.setattr(precompute.Progress, "close", lambda self: closed.append(self))
    monkeypatch.setattr(precompute, "_encode_group", killed)
    with pytest.raises(KeyboardInterrupt):
        encoded(workplace, mesh)
    assert len(closed) == 1
    monkeypatch.setattr(precompute, "_encode_group", encode)
    assert encoded(workplace, mesh) == {"moments": 5 - 3, "text": 6}


@pytest.fixture
def handlers() -> Iterator[None]:
    """Commands set handlers of signals for the rest of their process."""
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT] * 2])
def test_a_signal_while_encoding_costs_nothing_that_is_encoded(
    workplace: "Workplace",
    mesh: Mesh,
    monkeypatch: pytest.MonkeyPatch,
    handlers: None,
    signals: list[signal.Signals],
) -> None:
    add, save, left = Store.add, safetensors.torch.save_file, list(signals)

    def signalled(*given: Any) -> None:
        add(*given)
        if len(given[0]._pending) >= 3:  # moments have one tensor an entry
            os.kill(os.getpid(), left.pop(0))

    def interrupted(*given: Any) -> None:
        save(*given)
        if left:
            os.kill(os.getpid(), left.pop(0))

    monkeypatch.setattr(Store, "add", signalled)
    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    assert main(["cache", "run.yaml"]) == 75
    assert left == []
    monkeypatch.setattr(Store, "add", add)
    assert encoded(workplace, mesh) == {"moments": 2, "text": 6}


def test_a_file_that_cannot_be_encoded_costs_nothing_else(
    workplace: "Workplace", mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precompute, "BATCH_ROWS", 1)
    encode, calls = precompute._encode_group, []

    def failing(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 4:
            raise UserError("the fourth cannot be decoded")
        encode(*arguments)

    monkeypatch.setattr(precompute, "_encode_group", failing)
    with pytest.raises(UserError, match="the fourth"):
        encoded(workplace, mesh)
    monkeypatch.setattr(precompute, "_encode_group", encode)
    assert encoded(workplace, mesh) == {"moments": 5 - 3, "text": 6}


# A cache that cannot be written to


def test_commands_go_on_with_a_cache_that_cannot_be_written_to(
    workplace: "Workplace", mesh: Mesh, read_only: ReadOnly, capsys: pytest.CaptureFixture[str]
) -> None:
    before = encoded(workplace, mesh)
    next(Path(".cache").glob("text-*/index.sqlite")).unlink()
    with read_only(Path(".cache")):
        assert main(["check", "run.yaml"]) == 0
        assert main(["plan", "run.yaml"]) == 0
        assert encoded(workplace, mesh) == dict.fromkeys(before, 0)
        train_on(workplace.run("schedule.steps=1", "data.num_workers=1"), mesh)
        capsys.readouterr()
        workplace.add("apple.png", seed=77)
        assert main(["check", "run.yaml"]) == 0
        with pytest.raises(
            UserError, match=r"moments-\w+ cannot be written to, and lacks 1 entries of moments"
        ):
            encoded(workplace, mesh)


def test_a_cache_that_cannot_be_made_is_told(workplace: "Workplace", mesh: Mesh, read_only: ReadOnly) -> None:
    Path("shelf").mkdir()
    with read_only(Path("shelf")):
        assert main(["check", "run.yaml", "data.cache=shelf/cache"]) == 0
        with pytest.raises(
            UserError, match=r"shelf/cache/moments-.* cannot be written to, and lacks 5 entries"
        ):
            encoded(workplace, mesh, "data.cache=shelf/cache")


# What training reads


def recorded_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    loaded: list[str] = []
    load = DiffusersFamily.load_component

    def recording(self: DiffusersFamily, name: str) -> Any:
        if self.device.type != "meta":
            loaded.append(name)
        return load(self, name)

    monkeypatch.setattr(DiffusersFamily, "load_component", recording)
    return loaded


def test_encoders_are_not_loaded_when_all_is_cached(
    workplace: "Workplace", mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = recorded_loads(monkeypatch)
    train_on(workplace.run("schedule.steps=1", "name=first"), mesh)
    assert loaded == ["vae", "text_encoder", "transformer"]
    loaded.clear()
    train_on(workplace.run("schedule.steps=1", "name=second"), mesh)
    assert loaded == ["transformer"]


def ready(job: ResolvedRun, mesh: Mesh) -> Callable[[int], dict[str, Any]]:
    """Gives the batch of a step as the objective gets it."""
    index = job.index()
    job.fill_cache(index, job.open_cache(), mesh)
    batches = job.batches(index, job.open_cache(), mesh)
    family = job.load_family("cpu", job.train_components)
    stages = job.live_stages(family)

    def batch(step: int) -> dict[str, Any]:
        found = batches.batch(batches.order.batch(step))
        draw = Draw(job.run.seed, found["position"])
        with torch.no_grad():
            for stage in stages:
                found |= stage.run(found, draw)
        return found

    return batch


DROPOUT = "conditions=[{name: caption_dropout, probability: 0.5}]"


def test_a_cached_batch_is_the_live_batch(workplace: "Workplace", mesh: Mesh) -> None:
    cached = ready(workplace.job(DROPOUT), mesh)
    live = ready(workplace.job(DROPOUT, "data.cache=null"), mesh)
    for step in range(6):
        one, other = cached(step), live(step)
        assert one["id"] == other["id"]
        assert one["caption"] == other["caption"]
        torch.testing.assert_close(one["moments"], other["moments"], rtol=0, atol=1e-5)
        torch.testing.assert_close(one["x0"]["x"], other["x0"]["x"], rtol=0, atol=1e-5)
        for a, b in zip(one["prompt_embeds"], other["prompt_embeds"], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def losses(run: Any, mesh: Mesh) -> list[float]:
    import json

    lines = (train_on(run, mesh) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_training_on_the_cache_is_training_without_it(workplace: "Workplace", mesh: Mesh) -> None:
    short = ("schedule.steps=3", "optimizer={name: adamw, lr: 1e-2}", DROPOUT)
    cached = losses(workplace.run(*short, "name=cached"), mesh)
    live = losses(workplace.run(*short, "name=live", "data.cache=null", "data.num_workers=0"), mesh)
    ahead = losses(workplace.run(*short, "name=ahead", "data.cache=null", "data.num_workers=2"), mesh)
    assert live == pytest.approx(cached, abs=1e-5)
    assert ahead == live
    assert len(set(cached)) == 3
