"""The report: one page, whole, that shows what lies in a run folder."""

import ast
import json
import math
import random
import re
import shutil
import subprocess
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from omnitune.data import media
from omnitune.errors import UserError
from omnitune.report import curves, gallery, sections, write_report
from omnitune.report.contents import Sample, read_contents

PROMPTS = ['a <script>alert("fox")</script> & snow', "a boat, un bateau, 船"]
VOID = {"meta", "img", "input", "line", "polyline", "circle"}
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Attributes by tag, and the text of each kind of element, unescaped."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.words.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.words[self.open[-1]][-1] += data

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attrs for name, attrs in self.tags if name == tag]


def step_record(step: int, loss: float = 0.5) -> dict[str, Any]:
    return {
        "step": step, "epoch": step / 4, "samples": 2 * step, "loss": loss, "u": 0.5,
        "lr": {"0": 1e-4, "1": 2e-5 * step}, "grad_norm": 1.0 + step,
        "seconds": 0.5, "samples_per_second": 4.0, "peak_memory_bytes": step * 2**30,
    }  # fmt: skip


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_samples(run: Path, step: int) -> None:
    folder = run / "samples" / f"step-{step:08d}"
    frames = np.full((5, 16, 24, 3), 40 + step, np.uint8)
    media.write_video(folder / "000.mp4", frames, 8)
    media.write_image(folder / "001.png", frames[0])
    shared = {"seed": 3, "guidance": 5.0, "steps": 30}
    described = [
        {"file": "000.mp4", "prompt": PROMPTS[0], "size": "5x16x24", **shared},
        {"file": "001.png", "prompt": PROMPTS[1], "size": "1x16x24", **shared},
    ]
    (folder / "samples.json").write_text(json.dumps(described))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "fox"
    folder.mkdir()
    config = {
        "name": "fox",
        "model": {"family": "wan", "path": "some/model"},
        "schedule": {"steps": 40},
        "validation": {"prompts": PROMPTS},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    manifest = {
        "versions": {"omnitune": "0.1.0", "torch": "2.14"},
        "commit": None,
        "device": "cpu <1>",
        "seed": 7,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    write_lines(folder / "metrics.jsonl", [step_record(i, 1 / i) for i in range(1, 5)])
    items = [
        {"id": f"clips/{i}.mp4", "bucket": "5x16x24", "caption": f"<b>{i}</b>", "fingerprint": "f"}
        for i in range(3)
    ]
    write_lines(
        folder / "data.jsonl",
        [*items, {"id": "p.png", "bucket": "1x16x24", "caption": "", "fingerprint": "f"}],
    )
    for step in (0, 2, 4):
        write_samples(folder, step)
    (folder / "checkpoints" / "step-00000004").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000004" / "COMPLETE").write_text("{}")
    (folder / "checkpoints" / "step-00000002").mkdir()
    (folder / "weights").mkdir()
    (folder / "weights" / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    return folder


def test_page_needs_nothing_but_itself(run: Path) -> None:
    html = write_report(run).read_text()
    page = Page(html)
    assert not page.open
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in {"src", "href", "srcset", "poster", "action", "data"} & attrs.keys():
            assert str(attrs[name]).startswith(("data:", "#")), (tag, name)
    (style,) = page.words["style"]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in str(page.all("meta"))
    assert not re.search(r"https?://", html)


def test_page_is_titled_by_the_run_and_says_what_it_found(run: Path) -> None:
    page = Page(write_report(run).read_text())
    assert page.words["title"] == ["fox"]
    assert page.words["h2"] == ["Samples", "Curves", "Data", "Weights", "Configuration", "Manifest"]
    assert {"versions.torch", "seed", "weights/pytorch_lora_weights.safetensors"} <= set(page.words["th"])
    assert {"cpu <1>", "2.14", "—", "<b>0</b>"} <= set(page.words["td"])
    assert any(words.strip() == (run / "run.yaml").read_text().strip() for words in page.words["code"])
    assert any("after 4 steps" in words for words in page.words["p"])


def test_report_is_a_function_of_the_folder(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert not list(run.glob(".*"))


def test_prompts_are_escaped(run: Path) -> None:
    html = write_report(run).read_text()
    assert Page(html).words["h3"] == PROMPTS
    assert "<script>alert" not in html


def test_embedded_media_are_the_files(run: Path) -> None:
    page = Page(write_report(run).read_text())
    for tag, kind, name in (("video", "video/mp4", "000.mp4"), ("img", "image/png", "001.png")):
        files = [path.read_bytes() for path in sorted(run.glob(f"samples/*/{name}"))]
        heads, data = zip(*(attrs["src"].split(",") for attrs in page.all(tag)), strict=True)
        assert set(heads) == {f"data:{kind};base64"}
        assert [b64decode(one) for one in data] == files
    for attrs in page.all("video"):
        assert {"autoplay", "loop", "muted", "playsinline"} <= attrs.keys()
        assert PROMPTS[0] in attrs["aria-label"]
    assert all(PROMPTS[1] in attrs["alt"] for attrs in page.all("img"))


def test_first_and_last_samples_are_before_and_after(run: Path) -> None:
    page = Page(write_report(run).read_text())
    figures = [(a["class"], a["data-step"]) for a in page.all("figure") if "data-step" in a]
    assert figures == [("first", "0"), ("between", "2"), ("last", "4")] * 2
    (slider,) = page.all("input")
    assert json.loads(slider["data-steps"]) == [0, 2, 4]


def test_points_of_the_curve_are_the_metrics(run: Path) -> None:
    """Losses 1, 1/2, 1/3, 1/4 at steps 1 to 4, on an axis from 0.2 to 1."""
    page = Page(write_report(run).read_text())
    lines = [a["points"] for a in page.all("polyline") if "raw" in a["class"]]
    expected = [(1000 * (step - 1) / 3, 1000 * (1 - (1 / step - 0.2) / 0.8)) for step in range(1, 5)]
    points = [tuple(map(float, point.split(","))) for point in lines[0].split()]
    assert points == [pytest.approx(point, abs=0.005) for point in expected]
    numbers = [json.loads(words) for words in page.words["script"][:-1]]
    assert numbers[0]["y"] == [0.2, 1.0]
    assert numbers[0]["series"][0]["values"] == [pytest.approx(1 / step, rel=1e-5) for step in range(1, 5)]
    rates = {series["name"]: series["values"] for series in numbers[2]["series"]}
    assert rates == {"rule 0": [1e-4] * 4, "rule 1": [2e-5, 4e-5, 6e-5, 8e-5]}
    assert numbers[4]["series"][0]["values"] == [1, 2, 3, 4]


def test_smoothing_is_the_weighted_mean_of_what_came_before() -> None:
    values = [random.Random(0).random() for _ in range(20)]
    for i, found in enumerate(curves.smooth(values, span=5)):
        weights = [0.8 ** (i - j) for j in range(i + 1)]
        assert found == pytest.approx(np.average(values[: i + 1], weights=weights))


@pytest.mark.parametrize("num", [1, 2, 999, 1000, 1001, 12345])
def test_thinning_keeps_ends_and_extremes(num: int) -> None:
    values = [random.Random(num).gauss(0, 1) for _ in range(num)]
    kept = curves.thin(values)
    assert kept == sorted(set(kept))
    assert len(kept) <= 1000
    assert {0, num - 1} <= set(kept)
    assert {min(values), max(values)} <= {values[i] for i in kept}


def test_hundred_thousand_steps_make_a_small_page(run: Path) -> None:
    noise = random.Random(0)
    write_lines(run / "metrics.jsonl", [step_record(i, noise.random()) for i in range(1, 100_001)])
    html = write_report(run).read_text()
    for attrs in Page(html).all("polyline"):
        assert len(attrs["points"].split()) <= 1000
    assert len(html) < 1_000_000


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.13, 0.58), (-3.0, 4e6), (1.0, 1.0001), (2e-5, 1e-4)])
def test_ticks_are_evenly_spaced_around_the_values(low: float, high: float) -> None:
    found = curves.ticks(low, high)
    assert found[0] <= low < high <= found[-1]
    assert 2 <= len(found) <= 8
    assert np.allclose(np.diff(found), found[1] - found[0])


def test_a_spike_leaves_the_frame_and_is_told(run: Path) -> None:
    write_lines(
        run / "metrics.jsonl", [step_record(i, 5e6 if i == 60 else i % 7 / 10) for i in range(1, 101)]
    )
    page = Page(write_report(run).read_text())
    assert json.loads(page.words["script"][0])["y"][1] < 1
    assert any("1 above the frame, the highest 5,000,000" in words for words in page.words["span"])


def test_values_that_are_not_finite_are_left_out_and_told(run: Path) -> None:
    write_lines(run / "metrics.jsonl", [step_record(1), step_record(2, math.nan), step_record(3, math.inf)])
    page = Page(write_report(run).read_text())
    assert json.loads(page.words["script"][0])["series"][0]["steps"] == [1]
    assert any("2 not finite and left out" in words for words in page.words["span"])


def test_folder_with_nothing_but_its_configuration_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: bare\n")
    page = Page(write_report(tmp_path).read_text())
    assert page.words["h2"] == ["Samples", "Curves", "Weights", "Configuration"]
    assert {"No samples yet.", "No steps are logged yet."} <= set(page.words["p"])


@pytest.mark.parametrize(
    "part",
    [
        "manifest.json",
        "metrics.jsonl",
        "data.jsonl",
        "samples",
        "checkpoints",
        "weights",
        "samples/step-00000000",
    ],
)
def test_any_part_may_be_missing(run: Path, part: str) -> None:
    path = run / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert Page(write_report(run).read_text()).words["title"] == ["fox"]


def test_what_a_kill_left_half_written_is_told(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 5, "lo')
    (run / "samples" / "step-00000002" / "samples.json").unlink()
    (run / "samples" / "step-00000004" / "001.png").unlink()
    page = Page(write_report(run).read_text())
    assert "metrics.jsonl ends at line 5, which is only half written." in page.words["p"]
    assert "samples/step-00000002 has no samples.json, so its samples are left out." in page.words["p"]
    assert "samples/step-00000004/001.png is missing." in page.words["p"]
    assert any(words.strip() == "no sample" for words in page.words["div"])


def test_folders_of_other_names_are_left_alone(run: Path) -> None:
    before = write_report(run).read_bytes()
    for other in ("samples/step-00000004-seed-0", "samples/manual", "checkpoints/step-00000004-copy"):
        shutil.copytree(run / "samples/step-00000004", run / other)
        (run / other / "COMPLETE").write_text("{}")
    assert write_report(run).read_bytes() == before


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"{re.escape(str(tmp_path))}: no run\.yaml in it; give the folder of a run"
    ):
        write_report(tmp_path)


def test_broken_file_is_refused_by_name(run: Path) -> None:
    (run / "results.json").write_text("[{")
    with pytest.raises(UserError, match=r"results\.json: not JSON"):
        write_report(run)


def test_as_many_evenly_spaced_steps_are_embedded_as_the_limit_allows() -> None:
    assert gallery.chosen([1] * 11, limit=11) == list(range(11))
    assert gallery.chosen([1] * 11, limit=6) == [0, 2, 4, 6, 8, 10]
    assert gallery.chosen([1] * 11, limit=0) == [0, 10]
    assert gallery.chosen([5], limit=0) == [0]


def test_samples_beyond_the_limit_are_told(run: Path) -> None:
    samples = read_contents(run).samples
    limit = sum(gallery.embedded_size(s.path) for step in (0, 4) for s in samples[step])
    page = Page(gallery.gallery(samples, limit))
    assert {a["data-step"] for a in page.all("figure")} == {"0", "4"}
    assert any("2 of 3 sampled steps are embedded" in words for words in page.words["p"])


def test_same_prompt_twice_makes_two_rows(tmp_path: Path) -> None:
    path = tmp_path / "000.png"
    media.write_image(path, np.zeros((4, 4, 3), np.uint8))
    twin = Sample(path, "fox", 0, "1x4x4", "")
    assert Page(gallery.gallery({0: [twin, twin], 1: [twin, twin]})).words["h3"] == ["fox", "fox"]


def test_results_tell_better_from_worse(run: Path) -> None:
    rows = [
        {"name": "loss <val>", "before": 2.0, "after": 1.5, "unit": "", "better": "lower"},
        {"name": "similarity", "before": 0.4, "after": 0.3, "unit": "%", "better": "higher"},
        {"name": "motion", "before": None, "after": 3, "unit": "px", "better": "higher"},
    ]
    (run / "results.json").write_text(json.dumps(rows))
    page = Page(write_report(run).read_text())
    assert {"▲ better by 25 %", "▼ worse by 25 %"} <= set(page.words["span"])
    assert {"loss <val>", "similarity", "motion"} <= set(page.words["th"])
    assert {"0.3 %", "3 px"} <= set(page.words["b"])


def test_snippet_loads_what_is_exported(run: Path) -> None:
    assert sections.snippet(read_contents(run)).splitlines() == [
        "from diffusers import DiffusionPipeline",
        'pipe = DiffusionPipeline.from_pretrained("some/model")',
        'pipe.load_lora_weights("weights", weight_name="pytorch_lora_weights.safetensors")',
    ]
    (run / "weights" / "pytorch_lora_weights.safetensors").unlink()
    (run / "weights" / "transformer").mkdir()
    (run / "weights" / "transformer" / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    assert sections.snippet(read_contents(run)).splitlines() == [
        "from diffusers import DiffusionPipeline, WanTransformer3DModel",
        'transformer = WanTransformer3DModel.from_pretrained("weights/transformer")',
        'pipe = DiffusionPipeline.from_pretrained("some/model", transformer=transformer)',
    ]
    (run / "weights" / "text_encoder").mkdir()
    (run / "weights" / "text_encoder" / "config.json").write_text('{"architectures": ["UMT5EncoderModel"]}')
    code = sections.snippet(read_contents(run))
    ast.parse(code)
    assert "from transformers import UMT5EncoderModel" in code


@pytest.mark.parametrize(
    "path", ["Wan-AI/Wan2.1", "/a path/with: colon", "it's", 'quo"te', "123", "null", "~", "雪 é"]
)
def test_stated_values_are_those_of_the_yaml(tmp_path: Path, path: str) -> None:
    config = {
        "path": "not this",
        "name": "n",
        "list": [{"path": "nor this"}],
        "model": {"options": {"path": "nor"}},
    }
    config["model"] = {"options": {"path": "nor"}, "path": path, "revision": None}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    contents = read_contents(tmp_path)
    assert contents.stated("model", "path") == path
    assert contents.stated("model", "revision") is None
    assert contents.stated("schedule", "steps") is None
    assert contents.name == "n"


DRIVER = """<script>
const root = document.documentElement, slider = document.getElementById("step");
const shown = () => [...document.querySelectorAll(".between.shown")].map(f => f.dataset.step).join();
const seen = [shown()];
for (const value of [0, 2]) {
  slider.value = value;
  slider.dispatchEvent(new Event("input"));
  seen.push(shown());
}
root.dataset.shown = seen.join(" ");
const plot = document.querySelector("#curve-loss .plot"), box = plot.getBoundingClientRect();
plot.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width * 0.34 }));
root.dataset.readout = document.querySelector("#curve-loss output").textContent;
plot.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
root.dataset.next = document.querySelector("#curve-loss output").textContent;
addEventListener("load", () => setTimeout(() => {
  root.dataset.media = [...document.querySelectorAll("video")].every(v => !v.error && v.videoWidth === 24)
    && [...document.images].every(i => i.naturalWidth === 24);
}, 1000));
</script></body>"""


@pytest.mark.skipif(
    BROWSER is None, reason="no chromium here to show the page with (Debian's package is `chromium`)"
)
def test_page_works_in_a_browser(run: Path, tmp_path: Path) -> None:
    """A script plays the reader: it moves the slider, points at a curve, and writes down what it sees."""
    report = write_report(run)
    report.write_text(report.read_text().replace("</body>", DRIVER))
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
        report.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    root = Page(done.stdout).tags[0][1]
    assert "data-error" not in root
    assert root["data-ready"] == "yes"
    assert root["data-shown"] == "2,2 0,0 4,4"
    assert root["data-step"] == "4"
    assert str(root["data-readout"]).startswith("step 2 · each step: 0.5 · smoothed over 10 steps: 0.7")
    assert str(root["data-next"]).startswith("step 3 · each step: 0.3333 ·")
    assert root["data-media"] == "true"
