"""What a run leaves behind, loaded by transformers and peft alone, computes what the live model does."""

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_items import PICTURE, TEXT
from safetensors import safe_open
from safetensors.torch import load_file
from test_ranks_vlm import ALL_OPEN, write
from torch import Tensor

from omnitune import config
from omnitune.data.conversations.options import ChatOptions
from omnitune.export.merged import Merged
from omnitune.export.weights import export
from omnitune.families.vlm.collate import collate
from omnitune.families.vlm.types import TYPES
from omnitune.testing.tiny_vlm import tiny_types
from omnitune.testing.training import start_training

LORA: dict[str, Any] = {
    "trainable": {"lora": {"rank": 4, "alpha": 10}, "lr": 1e-2}, "freeze_vision_tower": False,
    "freeze_multi_modal_projector": False,
}  # fmt: skip
QWEN = ("qwen2_vl", "frozen", "open", "cached")
QUICK = ("llava", "gemma3", "qwen2_vl", "qwen3_vl", "mllama")
EVERY = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in tiny_types()]
ADAPTED = ("llava", "gemma3", "qwen2_vl", "idefics3", "mllama")
"""Types whose projector is one module, or modules, for which peft has a place."""

BARE = ("query_tokens",)
"""Parameters of a role that are in no module but the model itself."""
COMBINATIONS = [
    pytest.param(
        *combination,
        id="-".join(combination),
        marks=[] if combination in (QWEN, ("glm4v", *QWEN[1:]), ("blip-2", *QWEN[1:])) else pytest.mark.slow,
    )
    for combination in product(tiny_types(), ("frozen", "open"), ("open", "closed"), ("cached", "live"))
    if combination[1:] not in (("open", "open", "cached"), ("open", "closed", "cached"))
]
"""Type, tower, projector, and whether the tower is stored: an open one never is."""


class Left:
    """A finished run in memory, and what it writes."""

    def __init__(self, model: Path, folder: Path, texts: int = 3, **keys: Any):
        self._train(folder, write(folder, model, pictures=2, texts=texts, **keys))

    def _train(self, folder: Path, file: Path) -> None:
        run = config.validate(config.read(file))
        ready = start_training(run, folder)
        self.folder, self.mesh, self.job = folder, ready.mesh, ready.resolved
        trainer, family = ready.trainer, ready.family
        self.family: Any = family
        for batches in trainer.read():
            trainer.train_step(batches)
            trainer.step += 1

    def weights(self) -> Path:
        export(self.family, self.job.claims, self.mesh, self.folder / "weights")
        return self.folder / "weights"

    def merged(self) -> Path:
        """The whole model with the adapter in it."""
        export(self.family, self.job.claims, self.mesh, self.folder / "merged", Merged())
        return self.folder / "merged"

    def inputs(self) -> list[dict[str, Tensor]]:
        chat = self.family.conversation_encoder(ChatOptions(max_length=4096))
        made = [chat.encode(one) for one in ((PICTURE, TEXT) if self.family.type.text_only else (PICTURE,))]
        return [self.family._cast(collate([{**one.tokens, **one.media}], 0)) for one in made]

    def logits(self) -> list[Tensor]:
        with self.family.complete() as model:
            return logits(model, self.inputs())


@pytest.fixture(scope="module")
def adapted(
    tiny_vlm: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Left]]:
    """Gives a type's base and what a run of adapters beside a whole projector left; trained once."""

    @cache
    def of(model_type: str) -> tuple[Path, Left]:
        base = tiny_vlm(model_type)
        return base, Left(base, tmp_path_factory.mktemp("adapted"), **LORA)

    return of


def logits(model: Any, inputs: list[dict[str, Tensor]]) -> list[Tensor]:
    with torch.no_grad():
        return [model(**one, use_cache=False).logits for one in inputs]


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    model, told = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return model.eval()


def keys(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


def assert_same_logits(live: list[Tensor], found: list[Tensor], atol: float) -> None:
    for one, other in zip(live, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=atol)


def assert_answers_alike(folder: Path, base: Path) -> None:
    """The processor of a folder, with its template, makes the same tokens as the published one."""
    from transformers import AutoProcessor

    ours, published = (AutoProcessor.from_pretrained(path) for path in (folder, base))
    assert type(ours) is type(published)
    assert ours.chat_template == published.chat_template
    assert ours.tokenizer.get_vocab() == published.tokenizer.get_vocab()


@pytest.mark.parametrize("model_type", EVERY)
def test_full_weights_are_the_live_model_under_the_published_names(
    tiny_vlm: Callable[..., Path], tmp_path: Path, model_type: str
) -> None:
    base = tiny_vlm(model_type)
    left = Left(base, tmp_path, texts=3 if TYPES[model_type].text_only else 0, **ALL_OPEN)
    weights, live = left.weights(), left.logits()
    assert_same_logits(live, logits(loaded(weights), left.inputs()), atol=0)
    assert keys(weights) == keys(base)
    assert (logits(loaded(base), left.inputs())[0] - live[0]).abs().max() > 1e-4
    assert_answers_alike(weights, base)


@pytest.mark.parametrize("model_type", ADAPTED)
def test_an_adapter_is_the_live_model_and_off_it_is_the_base(
    adapted: Callable[[str], tuple[Path, Left]], model_type: str
) -> None:
    base, left = adapted(model_type)
    wrapped = assert_adapter_is_the_live_model(left, base)
    assert wrapped.peft_config["default"].lora_alpha == 10
    with wrapped.disable_adapter():
        plain = logits(wrapped, left.inputs())
    assert_same_logits(logits(loaded(base), left.inputs()), plain, atol=1e-6)
    assert_answers_alike(left.weights(), base)


def assert_adapter_is_the_live_model(left: Left, base: Path) -> Any:
    """Load an adapter with peft alone, and by name what it has no place for: parameters in no module."""
    from peft import PeftModel

    weights, live = left.weights(), left.logits()
    wrapped = PeftModel.from_pretrained(loaded(base), weights).eval()
    if (weights / "trained.safetensors").exists():
        beside = load_file(weights / "trained.safetensors")
        bare = {name for name, _ in loaded(base).named_parameters() if name in BARE}
        assert beside.keys() <= bare
        assert not wrapped.base_model.model.load_state_dict(beside, strict=False).unexpected_keys
    assert_same_logits(live, logits(wrapped, left.inputs()), atol=1e-6)
    plain = logits(loaded(base), left.inputs())
    assert max((one - other).abs().max() for one, other in zip(plain, live, strict=True)) > 1e-4
    return wrapped


@pytest.mark.parametrize(("model_type", "tower", "projector", "cache"), COMBINATIONS)
def test_the_adapter_of_any_run_is_loaded_by_peft(
    tiny_vlm: Callable[..., Path], tmp_path: Path, model_type: str, tower: str, projector: str, cache: str
) -> None:
    opened = {
        "freeze_vision_tower": tower == "frozen",
        "freeze_multi_modal_projector": projector == "closed",
        "data": {"cache": str(tmp_path / "cache") if cache == "cached" else None},
    }
    base = tiny_vlm(model_type)
    texts = 3 if TYPES[model_type].text_only else 0
    left = Left(base, tmp_path, texts=texts, trainable=LORA["trainable"], **opened)
    assert (left.family.player is not None) == (tower == "frozen" and cache == "cached")
    assert_adapter_is_the_live_model(left, base)


@pytest.mark.parametrize("model_type", ["llava", "qwen2_vl"])
def test_transformers_takes_an_adapter_by_itself(
    tiny_vlm: Callable[..., Path], tmp_path: Path, model_type: str
) -> None:
    base = tiny_vlm(model_type)
    left = Left(base, tmp_path, trainable=LORA["trainable"])
    weights, live = left.weights(), left.logits()
    model = loaded(base)
    model.load_adapter(str(weights))
    assert_same_logits(live, logits(model.eval(), left.inputs()), atol=1e-6)


@pytest.mark.parametrize("model_type", ["llava", "gemma3", "qwen2_vl", "qwen3_vl"])
def test_a_merged_model_is_the_live_one(adapted: Callable[[str], tuple[Path, Left]], model_type: str) -> None:
    base, left = adapted(model_type)
    merged, live = left.merged(), left.logits()
    assert_same_logits(live, logits(loaded(merged), left.inputs()), atol=1e-5)
    assert keys(merged) == keys(base)
    assert_answers_alike(merged, base)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", tiny_types())
def test_parts_trained_whole_beside_an_adapter_are_loaded_by_peft(
    tiny_vlm: Callable[..., Path], tmp_path: Path, model_type: str
) -> None:
    rules: list[dict[str, Any]] = [
        {"params": "vision_tower", "lr": 1e-3},
        {"params": "multi_modal_projector", "lr": 1e-3},
        {"params": "language_model", "lora": {"rank": 4, "alpha": 10}, "lr": 1e-2},
    ]
    texts = 3 if TYPES[model_type].text_only else 0
    left = Left(tiny_vlm(model_type), tmp_path, texts=texts, trainable=rules)
    assert_adapter_is_the_live_model(left, tiny_vlm(model_type))
