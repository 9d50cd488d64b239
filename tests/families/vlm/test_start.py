"""A run that starts from what another one, peft or transformers left goes on from there."""

import json
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_added_tokens import Ran, described
from test_export_vlm import loaded
from torch import Tensor

from omnitune import cli, config
from omnitune.export.peft import Peft
from omnitune.model import load_with_adapters
from omnitune.resolve import resolve_run
from omnitune.testing import runs

LORA: dict[str, Any] = {
    "trainable": {"lora": {"rank": 4, "alpha": 10}, "lr": 1e-2}, "freeze_multi_modal_projector": False,
}  # fmt: skip
FULL: dict[str, Any] = {
    "trainable": "full", "freeze_multi_modal_projector": False, "freeze_vision_tower": False,
}  # fmt: skip
RULE = {"params": "language_model.*_proj", "lora": {"rank": 4, "alpha": 10}}
PROJECTOR = {"params": "multi_modal_projector"}
HEAD = "language_model.lm_head.weight"
"""In the files of llava."""
TOKENS = ("<loc_0>", "<loc_1>", "<loc_2>")
Left = Callable[[str], Ran]


@pytest.fixture(scope="module")
def left(tiny_vlm: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Left:
    """Gives a run that trained two steps; its folder also has the losses of one that trained three."""
    made: dict[str, Ran] = {}
    how: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
        "lora": ("llava", (), LORA),
        "lora with parts beside": (
            "llava_next", (), {"trainable": [RULE, PROJECTOR, {"params": "image_newline"}]},
        ),
        "full": ("llava", (), FULL),
        "lora with tokens": ("llava", TOKENS, LORA),
        "lora with tied tokens": ("gemma3", TOKENS, LORA),
        "full with tokens": ("llava", TOKENS, FULL),
    }  # fmt: skip

    def of(kind: str) -> Ran:
        if kind not in made:
            model_type, tokens, keys = how[kind]
            folder = tmp_path_factory.mktemp("left") / "run"
            run = described(tiny_vlm(model_type), folder, tokens, schedule={"steps": 2}, **keys)
            made[kind] = Ran(folder, run).trained()
            exported = folder / "exported"
            shutil.copytree(made[kind].weights, exported)
            made[kind].trained("schedule.steps=3")
        return made[kind]

    return of


def exported(ran: Ran) -> Path:
    return ran.folder / "exported"


def started(ran: Ran, folder: Path, init_from: Path, **keys: Any) -> Ran:
    """A run of one step on the data of another, from something."""
    folder.mkdir(parents=True, exist_ok=True)
    run = json.loads(ran.file.read_text())
    run.update({"init_from": str(init_from), "schedule": {"steps": 1}, **keys})
    return Ran(folder, run)


def refused(ran: Ran, folder: Path, init_from: Path, capsys: pytest.CaptureFixture[str], **keys: Any) -> str:
    """The message with which `train` refuses to start from something."""
    new = started(ran, folder, init_from, **keys)
    with chdir(folder):
        assert cli.main(["train", new.file.name]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "runs" / "run" / "checkpoints").exists()
    return message


@pytest.mark.parametrize(
    "kind",
    [
        "lora", "lora with parts beside", "full", "lora with tokens", "lora with tied tokens",
        "full with tokens",
    ],
)  # fmt: skip
def test_the_first_loss_is_that_with_which_the_other_run_went_on(
    left: Left, tmp_path: Path, kind: str
) -> None:
    ran = left(kind)
    new = started(ran, tmp_path, exported(ran)).trained()
    assert len(ran.losses) == 3
    assert new.losses == pytest.approx([ran.losses[2]], rel=1e-6)
    assert abs(ran.losses[2] - ran.losses[0]) > 1e-2


def test_a_merged_model_is_a_start_too(left: Left, tmp_path: Path) -> None:
    ran = left("lora with tokens")
    done = ran.command(
        "export", "runs/run", "--checkpoint", "3", "--merged", "--out", str(tmp_path / "merged")
    )
    assert done.code == 0, done.err
    fourth = started(ran, tmp_path / "adapter", ran.weights).trained()
    new = started(ran, tmp_path / "whole", tmp_path / "merged").trained()
    assert new.losses == pytest.approx(fourth.losses, rel=1e-5)
    stated = json.loads((new.weights / "adapter_config.json").read_text())
    assert stated["base_model_name_or_path"] == str(tmp_path / "merged")


def test_a_tower_that_is_stored_is_that_of_the_start(left: Left, tmp_path: Path) -> None:
    ran = left("full")
    live = started(ran, tmp_path / "live", exported(ran), trainable="full", train_mm_proj_only=True, data={
        **json.loads(ran.file.read_text())["data"], "cache": None,
    })  # fmt: skip
    for key in ("freeze_multi_modal_projector", "freeze_vision_tower"):
        run = json.loads(live.file.read_text())
        del run[key]
        live.file.write_text(json.dumps(run))
    stored = Ran(tmp_path / "stored", {**json.loads(live.file.read_text()), "data": {
        **json.loads(ran.file.read_text())["data"], "cache": str(tmp_path / "cache"),
    }})  # fmt: skip
    live.trained(), stored.trained()
    assert stored.losses == pytest.approx(live.losses, rel=1e-6)
    assert live.losses == pytest.approx([ran.losses[2]], rel=1e-6)


def test_a_run_from_an_adapter_goes_on_after_a_stop_and_samples(left: Left, tmp_path: Path) -> None:
    ran = left("lora")
    whole = started(ran, tmp_path / "whole", exported(ran)).trained("schedule.steps=2")
    parts = started(ran, tmp_path / "parts", exported(ran)).trained().trained("schedule.steps=2")
    assert len(whole.losses) == 2
    assert whole.losses == parts.losses
    for words in ((), ("--base",)):
        done = whole.command("sample", "runs/run", "--prompt", "Hello?", *words)
        assert done.code == 0, done.err


def test_a_later_phase_has_what_the_first_began_with(left: Left, tmp_path: Path) -> None:
    ran = left("lora")
    tower = {"params": "vision_tower.*.fc?", "lora": {"rank": 2}}
    run = json.loads(ran.file.read_text())
    for key in ("trainable", "freeze_multi_modal_projector", "schedule"):
        del run[key]
    still = {"optimizer": {"lr": 0.0}, "schedule": {"steps": 1}}
    phases = [{"trainable": [RULE, PROJECTOR], **still}, {"trainable": [tower, RULE], **still}]
    new = Ran(tmp_path, {**run, "init_from": str(exported(ran)), "phases": phases}).trained()
    assert new.losses == pytest.approx([ran.losses[2]] * 2, rel=1e-6)
    found, before = (load_file(one / "adapter_model.safetensors") for one in (new.weights, exported(ran)))
    assert all(torch.equal(found[name], tensor) for name, tensor in before.items())
    assert any("vision_tower" in name for name in found.keys() - before.keys())


# What peft writes itself


def by_peft(base: Path, folder: Path, **settings: Any) -> tuple[Any, Path]:
    """An adapter of peft's own, moved off its start, on a model."""
    from peft import LoraConfig, get_peft_model

    stated: dict[str, Any] = {"r": 4, "lora_alpha": 10, "target_modules": r".*language_model.*_proj"}
    wrapped = get_peft_model(loaded(base), LoraConfig(**{**stated, **settings}))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for param in wrapped.parameters():
            if param.requires_grad:
                param.add_(torch.randn_like(param), alpha=0.1)
    wrapped.save_pretrained(folder)
    return wrapped.eval(), folder


def first_logits(new: Ran) -> Tensor:
    with chdir(new.folder):
        family, _ = load_with_adapters(resolve_run(config.validate(config.read(new.file))), "cpu")
    with torch.no_grad():
        found: Tensor = family.components["model"](input_ids=torch.arange(30)[None]).logits
    return found


@pytest.mark.parametrize("parts", [None, ["multi_modal_projector"]])
def test_an_adapter_of_peft_computes_what_it_does_there(
    left: Left, tiny_vlm: Callable[..., Path], tmp_path: Path, parts: list[str] | None
) -> None:
    theirs, folder = by_peft(tiny_vlm("llava"), tmp_path / "theirs", modules_to_save=parts)
    rules = [RULE, *([PROJECTOR] if parts else [])]
    new = started(left("lora"), tmp_path / "new", folder, trainable=rules)
    with torch.no_grad():
        expected = theirs(input_ids=torch.arange(30)[None]).logits
    torch.testing.assert_close(first_logits(new), expected, rtol=0, atol=1e-6)


def test_an_adapter_of_peft_with_tied_embeddings(
    left: Left, tiny_vlm: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_vlm("gemma3")
    run = left("lora with tied tokens")
    rules = [RULE, {"params": "language_model.embed_tokens"}]
    model = {"family": "vlm", "path": str(base), "dtype": "float32"}
    kept = {"modules_to_save": ["embed_tokens"], "target_modules": r".*language_model.*_proj"}
    theirs, folder = by_peft(base, tmp_path / "tied", ensure_weight_tying=True, **kept)
    new = started(run, tmp_path / "new", folder, trainable=rules, model=model)
    new.file.write_text(without(new.file, "freeze_multi_modal_projector"))
    with torch.no_grad():
        expected = theirs(input_ids=torch.arange(30)[None]).logits
    torch.testing.assert_close(first_logits(new), expected, rtol=0, atol=1e-5)


def without(file: Path, key: str) -> str:
    return json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != key})


# What cannot be a start


def copied(ran: Ran, folder: Path, **stated: Any) -> Path:
    """A copy of an exported adapter whose configuration says something else."""
    shutil.copytree(exported(ran), folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **stated}))
    return folder


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"trainable": {"lora": {"rank": 8, "alpha": 10}}},
            "mlp.down_proj.lora_A.weight is (4, 48), the rule makes it (8, 48); use the rank it was trained "
            "with",
        ),
        (
            {"trainable": {"lora": {"rank": 4}}},
            "has alpha 10 at model.model.language_model.layers.0.self_attn.q_proj, trainable.1 has 4; set "
            "alpha: 10",
        ),
        ({"trainable": "full"}, "is a LoRA, but no rule under `trainable` adds one; give a rule `lora`"),
        (
            {"freeze_multi_modal_projector": True},
            "has model.model.multi_modal_projector.linear_1.bias (4 such), which no rule trains",
        ),
        (
            {"trainable": [{"params": "language_model.*.q_proj", "lora": RULE["lora"]}, PROJECTOR]},
            "language_model.layers.0.mlp.down_proj.lora_A.weight (48 such), which no rule adapts",
        ),
        (
            {"freeze_vision_tower": False},
            "lacks model.model.vision_tower.",
        ),
    ],
)
def test_an_adapter_that_the_rules_do_not_fit_is_refused(
    left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, Any], message: str
) -> None:
    ran = left("lora")
    said = refused(ran, tmp_path, exported(ran), capsys, **keys)
    assert f"init_from: {exported(ran)}" in said
    assert message in said


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"use_dora": True}, "was trained with model.use_dora: True, which omnitune does not compute"),
        ({"use_rslora": True}, "was trained with model.use_rslora: True, which omnitune does not compute"),
        ({"bias": "all"}, "was trained with model.bias: 'all', which omnitune does not compute"),
        ({"peft_type": "LOHA"}, "adapter_config.json is of an adapter of type LOHA; give one of type LORA"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(
    left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str], stated: dict[str, Any], message: str
) -> None:
    ran = left("lora")
    folder = copied(ran, tmp_path / "theirs", **stated)
    assert message in refused(ran, tmp_path / "new", folder, capsys)


def test_folders_that_are_no_start_say_what_is_missing(
    left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = left("lora")
    (tmp_path / "empty").mkdir()
    said = refused(ran, tmp_path / "new", tmp_path / "empty", capsys)
    assert said.endswith(f"{tmp_path / 'empty'} holds neither adapter_model.safetensors nor config.json")
    assert "is not there; give a LoRA file or a folder" in refused(
        ran, tmp_path / "new", tmp_path / "gone", capsys
    )
    folder = copied(ran, tmp_path / "theirs")
    (folder / "adapter_config.json").unlink()
    assert "adapter_config.json is missing, which tells the alpha" in refused(
        ran, tmp_path / "new", folder, capsys
    )
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert f"{file} cannot be read" in refused(ran, tmp_path / "new", folder, capsys)


def test_the_config_of_a_base_beside_an_adapter_is_no_model(
    left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = left("lora")
    folder = copied(ran, tmp_path / "theirs")
    shutil.copy(exported(left("full")) / "config.json", folder)
    assert Peft().folders(folder) == {}
    shutil.copy(exported(left("full")) / "model.safetensors", folder)
    assert f"init_from: {folder} holds a whole model and an adapter; give a folder with one of them" in (
        refused(ran, tmp_path / "new", folder, capsys)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "lacks lm_head.weight (1 such), which its configuration asks for"),
        ("strange", "has stranger (1 such), of which its configuration knows nothing"),
        ("size", "lacks lm_head.weight of (444, 32) (1 such), which its configuration asks for"),
    ],
)
def test_a_whole_model_that_is_not_whole_is_refused(
    left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    ran = left("full")
    folder = Path(shutil.copytree(exported(ran), tmp_path / "theirs"))
    tensors = load_file(folder / "model.safetensors")
    if change == "missing":
        del tensors[HEAD]
    elif change == "strange":
        tensors["stranger"] = torch.zeros(1)
    else:
        tensors[HEAD] = torch.zeros(9, 32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said = refused(ran, tmp_path / "new", folder, capsys)
    assert f"init_from: {folder} {message}" in said
    (folder / "model.safetensors").unlink()
    assert f"init_from: {folder / 'model.safetensors'} is missing" in refused(
        ran, tmp_path / "new", folder, capsys
    )


def test_a_model_of_another_type_is_refused(
    left: Left, tiny_vlm: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran, other = left("full"), tiny_vlm("gemma3")
    said = refused(ran, tmp_path, other, capsys)
    assert (
        f"init_from: {other} holds a model of type gemma3, and {tiny_vlm('llava')} is of type llava; " in said
    )


@pytest.mark.parametrize("kind", ["lora with tokens", "full with tokens"])
def test_tokens_that_stood_for_something_else_are_refused(
    left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    ran = left(kind)
    model = json.loads(ran.file.read_text())["model"]

    def said(*tokens: str) -> str:
        stated = {**model, "options": {"add_tokens": list(tokens)}}
        return refused(ran, tmp_path / "new", exported(ran), capsys, model=stated)

    lacking = "has '<loc_2>', which this run's lacks; state model.options.add_tokens: [<loc_2>]"
    assert f"init_from: the tokenizer of {exported(ran)} {lacking}" in said(*TOKENS[:2])
    moved = "has '<loc_0>' at 444, here it is at 446 (2 such); state model.options.add_tokens in the order"
    assert moved in said(*TOKENS[::-1])


def test_tokens_of_a_model_without_its_tokenizer_are_not_guessed(
    left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = left("full with tokens")
    folder = Path(shutil.copytree(exported(ran), tmp_path / "theirs"))
    (folder / "tokenizer.json").unlink()
    assert (
        f"init_from: {folder} has no tokenizer.json, so whether its rows know '<loc_0>' cannot be told"
        in (refused(ran, tmp_path / "new", folder, capsys))
    )


def test_further_tokens_on_a_whole_model_get_rows_and_leave_the_others(left: Left, tmp_path: Path) -> None:
    ran = left("full with tokens")
    model = json.loads(ran.file.read_text())["model"]
    more = {**model, "options": {"add_tokens": [*TOKENS, "<end>"]}}
    new = started(ran, tmp_path, exported(ran), model=more)
    with chdir(new.folder):
        family, _ = load_with_adapters(resolve_run(config.validate(config.read(new.file))), "cpu")
    before = load_file(exported(ran) / "model.safetensors")[HEAD]
    rows = family.components["model"].lm_head.weight
    assert rows.shape == (448, 32)
    assert torch.equal(rows[:447], before)
    torch.testing.assert_close(rows[447], before.double().mean(0).float(), rtol=0, atol=1e-7)


def test_further_tokens_on_an_adapter_with_embeddings_are_refused(
    left: Left, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = left("lora with tokens")
    model = json.loads(ran.file.read_text())["model"]
    more = {**model, "options": {"add_tokens": [*TOKENS, "<end>"]}}
    said = refused(ran, tmp_path, exported(ran), capsys, model=more)
    assert f"the tokenizer of {exported(ran)} lacks '<end>' (1 such), so model." in said
    assert "there has no row for it; state the tokens of that run in model.options.add_tokens" in said


def test_an_adapter_without_embeddings_takes_new_tokens(left: Left, tmp_path: Path) -> None:
    ran = left("lora")
    run = json.loads(ran.file.read_text())
    run["model"]["options"] = {"add_tokens": list(TOKENS)}
    new = started(ran, tmp_path, exported(ran), model=run["model"]).trained()
    assert runs.metrics(new.folder / "runs" / "run")[0]["lr"] == {"0": 1e-2, "1": 1e-2, "2": 1e-3}
