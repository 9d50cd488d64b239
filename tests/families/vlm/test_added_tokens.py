"""Tokens that a run adds: their rows, how they train, and that others find them in what is exported."""

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run as run_command
from safetensors.torch import load_file
from small_chats import small_chat_run
from test_export_vlm import Left, assert_same_logits, keys, loaded, logits
from torch import Tensor

from omnitune import cli
from omnitune.data.conversations.conversation import Conversation, Message
from omnitune.data.conversations.options import ChatOptions
from omnitune.families.vlm.family import Vlm, VlmOptions
from omnitune.families.vlm.tokens import add_tokens, is_tied, make_room, token_parameters
from omnitune.testing import runs
from omnitune.testing.tiny_vlm import build_tiny_vlm, tiny_types

TOKENS = ("<loc_0>", "<loc_1>", "<loc_2>")
LORA: dict[str, Any] = {"trainable": {"lora": {"rank": 4, "alpha": 10}, "lr": 1e-2}}
PLACES = Conversation(
    "places", (Message("user", ("Where?",)), Message("assistant", ("At <loc_0><loc_2>.",))), "train.json"
)
EMBEDDINGS, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
KINDS = ("untied", "tied", "spare")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models with a head of its own, with one that is the embeddings, and with spare rows."""
    root = tmp_path_factory.mktemp("bases")
    tie = {"tie_word_embeddings": True}
    changes = {"config": {**tie, "text_config": tie}}
    found = {"untied": build_tiny_vlm(root / "untied", "qwen2_vl")}
    found["tied"] = build_tiny_vlm(root / "tied", "qwen2_vl", changes=changes)
    found["spare"] = Path(shutil.copytree(found["untied"], root / "spare"))
    model = loaded(found["untied"])
    model.resize_token_embeddings(600)
    model.save_pretrained(found["spare"])
    return found


def load(base: Path, tokens: tuple[str, ...] = TOKENS, device: str = "cpu") -> Any:
    return Vlm.load(str(base), device, torch.float32, options=VlmOptions(add_tokens=tokens))


def described(base: Path, folder: Path, tokens: Sequence[str] = TOKENS, **keys_of_run: Any) -> dict[str, Any]:
    """Describe a run whose conversations speak of the added tokens."""
    run = small_chat_run(base, folder, 1, 1, **keys_of_run)
    run["model"]["options"] = {"add_tokens": list(tokens)}
    talks = json.loads((folder / "train.json").read_text())
    talks[1]["messages"][1]["content"] = "At <loc_0><loc_2>."
    (folder / "train.json").write_text(json.dumps(talks))
    return run


class Ran:
    """A run from its command, in a folder of its own."""

    def __init__(self, folder: Path, run: dict[str, Any]):
        self.folder = folder
        self.file = runs.write_run(folder / "run.yaml", run)

    def command(self, *words: str) -> runs.Ended:
        out, err = StringIO(), StringIO()
        with chdir(self.folder), redirect_stdout(out), redirect_stderr(err):
            code = cli.main(list(words))
        return runs.Ended(code, out.getvalue(), err.getvalue())

    def trained(self, *words: str) -> "Ran":
        done = self.command("train", "run.yaml", *words)
        assert done.code == 0, done.err
        return self

    @property
    def losses(self) -> list[float]:
        return [one["loss"] for one in runs.metrics(self.folder / "runs" / "run")]

    @property
    def weights(self) -> Path:
        return self.folder / "runs" / "run" / "weights"


# Their rows


@pytest.mark.parametrize("model_type", tiny_types())
def test_every_type_gets_a_row_for_each_token_and_keeps_the_others(
    tiny_vlm: Callable[..., Path], tmp_path: Path, model_type: str
) -> None:
    base = tiny_vlm(model_type)
    before = Vlm.load(str(base), "cpu", torch.float32)
    family, meta = load(base), load(base, device="meta")
    tokenizer = family.files.processor.tokenizer
    ids = tokenizer.convert_tokens_to_ids(list(TOKENS))
    old = len(before.files.processor.tokenizer)
    assert sorted(ids) == [old, old + 1, old + 2]
    was, now = (dict(one.model.named_parameters()) for one in (before, family))
    shapes = {name: param.shape for name, param in meta.model.named_parameters()}
    assert shapes == {name: param.shape for name, param in now.items()}
    assert is_tied(family.model) == is_tied(before.model)
    assert family.model.get_output_embeddings().out_features == old + 3
    rows = token_parameters(family.model)
    assert len(rows) == (1 if is_tied(before.model) else 2)
    for name, param in now.items():
        assert torch.equal(param[: len(was[name])] if name in rows else param, was[name]) or name in rows, (
            name
        )
        if name in rows:
            expected = was[name][:old].double().mean(0).float().expand(3, -1)
            torch.testing.assert_close(param[ids], expected, rtol=0, atol=1e-7)
            assert torch.equal(param[:old], was[name][:old])
    family.model.save_pretrained(tmp_path)
    again = dict(loaded(tmp_path).named_parameters())
    assert all(torch.equal(again[name], param) for name, param in now.items())


def test_spare_rows_are_taken_before_any_are_made(bases: dict[str, Path]) -> None:
    before, family = Vlm.load(str(bases["spare"]), "cpu", torch.float32), load(bases["spare"])
    old = len(before.files.processor.tokenizer)
    was, now = (dict(one.model.named_parameters()) for one in (before, family))
    for name in token_parameters(family.model):
        assert now[name].shape == was[name].shape == (600, 32)
        mean = was[name][:old].double().mean(0).float().expand(3, -1)
        torch.testing.assert_close(now[name][old : old + 3], mean, rtol=0, atol=1e-7)
        assert torch.equal(now[name][old + 3 :], was[name][old + 3 :])
    assert family.files.config.get_text_config().vocab_size == 600


def test_a_row_that_the_head_lacked_is_no_zero(tiny_vlm: Callable[..., Path]) -> None:
    """mllama's head has no row for the token of pictures, which stands behind all others."""
    family = Vlm.load(str(tiny_vlm("mllama")), "cpu", torch.float32)
    tokenizer = copy.deepcopy(family.files.processor.tokenizer)
    head, old = family.model.get_output_embeddings(), len(tokenizer)
    head.weight.data = head.weight.data[: old - 1].clone()
    head.out_features = old - 1
    mean = head.weight.double().mean(0).float()
    add_tokens(tokenizer, ["<a>"])
    make_room(family.model, tokenizer, ["<a>"])
    torch.testing.assert_close(head.weight[old - 1 :], mean.expand(2, -1), rtol=0, atol=1e-7)


def test_a_new_token_is_never_the_likeliest_at_first(bases: dict[str, Path]) -> None:
    family = load(bases["untied"])
    with torch.no_grad():
        found = family.model(input_ids=torch.arange(40)[None]).logits[0]
    new = found[:, -3:]
    torch.testing.assert_close(new, found[:, :-3].mean(1, keepdim=True).expand(-1, 3), rtol=0, atol=1e-5)
    assert (new.max(1).values < found.max(1).values).all()


def test_a_mean_is_the_same_however_many_rows_are_added_up_at_once(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(bases["untied"])
    monkeypatch.setattr("omnitune.families.vlm.tokens.CHUNK", 7)
    parts = load(bases["untied"])
    for name, param in whole.model.named_parameters():
        assert torch.equal(param, dict(parts.model.named_parameters())[name])


def test_a_bias_of_the_head_has_a_place_for_each(bases: dict[str, Path]) -> None:
    plain, family = load(bases["untied"], ()), load(bases["untied"])
    model = plain.model
    model.lm_head.bias = torch.nn.Parameter(torch.arange(float(model.lm_head.out_features)))
    old = len(model.lm_head.bias)
    make_room(model, family.files.processor.tokenizer, TOKENS)
    assert model.lm_head.bias[old:].tolist() == [(old - 1) / 2] * 3


# In texts


def test_a_text_holds_one_id_for_each_token(bases: dict[str, Path]) -> None:
    family = load(bases["untied"])
    tokenizer = family.files.processor.tokenizer
    encoded = family.conversation_encoder(ChatOptions()).encode(PLACES)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in TOKENS]
    learned = encoded.tokens["labels"][encoded.tokens["labels"] >= 0]
    assert [i for i in learned.tolist() if i in ids] == [ids[0], ids[2]]
    assert tokenizer.decode(learned, skip_special_tokens=True).strip() == "At <loc_0><loc_2>."


def test_what_is_kept_of_conversations_is_kept_apart_for_other_tokens(bases: dict[str, Path]) -> None:
    found = [
        load(bases["untied"], tokens, "meta").conversation_encoder(ChatOptions()).fingerprint
        for tokens in ((), TOKENS, TOKENS[:2], TOKENS[::-1], TOKENS)
    ]
    assert found[1] == found[4]
    assert len(set(found)) == 4


# Training and export


class Spoken(Left):
    """A finished run whose conversations speak of the added tokens."""

    def __init__(self, base: Path, folder: Path, **keys_of_run: Any):
        self._train(folder, runs.write_run(folder / "run.yaml", described(base, folder, **keys_of_run)))


def inputs_with_tokens(left: Left) -> list[dict[str, Tensor]]:
    prompt = left.family.conversation_encoder(ChatOptions()).encode(PLACES)
    ids = prompt.tokens["input_ids"][None]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}, *left.inputs()]


def live_logits(left: Left) -> list[Tensor]:
    with left.family.complete() as model:
        return logits(model, inputs_with_tokens(left))


def grown(base: Path, weights: Path) -> Any:
    """The base with room for the tokens of the exported tokenizer, by transformers alone."""
    from transformers import AutoTokenizer

    model = loaded(base)
    number = len(AutoTokenizer.from_pretrained(weights))
    if number > len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(number, mean_resizing=False)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_carries_them_and_is_the_live_model_for_peft(
    bases: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    from peft import PeftModel
    from transformers import AutoProcessor

    left = Spoken(bases[kind], tmp_path, **LORA)
    weights, live = left.weights(), live_logits(left)
    stated = json.loads((weights / "adapter_config.json").read_text())
    tied = kind == "tied"
    assert stated["modules_to_save"] == [EMBEDDINGS[:-7]] + ([] if tied else [HEAD[:-7]])
    assert stated["ensure_weight_tying"] is tied
    assert is_tied(left.family.model) is tied
    wrapped = PeftModel.from_pretrained(grown(bases[kind], weights), weights).eval()
    assert_same_logits(live, logits(wrapped, inputs_with_tokens(left)), atol=1e-6)
    processor = AutoProcessor.from_pretrained(weights)
    assert processor.tokenizer.get_vocab() == left.family.files.processor.tokenizer.get_vocab()
    start = dict(load(bases[kind]).model.named_parameters())
    now = {name: param for name, param in left.family.model.named_parameters() if "lora_" not in name}
    ids = processor.tokenizer.convert_tokens_to_ids(list(TOKENS))
    moved = (now[EMBEDDINGS] - start[EMBEDDINGS]).abs().amax(1) > 1e-4
    assert [bool(moved[i]) for i in ids] == [True, tied, True]  # tied rows move by what the head learns
    if not tied:
        assert ((now[HEAD] - start[HEAD]).abs().amax(1)[ids] > 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trainable", ["lora", "rules"])
def test_whole_models_carry_them(bases: dict[str, Path], tmp_path: Path, kind: str, trainable: str) -> None:
    how = LORA if trainable == "lora" else {"trainable": [{"params": "multi_modal_projector"}]}
    left = Spoken(bases[kind], tmp_path, **how)
    folder = left.merged() if trainable == "lora" else left.weights()
    live = live_logits(left)
    model = loaded(folder)
    assert model.config.get_text_config().vocab_size == (600 if kind == "spare" else live[0].shape[-1])
    assert is_tied(model) is (kind == "tied")
    assert keys(folder) == keys(bases[kind])
    assert_same_logits(live, logits(model, inputs_with_tokens(left)), atol=1e-5 if trainable == "lora" else 0)


def test_a_stopped_run_goes_on_bit_for_bit_and_its_commands_know_the_tokens(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    keys_of_run = {**LORA, "checkpoint": {"every": 1, "keep": None}, "validation": {"max_tokens": 3}}
    found = []
    for name, steps in (("whole", [4]), ("parts", [2, 4])):
        ran = Ran(tmp_path / name, described(bases["tied"], tmp_path / name, **keys_of_run))
        for number in steps:
            ran.trained(f"schedule.steps={number}")
        found.append(ran)
    whole, parts = found
    assert len(whole.losses) == 4
    assert whole.losses == parts.losses
    one, other = (load_file(ran.weights / "adapter_model.safetensors") for ran in found)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    said = whole.command("sample", "runs/run", "--prompt", "Where is <loc_1>?")
    assert said.code == 0, said.err
    done = whole.command("evaluate", "runs/run", "--data", "train.json", "--metrics", "loss")
    assert done.code == 0, done.err
    other_tokens = whole.command("train", "run.yaml", "model.options={add_tokens: [<loc_0>]}")
    assert other_tokens.code == 2
    assert "holds a run that learns something else" in other_tokens.err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_replicas_and_shards_train_them_as_one_process_does(
    bases: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    smooth = {"name": "adamw", "lr": 1e-2, "eps": 1e-2}
    run = described(bases[kind], tmp_path, optimizer=smooth, schedule={"steps": 3}, **LORA)
    one = Ran(tmp_path, run).trained()
    for name in ("replicate", "shard"):
        other = Ran(tmp_path / name, run)
        done = run_command("train", "run.yaml", f"parallel.{name}=2", cwd=other.folder, ranks=2)
        assert done.code == 0, done.err
        assert other.losses == pytest.approx(one.losses, rel=1e-5)
        found, expected = (load_file(ran.weights / "adapter_model.safetensors") for ran in (other, one))
        assert found.keys() == expected.keys()
        for tensor, wanted in zip(found.values(), expected.values(), strict=True):
            torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-5)


def test_a_phase_may_leave_them_as_they_are_by_a_rate_of_zero(bases: dict[str, Path], tmp_path: Path) -> None:
    still = {"params": ["language_model.embed_tokens", "language_model.lm_head"], "lr": 0, "weight_decay": 0}
    phases = [
        {"trainable": [{"params": "multi_modal_projector"}, still], "schedule": {"steps": 2}},
        {**LORA, "schedule": {"steps": 2}},
    ]
    run = described(bases["untied"], tmp_path, phases=phases, checkpoint={"every": 1, "keep": None})
    del run["schedule"]
    ran = Ran(tmp_path, run).trained()
    rates = [one["lr"] for one in runs.metrics(tmp_path / "runs" / "run")]
    assert rates == [{"0": 1e-3, "1": 0.0}] * 2 + [{"0": 1e-2, "1": 1e-3}] * 2
    found = load_file(ran.weights / "adapter_model.safetensors")
    start = dict(load(bases["untied"]).model.named_parameters())
    assert (found[f"base_model.model.{HEAD}"] - start[HEAD]).abs().max() > 1e-4
    assert any("merger" in name for name in found)


# What trains


def planned(
    base: Path, folder: Path, capsys: pytest.CaptureFixture[str], **keys_of_run: Any
) -> tuple[int, str]:
    """The exit code of `plan`, and what it says."""
    runs.write_run(folder / "run.yaml", described(base, folder, **keys_of_run))
    with chdir(folder):
        code = cli.main(["plan", "run.yaml"])
    said = capsys.readouterr()
    return code, said.out if code == 0 else said.err


@pytest.mark.parametrize(
    ("trainable", "number"),
    [
        ({"lora": {"rank": 2}}, 1),
        ([{"params": "multi_modal_projector"}], 1),
        ([{"params": "language_model", "lora": {"rank": 2}}], 1),
        ([{"params": "language_model.embed_tokens", "lr": 1e-5}], 1),
    ],
)
def test_a_plan_shows_their_rule(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], trainable: Any, number: int
) -> None:
    code, said = planned(bases["untied"], tmp_path, capsys, trainable=trainable)
    assert code == 0, said
    named = str(trainable).count("embed_tokens")
    names = [f"model.{HEAD}"] if named else [f"model.{EMBEDDINGS}", f"model.{HEAD}"]
    rows = 449
    many = f"{rows * 32 * len(names) / 1000:.4g} K"
    assert f"trainable.{number}: {', '.join(names)}\n  {len(names)} tensors, {many} parameters; " in said
    assert "parameters; lr 0.001, weight decay 0\n" in said.split(f"trainable.{number}: ")[1]
    assert f"{'language_model':38}" in said


def test_a_rule_that_trains_all_of_them_leaves_nothing_to_add(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainable = [{"params": "language_model", "lr": 1e-5}]
    code, said = planned(bases["untied"], tmp_path, capsys, trainable=trainable)
    assert code == 0, said
    assert "trainable.1" not in said


FLAG = "trainable: [{params: multi_modal_projector}]"


@pytest.mark.parametrize(
    ("keys_of_run", "message"),
    [
        (
            {"trainable": "full", "train_mm_proj_only": True},
            f"train_mm_proj_only: true, but model.options.add_tokens trains model.{EMBEDDINGS} of "
            f"language_model; remove one, or list what else trains as rules, without that flag ({FLAG})",
        ),
        (
            {"trainable": "full", "freeze_language_model": True, "freeze_vision_tower": False},
            f"freeze_language_model: true, but model.options.add_tokens trains model.{EMBEDDINGS} of ",
        ),
        (
            {"trainable": [{"params": "language_model.lm_head", "lora": {"rank": 2}}]},
            "trainable.0.lora: adapts model.lm_head alone, which model.options.add_tokens trains itself; "
            "remove lora from that rule, or the rule",
        ),
    ],
)
def test_what_cannot_hold_beside_them_names_both_places(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], keys_of_run: Any, message: str
) -> None:
    code, said = planned(bases["untied"], tmp_path, capsys, **keys_of_run)
    assert code == 2
    assert message in said


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            ("<loc_0>", "<|im_end|>", "yes"),
            "model.options.add_tokens: the tokenizer has '<|im_end|>', 'yes' already; remove them from the "
            "option",
        ),
        (("<a>", " "), "add_tokens.1: ' ' is empty; remove it"),
        (("<a>", "<b>", "<a>"), "add_tokens: '<a>' more than once; state each one time"),
    ],
)
def test_tokens_that_cannot_be_added_are_named(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], tokens: Any, message: str
) -> None:
    runs.write_run(tmp_path / "run.yaml", described(bases["untied"], tmp_path, tokens, **LORA))
    with chdir(tmp_path):
        assert cli.main(["plan", "run.yaml"]) == 2
    assert message in capsys.readouterr().err
