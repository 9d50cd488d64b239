"""A run folder whose record is lost or damaged, and a run that goes on with other names or another length."""

import json
import re
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import torch

from omnitune import config, train
from omnitune.callbacks.base import Callback, TrainerView
from omnitune.cli import main
from omnitune.config.identity import data_lines, with_stored_ids
from omnitune.data.conversations.conversation import Conversation, Message
from omnitune.data.conversations.rows import ConversationIndex, ConversationRow, LengthBucket
from omnitune.errors import Stopped, UserError
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.parallel.state import load_whole
from omnitune.run_folder import find_checkpoint
from omnitune.testing.runs import ASSETS, metrics, small_run, write_run

SOURCES = [{"path": f"data/{kind}"} for kind in ("clips", "pictures")]


class StopAfter(Callback):
    """Stops a run after a step, as a signal does."""

    def __init__(self, step: int):
        self.step = step

    def on_step(self, trainer: TrainerView) -> None:
        trainer.stop_wish |= trainer.step == self.step  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def home(tiny_wan: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of four steps, whose rates decay and whose windows are drawn by id."""
    folder = tmp_path_factory.mktemp("home")
    described = small_run(tiny_wan, cache, schedule={"steps": 4, "decay": "cosine", "floor": 0.2})
    for source in described["data"]["sources"]:
        kind = Path(source["path"]).parent.name
        shutil.copytree(ASSETS / kind / "train", folder / "data" / kind)
    described["data"].update(sources=SOURCES, window="random", variants=2)
    with chdir(folder):
        train(config.load(write_run(folder / "run.yaml", described))[0])
    return folder


@pytest.fixture
def place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which is the current one."""
    copied = shutil.copytree(home, tmp_path / "home", symlinks=True)
    monkeypatch.chdir(copied)
    return copied


FOLDER = Path("runs/run")


def go_on(*overrides: str, stop: int | None = None) -> Path:
    """Go on with the run; the folder it is in."""
    run, _ = config.load(Path("run.yaml"), overrides)
    stops = [StopAfter(stop)] if stop else []
    if stop:
        with pytest.raises(Stopped):
            train(run, *stops)
    else:
        train(run)
    return Path("runs") / run.name


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as told:
        go_on(*overrides)
    return str(told.value)


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_whole(find_checkpoint(folder, None).tensors, Mesh(Parallel()))


def assert_same(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    mine, theirs = state(one), state(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture
def extended(place: Path) -> Path:
    """The run, extended to six steps undisturbed."""
    shutil.copytree(FOLDER, "runs/whole", symlinks=True)
    return go_on("name=whole", "schedule.steps=6", "schedule.extend=restart")


# Results


def test_results_never_take_the_place_of_earlier_ones(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", "runs/run", "--prompt", "a fox", "--steps", "1"]
    for number in ("", "-2", "-3"):
        assert main([*words, "--seed", str(len(number))]) == 0
        assert main([*words, "--seed", "7"]) == 0
        assert f"runs/run/samples/manual/step-4-seed-7{number}/000.mp4" in capsys.readouterr().out
    Path("empty").mkdir()
    assert main([*words, "--out", "empty"]) == 0
    written = {path: path.read_bytes() for path in Path("empty").iterdir()}
    assert main([*words, "--out", "empty", "--seed", "9"]) == 2
    assert "--out: empty is there already; name another place, or delete it" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("empty").iterdir()} == written

    words = ["evaluate", "runs/run", "--data", "data/pictures", "--metrics", "loss", "--samples", "2"]
    for number in ("", "-2"):
        assert main(words) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"runs/run/evaluation/step-00000004{number}.json"
    assert main([*words, "--out", f"runs/run/evaluation/step-00000004{number}.json"]) == 2


# Another length


@pytest.mark.parametrize("way", ["restart", "continue"])
def test_an_extended_run_goes_on_bit_for_bit_after_a_stop(place: Path, way: str) -> None:
    assert "state schedule.extend: restart" in refused("schedule.steps=8")
    longer = ("schedule.steps=8", f"schedule.extend={way}")
    shutil.copytree(FOLDER, "runs/whole", symlinks=True)
    whole = go_on("name=whole", *longer)
    go_on(*longer, stop=6)
    assert_same(go_on("schedule.steps=8"), whole)
    rates = [record["lr"]["0"] / 1e-2 for record in metrics(FOLDER)]
    assert rates[3:4] == pytest.approx([0.2])
    assert rates[4:] == pytest.approx(rates[:4] if way == "restart" else [0.2] * 4)
    stored = config.load(FOLDER / "run.yaml")[0]
    assert stored.schedule.extended == ((4, 4, way),)


def test_a_smaller_length_of_a_finished_run_trains_nothing_and_leaves_its_record(place: Path) -> None:
    before = (FOLDER / "metrics.jsonl").read_bytes()
    go_on("schedule.steps=2")
    assert (FOLDER / "metrics.jsonl").read_bytes() == before
    assert config.load(FOLDER / "run.yaml")[0].schedule.steps == 4


# Lost and damaged files


def test_a_lost_run_yaml_is_made_up_for_by_the_manifest(place: Path, extended: Path) -> None:
    (FOLDER / "run.yaml").unlink()
    told = refused("objective.shift=2")
    assert re.match(r"name: runs/run has checkpoints and no run.yaml, .* is of other settings; bring", told)
    assert "state schedule.extend: restart" in refused("schedule.steps=6")
    assert_same(go_on("schedule.steps=6", "schedule.extend=restart"), extended)


@pytest.mark.parametrize("damage", [None, "{}", "[", "[]", '{"identity": 3}'])
def test_without_run_yaml_and_manifest_nothing_goes_on(place: Path, damage: str | None) -> None:
    (FOLDER / "run.yaml").unlink()
    (FOLDER / "manifest.json").unlink()
    if damage is not None:
        (FOLDER / "manifest.json").write_text(damage)
    assert "runs/run/manifest.json" in refused("schedule.steps=6", "schedule.extend=restart")


GARBAGE = [b"\0\xff\xfe", b"[]", b"3", b'{"step": "3"}', b"[" * 100_000, b"{" + b'"a":{' * 5000]


def test_garbage_in_metrics_is_left_out_and_told(
    place: Path, extended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = FOLDER / "metrics.jsonl"
    first, *others = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([first, *GARBAGE, *others]) + b"\n" + b'{"step": 4, "lo')
    assert_same(go_on("schedule.steps=6", "schedule.extend=restart"), extended)
    told = f"{file}: {len(GARBAGE)} damaged lines are left out; the steps that they told of are missing there"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"{}", b"\xff", b"[]", b'{"state.json": 3}', b'{"a/\\u0000b": [1, ""]}'])
def test_a_checkpoint_that_does_not_list_its_files_is_passed_over(place: Path, damage: bytes) -> None:
    (newest,) = (FOLDER / "checkpoints").glob("step-*")
    (newest / "COMPLETE").write_bytes(damage)
    assert main(["sample", "runs/run", "--prompt", "a fox"]) == 2


# Other names


def renamed(place: Path) -> list[str]:
    """Rename both data folders so that their order changes."""
    shutil.move("data/clips", "data/their-clips")
    shutil.move("data/pictures", "data/all-pictures")
    sources = [{"path": "data/their-clips"}, {"path": "data/all-pictures"}]
    return [f"data.sources={json.dumps(sources)}"]


def test_a_renamed_data_folder_is_told_and_the_run_goes_on_bit_for_bit(
    place: Path, extended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*renamed(place), "schedule.steps=6", "schedule.extend=restart"]
    before = (FOLDER / "data.jsonl").read_bytes()
    assert_same(go_on(*words), extended)
    told = capsys.readouterr().err
    assert re.search(r"data.sources: 45 of 45 samples have new names and the same contents \(", told), told
    assert re.search(r"cache: moments \d+ stored, 0 encoded; text \d+ stored, 0 encoded", told), told
    assert (FOLDER / "data.jsonl").read_bytes() == before
    assert (FOLDER / "draws.jsonl").read_bytes() == (extended / "draws.jsonl").read_bytes()


def test_renamed_data_of_other_contents_are_refused(place: Path) -> None:
    words = renamed(place)
    file = next(Path("data/their-clips").glob("*.jsonl"))
    file.write_text(file.read_text().replace('"caption": "', '"caption": "not ', 1))
    assert "the data is not what runs/run was trained on (gone: " in refused(*words)


@pytest.mark.parametrize("damage", [b"{}\n", b"\xff\n", b"[]\n", b'{"id": 3, "fingerprint": ""}\n'])
def test_a_damaged_data_jsonl_stands_in_the_way_of_nothing_but_the_difference(
    place: Path, damage: bytes
) -> None:
    before = (FOLDER / "data.jsonl").read_bytes()
    (FOLDER / "data.jsonl").write_bytes(damage)
    assert "runs/run/data.jsonl:1: is damaged" in refused(*renamed(place))
    shutil.move("data/their-clips", "data/clips")
    shutil.move("data/all-pictures", "data/pictures")
    go_on()
    assert (FOLDER / "data.jsonl").read_bytes() == before


def test_rows_of_conversations_take_their_old_names(tmp_path: Path) -> None:
    def index(*named: tuple[str, int]) -> ConversationIndex:
        said = (Message("user", ("hello",)),)
        rows = [
            ConversationRow(name, (Conversation(name, said, name),), (f"key{i}",), 3 + i, i)
            for name, i in named
        ]
        return ConversationIndex(rows, [LengthBucket(64 << i) for _, i in named], [])

    old = index(("talks/1", 0), ("talks/2", 1), ("words/1", 2))
    (tmp_path / "data.jsonl").write_text(data_lines(old))
    found = with_stored_ids(index(("a-words/1", 2), ("talks/1", 0), ("talks/2", 1)), tmp_path)
    assert data_lines(found) == data_lines(old)
    assert list(found.targets) == list(old.targets)
    assert found.by_bucket == old.by_bucket
    other = index(("a-words/1", 2), ("talks/1", 0), ("talks/2", 3))
    assert with_stored_ids(other, tmp_path) is other
