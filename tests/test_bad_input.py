"""A mistake is one message with place, value and way out, exit code 2, and nothing half-written."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import av
import pytest
import torch
from forked import Forked, run
from safetensors.torch import load_file, save_file

from omnitune.callbacks import record
from omnitune.checkpoint import newest
from omnitune.cli import machine_message
from omnitune.commands.train import train_on
from omnitune.errors import UserError
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.run_folder import locked
from omnitune.testing.runs import ended, start

if TYPE_CHECKING:
    from core_fixtures import Workplace

pytest_plugins = ["core_fixtures"]

RUN = """\
model: {family: wan, path: wan, dtype: float32}
trainable: {lora: {rank: 2}}
data:
  sources: [{path: clips}]
  buckets: {frames: [1, 5], sizes: [16x16]}
  batch_size: 2
schedule: {steps: 2}
"""


@pytest.fixture
def place(empty_workplace: "Workplace") -> "Workplace":
    """A workplace with a model of its own, which may be damaged."""
    shutil.copytree(empty_workplace.model, "wan")
    empty_workplace.write(RUN)
    for i, name in enumerate(("fox.mp4", "boat.mp4", "apple.png")):
        empty_workplace.add(name, seed=i)
    return empty_workplace


@pytest.fixture(scope="module")
def finished(tiny_wan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run was trained."""
    from core_fixtures import Workplace

    done = Workplace(tmp_path_factory.mktemp("finished"), tiny_wan)
    shutil.copytree(tiny_wan, done.root / "wan")
    done.write(RUN)
    for i, name in enumerate(("fox.mp4", "boat.mp4", "apple.png")):
        done.add(name, seed=i)
    assert run("train", "run.yaml", cwd=done.root).code == 0
    return done.root


@pytest.fixture
def trained(place: "Workplace", finished: Path) -> "Workplace":
    """The workplace, with the run trained in it."""
    for name in ("runs", ".cache"):
        shutil.copytree(finished / name, place.root / name, symlinks=True)
    return place


def written(place: "Workplace") -> dict[Path, bytes]:
    """Everything in run folders."""
    files = [path for path in Path("runs").glob("*/**/*") if path.is_file()]
    return {path: path.read_bytes() for path in files}


def refused(place: "Workplace", *words: str) -> str:
    """What a run that must not start writes to stderr."""
    before = written(place)
    done = run("train", "run.yaml", *words, cwd=place.root)
    assert (done.code, done.out) == (2, ""), done.err
    assert written(place) == before
    return done.err


# The configuration


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "batch_size: 2",
            "batch_sise: 2",
            "run.yaml:6: data.batch_sise is not an option; did you mean batch_size?",
        ),
        (
            "batch_size: 2",
            "batch_size: two",
            "run.yaml:6: data.batch_size: input should be a valid integer, not 'two'",
        ),
        (
            "{lora: {rank: 2}}",
            "\n  - {params: transformer}\n  - {params: transformer.blokcs}",
            "run.yaml:4: trainable.1: 'transformer.blokcs' matches no parameter; nearest: "
            "transformer.blocks, transformer.blocks.1, transformer.blocks.0",
        ),
        (
            "{lora: {rank: 2}}",
            "\n  - {params: transformer}\n  - {params: transformer.blocks.0}",
            "run.yaml:4: trainable.1: all that 'transformer.blocks.0' matches is taken by trainable.0 "
            "('transformer'); put it before that",
        ),
        (
            "{lora: {rank: 2}}",
            "[{params: vae.encoder, lora: {rank: 2}}]",
            "run.yaml:2: trainable.0.lora: the published pipeline of wan loads no LoRA for vae, only for "
            "transformer; train that part without lora",
        ),
        (
            "[16x16]",
            "[20x16]",
            "run.yaml:5: data.buckets.sizes: 20x16 is not in multiples of 16; the nearest is 16x16",
        ),
        ("[1, 5]", "[1, 6]", "run.yaml:5: data.buckets.frames: 6 is not 4 * k + 1; the nearest is 5"),
        (
            "path: wan",
            "path: ./gone",
            "run.yaml:1: model.path: './gone' is no folder; give a folder with model_index.json or a hub id",
        ),
        (
            "family: wan",
            "family: wann",
            "run.yaml:1: model.family: 'wann' is not a family; did you mean wan? (or name your own as "
            "package.module:Class)",
        ),
        (
            "dtype: float32",
            "options: {text_len: 3}",
            "run.yaml:1: model.options.text_len: is not an option "
            "(options of this family: text_length, fold_padding)",
        ),
        (
            "path: clips",
            "path: gone",
            "run.yaml:4: data.sources: gone: does not exist (looked for {root}/gone)",
        ),
        (
            "schedule:",
            "parallel: {micro_batch_size: 3}\nschedule:",
            "run.yaml:7: parallel.micro_batch_size: 3 is above data.batch_size 2, which is what the "
            "optimizer sees over all devices; raise that or lower this",
        ),
        (
            "schedule:",
            "validation: {size: 20x16}\nschedule:",
            "run.yaml:7: validation.size: 1x20x16 is not a size that wan takes; the nearest is 1x16x16",
        ),
        (
            "schedule:",
            "objective: {name: epsilon}\nschedule:",
            "run.yaml:7: objective.name: family wan is a flow model; use flow_matching",
        ),
        (
            "schedule:",
            "init_from: gone\nschedule:",
            "run.yaml:7: init_from: gone is not there; give a LoRA file or a folder that `export` wrote",
        ),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_line(
    place: "Workplace", old: str, new: str, message: str
) -> None:
    assert RUN.count(old) == 1
    place.write(RUN.replace(old, new))
    assert refused(place) == message.replace("{root}", str(place.root)) + "\n"
    assert not Path("runs/run").exists()


def test_a_mistake_on_the_command_line_is_told_as_one(place: "Workplace") -> None:
    assert refused(place, "validation.size=20x16") == (
        "command line: validation.size: 1x20x16 is not a size that wan takes; the nearest is 1x16x16\n"
    )


# Every mistake at once

MANY = """\
model: {family: wan, path: wan, dtype: float32, options: {text_length: long}}
trainable:
  - {params: transformer, lora: {rank: 2}}
  - {params: transformer.blokcs}
  - {params: vae.decoder, lora: {rank: 2}}
objective: {name: epsilon}
data:
  sources: [{path: gone}]
  buckets: {frames: [1, 6], sizes: [20x16]}
validation: {size: 21x16x17}
init_from: lost
schedule: {steps: 2}
"""
MANY_MESSAGES = (
    "run.yaml:11: init_from: lost is not there; ",
    "run.yaml:1: model.options.text_length: input should be a valid integer, not 'long' ",
    "run.yaml:6: objective.name: family wan is a flow model; ",
    "run.yaml:9: data.buckets.frames: 6 is not 4 * k + 1; the nearest is 5",
    "run.yaml:9: data.buckets.sizes: 20x16 is not in multiples of 16; the nearest is 16x16",
    "run.yaml:10: validation.size: 21x16x17 is not a size that wan takes; the nearest is 21x16x16",
    "run.yaml:5: trainable.2.lora: the published pipeline of wan loads no LoRA for vae, ",
    "run.yaml:4: trainable.1: 'transformer.blokcs' matches no parameter; ",
    "run.yaml:8: data.sources: gone: does not exist (",
)


def assert_lines(text: str, starts: tuple[str, ...]) -> None:
    lines = text.splitlines()
    assert len(lines) == len(starts), text
    for line, begin in zip(lines, starts, strict=True):
        assert line.startswith(begin)


@pytest.mark.parametrize("command", ["train", "check", "plan", "cache"])
def test_mistakes_of_every_part_are_told_at_once(place: "Workplace", command: str) -> None:
    place.write(MANY)
    done = run(command, "run.yaml", cwd=place.root)
    assert (done.code, done.out) == (2, "")
    assert_lines(done.err, MANY_MESSAGES)
    assert not Path("runs/run").exists()


@pytest.mark.parametrize("command", ["train", "check", "plan"])
def test_a_missing_model_does_not_hide_a_missing_source(place: "Workplace", command: str) -> None:
    place.write(RUN.replace("path: wan", "path: ./lost").replace("path: clips", "path: gone"))
    done = run(command, "run.yaml", cwd=place.root)
    assert (done.code, done.out) == (2, "")
    assert_lines(
        done.err, ("run.yaml:1: model.path: './lost' is no folder", "run.yaml:4: data.sources: gone: ")
    )


def test_a_rule_without_effect_does_not_hide_what_is_wrong_with_the_data(place: "Workplace") -> None:
    place.write(
        RUN.replace("{lora: {rank: 2}}", "[{params: transformer.blokcs}]").replace("[1, 5]", "[1, 9]")
    )
    assert_lines(
        refused(place),
        (
            "run.yaml:2: trainable.0: 'transformer.blokcs' matches no parameter; ",
            "run.yaml:3: data.short: error: 2 clips are too short",
            "  clips/metadata.jsonl:1: clips/fox.mp4",
            "  clips/metadata.jsonl:2: clips/boat.mp4",
        ),
    )


def test_ranks_that_cannot_be_filled_do_not_hide_other_mistakes(trained: "Workplace") -> None:
    changed = RUN.replace("batch_size: 2", "batch_size: 1") + "parallel: {replicate: 3}\n"
    trained.write(changed.replace("path: clips", "path: gone"))
    expected = (
        "run.yaml:8: parallel: replicate 3 x shard -1 does not fill ",
        "run.yaml:6: data.batch_size: runs/run holds a run that learns something else ",
        "run.yaml:4: data.sources: gone: does not exist",
    )
    assert_lines(refused(trained), expected)
    assert_lines(refused_by_two(trained), expected)


def test_check_tells_of_broken_files_and_missing_weights_at_once(place: "Workplace") -> None:
    damage_a_frame(place.clips / "fox.mp4")
    for name in ("transformer", "vae"):
        Path(f"wan/{name}/diffusion_pytorch_model.safetensors").unlink()
    done = run("check", "run.yaml", cwd=place.root)
    assert (done.code, done.out) == (2, "")
    assert_lines(
        done.err,
        (
            f"{place.clips}/fox.mp4: frame ",
            "run.yaml:1: model.path: wan/transformer/diffusion_pytorch_model.safetensors is missing",
            "run.yaml:1: model.path: wan/vae/diffusion_pytorch_model.safetensors is missing",
        ),
    )


# The data


def damage_a_frame(path: Path) -> None:
    """Overwrite the last packet: the file opens, and its first frame can be decoded."""
    with av.open(str(path)) as container:
        last = [packet for packet in container.demux(video=0) if packet.size][-1]
        place, size = last.pos, last.size
    whole = bytearray(path.read_bytes())
    whole[place : place + size] = b"\xff" * size
    path.write_bytes(whole)


DAMAGED = r"{root}/clips/fox\.mp4: frame \d cannot be decoded \(.+\); replace the file or remove it\n"


@pytest.mark.parametrize("cache", [".cache", "null"])
def test_a_clip_with_a_damaged_frame_is_named(place: "Workplace", cache: str) -> None:
    damage_a_frame(place.clips / "fox.mp4")
    place.remove("boat.mp4", "apple.png")
    done = run("train", "run.yaml", f"data.cache={cache}", cwd=place.root)
    assert done.code == 2
    assert re.fullmatch(DAMAGED.format(root=place.root), done.err)
    assert not list(Path("runs").rglob("checkpoints"))
    if cache != "null":  # without it, the run starts before the clip is read
        assert not Path("runs/run").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


UNREADABLE = "cannot be read as a video (Invalid data found when processing input); replace it or remove it"


@pytest.mark.parametrize(
    ("name", "line", "spoil", "message"),
    [
        ("fox.mp4", 1, cut, UNREADABLE),
        (
            "fox.mp4",
            1,
            empty,
            UNREADABLE.replace("Invalid data found when processing input", "Invalid argument"),
        ),
        (
            "apple.png",
            3,
            empty,
            "cannot be read as a picture (no format is recognised); replace it or remove it",
        ),
    ],
)
def test_a_file_that_cannot_be_opened_is_named_with_its_line(
    place: "Workplace", name: str, line: int, spoil: Callable[[Path], None], message: str
) -> None:
    path = place.clips / name
    spoil(path)
    told = f"clips/metadata.jsonl:{line}: {path}: {message}\n"
    assert refused(place) == told
    assert not Path("runs/run").exists()


def test_a_missing_caption_is_told_with_its_line(place: "Workplace") -> None:
    table = place.clips / "metadata.jsonl"
    table.write_text(table.read_text().replace(', "caption": "a boat"', ""))
    assert refused(place) == (
        "clips/metadata.jsonl:2: the caption is missing; add one of caption, text, prompt\n"
    )


def test_a_file_without_a_caption_beside_it_is_named(place: "Workplace") -> None:
    (place.clips / "metadata.jsonl").unlink()
    for name in ("fox", "apple"):
        (place.clips / f"{name}.txt").write_text("a caption")
    assert refused(place) == (
        "clips/boat.mp4: has no caption; write one to clips/boat.txt or name the file in metadata.jsonl\n"
    )


def test_clips_shorter_than_the_bucket_are_listed_with_what_can_be_done(place: "Workplace") -> None:
    place.write(RUN.replace("[1, 5]", "[1, 9]"))
    assert refused(place) == (
        "run.yaml:3: data.short: error: 2 clips are too short for data.buckets.frames; set it to skip, "
        "loop, hold or "
        "shorter, or put a smaller count into data.buckets.frames:\n"
        "  clips/metadata.jsonl:1: clips/fox.mp4: 5 of the 9 frames needed at 8 fps\n"
        "  clips/metadata.jsonl:2: clips/boat.mp4: 5 of the 9 frames needed at 8 fps\n"
    )


def test_data_of_which_nothing_is_left_are_told(place: "Workplace") -> None:
    place.remove("boat.mp4", "apple.png")
    place.write(RUN.replace("[1, 5]", "[9]").replace("batch_size", "short: skip\n  batch_size"))
    assert refused(place) == (
        "run.yaml:4: data.sources: no sample is left to train on; 1 clip is too short and left out "
        "(data.short: skip): clips/fox.mp4: 5 of the 9 frames needed at 8 fps\n"
    )


# The model


def test_a_missing_weight_file_is_named(place: "Workplace") -> None:
    Path("wan/text_encoder/model.safetensors").unlink()
    assert refused(place) == (
        "run.yaml:1: model.path: wan/text_encoder/model.safetensors is missing; "
        "copy the weights there or fetch the model again\n"
    )
    assert not Path("runs/run").exists()


def configure(component: str, **values: object) -> None:
    file = Path("wan", component, "config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def with_larger_vocabulary() -> None:
    file = Path("wan/tokenizer/tokenizer.json")
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"] += [[f"word{i}", -9.0] for i in range(600)]
    file.write_text(json.dumps(tokenizer))


def with_empty_vocabulary() -> None:
    file = Path("wan/tokenizer/tokenizer.json")
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"] = tokenizer["model"]["vocab"][:4]
    file.write_text(json.dumps(tokenizer))


def in_two_shards(lost: str | None = None) -> None:
    """Write the transformer as two files and their index, and lose a tensor."""
    file = Path("wan/transformer/diffusion_pytorch_model.safetensors")
    tensors = load_file(file)
    file.unlink()
    tensors.pop(lost or "", None)
    keys, index = sorted(tensors), {}
    for i, part in enumerate((keys[::2], keys[1::2])):
        shard = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, file.with_name(shard), {"format": "pt"})
        index |= dict.fromkeys(part, shard)
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


@pytest.mark.parametrize(
    ("spoil", "start", "end"),
    [
        (
            lambda: cut(Path("wan/vae/diffusion_pytorch_model.safetensors")),
            "wan/vae/diffusion_pytorch_model.safetensors cannot be loaded: ",
            "; fetch it again",
        ),
        (
            lambda: shutil.rmtree("wan/tokenizer"),
            "wan/tokenizer/tokenizer.json is missing; ",
            "copy the vocabulary there or fetch the model again",
        ),
        (
            lambda: Path("wan/tokenizer/tokenizer.json").unlink(),
            "wan/tokenizer/tokenizer.json is missing; ",
            "copy the vocabulary there or fetch the model again",
        ),
        (
            lambda: cut(Path("wan/tokenizer/tokenizer.json")),
            "wan/tokenizer/tokenizer.json is not JSON (",
            "; fetch it again",
        ),
        (
            with_empty_vocabulary,
            "wan/tokenizer/tokenizer.json has 4 tokens, all but 1 of them special; ",
            "fetch the model again",
        ),
        (
            with_larger_vocabulary,
            "wan/tokenizer/tokenizer.json has 6",
            "copy the tokenizer of this model there",
        ),
        (
            lambda: shutil.rmtree("wan/scheduler"),
            "wan/scheduler/scheduler_config.json is missing; ",
            "the model is incomplete",
        ),
        (
            lambda: configure("transformer", num_layers=3),
            "wan/transformer lacks blocks.2.",
            "which its configuration asks for; fetch the model again, with its own config.json",
        ),
        (
            lambda: configure("transformer", num_layers=1),
            "wan/transformer has blocks.1.",
            "of which its configuration knows nothing; fetch the model again, with its own config.json",
        ),
        (
            lambda: configure("text_encoder", d_ff=40),
            "wan/text_encoder lacks encoder.block.0.layer.1.DenseReluDense.wi_0.weight of (40, 32) (",
            "fetch the model again, with its own config.json",
        ),
        (
            lambda: in_two_shards("blocks.1.ffn.net.2.bias"),
            "wan/transformer lacks blocks.1.ffn.net.2.bias of (24,) (1 such), ",
            "fetch the model again, with its own config.json",
        ),
        (
            lambda: Path("wan/model_index.json").write_text("[]"),
            "wan/model_index.json holds a list where an object belongs; ",
            "fetch it again",
        ),
    ],
)
def test_check_and_train_refuse_a_model_that_is_incomplete(
    place: "Workplace", spoil: Callable[[], None], start: str, end: str
) -> None:
    spoil()
    told = refused(place, "validation={prompts: [a fox], steps: 1, size: 16x16}")
    assert told.startswith(f"run.yaml:1: model.path: {start}"), told
    assert told.endswith(f"{end}\n"), told
    assert told.count("\n") == 1
    assert not Path("runs/run").exists()
    assert not [path for path in Path(".cache").glob("*") if path.is_dir()], "a stage was cached"
    checked = run("check", "run.yaml", cwd=place.root)
    assert (checked.code, checked.err) == (2, told)


def test_a_model_in_shards_is_whole(place: "Workplace") -> None:
    in_two_shards()
    assert run("check", "run.yaml", cwd=place.root).code == 0


@pytest.mark.parametrize("path", ["gone/", "my models/wan"])
def test_a_missing_folder_that_is_no_hub_id_is_named(place: "Workplace", path: str) -> None:
    assert refused(place, f"model.path={path}") == (
        f"command line: model.path: {path!r} is no folder; give a folder with model_index.json or a hub id\n"
    )


@pytest.mark.parametrize("file", ["model_index.json", "vae/config.json"])
def test_a_configuration_that_is_missing_or_damaged_is_named(place: "Workplace", file: str) -> None:
    path = Path("wan") / file
    cut(path)
    assert refused(place).startswith(f"run.yaml:1: model.path: wan/{file} is not JSON (")
    path.unlink()
    assert refused(place).startswith(f"run.yaml:1: model.path: wan/{file} is missing; ")


# A run that is there already


def test_a_folder_whose_run_learns_something_else_is_refused(trained: "Workplace") -> None:
    trained.write(RUN.replace("batch_size: 2", "batch_size: 1"))
    assert refused(trained) == (
        "run.yaml:6: data.batch_size: runs/run holds a run that learns something else (data.batch_size 2 "
        "there, "
        "1 here); choose another name=, delete that folder, or go back to its settings\n"
    )


def test_data_that_changed_since_the_checkpoint_are_named(trained: "Workplace") -> None:
    trained.captions["fox.mp4"] = "a vixen"
    trained.remove("boat.mp4")
    trained.add("new.png")
    assert refused(trained, "schedule.steps=4") == (
        "run.yaml:4: data.sources: the data is not what runs/run was trained on (changed: clips/fox.mp4; "
        "gone: clips/boat.mp4; new: clips/new.png); bring it back, or start another run with name=, "
        "from this one's weights by init_from=runs/run/weights\n"
    )


def test_changed_data_are_refused_without_the_list_of_those_before(trained: "Workplace") -> None:
    trained.add("new.png")
    Path("runs/run/data.jsonl").unlink()
    assert refused(trained, "schedule.steps=4") == (
        "run.yaml:4: data.sources: the data is not what runs/run was trained on, and runs/run/data.jsonl, "
        "which tells the difference, is missing; bring the data back, or start another run with name=\n"
    )


def test_base_weights_that_changed_since_the_checkpoint_are_named(trained: "Workplace") -> None:
    config = Path("wan/transformer/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eps": 1e-5}))
    assert refused(trained, "schedule.steps=4") == (
        "run.yaml:1: model.path: the weights at wan are not those that runs/run was started from; "
        "bring those back, or start another run with name=\n"
    )


def test_a_run_folder_that_another_process_holds_is_refused(trained: "Workplace") -> None:
    with locked(Path("runs/run")):
        assert refused(trained) == (
            "runs/run: another run trains here; wait for it, or choose another name=\n"
        )


def test_a_refused_run_can_be_put_right_and_trained(place: "Workplace") -> None:
    place.write(RUN.replace("[16x16]", "[20x16]"))
    refused(place)
    place.write(RUN)
    assert run("train", "run.yaml", cwd=place.root).code == 0


# The machine


def test_a_path_that_is_of_another_kind_is_named(place: "Workplace") -> None:
    Path("runs").write_text("no folder")
    assert refused(place) == "runs: File exists; make it readable and writable, or name another\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "lower data.num_workers"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "lower data.num_workers"),
        (RuntimeError("[/x/third_party/gloo/pair.cc:1] Connection reset by peer"), "another rank was lost: "),
        (RuntimeError("Connection closed by peer [127.0.0.1]:1"), "another rank was lost: "),
        (torch.distributed.DistBackendError("NCCL error"), "another rank was lost: "),
        (ValueError("objective: no 'gloo'"), None),
        (RuntimeError("gloopy shapes do not match"), None),
    ],
)
def test_failures_of_the_machine_are_told_from_bugs(error: Exception, message: str | None) -> None:
    found = machine_message(error)
    assert found is None if message is None else found and message in found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--steps", "0"), "--steps must be 1 or more, not 0\n"),
        (("--guidance", "nan"), "--guidance must be a finite number, not nan\n"),
        (("--size", "²x32"), "--size: '²x32' is not a size; write HEIGHTxWIDTH or FRAMESxHEIGHTxWIDTH\n"),
    ],
)
def test_a_wrong_number_of_sample_is_told(trained: "Workplace", words: tuple[str, ...], message: str) -> None:
    done = run("sample", "runs/run", "--prompt", "a fox", *words, cwd=trained.root)
    assert (done.code, done.out, done.err) == (2, "", message)


def test_captions_that_hold_line_separators_are_read_back(place: "Workplace") -> None:
    """U+2028 and U+0085 end a line of text, but not one of data.jsonl."""
    place.add("fox.mp4", "a fox\u2028red\x85brown")
    assert run("train", "run.yaml", cwd=place.root).code == 0
    done = run("sample", "runs/run", "--prompt", "a fox", "--steps", "1", cwd=place.root)
    assert done.code == 0, done.err
    place.add("new.png")
    assert "is not what runs/run was trained on (new: clips/new.png)" in refused(place, "schedule.steps=4")


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_that_diverges_ends_and_saves_no_step_that_is_not_finite(
    place: "Workplace", ranks: int
) -> None:
    words = ["data.cache=.cache", "checkpoint.every=1", "schedule.steps=50", "optimizer.lr=1e30"]
    done = run("train", "run.yaml", *words, cwd=place.root, ranks=ranks)
    assert done.code == 2, done.err
    told = re.fullmatch(
        r"(?s:.*)command line: optimizer\.lr: training diverged: step (\d+) has loss (\S+) and gradient norm "
        r"(\S+); lower optimizer\.lr or raise schedule\.warmup, in another run with name= "
        r"\(the checkpoint of step (\d+) is intact\)\n",
        done.err,
    )
    assert told, done.err
    assert done.err.count("diverged") == 1
    step, loss, norm, kept = told.groups()
    assert not (math.isfinite(float(loss)) and math.isfinite(float(norm)))
    assert int(kept) == int(step) - 1
    saved, notes = newest(Path("runs/run/checkpoints"))
    assert (saved and saved.step, notes) == (int(kept), [])
    assert not Path("runs/run/weights").exists()


def test_training_that_diverges_ends_long_before_its_next_checkpoint(
    place: "Workplace", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "HOST_READ_SECONDS", 0.0)
    place.write(RUN.replace("steps: 2", "steps: 1000") + "optimizer: {lr: 1e30}\n")
    with pytest.raises(UserError, match=r"training diverged: step \d has .* \(none is saved\)"):
        train_on(place.run(), Mesh(Parallel()))
    assert len(Path("runs/run/metrics.jsonl").read_text().splitlines()) < 10
    assert not Path("runs/run/checkpoints").exists()


# Two processes


def refused_by_two(place: "Workplace", *words: str) -> str:
    """What a run of two processes that must not start writes to stderr."""
    before = written(place)
    done = ended(start("train", "run.yaml", "--nproc", "2", *words, cwd=place.root))
    assert (done.code, done.out) == (2, ""), done.err
    assert written(place) == before
    return done.err


def test_two_processes_tell_of_a_clip_that_one_of_them_cannot_decode_once(place: "Workplace") -> None:
    damage_a_frame(place.clips / "fox.mp4")
    assert re.fullmatch(DAMAGED.format(root=place.root), refused_by_two(place))
    assert not Path("runs/run").exists()


def test_two_processes_tell_of_a_rule_without_effect_once(place: "Workplace") -> None:
    place.write(RUN.replace("{lora: {rank: 2}}", "[{params: transformer.blokcs}]"))
    message = "run.yaml:2: trainable.0: 'transformer.blokcs' matches no parameter; nearest: "
    found = refused_by_two(place)
    assert found.startswith(message)
    assert found.count("\n") == 1


@pytest.mark.slow
def test_two_processes_tell_of_a_missing_weight_file_once(place: "Workplace") -> None:
    Path("wan/transformer/diffusion_pytorch_model.safetensors").unlink()
    assert refused_by_two(place) == (
        "run.yaml:1: model.path: wan/transformer/diffusion_pytorch_model.safetensors is missing; "
        "copy the weights there or fetch the model again\n"
    )


@pytest.mark.slow
def test_two_processes_tell_of_changed_data_once(trained: "Workplace") -> None:
    trained.add("new.png")
    found = refused_by_two(trained, "schedule.steps=4")
    assert found.startswith("run.yaml:4: data.sources: the data is not what runs/run was trained on (new: ")
    assert found.count("\n") == 1


def test_two_processes_tell_of_a_micro_batch_that_is_too_large_once(place: "Workplace") -> None:
    assert refused_by_two(place, "parallel.micro_batch_size=3").startswith(
        "command line: parallel.micro_batch_size: 3 is above data.batch_size 2"
    )


# Ranks that another launcher started


def refused_under_torchrun(place: "Workplace", *words: str) -> str:
    """What two ranks of torchrun that must not start write to stderr, without what torchrun writes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "omnitune.cli", "train", "run.yaml", *words],
        cwd=place.root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "exitcode  : 2 " in done.stderr, done.stderr
    return done.stderr.split("torch/distributed/", 1)[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size: 2", "batch_sise: 2", "run.yaml:6: data.batch_sise is not an option"),
        pytest.param(
            "{lora: {rank: 2}}",
            "[{params: transformer.blokcs}]",
            "run.yaml:2: trainable.0: 'transformer.blokcs'",
            marks=pytest.mark.slow,
        ),
        ("schedule:", "parallel: {replicate: 3}\nschedule:", "run.yaml:7: parallel: replicate 3 x shard -1"),
    ],
)
def test_ranks_of_torchrun_tell_of_a_mistake_once(
    place: "Workplace", old: str, new: str, message: str
) -> None:
    place.write(RUN.replace(old, new))
    told = refused_under_torchrun(place)
    assert told.count(message) == 1
    assert "omnitune/" not in told  # no traceback of ours


def test_a_mistake_of_one_rank_is_told_by_it_or_for_it(place: "Workplace") -> None:
    ranks = Forked("train", "run.yaml", cwd=place.root, ranks=2, own={1: ["data.batch_size=two"]})
    done = ranks.wait(60)
    assert done.code == 2
    assert done.err == "command line: data.batch_size: input should be a valid integer, not 'two'\n"


def test_a_clip_that_one_rank_cannot_decode_while_training_ends_all_at_once(place: "Workplace") -> None:
    damage_a_frame(place.clips / "fox.mp4")
    ranks = Forked("train", "run.yaml", "data.cache=null", cwd=place.root, ranks=2)
    done = ranks.wait(60)
    assert [process.exitcode for process in ranks.processes] == [2, 2]
    told = [line for line in done.err.splitlines(keepends=True) if not line.startswith("step ")]
    assert re.fullmatch(DAMAGED.format(root=place.root), "".join(told))
