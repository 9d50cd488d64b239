"""Answers in text: how they are compared, and `omnitune evaluate` on a tiny model that gives some."""

import json
import math
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch

from omnitune import cli
from omnitune.data.conversations.conversation import Conversation, Message
from omnitune.data.conversations.rows import ConversationIndex, ConversationRow, LengthBucket
from omnitune.evaluate import (
    ConversationEvaluator,
    EvaluateRequest,
    before_the_answer,
    evaluator,
    exact_match,
    majority,
    rouge_l,
)
from omnitune.evaluate.data import first_items
from omnitune.objectives.held_out import HeldOutLoss, held_out_loss
from omnitune.testing.runs import write_run
from omnitune.testing.tiny_vlm import build_tiny_vlm

PICTURES = Path(__file__).parents[2] / "omnitune" / "assets" / "pictures"
WHAT = "<image>What is in this picture?"


def item(question: str, answer: str, picture: str | None = None) -> dict[str, Any]:
    shown = {"images": [str(PICTURES / "train" / f"{picture}.png")]} if picture else {}
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **shown}


TRAINED = [item(WHAT, "rocket", "rocket"), item("Hello?", "yes")]
HELD = [
    item(WHAT, "cactus", "cactus"), item("How many boats are there?", "two boats"),
    item(WHAT, "a green frog", "frog"), item("Is it red?", "two boats"),
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run of a tiny llava, whose tower is stored, and held-out conversations."""
    root = tmp_path_factory.mktemp("answered")
    model = build_tiny_vlm(root / "model", "llava")
    for name, items in {"train": TRAINED, "held": HELD}.items():
        (root / f"{name}.json").write_text(json.dumps(items))
    described = {
        "model": {"family": "vlm", "path": str(model), "dtype": "float32"},
        "objective": {"name": "causal_lm", "label_smoothing": 0.1},
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "trainable": "full",
        "train_mm_proj_only": True,
        "data": {
            "name": "conversations", "sources": [{"path": str(root / "train.json")}], "batch_size": 2,
            "cache": str(root / "cache"),
        },
        "validation": {"max_tokens": 3},
        "schedule": {"steps": 2},
    }  # fmt: skip
    with chdir(root):
        assert cli.main(["train", str(write_run(root / "run.yaml", described))]) == 0
    return root


def evaluate(home: Path, *words: str) -> int:
    with chdir(home):
        return cli.main(["evaluate", "runs/run", *words])


def of_base(home: Path, metrics: str) -> ConversationEvaluator:
    found = evaluator(
        EvaluateRequest(folder=home / "runs/run", data=home / "held.json", metrics=metrics, base=True)
    )
    assert isinstance(found, ConversationEvaluator)
    return found


# How answers are compared


def test_case_and_space_around_do_not_count() -> None:
    found = exact_match([" Rocket\n", "frog", "no"], ["rocket", "cactus", "no"])
    assert (found.value, found.count) == (pytest.approx(2 / 3), 3)
    assert found.spread == pytest.approx(1 / 3)
    assert exact_match(["two  boats"], ["two boats"]).value == 0


def test_chance_is_the_most_frequent_answer() -> None:
    assert majority(["yes", "Yes ", "no"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [
        ("the cat sat on the mat", "the cat is on the mat", 5 / 6),
        ("a b", "b", 2 / 3),
        ("b a", "a b", 1 / 2),
        ("The cat, sat!", "the cat sat", 1),
        ("красный дом", "Красный дом.", 1),
        ("", "a", 0),
        ("c", "a b", 0),
    ],
)
def test_rouge_is_the_f1_of_the_longest_common_subsequence(answer: str, expected: str, value: float) -> None:
    pytest.importorskip("torchmetrics")
    found = rouge_l([answer, "same"], [expected, "same"])
    assert (found.value, found.count) == (pytest.approx((value + 1) / 2, abs=1e-6), 2)


def talk(*texts: str) -> Conversation:
    roles = ("user", "assistant") * len(texts)
    messages = [Message(role, (text,)) for role, text in zip(roles, texts, strict=False)]  # type: ignore[arg-type]
    return Conversation("held/1", tuple(messages), "held.json: item 1")


def test_a_model_sees_all_before_the_last_answer() -> None:
    several = [talk("one?", "1"), talk("one?", "1", "two?", "2")]
    seen = [before_the_answer(one).messages for one in several]
    assert [[message.text for message in messages] for messages in seen] == [["one?"], ["one?", "1", "two?"]]


def test_tokens_weigh_alike_whatever_item_they_are_of() -> None:
    found = HeldOutLoss([2.0, 3.0], [1, 3])
    assert found.mean == 2.75
    assert found.standard_error == pytest.approx(0.375)
    assert math.isnan(HeldOutLoss([2.0], [1]).standard_error)


def test_with_equal_lengths_the_error_is_that_of_a_mean() -> None:
    found, means = HeldOutLoss([1.0, 2.0, 4.5], [2, 2, 2]), torch.tensor([1.0, 2.0, 4.5])
    assert found.standard_error == pytest.approx(float(means.std() / 3**0.5))


def test_the_first_items_are_those_of_the_file() -> None:
    ids = ("held/10", "held/1", "held/2")
    items = [ConversationRow(name, (talk("a?", "b"),), (name,), 9, 1) for name in ids]
    found = first_items(ConversationIndex(items, [LengthBucket(9)] * 3, []), 2)
    assert [one.id for one in found.items] == ["held/1", "held/2"]
    assert (len(found.buckets), found.shows) == (2, False)


# A run


def test_the_loss_is_that_of_transformers_weighted_by_tokens(home: Path) -> None:
    from transformers import AutoModelForImageTextToText

    from omnitune.families.vlm.collate import collate

    one = of_base(home, "loss")
    (row,) = one.measures()
    model = AutoModelForImageTextToText.from_pretrained(home / "model").eval()
    chat = one.family.conversation_encoder(one.job.run.data)
    total, number = 0.0, 0
    for talked in one.index.items:
        made = chat.encode(talked.conversations[0])
        inputs = collate([{**made.tokens, **made.media}], 0)
        tokens = int((inputs["labels"][:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(**inputs).loss) * tokens
        number += tokens
    assert (row.name, row.count) == ("held-out loss", 4)
    assert row.value == pytest.approx(total / number, rel=1e-5)


def test_the_batch_size_changes_speed_alone(home: Path) -> None:
    """Alone, an item without a picture is given one that counts nothing."""
    step = of_base(home, "loss").step
    one, all_ = (held_out_loss(step, batch_size=size) for size in (1, 4))
    assert one.items == pytest.approx(all_.items, rel=1e-5)
    assert one.units == all_.units
    assert len(set(one.items)) == 4


def test_the_model_answers_as_transformers_does(home: Path) -> None:
    one = of_base(home, "exact_match")
    tokenizer = one.family.files.processor.tokenizer
    chat = one.family.conversation_encoder(one.job.run.data)
    expected = []
    with one.family.complete() as model:
        for question in one.questions:
            asked = chat.encode_prompt(Conversation("q", question.messages[:-1], "q"))
            made = model.generate(**asked, max_new_tokens=3, do_sample=False)
            new = made[0, asked["input_ids"].shape[1] :]
            expected.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    assert one.answers == expected


def test_everything_is_measured_and_written(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchmetrics")
    said = ["Cactus ", "two boats", "a frog", "no"]
    monkeypatch.setattr("omnitune.families.vlm.family.Vlm.answers", lambda *_: said)
    assert evaluate(home, "--data", "held.json") == 0
    out, err = capsys.readouterr()
    written = home / "runs/run/evaluation/step-00000002.json"
    stated = json.loads(written.read_text())
    found = {row["name"]: row for row in stated["metrics"]}
    assert list(found) == ["held-out loss", "exact match", "ROUGE-L"]
    assert all(name in out for name in found)
    assert out.splitlines()[-1] == "runs/run/evaluation/step-00000002.json"
    match, rouge = found["exact match"], found["ROUGE-L"]
    assert (match["value"], match["chance"], match["count"]) == (0.5, 0.5, 4)
    assert match["spread"] == pytest.approx(1 / 12**0.5)
    assert rouge["value"] == pytest.approx((1 + 1 + 0.8 + 0) / 4)
    assert found["held-out loss"]["spread"] > 0
    assert (stated["weights"], stated["data"], stated["items"]) == ("step-00000002", "held.json", 4)
    assert (stated["samples"], stated["max_tokens"]) == (4, 3)
    assert "answering 4 questions of at most 3 tokens" in err
    assert "trained on" not in err


def test_base_is_the_model_before_and_samples_are_the_first(home: Path) -> None:
    words = ("--data", "held.json", "--metrics", "loss")
    assert evaluate(home, *words, "--samples", "2", "--out", "two.json") == 0
    assert evaluate(home, *words, "--out", "all.json") == 0
    assert evaluate(home, *words, "--base") == 0
    two, all_, base = (
        json.loads((home / name).read_text())["metrics"][0]
        for name in ("two.json", "all.json", "runs/run/evaluation/base.json")
    )
    assert (two["count"], all_["count"], base["count"]) == (2, 4, 4)
    assert len({two["value"], all_["value"], base["value"]}) == 3


def test_items_that_were_trained_on_are_counted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(home, "--data", "train.json", "--metrics", "loss", "--out", "seen.json") == 0
    assert "--data: 2 of 2 items were trained on, not held out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data: none is given, and nothing can be measured without; name a file of conversations\n"),
        (["--data", "gone.json"], "--data: gone.json is not there; name a file of conversations\n"),
        (
            ["--data", "held.json", "--metrics", "psnr"],
            "--metrics: psnr needs autoencoder, which family vlm does not give; choose of loss, exact_match, "
            "rouge\n",
        ),
        (
            ["--data", "held.json", "--steps", "2", "--size", "32x32"],
            "--size, --steps: no effect on what is measured, loss, exact_match, rouge; leave out\n",
        ),
        (
            ["--data", "held.json", "--samples", "9"],
            "--samples: 9, and --data has 4 conversations; lower it\n",
        ),
    ],
)
def test_a_mistake_is_told_with_its_way_out(
    home: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(home, *words) == 2
    assert capsys.readouterr().err == message
