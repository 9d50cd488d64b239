"""What a run goes on with must be what it was started from."""

import shutil
from dataclasses import replace

import pytest
from forked import run

from omnitune import config
from omnitune.data.order import Order
from omnitune.resolve import resolve_run
from omnitune.testing.runs import small_run, write_run


def job_of(path, *overrides):
    return resolve_run(config.load(path, overrides)[0])


def order_of(job, index):
    return Order(index.by_bucket, job.run.data.batch_size, job.run.seed)


def test_the_order_in_which_sources_are_listed_decides_nothing(tiny_wan, cache, tmp_path):
    described = small_run(tiny_wan, cache)
    a = job_of(write_run(tmp_path / "a.yaml", described))
    described["data"]["sources"].reverse()
    b = job_of(write_run(tmp_path / "b.yaml", described))
    first, second = a.index(), b.index()
    assert [i.id for i in first.items] == [i.id for i in second.items]
    assert [[first.items[r.index].id for r in order_of(a, first).batch(step)] for step in range(20)] == [
        [second.items[r.index].id for r in order_of(b, second).batch(step)] for step in range(20)
    ]


@pytest.mark.parametrize("component", ["vae", "text_encoder", "transformer"])
def test_a_run_is_not_gone_on_with_when_any_weights_of_its_model_changed(
    tiny_wan, cache, tmp_path, component
):
    model = shutil.copytree(tiny_wan, tmp_path / "model")
    write_run(tmp_path / "a.yaml", small_run(model, cache))
    assert run("train", "a.yaml", cwd=tmp_path).code == 0
    (file,) = (model / component).glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    ended = run("train", "a.yaml", "schedule.steps=4", cwd=tmp_path)
    assert ended.code == 2
    assert "are not those that runs/a was started from" in ended.err


def test_another_lora_to_start_from_is_another_run(tiny_wan, cache, tmp_path):
    write_run(tmp_path / "a.yaml", small_run(tiny_wan, cache))
    assert run("train", "a.yaml", cwd=tmp_path).code == 0
    lora = f"init_from={tmp_path}/runs/a/weights"
    assert run("train", "a.yaml", "name=b", cwd=tmp_path).code == 0
    ended = run("train", "a.yaml", "name=b", lora, "schedule.steps=4", cwd=tmp_path)
    assert ended.code == 2
    assert "started from" in ended.err


def test_pixels_that_are_read_anew_are_windowed_anew_each_time(tiny_wan, cache, tmp_path):
    described = small_run(tiny_wan, cache)
    described["data"].update(cache=None, window="random", batch_size=2)
    job = job_of(write_run(tmp_path / "a.yaml", described))
    index = job.index()
    clip = next(i for i, item in enumerate(index.items) if item.kind == "video")
    samples = job.bound.dataset(index)
    views = {samples.inputs(clip, f"position {p}")["view"].indices[0] for p in range(40)}
    assert len(views) > 5


def test_a_stage_whose_code_changed_is_cached_anew(tiny_wan, cache, tmp_path):
    job = job_of(write_run(tmp_path / "a.yaml", small_run(tiny_wan, cache)))
    before = job.open_cache().fingerprints
    job.cached = [replace(stage, version=1) for stage in job.cached]
    assert all(before[name] != value for name, value in job.open_cache().fingerprints.items())
