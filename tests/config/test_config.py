"""YAML becomes a run, or one message with every mistake and its line."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from omnitune import config
from omnitune.callbacks.ema import Ema
from omnitune.checkpoint import Checkpoints
from omnitune.conditions.caption_dropout import CaptionDropout
from omnitune.config.identity import flat, learned_settings
from omnitune.config.run import Run
from omnitune.config.validate import NEEDS
from omnitune.config.yaml import Loader
from omnitune.errors import UserError
from omnitune.objectives.diffusion import DynamicShift, Epsilon, FlowMatching, VPrediction
from omnitune.optim import Adam, AdamW
from omnitune.trainable.rules import Lora, LoraEverywhere, Rule

ROOT = Path(__file__).parents[2]

BASE = """\
model: {family: wan, path: models/wan}
trainable:
  - {params: transformer.blocks.*.attn*, lr: 1e-4, lora: {rank: 32}}
data:
  sources: [{path: clips}]
  buckets:
    frames: [1, 49]
    area: 480x832
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("run.yaml")


def load(file: Path, text: str = BASE, *overrides: str) -> Run:
    file.write_text(text)
    return config.load(file, overrides)[0]


def mistakes(file: Path, text: str = BASE, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(file, text, *overrides)
    return str(caught.value).split("\n")


# What is right


def test_a_run_has_what_the_file_says_and_defaults_for_the_rest(file: Path) -> None:
    run = load(file)
    assert run.trainable == [Rule(params="transformer.blocks.*.attn*", lr=1e-4, lora=Lora(rank=32))]
    assert (run.data.sources[0].path, run.data.buckets.frames) == (Path("clips"), [1, 49])
    assert (run.objective, run.optimizer, run.seed) == (FlowMatching(), AdamW(), 0)


def test_a_run_is_named_after_its_file_unless_it_says_otherwise(file: Path) -> None:
    assert load(file).name == "run"
    assert load(file, BASE + "name: other").name == "other"


@pytest.mark.parametrize(
    ("spelled", "value"), [("1e-4", 1e-4), ("1.5E+3", 1500.0), ("-2e2", -200.0), (".5e1", 5.0)]
)
def test_a_number_with_an_exponent_and_no_dot_is_a_number(file: Path, spelled: str, value: float) -> None:
    run = load(file, BASE + f"objective: {{name: flow_matching, logit_mean: {spelled}}}")
    assert isinstance(run.objective, FlowMatching)
    assert run.objective.logit_mean == value


@pytest.mark.parametrize(
    ("text", "trainable"),
    [
        ("trainable: full", "full"),
        (
            "trainable: {lora: {rank: 8, alpha: 4}, lr: 1e-3}",
            LoraEverywhere(lora=Lora(rank=8, alpha=4.0), lr=1e-3),
        ),
        ("trainable: [{params: [a, b]}]", [Rule(params=["a", "b"])]),
    ],
)
def test_trainable_has_three_spellings(file: Path, text: str, trainable: object) -> None:
    lines = BASE.splitlines(keepends=True)
    assert load(file, "".join([*lines[:1], text + "\n", *lines[3:]])).trainable == trainable


def test_components_are_chosen_by_name(file: Path) -> None:
    run = load(
        file,
        BASE + "objective: {name: v_prediction, min_snr_gamma: 5}\noptimizer: {name: adam, lr: 1e-5}\n"
        "conditions: [{name: caption_dropout, probability: 0.2}]",
    )
    assert run.objective == VPrediction(min_snr_gamma=5)
    assert run.optimizer == Adam(lr=1e-5)
    assert run.conditions == [CaptionDropout(probability=0.2)]


def test_without_a_name_a_section_is_of_its_default_kind(file: Path) -> None:
    assert load(file, BASE, "optimizer.lr=1e-5").optimizer == AdamW(lr=1e-5)
    assert load(file, BASE + "objective: {shift: 3}").objective == FlowMatching(shift=3)


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ("{bas: 1}", "objective.shift.bas is not an option; did you mean base?"),
        ("{base: x}", "objective.shift.base: input should be a valid number, not 'x'"),
        ("{max_tokens: 3}", "objective.shift: max_tokens must be above base_tokens (256), not 3"),
        (
            "big",
            "objective.shift: input should be a valid number, not 'big', "
            "or input should be a mapping, not 'big'",
        ),
    ],
)
def test_a_malformed_shift_is_told_as_what_it_was_meant_to_be(file: Path, shift: str, message: str) -> None:
    assert mistakes(file, BASE + f"objective: {{shift: {shift}}}") == [f"run.yaml:9: {message}"]


def test_an_alias_stands_for_what_it_names(file: Path) -> None:
    line = "  - {params: transformer.blocks.*.attn*, lr: 1e-4, lora: {rank: 32}}\n"
    twice = "  - &a {params: a, lr: 1e-4}\n  - {<<: *a, lr: 1e-5}\n"
    run = load(file, BASE.replace(line, twice))
    assert run.trainable == [Rule(params="a", lr=1e-4), Rule(params="a", lr=1e-5)]


def test_an_override_changes_one_of_the_places_that_an_alias_names(file: Path) -> None:
    line = "  - {params: transformer.blocks.*.attn*, lr: 1e-4, lora: {rank: 32}}\n"
    twice = "  - {params: a, lora: &l {rank: 32}}\n  - {params: b, lora: *l}\n"
    run = load(file, BASE.replace(line, twice), "trainable.0.lora.rank=4")
    assert run.trainable == [Rule(params="a", lora=Lora(rank=4)), Rule(params="b", lora=Lora(rank=32))]


@pytest.mark.parametrize("text", ["ema: &x {decay: *x}", "ema: &x [*x]", "ema: &x {<<: *x}"])
def test_an_alias_within_what_it_names_is_refused(file: Path, text: str) -> None:
    message = "run.yaml:9: an alias (*) stands within what it names (&); spell it out"
    assert mistakes(file, BASE + text) == [message]


def test_a_shift_is_a_number_or_grows_with_tokens(file: Path) -> None:
    run = load(file, BASE + "objective: {name: flow_matching, shift: {max: 2}}")
    assert run.objective == FlowMatching(shift=DynamicShift(max=2.0))


# Mistakes


def test_every_mistake_is_told_at_once_with_its_line(file: Path) -> None:
    text = """\
model: {family: wan, path: models/wan, dtype: int4}
trainable: {lora: {rank: 0}}
data:
  sources: [{path: clips}]
  buckets: {frames: [1, many]}
  batch_sise: 8
objective:
  name: flow_matching
  shfit: 3
schedule: {steps: 10, warmup: 10}
tracing: {draws: true}
"""
    assert sorted(mistakes(file, text)) == sorted(
        [
            "run.yaml:1: model.dtype: input should be 'float32' or 'bfloat16', not 'int4'",
            "run.yaml:2: trainable.lora: rank must be 1 or more, not 0",
            "run.yaml:5: data.buckets.frames.1: input should be a valid integer, not 'many'",
            "run.yaml:6: data.batch_sise is not an option; did you mean batch_size?",
            "run.yaml:9: objective.shfit is not an option; did you mean shift?",
            "run.yaml:10: schedule: warmup must be at least 0 and below steps (10), not 10",
            "run.yaml:11: tracing is not an option; did you mean tracking?",
        ]
    )


def test_missing_keys_are_told_where_they_belong(file: Path) -> None:
    assert mistakes(file, "model: {family: wan}\ntrainable: full\n") == [
        "run.yaml:1: model.path is missing",
        "run.yaml:1: data is missing",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "objective: {name: flow}",
            "run.yaml:9: objective.name is 'flow'; choose from flow_matching, epsilon, v_prediction, "
            "causal_lm, package.module:Class",
        ),
        (
            "optimizer: {name: sgd}",
            "run.yaml:9: optimizer.name is 'sgd'; choose from adamw, adam, package.module:Class",
        ),
        (
            "optimizer: {name: null}",
            "run.yaml:9: optimizer.name is 'None'; choose from adamw, adam, package.module:Class",
        ),
        (
            "seed: yes please",
            "run.yaml:9: seed: input should be a valid integer, not 'yes please'",
        ),
        (
            "schedule: {steps: 1.5}",
            "run.yaml:9: schedule.steps: input should be a valid integer, not 1.5",
        ),
        ("parallel: {replicate: 0}", "run.yaml:9: parallel: replicate must be 1 or more, not 0"),
        (
            "parallel: {shard: 0}",
            "run.yaml:9: parallel: shard must be 1 or more, or -1 for all devices, not 0",
        ),
        (
            "parallel: {micro_batch_size: 0}",
            "run.yaml:9: parallel: micro_batch_size must be 1 or more, not 0",
        ),
        ("validation: {fps: 0}", "run.yaml:9: validation: fps must be above 0, not 0.0"),
        ("ema: {decay: 1}", "run.yaml:9: ema: decay must be in (0, 1), not 1.0"),
        ("checkpoint: {keep: 0}", "run.yaml:9: checkpoint: keep must be 1 or more, or null for all, not 0"),
        (
            "conditions: [{name: caption_dropout, probability: 2}]",
            "run.yaml:9: conditions.0: probability must be in [0, 1], not 2.0",
        ),
        (
            "name: ../elsewhere",
            "run.yaml:9: name: '../elsewhere' cannot name a folder; use letters, digits, - and _",
        ),
        (
            "objective: {name: epsilon, shift: 3}",
            "run.yaml:9: objective.shift is not an option here; there is objective.shift of flow_matching",
        ),
        ("qqqq: 1", "run.yaml:9: qqqq is not an option; `omnitune init` and docs/config.md list the options"),
    ],
)
def test_a_mistake_has_its_line_its_value_and_a_way_out(file: Path, line: str, message: str) -> None:
    assert mistakes(file, BASE + line) == [message]


@pytest.mark.parametrize(
    ("line", "expected", "value"),
    [
        ("seed: true", "seed: input should be a valid integer", "True"),
        ("schedule: {steps: '10'}", "schedule.steps: input should be a valid integer", "'10'"),
        ("checkpoint: {every: 2.0}", "checkpoint.every: input should be a valid integer", "2.0"),
        ("ema: {decay: '0.9'}", "ema.decay: input should be a valid number", "'0.9'"),
        ("optimizer: {name: adamw, lr: true}", "optimizer.lr: input should be a valid number", "True"),
        ("tracking: {draws: 1}", "tracking.draws: input should be a valid boolean", "1"),
        ("ema: 3", "ema: input should be a mapping", "3"),
        ("validation: {prompts: fox}", "validation.prompts: input should be a list", "'fox'"),
        (
            "objective: {name: flow_matching, shift: true}",
            "objective.shift: input should be a valid number, not True, or input should be a mapping",
            "True",
        ),
    ],
)
def test_a_value_of_another_type_is_refused_not_converted(
    file: Path, line: str, expected: str, value: str
) -> None:
    assert mistakes(file, BASE + line) == [f"run.yaml:9: {expected}, not {value}"]


def test_options_of_a_family_are_not_converted_either() -> None:
    with pytest.raises(UserError, match=r"model\.options\.keep: input should be a valid integer, not '3'"):
        config.validate_options(Checkpoints, {"keep": "3"}, "model.options")


def test_whole_numbers_are_floats_lists_are_tuples_and_texts_are_paths(file: Path) -> None:
    run = load(
        file,
        BASE + "optimizer: {name: adamw, lr: 1, betas: [0, 0.9]}\ninit_from: 2026-01-31\n"
        "schedule: {decay: piecewise, pieces: [[0, 1], [3, 0.5]]}",
    )
    assert run.optimizer == AdamW(lr=1.0, betas=(0.0, 0.9))
    assert run.init_from == Path("2026-01-31")
    assert run.schedule.pieces == ((0, 1.0), (3, 0.5))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("!!binary aaaa", "the tag !!binary has no meaning here"),
        ('"\\ud800"', "a character that no text has"),
    ],
)
def test_what_no_text_file_can_hold_is_refused(file: Path, value: str, told: str) -> None:
    (mistake,) = mistakes(file, BASE + f"name: {value}")
    assert mistake.startswith("run.yaml:9: ")
    assert told in mistake


FLOW = "objective: {name: flow_matching, "


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            FLOW + "mode_scale: 1}",
            "objective.mode_scale: has no effect with timesteps logit_normal; remove it or set "
            "timesteps: mode",
        ),
        (
            FLOW + "timesteps: uniform, logit_mean: 1}",
            "objective.logit_mean: has no effect with timesteps uniform; remove it or set "
            "timesteps: logit_normal",
        ),
        (
            FLOW + "timesteps: mode, logit_std: 2}",
            "objective.logit_std: has no effect with timesteps mode; remove it or set "
            "timesteps: logit_normal",
        ),
        (
            "objective: {name: epsilon, huber_delta: 2}",
            "objective.huber_delta: has no effect with loss_type mse; remove it or set "
            "loss_type: huber or smooth_l1",
        ),
        (
            "schedule: {floor: 0.1}",
            "schedule.floor: has no effect with decay constant; remove it or set "
            "decay: linear or cosine or polynomial",
        ),
        (
            "schedule: {decay: linear, power: 3}",
            "schedule.power: has no effect with decay linear; remove it or set decay: polynomial",
        ),
        (
            "validation: {every: 5}",
            "validation.every: has no effect with prompts []; remove it or set prompts",
        ),
        (
            "conditions: [{name: caption_dropout}, {probability: 0.2}]",
            "conditions.1: caption_dropout stands here a second time; keep one",
        ),
    ],
)
def test_an_option_without_effect_is_refused(file: Path, line: str, message: str) -> None:
    assert mistakes(file, BASE + line) == [f"run.yaml:9: {message}"]


def test_variants_without_anything_random_are_refused(file: Path) -> None:
    assert mistakes(file, BASE, "data.variants=2") == [
        "command line: data.variants: has no effect with window head and crop center; remove it or set "
        "window: random or crop: random"
    ]
    assert load(file, BASE, "data.variants=2", "data.crop=random").data.variants == 2


def test_variants_without_a_cache_are_refused(file: Path) -> None:
    text = BASE + "  crop: random\n  variants: 2\n  cache: null\n"
    message = "run.yaml:10: data.variants: has no effect with cache None; remove it or set cache"
    assert mistakes(file, text) == [message]


@pytest.mark.parametrize(
    "line",
    [
        FLOW + "timesteps: mode, mode_scale: 1}",
        FLOW + "timesteps: uniform, mode_scale: 1.29, logit_std: 1}",
        FLOW + "loss_type: smooth_l1, huber_delta: 2}",
        "schedule: {decay: cosine, floor: 0.1}",
        "validation: {every: 5, prompts: [a fox]}",
        "validation: {steps: 5, size: 32x32, fps: 5}",
    ],
)
def test_an_option_with_effect_or_at_its_default_is_not(file: Path, line: str) -> None:
    load(file, BASE + line)


def test_options_that_need_another_exist() -> None:
    keys = flat(config.schema()["$defs"])
    for key, needs in NEEDS:
        section, name = key.split(".")
        for one in (name, *needs):
            assert any(f".properties.{one}." in k for k in keys), f"{section}.{one}"


def test_a_dynamic_shift_between_equal_counts_is_refused(file: Path) -> None:
    for most in (256, 255):
        (line,) = mistakes(file, BASE + FLOW + f"shift: {{max_tokens: {most}}}}}")
        assert line.startswith("run.yaml:9: objective.shift: ")
        assert line.endswith(f"max_tokens must be above base_tokens (256), not {most}")


def test_a_mistake_between_keys_is_placed_at_the_first_of_them(file: Path) -> None:
    text = BASE + "parallel:\n  micro_batch_size: 4\n"
    assert mistakes(file, text) == [
        "run.yaml:10: parallel.micro_batch_size: 4 is above data.batch_size 1, which is what the optimizer "
        "sees "
        "over all devices; raise that or lower this"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run.yaml:1: a run is a mapping of keys (model, data, trainable...), not NoneType"),
        ("- model", "run.yaml:1: a run is a mapping of keys (model, data, trainable...), not list"),
        ("a: 1\nb: [1\n", "run.yaml:3: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n\tb: 2\n", "run.yaml:2: not YAML: found character '\\t' that cannot start any token"),
        ("a: 1\nb: \x01", "run.yaml:2: not YAML: special characters are not allowed ('\\x01')"),
    ],
)
def test_what_is_no_yaml_mapping_is_told_with_its_line(file: Path, text: str, message: str) -> None:
    assert mistakes(file, text) == [message]


def test_a_file_that_is_not_there_is_told(file: Path) -> None:
    with pytest.raises(
        UserError, match=r"^run\.yaml: no such file; `omnitune init FAMILY > run\.yaml` writes one$"
    ):
        config.load(file)


def test_a_file_that_is_not_text_is_told(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"^run\.yaml: cannot be read: "):
        config.load(file)


def test_every_key_that_stands_twice_is_told(file: Path) -> None:
    text = BASE + "seed: 1\nschedule:\n  steps: 5\n  warmup: 1\n  steps: 6\nseed: 2\n"
    assert mistakes(file, text) == [
        "run.yaml:13: steps stands here a second time, first on line 11; keep one",
        "run.yaml:14: seed stands here a second time, first on line 9; keep one",
    ]


def test_later_mistakes_are_placed_by_the_names_they_start_with(file: Path) -> None:
    file.write_text(BASE)
    _, document = config.load(file, ["objective.shift=3", "objective.name=flow_matching"])
    placed = config.placed(
        document,
        "trainable.0: 'x' matches no parameter\ndata.buckets.sizes: 1x1 is wrong\nobjective.shift: no\n"
        "model.options.text_length: no\nclips/fox.mp4: is damaged\nsomething else: entirely",
    )
    assert placed.split("\n") == [
        "run.yaml:3: trainable.0: 'x' matches no parameter",
        "run.yaml:6: data.buckets.sizes: 1x1 is wrong",
        "command line: objective.shift: no",
        "run.yaml:1: model.options.text_length: no",
        "clips/fox.mp4: is damaged",
        "something else: entirely",
    ]


# The command line


def test_overrides_set_values_lists_and_keys_that_the_file_has_not(file: Path) -> None:
    run = load(
        file, BASE, "seed=7", "data.buckets.frames=[1, 5]", "trainable.0.lora.rank=4", "ema.decay=0.5",
        "trainable.0.lr=1e-3", "data.cache=null", "name=other",
    )  # fmt: skip
    assert (run.seed, run.data.buckets.frames, run.ema, run.data.cache, run.name) == (
        7, [1, 5], Ema(decay=0.5), None, "other",
    )  # fmt: skip
    assert run.trainable == [Rule(params="transformer.blocks.*.attn*", lr=1e-3, lora=Lora(rank=4))]


def test_a_later_override_wins(file: Path) -> None:
    assert load(file, BASE, "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.batch_size=many",
            "command line: data.batch_size: input should be a valid integer, not 'many'",
        ),
        ("data.batch_sise=1", "command line: data.batch_sise is not an option; did you mean batch_size?"),
        (
            "objective.name=flow",
            "command line: objective.name is 'flow'; choose from flow_matching, epsilon, v_prediction, "
            "causal_lm, package.module:Class",
        ),
        (
            "model.dtype=int4",
            "command line: model.dtype: input should be 'float32' or 'bfloat16', not 'int4'",
        ),
        ("model={family: wan, path: 3}", "command line: model.path: input should be a valid string, not 3"),
        ("parallel.replicate=0", "command line: parallel: replicate must be 1 or more, not 0"),
        ("trainable.5.lr=1", "command line: trainable.5.lr does not lead anywhere in the file"),
        ("model.path.deeper=1", "command line: model.path.deeper does not lead anywhere in the file"),
        ("seed", "command line: 'seed' is not an override; write a.b.c=value"),
        ("=3", "command line: '=3' is not an override; write a.b.c=value"),
        (
            "data.buckets.frames=[1",
            "command line: data.buckets.frames: '[1' is not YAML; quote it for the shell",
        ),
    ],
)
def test_a_mistake_of_the_command_line_is_told_as_one(file: Path, override: str, message: str) -> None:
    assert mistakes(file, BASE, override) == [message]


# Identity


MAXIMAL = """\
model: {family: wan, path: models/wan, options: {text_length: 64}}
trainable:
  - {params: [a], lr: 1e-4, weight_decay: 0.1, last_layers: 2, layer_decay: 0.9,
     lora: {rank: 4, alpha: 8, dropout: 0.1}}
freeze: {vae: true}
data: {sources: [{path: clips}], buckets: {frames: [1], sizes: [32x32]}, batch_size: 8}
objective: {name: flow_matching, shift: 3}
conditions: [{name: caption_dropout}]
ema: {decay: 0.9}
schedule: {steps: 10}
"""

MAXIMAL_PHASES = """\
model: {family: wan, path: models/wan}
phases: [{trainable: full, schedule: {steps: 2}}]
data: {sources: [{path: clips}], buckets: {frames: [1], sizes: [32x32]}}
"""

LEARNED = [
    "model.family", "model.revision", "model.dtype", "model.options.text_length",
    "trainable.0.params.0", "trainable.0.lr", "trainable.0.weight_decay", "trainable.0.lora.rank",
    "trainable.0.lora.alpha", "trainable.0.lora.dropout", "data.buckets.frames.0",
    "data.buckets.sizes.0", "data.buckets.area", "data.batch_size", "data.variants", "data.fps",
    "data.window", "data.short", "data.crop", "objective.name", "objective.timesteps",
    "objective.logit_mean", "objective.logit_std", "objective.mode_scale", "objective.shift",
    "objective.loss_type", "objective.huber_delta", "conditions.0.name", "conditions.0.probability",
    "optimizer.name", "optimizer.lr", "optimizer.betas.0", "optimizer.betas.1", "optimizer.eps",
    "optimizer.weight_decay", "optimizer.max_grad_norm", "schedule.warmup", "schedule.decay",
    "schedule.floor", "schedule.power", "schedule.pieces", "seed", "ema.decay",
    "trainable.0.last_layers", "trainable.0.layer_decay", "freeze.vae", "freeze_vision_tower",
    "freeze_multi_modal_projector", "phases", "freeze_language_model", "freeze_llm",
    "train_mm_proj_only", "data.name",
]  # fmt: skip
"""What decides what is learned."""

FREE = [
    "name", "model.path", "data.sources.0.name", "data.sources.0.path", "data.cache",
    "data.num_workers", "init_from", "init_format", "schedule.steps", "schedule.extend",
    "schedule.extended", "parallel.replicate", "parallel.shard",
    "parallel.micro_batch_size", "parallel.timeout", "checkpoint.every", "checkpoint.keep",
    "validation.every", "validation.prompts", "validation.images", "validation.last_images",
    "validation.negative_prompt", "validation.size", "validation.steps", "validation.guidance",
    "validation.seed", "validation.fps", "validation.max_tokens", "tracking.draws", "callbacks",
    "memory.checkpointing", "validation.media", "data.sources.0.media",
    "data.sources.0.default_caption", "data.sources.0.repeats", "data.sources.0.trigger",
    "model.config",
]  # fmt: skip
"""What may differ when a run is resumed: places, speed, memory, samples; contents are hashed apart."""


def test_every_key_of_a_run_is_known_to_decide_what_is_learned_or_not_to(file: Path) -> None:
    run = load(file, MAXIMAL)
    assert sorted(learned_settings(run)) == sorted(LEARNED)
    assert sorted(flat(config.as_data(run))) == sorted([*LEARNED, *FREE])
    assert {name.split(".")[0] for name in [*LEARNED, *FREE]} == {f.name for f in dataclasses.fields(Run)}


@pytest.mark.parametrize(("family", "option"), [("wan", "fold_padding=true"), ("vlm", "attention=eager")])
def test_options_of_a_family_say_themselves_that_they_may_change(
    file: Path, family: str, option: str
) -> None:
    words = (f"model.family={family}", f"model.options.{option}")
    assert learned_settings(load(file, BASE, *words)) == learned_settings(load(file, BASE, words[0]))


def test_the_length_of_a_phase_is_learned_and_that_of_a_run_is_not(file: Path) -> None:
    phased = MAXIMAL_PHASES
    assert "phases.0.schedule.steps" in learned_settings(load(file, phased))


@pytest.mark.parametrize("key", ["window", "crop"])
def test_whether_pixels_are_cached_decides_what_is_learned_where_windows_or_crops_are_drawn(
    file: Path, key: str
) -> None:
    here, there, live = (
        learned_settings(load(file, BASE, f"data.{key}=random", f"data.cache={cache}"))
        for cache in ("here", "there", "null")
    )
    assert here == there
    assert {name for name in here if here[name] != live[name]} == {"data.cache"}
    plain = [learned_settings(load(file, BASE, f"data.cache={c}")) for c in ("here", "null")]
    assert plain[0] == plain[1]


def test_the_identity_does_not_depend_on_how_the_file_is_written(file: Path) -> None:
    plain = config.identity_hash(load(file, MAXIMAL))
    turned = yaml.safe_dump(yaml.load(MAXIMAL, Loader=Loader), sort_keys=True)
    assert config.identity_hash(load(file, turned + "seed: 0\n")) == plain
    assert config.identity_hash(load(file, MAXIMAL, "seed=1")) != plain


def test_the_kind_of_objective_and_of_training_is_part_of_the_identity(file: Path) -> None:
    texts = [BASE, BASE + "objective: {name: epsilon}", BASE + "conditions: [{}]", BASE + "ema: {}"]
    hashes = {config.identity_hash(load(file, text)) for text in texts}
    hashes.add(config.identity_hash(load(file, BASE, "trainable=full")))
    assert len(hashes) == 5


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "1e999"])
@pytest.mark.parametrize(
    "key",
    ["optimizer.lr", "optimizer.betas.0", "data.fps", "validation.guidance", "objective.shift", "ema.decay"],
)
def test_numbers_that_are_not_finite_are_refused(file: Path, key: str, number: str) -> None:
    value = float(number.replace(".", ""))
    text = BASE + ("optimizer: {betas: [0.9, 0.99]}\n" if key.startswith("optimizer.betas") else "")
    with pytest.raises(UserError) as caught:
        load(file, text, f"{key}={number}")
    assert str(caught.value).startswith(f"command line: {key}: input should be a finite number, not {value}")


# What is written


@pytest.mark.parametrize(
    "text", [BASE, MAXIMAL, BASE + "objective: {name: epsilon}\nname: other", MAXIMAL + "seed: 3"]
)
def test_a_run_that_was_written_loads_as_the_same_run(file: Path, text: str) -> None:
    run = load(file, text)
    other = Path("elsewhere.yaml")
    other.write_text(config.dump(run))
    assert config.load(other)[0] == run


def test_the_schema_has_every_key_and_asks_for_those_without_default() -> None:
    schema = config.schema()
    assert schema["properties"].keys() == {f.name for f in dataclasses.fields(Run)}
    assert set(schema["required"]) == {"model", "data"}
    assert schema["additionalProperties"] is False
    json.dumps(schema)


def test_the_schema_describes_what_editors_show() -> None:
    defs = config.schema()["$defs"]
    for name in ("Data", "FlowMatching", "Schedule", "Rule", "Parallel"):
        for key, described in defs[name]["properties"].items():
            known = {"name", "betas", "eps", "logit_std", "loss_type"}
            assert "description" in described or key in known, f"{name}.{key}"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_examples_use_keys_of_the_schema_only(path: Path) -> None:
    schema, data = config.schema(), yaml.safe_load(path.read_text())
    assert data.keys() <= schema["properties"].keys()
    assert set(schema["required"]) <= data.keys()
    config.load(path)


def test_objectives_of_equal_options_are_equal_however_they_are_made(file: Path) -> None:
    assert load(file, BASE + "objective: {name: epsilon, min_snr_gamma: 5}").objective == Epsilon(
        min_snr_gamma=5
    )
