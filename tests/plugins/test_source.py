"""Sources from outside the package: the code of docs/guides/data-source.md, trained on."""

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
import torch
from core_fixtures import Workplace

from omnitune.commands.plan import plan
from omnitune.commands.train import train
from omnitune.data.cache import StageCache
from omnitune.data.conversations.kind import Conversations
from omnitune.data.encode import fill
from omnitune.errors import UserError
from omnitune.files import File, Hashes
from omnitune.parallel.mesh import Mesh
from omnitune.stages import Stage, split_stages

pytest_plugins = ["core_fixtures"]
PAGE = Path(__file__).parents[2] / "docs" / "guides" / "data-source.md"
TAR, CONTROLLED, NAMING = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


@pytest.fixture
def place(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """The workplace, with the page's sources as modules beside its run."""
    for name, code in {"tar_shards": TAR, "controlled": CONTROLLED, "naming": NAMING}.items():
        assert len(code.splitlines()) < 60
        (workplace.root / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(workplace.root)
    return workplace


def pack(place: Workplace, leave_out: str = "") -> None:
    """Move the clips into two shards."""
    (place.root / "shards").mkdir()
    for number, names in enumerate((list(place.captions)[:2], list(place.captions)[2:])):
        with tarfile.open(place.root / "shards" / f"{number}.tar", "w") as tar:
            for name in names:
                tar.add(place.clips / name, name)
                text = place.captions[name].encode()
                member = tarfile.TarInfo(f"{Path(name).stem}.txt")
                member.size = len(text)
                if name != leave_out:
                    tar.addfile(member, io.BytesIO(text))


SHARDS = "data.sources=[{name: 'tar_shards:TarShards', path: shards}]"


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_trains_on_tar_shards_cached_and_live_alike(place: Workplace) -> None:
    pack(place)
    files = set(place.root.rglob("*.png")) | set(place.root.rglob("*.mp4"))
    cached = train(place.run(SHARDS, "name=cached"))
    live = train(place.run(SHARDS, "name=live", "data.cache=null"))
    assert losses(cached.folder) == pytest.approx(losses(live.folder), rel=1e-5)
    made = {path for path in place.root.rglob("*") if path.suffix in (".png", ".mp4")}
    assert {path for path in made - files if "runs" not in path.parts} == set(), "nothing is unpacked"


def test_a_shard_s_pictures_are_those_of_files_and_encoded_once(place: Workplace, mesh: Mesh) -> None:
    job = place.job()
    assert job.fill_cache(job.index(), job.open_cache(), mesh).encoded["moments"] == 5
    pack(place)
    packed = place.job(SHARDS)
    index = packed.index()
    assert sorted(item.caption for item in index.items) == sorted(place.captions.values())
    assert packed.fill_cache(index, packed.open_cache(), mesh).encoded == {"moments": 0, "text": 0}


def test_mistakes_of_a_source_are_told_with_those_of_others(place: Workplace) -> None:
    pack(place, leave_out="fox.mp4")
    both = "data.sources=[{name: 'tar_shards:TarShards', path: shards}, {path: gone}]"
    with pytest.raises(UserError) as caught:
        place.job(both).index()
    assert str(caught.value).split("\n")[0] == "0.tar: fox has no caption; add fox.txt"
    assert "data.sources: gone: does not exist" in str(caught.value)
    with pytest.raises(UserError, match="'tar_shards:Other' cannot be imported"):
        place.run("data.sources=[{name: 'tar_shards:Other', path: shards}]")


def test_a_plan_names_what_a_source_lacks(place: Workplace) -> None:
    assert "data: shards is not here, so epochs and buckets are unknown" in plan(place.run(SHARDS))


CONTROL = "data.sources=[{name: 'controlled:Controlled', path: clips, control: controls}]"


def test_a_further_medium_follows_its_clip_and_is_cached_under_its_own_key(
    place: Workplace, mesh: Mesh
) -> None:
    (place.clips / "metadata.jsonl").unlink()
    (place.root / "controls").mkdir()
    for file in list(place.clips.iterdir()):
        (place.root / "controls" / file.name).write_bytes(file.read_bytes())
    job = place.job(CONTROL, "data.window=random", "data.crop=random", "data.buckets.sizes=[16x32]")
    assert {"control", "caption"} < set(job.bound.brings)
    index = job.index()
    assert "control: sources state it and nothing reads it here" in index.notes
    dataset = job.bound.dataset(index)
    inputs = dataset.inputs(0, "position 3")
    control, pixels = dataset.load("control", inputs), dataset.load("pixels", inputs)
    assert isinstance(control, torch.Tensor)
    assert torch.equal(control, pixels)

    # A stage that needs it, as a condition adds one; equal files under equal views share their keys.
    stage = Stage(
        "mean",
        (),
        ("control",),
        ("level",),
        lambda batch, draw: {"level": batch["control"].mean((1, 2, 3, 4))},
    )
    assert split_stages([stage], set(), dataset.media) == ([stage], [])
    cache = StageCache([stage], {"mean": "0" * 32}, place.root / ".cache")
    family = type("Fake", (), {"stages": [stage], "fetch": lambda *_: None, "drop": lambda *_: None})
    assert fill(cache, dataset, [], family, mesh).encoded == {"mean": 5}
    row = dataset.inputs(0)
    stored = cache.stores["mean"].read(cache.keys(dataset.input_keys(row))["mean"])["level"]
    assert torch.equal(stored, dataset.load("control", row).mean())


def test_a_medium_of_another_length_or_shape_is_named_with_its_item(place: Workplace) -> None:
    (place.clips / "metadata.jsonl").unlink()
    (place.root / "controls").mkdir()
    for file in list(place.clips.iterdir()):
        (place.root / "controls" / file.name).write_bytes(file.read_bytes())
    clips, place_clips = place.clips, place.root / "controls"
    (place_clips / "fox.mp4").write_bytes((clips / "boat.mp4").read_bytes())
    (place_clips / "apple.png").unlink()
    Workplace.add(place, "long.mp4", frames=9)
    (clips / "long.mp4").rename(place_clips / "boat.mp4")
    (clips / "metadata.jsonl").unlink()
    with pytest.raises(UserError) as caught:
        place.job(CONTROL).index()
    apple, boat = str(caught.value).split("\n")
    assert apple.endswith(
        "apple.png: control controls/apple.png: No such file or directory; "
        "correct the name, or bring the file back"
    )
    assert boat.endswith("control 'controls/boat.mp4' has 9 frames, and boat has 5; make them equal")


def test_a_source_of_conversations_reads_like_a_file(place: Workplace) -> None:
    from omnitune.config.validate import validate_options
    from omnitune.data.conversations.scan import scan

    stated = {"name": "conversations", "sources": [{"name": "naming:Naming", "path": "clips"}]}
    data = validate_options(Conversations, stated, "data")
    found = scan(data.sources, place.root, Hashes(place.root / "memo")).items
    assert [one.messages[-1].text for one in found] == ["A apple.", "A cat.", "A rocket."]
    (picture,) = found[0].media
    assert picture.files == (File(place.clips / "apple.png"),)
    assert (picture.width, picture.height) == (16, 16)
