"""What a sample draws after the cache is new each time it is seen; what it draws before is not."""

import json
from typing import TYPE_CHECKING, Any

from omnitune.commands.train import train_on
from omnitune.parallel.mesh import Mesh

if TYPE_CHECKING:
    from core_fixtures import Workplace

pytest_plugins = ["core_fixtures"]

DROPOUT = "conditions=[{name: caption_dropout, probability: 0.5}]"


def drawn(place: "Workplace", mesh: Mesh, *overrides: str) -> list[dict[str, Any]]:
    """draws.jsonl of a run over several epochs."""
    run = place.run("schedule.steps=12", "tracking.draws=true", DROPOUT, *overrides)
    return [json.loads(line) for line in (train_on(run, mesh) / "draws.jsonl").read_text().splitlines()]


def test_each_draw_after_the_cache_differs_whenever_a_sample_is_seen(
    workplace: "Workplace", mesh: Mesh
) -> None:
    steps = drawn(workplace, mesh)
    purposes = steps[0].keys() - {"step", "id"}
    assert purposes == {"noise", "timestep", "posterior"}
    ids = [name for step in steps for name in step["id"]]
    assert all(ids.count(name) >= 3 for name in ids)
    for purpose in purposes:
        hashes = [value for step in steps for value in step[purpose]]
        assert len(set(hashes)) == len(hashes) == 24, purpose


def test_the_cache_changes_no_draw(workplace: "Workplace", mesh: Mesh) -> None:
    cached = drawn(workplace, mesh, "name=cached")
    live = drawn(workplace, mesh, "name=live", "data.cache=null", "data.num_workers=0")
    assert cached == live


def test_another_seed_changes_every_draw(workplace: "Workplace", mesh: Mesh) -> None:
    one, other = drawn(workplace, mesh, "name=one"), drawn(workplace, mesh, "name=other", "seed=1")
    for purpose in ("noise", "timestep", "posterior"):
        assert not {v for step in one for v in step[purpose]} & {v for step in other for v in step[purpose]}


def test_the_coin_of_caption_dropout_is_tossed_anew_in_each_epoch(workplace: "Workplace", mesh: Mesh) -> None:
    job = workplace.job(DROPOUT)
    index = job.index()
    job.fill_cache(index, job.open_cache(), mesh)
    batches = job.batches(index, job.open_cache(), mesh)
    epochs: dict[tuple[int, str], bool] = {}
    for step in range(100):
        for row in batches.order.batch(step):
            sample = batches.row(batches.inputs(row))
            epochs[row.epoch, sample["id"]] = sample["caption"] == ""
    for name in {name for _, name in epochs}:
        coins = [dropped for (_, own), dropped in epochs.items() if own == name]
        assert len(coins) >= 30
        assert 0.2 < sum(coins) / len(coins) < 0.8
    together = [tuple(d for (e, _), d in sorted(epochs.items()) if e == epoch) for epoch in range(30)]
    assert len(set(together)) > 10


def test_captions_are_kept_or_dropped_always_at_the_ends_of_probability(
    workplace: "Workplace", mesh: Mesh
) -> None:
    for probability, kept in ((0, True), (1, False)):
        job = workplace.job(f"conditions=[{{name: caption_dropout, probability: {probability}}}]")
        index = job.index()
        job.fill_cache(index, job.open_cache(), mesh)
        batches = job.batches(index, job.open_cache(), mesh)
        rows = [row for step in range(10) for row in batches.order.batch(step)]
        captions = [batches.row(batches.inputs(row))["caption"] for row in rows]
        assert {caption != "" for caption in captions} == {kept}


def test_windows_and_crops_stay_with_their_sample_and_variant(workplace: "Workplace") -> None:
    workplace.add("long.mp4", frames=30, size=40)
    index = workplace.job().index()
    samples = workplace.job("data.window=random", "data.crop=random", "data.variants=4").bound.dataset(index)
    views = {(i, v): samples.inputs(i, v)["view"] for i in range(len(index.items)) for v in range(4)}
    assert views == {(i, v): samples.inputs(i, v)["view"] for i, v in views}
    (long,) = [i for i, item in enumerate(index.items) if item.id == "clips/long.mp4"]
    assert len({views[long, v] for v in range(4)}) > 1


def test_a_sample_shows_each_of_its_variants_in_time(workplace: "Workplace") -> None:
    job = workplace.job("data.variants=3", "data.window=random")
    samples = job.bound.dataset(job.index())
    counts = [0, 0, 0]
    for position in range(600):
        counts[samples.variant(position)] += 1
    assert min(counts) > 150
