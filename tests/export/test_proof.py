"""What is written is read back and compared: every kind of damage shows, in every format."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omnitune.errors import UserError
from omnitune.export import FORMATS, export_format, find_format
from omnitune.export.base import Format, Proof, Weights, compare
from omnitune.export.diffusers import Diffusers
from omnitune.export.peft import Peft
from omnitune.export.weights import collect
from omnitune.families.base import Family
from omnitune.families.diffusion.pipeline import LORA_FILE
from omnitune.families.vlm.family import Vlm
from omnitune.families.wan import Wan
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.trainable.adapters import apply_claims
from omnitune.trainable.rules import Claims, Lora, Rule, claim

LORA = Lora(rank=4, alpha=10)
DOWN, UP = "transformer.to_q.lora_A.weight", "transformer.to_q.lora_B.weight"
Change = Callable[[dict[str, Tensor]], None]


def weights(**changes: Any) -> Weights:
    tensors = {DOWN: torch.arange(16.0).view(4, 4), UP: torch.ones(4, 4)}
    settings = {"transformer": {"lora_alpha": changes.pop("alpha", 8.0)}}
    return Weights({**tensors, **{name: t for name, t in changes.items() if t is not None}}, settings)


def faults(found: Weights, tolerance: float = 0.0) -> list[str]:
    return compare(weights(), found, tolerance).faults


def test_what_came_back_whole_has_no_faults() -> None:
    proof = compare(weights(), weights(), 0.0)
    assert (proof.faults, proof.largest) == ([], 0.0)
    assert str(proof) == "3 values read back, largest difference 0"


def test_each_kind_of_damage_is_named() -> None:
    assert faults(weights(alpha=4.0)) == ["different: transformer.to_q.alpha (1 such)"]
    assert faults(weights(**{DOWN: torch.arange(16.0).view(4, 4).T})) == [f"different: {DOWN} (1 such)"]
    assert faults(weights(**{DOWN: torch.ones(2, 8)})) == [f"different: {DOWN} (1 such)"]
    assert faults(weights(**{DOWN: torch.full((4, 4), torch.nan)})) == [f"different: {DOWN} (1 such)"]
    assert faults(weights(other=torch.ones(1))) == ["strange: other (1 such)"]
    swapped = Weights({DOWN: weights().tensors[UP], UP: weights().tensors[DOWN]}, weights().settings)
    assert faults(swapped) == [f"different: {DOWN} (2 such)"]
    assert faults(Weights({DOWN: weights().tensors[DOWN]}, weights().settings)) == [f"missing: {UP} (1 such)"]


def test_a_format_that_rounds_states_how_far() -> None:
    near = weights(**{DOWN: weights().tensors[DOWN] + 0.25})
    assert faults(near, 0.2) == [f"different: {DOWN} (1 such)"]
    assert faults(near, 0.3) == []


def test_tensors_are_compared_in_the_dtype_that_is_stored() -> None:
    fine = Weights({"model.weight": torch.tensor([1.001])})
    assert compare(fine, Weights({"model.weight": torch.tensor([1.001]).bfloat16()}), 0.0).faults == []


# Formats


def adapted(family: Family, *rules: Rule) -> Claims:
    """Add adapters and move everything that trains."""
    claims = claim(family.components, rules, family.roles)
    apply_claims(family.components, claims, seed=0)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for param in family.components.parameters():
            if param.requires_grad:
                param.add_(torch.randn_like(param), alpha=0.1)
    return claims


@pytest.fixture
def wan(tiny_wan: Path) -> tuple[Wan, Claims]:
    family = Wan.load(str(tiny_wan), "cpu", torch.float32, only=["transformer"])
    family.components["context"] = nn.Linear(3, 2)  # in no model_index.json
    return family, adapted(
        family,
        Rule(params="transformer.blocks.*.attn1", lora=LORA),
        Rule(params="transformer.patch_embedding"),
        Rule(params="context"),
    )


@pytest.fixture
def llava(tiny_vlm: Callable[..., Path]) -> tuple[Vlm, Claims]:
    family = Vlm.load(str(tiny_vlm("llava")), "cpu", torch.float32)
    return family, adapted(
        family,
        Rule(params="language_model.*.q_proj", lora=LORA),
        Rule(params="multi_modal_projector"),
        Rule(params="vision_tower.*.layers.0.*.fc1.bias"),
    )


def gathered(form: Format, family: Family, claims: Claims, **notes: str) -> Weights:
    return collect(family, claims, Mesh(Parallel()), form.whole, notes)


def edited(file: Path, change: Change) -> None:
    tensors = load_file(file)
    with safe_open(file, framework="pt") as stream:
        notes = stream.metadata()
    change(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, file, notes)


def first(tensors: dict[str, Tensor], end: str) -> str:
    return min(name for name in tensors if name.endswith(end))


def renamed(tensors: dict[str, Tensor]) -> None:
    tensors["stray.lora_A.weight"] = tensors.pop(first(tensors, "lora_A.weight"))


def transposed(tensors: dict[str, Tensor]) -> None:
    name = first(tensors, "lora_B.weight")
    tensors[name] = tensors[name].T


def swapped(tensors: dict[str, Tensor]) -> None:
    one, other = [name for name in sorted(tensors) if name.endswith("lora_A.weight")][:2]
    tensors[one], tensors[other] = tensors[other], tensors[one]


def proof_of(form: Format, family: Family, claims: Claims, folder: Path, file: str, change: Change) -> Proof:
    folder.mkdir()
    wanted = gathered(form, family, claims)
    form.write(folder, family, wanted)
    assert form.prove(folder, family, wanted).faults == []
    edited(folder / file, change)
    return form.prove(folder, family, wanted)


@pytest.mark.parametrize("change", [renamed, transposed, swapped])
def test_damage_to_a_lora_file_of_diffusers_is_caught(
    wan: tuple[Wan, Claims], tmp_path: Path, change: Change
) -> None:
    assert proof_of(Diffusers(), *wan, tmp_path / "out", LORA_FILE, change).faults


def test_damage_to_a_component_folder_is_caught(wan: tuple[Wan, Claims], tmp_path: Path) -> None:
    def halved(tensors: dict[str, Tensor]) -> None:
        tensors["patch_embedding.weight"] /= 2

    file = "transformer/diffusion_pytorch_model.safetensors"
    proof = proof_of(Diffusers(), *wan, tmp_path / "out", file, halved)
    assert proof.faults == ["different: transformer.patch_embedding.weight (1 such)"]


@pytest.mark.parametrize("change", [renamed, transposed, swapped])
def test_damage_to_an_adapter_of_peft_is_caught(
    llava: tuple[Vlm, Claims], tmp_path: Path, change: Change
) -> None:
    assert proof_of(Peft(), *llava, tmp_path / "out", "adapter_model.safetensors", change).faults


def test_damage_to_a_merged_model_is_caught(llava: tuple[Vlm, Claims], tmp_path: Path) -> None:
    def moved(tensors: dict[str, Tensor]) -> None:
        tensors[first(tensors, "q_proj.weight")] += 0.5

    form = find_format("merged", "--format")
    proof = proof_of(form, *llava, tmp_path / "out", "model.safetensors", moved)
    assert len(proof.faults) == 1
    assert proof.largest == pytest.approx(0.5)


def test_another_alpha_in_the_metadata_is_caught(wan: tuple[Wan, Claims], tmp_path: Path) -> None:
    form, family = Diffusers(), wan[0]
    wanted = gathered(form, *wan)
    form.write(tmp_path, family, wanted)
    with safe_open(tmp_path / LORA_FILE, framework="pt") as stream:
        settings = json.loads(stream.metadata()["lora_adapter_metadata"])
    settings["transformer.lora_alpha"] = 4
    notes = {"lora_adapter_metadata": json.dumps(settings)}
    save_file(load_file(tmp_path / LORA_FILE), tmp_path / LORA_FILE, notes)
    proof = form.prove(tmp_path, family, wanted)
    assert proof.faults == ["different: transformer.blocks.0.attn1.to_k.alpha (8 such)"]
    assert proof.largest == 6


def test_a_module_that_no_pipeline_has_and_notes_come_back(wan: tuple[Wan, Claims], tmp_path: Path) -> None:
    form, (family, claims) = Diffusers(), wan
    form.write(tmp_path, family, gathered(form, family, claims, trigger="a sks fox"))
    assert {path.name for path in tmp_path.iterdir()} == {LORA_FILE, "transformer", "context"}
    found = form.read(tmp_path, family, ["transformer"])
    assert found.notes == {"trigger": "a sks fox"}
    assert torch.equal(found.tensors["context.weight"], family.components["context"].weight)
    assert form.folders(tmp_path).keys() == {"transformer"}
    assert set(found.alphas.values()) == {10}


# Names


class Bare(Format):
    """Reads nothing and writes nothing."""

    name = "bare"
    holds = "anything"

    def files(self, path: Path) -> list[Path]:
        return []

    def read(self, path: Path, family: Family, components: Collection[str]) -> Weights:
        return Weights({})

    def write(self, folder: Path, family: Family, weights: Weights) -> None:
        pass


def test_formats_are_found_by_name_and_by_class() -> None:
    assert {name: find_format(name, "--format").name for name in FORMATS} == {name: name for name in FORMATS}
    assert isinstance(export_format(Wan, f"{__name__}:Bare"), Bare)
    assert export_format(Wan, None).name == "diffusers"
    assert export_format(Vlm, "merged").name == "merged"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("diffuser", "--format: 'diffuser' is not a format; did you mean diffusers?"),
        ("peft", "--format: family wan is exported as diffusers, not as peft"),
        ("merged", "not as merged; its pipeline adds adapters itself (load_lora_weights, fuse_lora"),
        ("nowhere:Flat", "--format: 'nowhere:Flat' cannot be imported: No module named 'nowhere'"),
        ("torch.nn:Linear", "torch.nn:Linear is not a subclass of omnitune.export.base.Format"),
    ],
)
def test_names_that_are_no_format_of_a_family_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        export_format(Wan, name)
    assert message in str(caught.value)
