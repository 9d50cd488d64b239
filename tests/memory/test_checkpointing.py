"""Activation checkpointing changes what is kept in memory and nothing of what is learned, by no bit."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from kept import Kept, kept
from small_chats import small_chat_run
from torch import Tensor, nn

from omnitune import config
from omnitune.families.vlm.types import TYPES
from omnitune.memory.checkpointing import checkpoint_blocks, outermost
from omnitune.parallel.precision import hold_master_weights
from omnitune.resolve import resolve_run
from omnitune.testing.runs import small_run, write_run
from omnitune.testing.tiny import build_tiny
from omnitune.testing.tiny_vlm import build_tiny_vlm, tiny_types
from omnitune.testing.training import start_training
from omnitune.trainer import Trainer

FULL = {"memory": {"checkpointing": "full"}}
PROJECTOR_ONLY = {"trainable": "full", "train_mm_proj_only": True}
LORA_AND_TOWER = {"trainable": {"lora": {"rank": 2, "dropout": 0.3}}, "freeze_vision_tower": False}
ALL_OPEN = {"trainable": "full", "freeze_vision_tower": False, "freeze_multi_modal_projector": False}
ATTENTION = {"params": "transformer.blocks.*.attn*", "lora": {"rank": 4, "dropout": 0.3}}
Described = dict[str, Any]


def trainer_of(folder: Path, described: Mapping[str, Any]) -> Trainer:
    run, _ = config.load(write_run(folder / "run.yaml", described))
    return start_training(run, folder).trainer


def learned(trainer: Trainer) -> tuple[float, dict[str, Tensor]]:
    """The loss of the first step, and the gradients that it leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.mesh, "step", lambda optimizer, norm: torch.zeros(()))
        measured = trainer.train_step(next(trainer.read()))
    named = trainer.family.components.named_parameters()
    return measured.read().loss, {name: p.grad for name, p in named if p.grad is not None}


def kept_bytes(trainer: Trainer) -> int:
    """Bytes that the forward pass of the first micro-batch leaves for the backward pass."""
    return kept(trainer, next(trainer.read())[0])


def assert_same(plain: Trainer, full: Trainer) -> None:
    (loss, gradients), (again, others) = learned(plain), learned(full)
    assert again == loss
    assert gradients
    assert others.keys() == gradients.keys()
    assert [name for name, value in gradients.items() if not torch.equal(others[name], value)] == []
    assert any(value.any() for value in gradients.values())


@pytest.fixture
def described(
    tiny_wan: Path, tiny_vlm: Callable[..., Path], cache: Path, tmp_path: Path
) -> Callable[[str], Described]:
    """Gives a run of each kind."""

    def of(kind: str) -> Described:
        wan: dict[str, Any] = {"wan LoRA": [ATTENTION], "wan text encoder": [{"params": "text_encoder"}]}
        if kind in wan:
            return small_run(tiny_wan, cache, trainable=wan[kind])
        vlm = {"projector only": PROJECTOR_ONLY, "LoRA and tower": LORA_AND_TOWER}
        return small_chat_run(tiny_vlm("llava"), tmp_path / "chats", pictures=2, texts=1, **vlm[kind])

    return of


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["wan LoRA", "wan text encoder", "projector only", "LoRA and tower"])
def test_losses_and_gradients_are_the_same_bits(
    described: Callable[[str], Described], tmp_path: Path, kind: str, dtype: str
) -> None:
    run = described(kind)
    run["model"]["dtype"] = dtype
    plain = trainer_of(tmp_path / "plain", run)
    full = trainer_of(tmp_path / "full", {**run, **FULL})
    assert kept_bytes(full) < kept_bytes(plain)
    assert_same(plain, full)


QUICK = ("mllama", "qwen3_vl")
"""Layers that rows of text skip, by hooks that are gone in the backward pass; a state beside the layers."""


@pytest.mark.parametrize(
    "model_type", [t if t in QUICK else pytest.param(t, marks=pytest.mark.slow) for t in tiny_types()]
)
def test_every_type_of_vision_language_model_learns_the_same(
    tiny_vlm: Callable[..., Path], tmp_path: Path, model_type: str
) -> None:
    texts = 1 if TYPES[model_type].text_only else 0
    run = small_chat_run(tiny_vlm(model_type), tmp_path / "chats", pictures=1, texts=texts, **ALL_OPEN)
    plain = trainer_of(tmp_path / "plain", run)
    full = trainer_of(tmp_path / "full", {**run, **FULL})
    assert kept_bytes(full) < kept_bytes(plain)
    assert_same(plain, full)


@pytest.mark.parametrize(
    "model_type", [t if t == "paligemma" else pytest.param(t, marks=pytest.mark.slow) for t in tiny_types()]
)
def test_projectors_of_stored_towers_learn_the_same_bits(
    tiny_vlm: Callable[..., Path], tmp_path: Path, model_type: str
) -> None:
    texts = 1 if TYPES[model_type].text_only else 0
    model = tiny_vlm(model_type)
    run = small_chat_run(model, tmp_path / "chats", pictures=1, texts=texts, **PROJECTOR_ONLY)
    plain = trainer_of(tmp_path / "plain", run)
    full = trainer_of(tmp_path / "full", {**run, **FULL})
    assert kept_bytes(full) < kept_bytes(plain)
    assert_same(plain, full)


def test_a_layer_of_which_the_attention_alone_is_listed_counts_whole(
    tiny_vlm: Callable[..., Path], tmp_path: Path
) -> None:
    run = small_chat_run(tiny_vlm("idefics3"), tmp_path / "chats", pictures=1, texts=1, **ALL_OPEN, **FULL)
    described, _ = config.load(write_run(tmp_path / "run.yaml", run))
    job = resolve_run(described)
    names = {type(block).__name__ for block in job.learning_blocks(job.shape)["model"]}
    assert names == {"Idefics3EncoderLayer", "LlamaDecoderLayer"}


def shapes(trainer: Trainer, component: str, block: str) -> set[tuple[int, ...]]:
    """The shapes of what blocks are given first."""
    found = set()

    def see(module: nn.Module, args: Any, kwargs: Any) -> None:
        found.add(tuple((args[0] if args else kwargs["hidden_states"]).shape))

    modules = trainer.family.components[component].modules()
    hooks = [m.register_forward_pre_hook(see, with_kwargs=True) for m in modules if type(m).__name__ == block]
    kept_bytes(trainer)
    for hook in hooks:
        hook.remove()
    return found


def test_a_frozen_layer_that_gradients_flow_through_keeps_its_input_alone(tmp_path: Path) -> None:
    plain, full = [], []
    for layers in (2, 4):
        changes = {"config": {"text_config": {"num_hidden_layers": layers}}}
        model = build_tiny_vlm(tmp_path / f"model-{layers}", "llava", changes=changes)
        run = small_chat_run(model, tmp_path / "chats", pictures=2, texts=1, **PROJECTOR_ONLY)
        plain.append(kept_bytes(trainer_of(tmp_path / "plain", run)))
        trainer = trainer_of(tmp_path / "full", {**run, **FULL})
        full.append(kept_bytes(trainer))
    ((rows, tokens, width),) = shapes(trainer, "model", "LlamaDecoderLayer")
    assert full[1] - full[0] == 2 * rows * tokens * width * 4
    assert plain[1] - plain[0] > 10 * (full[1] - full[0])


def test_an_adapted_layer_keeps_its_input_alone(tmp_path: Path, cache: Path) -> None:
    plain, full = [], []
    for layers in (2, 4):
        model = build_tiny(tmp_path / f"model-{layers}", transformer={"num_layers": layers})
        run = small_run(model, cache, trainable=[ATTENTION])
        plain.append(kept_bytes(trainer_of(tmp_path / "plain", run)))
        trainer = trainer_of(tmp_path / "full", {**run, **FULL})
        full.append(kept_bytes(trainer))
    ((rows, tokens, width),) = shapes(trainer, "transformer", "WanTransformerBlock")
    assert full[1] - full[0] == 2 * rows * tokens * width * 4
    assert plain[1] - plain[0] > 10 * (full[1] - full[0])


def saved_within(trainer: Trainer) -> dict[str, int]:
    """Tensors that are saved for the backward pass within each block, by its name."""
    found: dict[str, int] = {}
    running: list[str] = []

    def pack(tensor: Tensor) -> Tensor:
        if running:
            found[running[-1]] += 1
        return tensor

    for component, module in trainer.family.components.items():
        names = {id(m): f"{component}.{name}" for name, m in module.named_modules()}
        for block in outermost(trainer.family.blocks(component)):
            name = names[id(block)]
            found[name] = 0
            block.register_forward_pre_hook(lambda m, args, name=name: running.append(name))
            block.register_forward_hook(lambda m, args, output: running.pop() and None)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept_bytes(trainer)
    return found


def test_nothing_is_kept_below_the_lowest_layer_that_trains(tmp_path: Path, cache: Path) -> None:
    model = build_tiny(tmp_path / "model", transformer={"num_layers": 4})
    last = {"params": "transformer.blocks", "last_layers": 2}
    saved = saved_within(trainer_of(tmp_path, small_run(model, cache, trainable=[last])))
    names = [f"transformer.blocks.{i}" for i in range(4)]
    assert [name for name in names if saved[name]] == names[2:]


def test_a_live_tower_below_the_projector_that_trains_keeps_nothing(
    tiny_vlm: Callable[..., Path], tmp_path: Path
) -> None:
    run = small_chat_run(tiny_vlm("llava"), tmp_path / "chats", pictures=2, texts=1, **PROJECTOR_ONLY)
    run["data"]["cache"] = None
    saved = saved_within(trainer_of(tmp_path, run))
    layers = {kind: [n for n in saved if f".{kind}." in n] for kind in ("vision_tower", "language_model")}
    assert len(layers["vision_tower"]) > 1
    assert len(layers["language_model"]) > 1
    assert {saved[name] for name in layers["vision_tower"]} == {0}
    assert all(saved[name] for name in layers["language_model"])


class Block(nn.Module):
    """Takes what it is given by name too, and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        made: Tensor = self.drop(self.layer(x * scale).tanh().exp())
        return made


def pair() -> tuple[Block, Block]:
    """Two equal blocks; the second is checkpointed."""
    torch.manual_seed(0)
    one, other = Block(), Block()
    other.load_state_dict(one.state_dict())
    checkpoint_blocks([other])
    return one, other


def test_a_block_keeps_its_names() -> None:
    one, other = pair()
    assert type(other) is not type(one)
    assert isinstance(other, Block)
    assert [type(other).__name__, type(other).__qualname__] == ["Block", "Block"]
    assert type(other).__module__ == type(one).__module__
    assert repr(other) == repr(one)
    assert list(other.state_dict()) == list(one.state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_a_frozen_block_sends_gradients_to_all_its_inputs_in_either_mode(training: bool) -> None:
    found, num_bytes = [], []
    for block in pair():
        block.requires_grad_(False).train(training)
        torch.manual_seed(1)
        x, scale = torch.ones(2, 4, requires_grad=True), torch.full((4,), 2.0, requires_grad=True)
        with (count := Kept()):
            output = block(x, scale=scale)
        num_bytes.append(count.num_bytes)
        torch.manual_seed(2)  # what the block draws is drawn again, and no draw is lost
        output.sum().backward()
        found.append((output, x.grad, scale.grad, torch.rand(1)))
    assert all(torch.equal(plain, full) for plain, full in zip(*found, strict=True))
    assert num_bytes[1] == output.numel() * 4 < num_bytes[0]


def test_a_hook_that_is_gone_in_the_backward_pass_is_run_again() -> None:
    gradients: list[Any] = []
    for block in pair():
        block.eval()
        hook = block.layer.register_forward_hook(lambda module, args, output: output * 0.25)
        output = block(torch.ones(2, 4), scale=torch.ones(4))
        hook.remove()
        output.sum().backward()
        gradients.append(block.layer.weight.grad)
        assert not block.layer._forward_hooks
    assert torch.equal(*gradients)


def test_masters_are_cast_again_and_put_back() -> None:
    gradients: list[Any] = []
    for block in pair():
        block.eval()
        names = [name for name, _ in block.named_parameters()]
        hold_master_weights(nn.Sequential(block), [block], {f"0.{n}": torch.bfloat16 for n in names})
        seen: list[torch.dtype] = []
        block.layer.register_forward_hook(
            lambda module, args, output, seen=seen: seen.append(module.weight.dtype)
        )
        block(torch.ones(2, 4).bfloat16(), scale=torch.ones(4).bfloat16()).float().sum().backward()
        assert set(seen) == {torch.bfloat16}
        assert block.layer.weight.dtype == torch.float32
        gradients.append(block.layer.weight.grad)
    assert torch.equal(*gradients)


def test_nothing_is_run_again_without_gradients() -> None:
    _, block = pair()
    block.eval()
    with torch.no_grad(), (count := Kept()):
        output = block(torch.ones(2, 4), scale=torch.ones(4))
    assert count.num_bytes == output.numel() * 4


def test_a_block_within_another_is_left_to_that_one() -> None:
    outer, inner = nn.Sequential(Block()), Block()
    nested = outer[0]
    assert outermost([nested, outer, inner]) == [outer, inner]
    checkpoint_blocks([nested, outer, inner])
    assert type(nested) is Block
    assert type(outer) is not nn.Sequential
