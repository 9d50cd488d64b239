"""`omnitune evaluate` on a tiny run: every row, and every mistake."""

import json
import shutil
from contextlib import chdir

import pytest

from omnitune import cli
from omnitune.testing.runs import small_run, write_run


@pytest.fixture(scope="module")
def home(tiny_wan, cache, tmp_path_factory, assets):
    """A folder with a trained run, a few held-out pictures and clips, and pictures to fit on."""
    root = tmp_path_factory.mktemp("evaluated")
    folders = {
        "held": {"pictures/validation": 4, "clips/validation": 2},
        "fit": {"pictures/train": 8, "pictures/validation": 2},
        "many": {"pictures/train": 12},
        "shapes": {"style/train": 8},
    }
    for name, kinds in folders.items():
        lines = []
        (root / name).mkdir()
        for kind, number in kinds.items():
            rows = (assets / kind / "metadata.jsonl").read_text().splitlines()[:number]
            for row in rows:
                shutil.copy(assets / kind / json.loads(row)["file_name"], root / name)
            lines += rows
        (root / name / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    stated = small_run(tiny_wan, cache, schedule={"steps": 2}, validation={"steps": 2, "guidance": 1.0})
    with chdir(root):
        assert cli.main(["train", str(write_run(root / "run.yaml", stated))]) == 0
    return root


def evaluate(home, *words):
    with chdir(home):
        return cli.main(["evaluate", "runs/run", *map(str, words)])


def rows(file):
    return {row["name"]: row for row in json.loads(file.read_text())["metrics"]}


def test_everything_is_measured_and_written(home, network, encoder, capsys):
    assert evaluate(home, "--data", "held", "--fit", "fit") == 0
    written = home / "runs/run/evaluation/step-00000002.json"
    found = rows(written)
    out, err = capsys.readouterr()
    levels = [name for name in found if name.startswith("held-out loss (u = 0.")]
    assert len(levels) == 8
    assert [name for name in found if name not in levels] == [
        "held-out loss", "PSNR pictures (dB)", "PSNR clips (dB)", "KID-EffLite0", "AUC-EffLite0-MiniLM",
        "motion (levels)", "flicker (levels)", "static clips",
    ]  # fmt: skip
    assert "recall@10: left out, it needs more than 10 captions that differ and there are 6" in err
    assert "KID-EffLite0 of reconstructions: left out, it needs two halves of 4 items and --data has 6" in err
    assert found["AUC-EffLite0-MiniLM"]["chance"] == 0.5
    assert all(name in out for name in found)
    assert out.splitlines()[-1] == "runs/run/evaluation/step-00000002.json"
    assert found["held-out loss"]["count"] == 6
    assert found["held-out loss"]["spread"] > 0
    assert (found["PSNR pictures (dB)"]["count"], found["PSNR clips (dB)"]["count"]) == (4, 2)
    assert (found["KID-EffLite0"]["count"], found["KID-EffLite0"]["num_real"]) == (6, 6)
    assert found["AUC-EffLite0-MiniLM"]["reference"] is not None
    assert found["motion (levels)"]["count"] == 2
    assert "fitted on 8 pictures (alpha " in err
    assert "2 left out whose captions are evaluated" in err
    stated = json.loads(written.read_text())
    assert (stated["weights"], stated["samples"], stated["steps"]) == ("step-00000002", 6, 2)
    assert stated["sizes"] == ["1x32x32", "9x32x32"]


def test_recall_and_its_chance_and_kid_of_reconstructions_need_more(home, network, encoder, capsys):
    """The scorer learns from two folders, which together have ten captions that are not evaluated."""
    words = ("--data", "many", "--steps", 1, "--fit", "fit", "--fit", "shapes")
    assert evaluate(home, *words, "--metrics", "psnr,kid,text_image", "--out", "many.json") == 0
    found, stated = rows(home / "many.json"), json.loads((home / "many.json").read_text())
    recall = found["recall@10-EffLite0-MiniLM"]
    assert recall["chance"] == pytest.approx(10 / 12)
    out, err = capsys.readouterr()
    assert "0.83" in next(line for line in out.splitlines() if line.startswith("recall"))
    assert "fitted on 10 pictures" in err
    pairs = found["KID-EffLite0 of reconstructions"]
    assert (pairs["num_real"], pairs["spread_of"]) == (12, "deviation over subsets of 3")
    assert stated["fit"] == ["fit", "shapes"]


def test_what_does_not_apply_is_left_out_with_a_reason_before_anything_is_generated(home, network, capsys):
    assert evaluate(home, "--data", "held", "--samples", "3", "--out", "few.json") == 0
    found, err = rows(home / "few.json"), capsys.readouterr().err
    assert {"held-out loss", "PSNR pictures (dB)"} < set(found)
    assert not any(name.startswith(("KID", "AUC")) for name in found)
    kid = "kid: left out, it needs 4 items and samples, --data has 6 and --samples makes 3"
    assert err.index(kid) < err.index("generating 3 samples")
    assert "text_image: left out, it needs captioned pictures to fit the scorer on" in err


def test_sampling_options_out_of_range_are_refused(home, capsys):
    assert evaluate(home, "--data", "held", "--steps", "0") == 2
    assert capsys.readouterr().err == "--steps must be 1 or more, not 0\n"


def test_training_lowers_the_loss_on_what_is_trained_and_base_is_the_model_before(home, network):
    words = ("--data", "held", "--metrics", "loss")
    assert evaluate(home, *words, "--base") == 0
    assert evaluate(home, *words, "--out", "again.json") == 0
    base, after = rows(home / "runs/run/evaluation/base.json"), rows(home / "again.json")
    assert base["held-out loss"]["value"] != after["held-out loss"]["value"]
    assert evaluate(home, *words, "--out", "third.json", "--checkpoint", "2") == 0
    assert rows(home / "third.json") == after


def test_a_run_is_measured_on_its_own_prompts_without_data(home, tiny_wan, cache, capsys):
    stated = small_run(
        tiny_wan, cache, name="prompted", schedule={"steps": 1},
        validation={"steps": 1, "guidance": 1.0, "prompts": ["a red apple"]},
    )  # fmt: skip
    with chdir(home):
        assert cli.main(["train", str(write_run(home / "prompted.yaml", stated))]) == 0
        words = ["evaluate", "runs/prompted", "--samples", "2", "--size", "5x32x32"]
        assert cli.main(words) == 0
    found = rows(home / "runs/prompted/evaluation/step-00000001.json")
    assert list(found) == ["motion (levels)", "flicker (levels)", "static clips"]
    assert found["motion (levels)"]["count"] == 2
    assert found["motion (levels)"]["reference"] is None


def test_items_that_were_trained_on_are_counted(home, assets, capsys):
    assert evaluate(home, "--data", assets / "clips" / "train", "--metrics", "motion", "--samples", "1") == 0
    assert "--data: 21 of 21 items were trained on" in capsys.readouterr().err
    assert evaluate(home, "--data", "held", "--metrics", "motion", "--samples", "6") == 0
    assert "trained on" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data: none is given, and the run's validation.prompts is empty"),
        (["--metrics", "fid", "--data", "held"], "--metrics: 'fid' is not one of loss, psnr, kid"),
        (
            ["--metrics", "rouge", "--data", "held"],
            "--metrics: rouge needs answers, which family wan does not give; choose of loss, psnr, kid",
        ),
        (["--metrics", "kid", "--fit", "fit"], "--metrics: kid needs data that was not trained on: --data"),
        (["--metrics", "text_image", "--data", "held"], "text_image needs captioned pictures to fit"),
        (["--metrics", "kid", "--data", "held", "--samples", "3"], "kid needs 4 items and samples"),
        (["--metrics", "text_image", "--data", "held", "--fit", "fit", "--samples", "1"], "two captions"),
        (["--metrics", "motion", "--data", "fit"], "motion needs clips, and only pictures are generated"),
        (["--metrics", "loss", "--data", "held", "--fit", "fit"], "--fit: no effect on what is"),
        (["--metrics", "loss", "--data", "held", "--lpips", "a.pth"], "--lpips: no effect on what"),
        (["--data", "nowhere"], "--data: nowhere is not a folder"),
        (["--data", "held", "--size", "33x32"], "--size: 1x33x32 is not a size that wan takes"),
        (["--data", "held", "--checkpoint", "7"], "--checkpoint: runs/run has none of step 7"),
        (["--data", "held", "--samples", "0"], "--samples: 0 is not 1 or more"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_way_out(home, words, message, capsys):
    assert evaluate(home, *words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "generating" not in err


def test_a_family_without_an_autoencoder_has_no_psnr(home, network, monkeypatch, capsys):
    monkeypatch.setattr("omnitune.families.wan.Wan.autoencoder", None)
    assert evaluate(home, "--data", "held", "--metrics", "psnr") == 2
    message = "--metrics: psnr needs an autoencoder, and family wan has none"
    assert message in capsys.readouterr().err
