"""What is exported, loaded by diffusers, computes what the live model computes."""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnitune import cli, config
from omnitune.commands import train as commands
from omnitune.families.diffusion.pipeline import LORA_FILE
from omnitune.model import load_with_adapters, set_up
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.resolve import resolve_run
from omnitune.run_folder import find_checkpoint, read_run
from omnitune.testing.runs import small_run, write_run
from omnitune.trainer import Trainer

ATTENTION: Any = {"params": "transformer.blocks.*.attn*", "lr": 3e-2, "lora": {"rank": 4, "alpha": 10}}
PATCHES: Any = {"params": "transformer.patch_embedding", "lr": 3e-2}
KINDS: Any = {
    "lora": {"trainable": [ATTENTION]},
    "full": {"trainable": [{"params": "transformer", "lr": 3e-3}]},
    "mixed": {"trainable": [ATTENTION, PATCHES]},
    "ema": {"trainable": [ATTENTION], "ema": {"decay": 0.9}},
}


def output(transformer: Any, like: Path) -> Tensor:
    """What a transformer makes of one fixed input."""
    channels, text_dim = (
        json.loads((like / "config.json").read_text())[key] for key in ("in_channels", "text_dim")
    )
    chance = torch.Generator().manual_seed(5)
    with torch.no_grad():
        made: Tensor = transformer.eval()(
            hidden_states=torch.randn(2, channels, 3, 4, 4, generator=chance),
            timestep=torch.tensor([999.0, 400.0]),
            encoder_hidden_states=torch.randn(2, 12, text_dim, generator=chance),
            return_dict=False,
        )[0]
    return made


@dataclass(frozen=True)
class Trained:
    """A run that went through the command line in this process, caught before it ended."""

    home: Path
    model: Path
    live: Tensor
    """What the model that was trained makes of the fixed input, its raw weights."""
    raw: list[dict[str, Tensor]]
    """The weights before the first step and after each."""

    @property
    def folder(self) -> Path:
        return self.home / "runs/run"

    def output(self, transformer: Any) -> Tensor:
        return output(transformer, self.model / "transformer")

    @property
    def base(self) -> Any:
        return WanTransformer3DModel.from_pretrained(self.model / "transformer")

    def published(self, weights: Path, whole: bool = False) -> Tensor:
        """The output of a plain pipeline with the exported files: the whole component, then the LoRA."""
        pipe = WanPipeline.from_pretrained(self.model)
        if whole:
            pipe.transformer = WanTransformer3DModel.from_pretrained(weights / "transformer")
        if (weights / LORA_FILE).exists():
            pipe.load_lora_weights(weights)
        return self.output(pipe.transformer)

    def restored(self, average: bool = True) -> Tensor:
        """The output of the model that `after` builds from the checkpoint."""
        with chdir(self.home):
            job = resolve_run(read_run(self.folder))
            saved = find_checkpoint(self.folder, None)
            return self.output(
                set_up(job, Mesh(Parallel()), saved, average=average).components["transformer"]
            )


def train(home: Path, model: Path, cache: Path, keys: Any) -> Trained:
    write_run(home / "run.yaml", small_run(model, cache, **keys))
    caught, raw = list[Tensor](), list[dict[str, Tensor]]()
    finish, fit = commands.finish, Trainer.fit
    step = Trainer.train_step

    def weights(trainer: Any) -> dict[str, Tensor]:
        return {name: w.detach().clone() for name, w in trainer.weights().items()}

    def fit_watched(trainer: Any) -> None:
        raw.append(weights(trainer))
        fit(trainer)

    def step_watched(trainer: Any, micro_batches: Any) -> Any:
        metrics = step(trainer, micro_batches)
        raw.append(weights(trainer))
        return metrics

    def finish_watched(job: Any, trainer: Any, family: Any, folder: Path) -> None:
        caught.append(output(family.components["transformer"], model / "transformer"))
        finish(job, trainer, family, folder)

    with chdir(home), pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "finish", finish_watched)
        patch.setattr(Trainer, "fit", fit_watched)
        patch.setattr(Trainer, "train_step", step_watched)
        assert cli.main(["train", "run.yaml"]) == 0
    return Trained(home, model, caught[0], raw)


@pytest.fixture(scope="module")
def trained(
    tiny_wan: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Trained]:
    """Gives a finished run of a kind, trained once."""
    there: dict[str, Trained] = {}

    def of(kind: str) -> Trained:
        if kind not in there:
            there[kind] = train(tmp_path_factory.mktemp(kind), tiny_wan, cache, KINDS[kind])
        return there[kind]

    return of


def assert_equal(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def assert_moved(one: Tensor, other: Tensor) -> None:
    assert float((one - other).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["lora", "full", "mixed"])
def test_the_published_files_equal_the_live_model(trained: Callable[[str], Trained], kind: str) -> None:
    run = trained(kind)
    files = {path.name for path in (run.folder / "weights").iterdir()}
    assert files == {"lora": {LORA_FILE}, "full": {"transformer"}, "mixed": {LORA_FILE, "transformer"}}[kind]
    published = run.published(run.folder / "weights", whole="transformer" in files)
    assert_equal(published, run.live)
    assert_equal(run.restored(), run.live)
    assert_moved(run.live, run.output(run.base))


def test_both_files_of_a_mixed_run_are_needed(trained: Callable[[str], Trained]) -> None:
    run = trained("mixed")
    assert_moved(run.published(run.folder / "weights"), run.live)
    whole = WanTransformer3DModel.from_pretrained(run.folder / "weights/transformer")
    assert_moved(run.output(whole), run.live)


def test_alpha_travels_in_the_metadata_of_the_file(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    run = trained("lora")
    save_file(load_file(run.folder / "weights" / LORA_FILE), tmp_path / LORA_FILE)
    assert_moved(run.published(tmp_path), run.live)  # without it the adapter has another strength


def test_weights_is_the_average_and_weights_raw_is_not(trained: Callable[[str], Trained]) -> None:
    run = trained("ema")
    average, raw = run.published(run.folder / "weights"), run.published(run.folder / "weights-raw")
    assert_equal(raw, run.live)
    assert_equal(raw, run.restored(average=False))
    assert_equal(average, run.restored(average=True))
    assert_moved(average, raw)
    assert_moved(average, run.output(run.base))


def test_the_average_is_that_of_the_weights_after_each_step(trained: Callable[[str], Trained]) -> None:
    run = trained("ema")
    average = run.raw[0]
    for number, weights in enumerate(run.raw[1:], start=1):
        decay = min(0.9, (1 + number) / (10 + number))
        average = {name: decay * a + (1 - decay) * weights[name] for name, a in average.items()}
    stored = load_file(run.folder / "weights" / LORA_FILE)
    assert len(stored) == len(average) > 0
    for name, value in average.items():
        assert_equal(stored[name.replace(".default.", ".")], value)


# Going on from exported weights


def first_output(run: Trained, init_from: Path, rules: Sequence[Any]) -> Tensor:
    """The output before the first step of a run that starts from exported weights."""
    described = small_run(run.model, run.home, trainable=rules, init_from=str(init_from))
    described = config.validate(config.read(write_run(run.home / "next.yaml", described)))
    family, _ = load_with_adapters(resolve_run(described), "cpu")
    return run.output(family.components["transformer"])


@pytest.mark.parametrize("kind", ["lora", "full", "mixed"])
def test_a_run_from_exported_weights_starts_as_the_other_ended(
    trained: Callable[[str], Trained], kind: str
) -> None:
    run = trained(kind)
    assert_equal(first_output(run, run.folder / "weights", KINDS[kind]["trainable"]), run.live)


def test_a_run_from_a_lora_file_starts_as_the_other_ended(trained: Callable[[str], Trained]) -> None:
    run = trained("lora")
    assert_equal(first_output(run, run.folder / "weights" / LORA_FILE, [ATTENTION]), run.live)


def test_new_adapters_on_exported_full_weights_change_nothing_at_first(
    trained: Callable[[str], Trained],
) -> None:
    run = trained("full")
    assert_equal(first_output(run, run.folder / "weights", [ATTENTION]), run.live)


def refused(run: Trained, init_from: Path, rules: Sequence[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The message with which `train` refuses to start from something."""
    name = f"refused-{init_from.name}"
    write_run(
        run.home / "refused.yaml",
        small_run(run.model, run.home, trainable=rules, init_from=str(init_from), name=name),
    )
    with chdir(run.home):
        assert cli.main(["train", "refused.yaml"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("refused.yaml:")
    assert f"init_from: {init_from}" in message
    assert not (run.home / "runs" / name / "checkpoints").exists()
    return message


def with_lora(**changes: Any) -> list[Any]:
    return [{**ATTENTION, "lora": {**ATTENTION["lora"], **changes}}]


def test_mistakes_in_init_from_name_the_file_and_the_way_out(
    trained: Callable[[str], Trained], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = trained("lora")
    file = run.folder / "weights" / LORA_FILE
    assert "use the rank it was trained with" in refused(run, file, with_lora(rank=8), capsys)
    assert "set alpha: 10" in refused(run, file, with_lora(alpha=4), capsys)
    assert "which no rule adapts" in refused(
        run, file, [{**ATTENTION, "params": "transformer.blocks.*.attn1"}], capsys
    )
    assert "which a rule adapts" in refused(
        run, file, [{**ATTENTION, "params": "transformer.blocks"}], capsys
    )
    assert "give a rule `lora`" in refused(run, file, [PATCHES], capsys)
    missing = tmp_path / "missing.safetensors"
    assert "give a LoRA file or a folder that `export` wrote" in refused(run, missing, [ATTENTION], capsys)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"holds neither {LORA_FILE} nor a component folder" in refused(run, empty, [ATTENTION], capsys)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "cannot be read" in refused(run, broken, [ATTENTION], capsys)


def test_the_alpha_of_every_rule_is_checked(
    tiny_wan: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {**ATTENTION, "params": "transformer.blocks.0.attn*"}
    second = {**ATTENTION, "params": "transformer.blocks.1.attn*", "lora": {"rank": 4, "alpha": 6}}
    run = train(tmp_path, tiny_wan, cache, {"trainable": [first, second]})
    file = run.folder / "weights" / LORA_FILE
    assert_equal(run.published(run.folder / "weights"), run.live)
    assert_equal(first_output(run, file, [first, second]), run.live)
    other = {**second, "lora": {"rank": 4, "alpha": 7}}
    message = refused(run, file, [first, other], capsys)
    assert "set alpha: 6" in message
    assert "trainable.1" in message


def test_a_lora_file_without_metadata_has_its_rank_as_alpha(
    trained: Callable[[str], Trained], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = trained("lora")
    save_file(load_file(run.folder / "weights" / LORA_FILE), tmp_path / LORA_FILE)
    published = run.published(tmp_path)
    assert_equal(first_output(run, tmp_path, with_lora(alpha=4)), published)
    assert "set alpha: 4" in refused(run, tmp_path / LORA_FILE, [ATTENTION], capsys)


@pytest.mark.parametrize(
    ("setting", "value"), [("use_rslora", True), ("use_dora", True), ("bias", "all"), ("lora_bias", True),
                           ("init_lora_weights", "pissa"), ("of_a_later_peft", 3)]
)  # fmt: skip
def test_a_lora_of_another_kind_is_refused_by_the_name_of_its_setting(
    trained: Callable[[str], Trained],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    setting: str,
    value: Any,
) -> None:
    run = trained("lora")
    source, file = run.folder / "weights" / LORA_FILE, tmp_path / f"{setting}.safetensors"
    with safe_open(source, framework="pt") as stream:
        settings = json.loads(stream.metadata()["lora_adapter_metadata"])
    assert not settings.get(f"transformer.{setting}") or setting in ("bias", "init_lora_weights")
    settings[f"transformer.{setting}"] = value
    save_file(load_file(source), file, {"lora_adapter_metadata": json.dumps(settings)})
    message = refused(run, file, [ATTENTION], capsys)
    assert f"was trained with transformer.{setting}: {value!r}" in message


@pytest.mark.parametrize("name", ["tokenizer", "scheduler", "unet"])
def test_a_folder_of_init_from_that_is_no_network_of_the_family_is_refused(
    trained: Callable[[str], Trained], capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    run = trained("full")
    shutil.copytree(run.folder / "weights", tmp_path / "weights")
    source = run.model / ("transformer" if name == "unet" else name)
    shutil.copytree(source, tmp_path / "weights" / name)
    message = refused(run, tmp_path / "weights", KINDS["full"]["trainable"], capsys)
    assert f"{name}: not a network of family wan (" in message


def test_an_incomplete_weights_folder_is_refused_by_its_missing_file(
    trained: Callable[[str], Trained], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = trained("full")
    shutil.copytree(run.folder / "weights", tmp_path / "weights")
    (weights,) = (tmp_path / "weights/transformer").glob("*.safetensors")
    weights.unlink()
    write_run(
        run.home / "refused.yaml",
        small_run(
            run.model, run.home, trainable=KINDS["full"]["trainable"], init_from=str(tmp_path / "weights")
        ),
    )
    with chdir(run.home):
        assert cli.main(["train", "refused.yaml"]) == 2
    message = capsys.readouterr().err
    assert str(weights) in message
    assert "init_from" in message


# Commands after training


def test_export_writes_the_weights_of_any_checkpoint(
    tiny_wan: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, tiny_wan, cache, {"trainable": [ATTENTION], "checkpoint": {"every": 1}})
    with chdir(tmp_path):
        assert cli.main(["export", "runs/run", "--checkpoint", "2", "--out", "second"]) == 0
        assert cli.main(["export", "runs/run", "--out", "third"]) == 0
        assert cli.main(["export", "runs/run", "--out", "third"]) == 2
        assert "--out: third is not empty" in capsys.readouterr().err
        assert cli.main(["export", "runs/run", "--checkpoint", "9"]) == 2
        assert "has none of step 9; there are: 1, 2, 3" in capsys.readouterr().err
    second = load_file(tmp_path / "second" / LORA_FILE)
    assert len(second) == len(run.raw[2]) > 0
    for name, value in run.raw[2].items():
        assert torch.equal(second[name.replace(".default.", ".")], value)
    assert_equal(run.published(tmp_path / "third"), run.live)


def test_export_raw_writes_the_weights_that_are_no_average(
    trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    run = trained("ema")
    with chdir(run.home):
        assert cli.main(["export", "runs/run", "--raw", "--out", str(tmp_path / "raw")]) == 0
        assert cli.main(["export", "runs/run", "--out", str(tmp_path / "average")]) == 0
    assert_equal(run.published(tmp_path / "raw"), run.live)
    assert_equal(run.published(tmp_path / "average"), run.published(run.folder / "weights"))


@pytest.mark.parametrize(("size", "file"), [("32x32", "000.png"), ("9x32x32", "000.mp4")])
def test_sample_writes_pictures_and_clips_that_are_described(
    trained: Callable[[str], Trained], tmp_path: Path, size: str, file: str
) -> None:
    run = trained("lora")
    words = ["sample", "runs/run", "--prompt", "a fox", "--steps", "2", "--size", size, "--seed", "7"]
    with chdir(run.home):
        assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
        assert cli.main([*words, "--base", "--out", str(tmp_path / "base")]) == 0
    (described,) = json.loads((tmp_path / "out/samples.json").read_text())
    assert (described["file"], described["prompt"], described["seed"]) == (file, "a fox", 7)
    assert (tmp_path / "out" / file).read_bytes() != (tmp_path / "base" / file).read_bytes()


def test_samples_without_a_folder_to_write_to_lie_apart_from_those_of_training(
    trained: Callable[[str], Trained],
) -> None:
    run = trained("lora")
    words = ["sample", "runs/run", "--prompt", "a fox", "--steps", "1", "--size", "32x32", "--seed", "7"]
    with chdir(run.home):
        assert cli.main(words) == 0
        assert cli.main([*words, "--base"]) == 0
        assert cli.main(["report", "runs/run"]) == 0
    (step,) = {int(path.name.removeprefix("step-")) for path in run.folder.glob("checkpoints/step-*")}
    written = {path.name for path in (run.folder / "samples/manual").iterdir()}
    assert written == {f"step-{step}-seed-7", "base-seed-7"}
