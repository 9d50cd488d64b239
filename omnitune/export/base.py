"""What a format of weights does: read, write, prove."""

import json
import re
from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError
from ..families.base import Family

ByComponent = dict[str, dict[str, Tensor]]
"""Component -> tensors by their names within it."""


@dataclass(frozen=True)
class Weights:
    """What was trained: adapters, and parameters that trained whole."""

    tensors: Mapping[str, Tensor]
    """By name behind the component, as peft spells adapters: `transformer.blocks.0.attn1.to_q.lora_A.weight`
    (rank, inputs) and `lora_B` (outputs, rank); also of modules that no published pipeline has."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Component -> fields of peft's LoraConfig; files may state some of them alone."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Further metadata of the files of adapters: what conditions export, trigger words."""

    @property
    def adapters(self) -> ByComponent:
        return self._by_component(lora=True)

    @property
    def full(self) -> ByComponent:
        return self._by_component(lora=False)

    def _by_component(self, lora: bool) -> ByComponent:
        found: ByComponent = {}
        for name, tensor in self.tensors.items():
            if (".lora_" in name) == lora:
                component, _, rest = name.partition(".")
                found.setdefault(component, {})[rest] = tensor
        return found

    @property
    def alphas(self) -> dict[str, float]:
        """Adapted module -> its alpha; its rank where none is stated, as diffusers loads it."""
        end = ".lora_A.weight"
        downs = {name.removesuffix(end): t for name, t in self.tensors.items() if name.endswith(end)}
        return {module: self._alpha(module, len(down)) for module, down in downs.items()}

    def _alpha(self, path: str, rank: int) -> float:
        component, _, module = path.partition(".")
        settings = self.settings.get(component, {})
        patterns: Mapping[str, float] = settings.get("alpha_pattern") or {}
        own = (a for pattern, a in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module))
        return next(own, settings.get("lora_alpha", rank))


@dataclass(frozen=True)
class Proof:
    """How what was read back compares with what was to be written."""

    differences: Mapping[str, float]
    """Tensor, or `MODULE.alpha`, on both sides -> its largest difference; infinite for another shape."""
    faults: Sequence[str]
    """What is wrong; empty if everything came back."""

    @property
    def largest(self) -> float:
        return max(self.differences.values(), default=0.0)

    def __str__(self) -> str:
        total = f"{len(self.differences)} values read back, largest difference {self.largest:g}"
        return "; ".join([total, *self.faults])


def compare(written: Weights, found: Weights, tolerance: float) -> Proof:
    """Compare tensors in the dtype in which they are stored, and the strength of adapters."""
    mine, theirs = written.tensors, found.tensors
    differences = {name: _difference(mine[name], theirs[name]) for name in mine.keys() & theirs.keys()}
    ours, alphas = written.alphas, found.alphas
    differences |= {f"{m}.alpha": abs(ours[m] - alphas[m]) for m in ours.keys() & alphas.keys()}
    # Not `>`: a difference that is no number is a fault too.
    unlike = {name for name, value in differences.items() if not value <= tolerance}
    missing, strange = mine.keys() - theirs.keys(), theirs.keys() - mine.keys()
    kinds = {"missing": missing, "strange": strange, "different": unlike}
    faults = [f"{kind}: {min(names)} ({len(names)} such)" for kind, names in kinds.items() if names]
    return Proof(differences, faults)


def _difference(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    return float((one.to(other.dtype).float() - other.float()).abs().max()) if one.numel() else 0.0


class Format(ABC):
    """A layout of weights on the disk. It knows no training; what it reads and writes are `Weights`."""

    name: ClassVar[str]
    holds: ClassVar[str]
    """What `init_from` may name, for messages: A nor B."""
    whole: ClassVar[bool] = True
    """Whether `write` receives all of a component that trains whole, or the parameters that train alone."""
    tolerance: ClassVar[float] = 0.0
    """Largest difference of a value that is read back, for formats that round."""

    def folders(self, path: Path) -> dict[str, Path]:
        """Component -> folder of weights that the family loads in the place of the model's own."""
        return {}

    @abstractmethod
    def files(self, path: Path) -> list[Path]:
        """What `read` reads: adapters, and parts that were trained whole beside them; may be none."""

    @abstractmethod
    def read(self, path: Path, family: Family, components: Collection[str]) -> Weights:
        """The content of `files` by our names. Raises UserError for what is damaged or of another kind.

        `components` are those that adapters are expected for, where a file does not tell.
        """

    def read_folder(self, component: str, folder: Path, family: Family) -> Mapping[str, Tensor]:
        """Read one of `folders` for the proof: its safetensors files, each tensor when it is compared."""
        return dict(ChainMap(*(found for _, found, _ in read_files(sorted(folder.glob("*.safetensors"))))))

    @abstractmethod
    def write(self, folder: Path, family: Family, weights: Weights) -> None:
        """Write into an empty folder. Raises UserError for what the format cannot hold."""

    def prove(self, folder: Path, family: Family, weights: Weights) -> Proof:
        """Read a folder back and hold it against what was to be written."""
        found: Any = self.read(folder, family, weights.adapters)
        if not isinstance(found, Weights):
            raise UserError(f"read() of {self.name} gives {type(found).__name__}, not Weights")
        tensors = dict(found.tensors)
        for component, inside in self.folders(folder).items():
            for name, tensor in self.read_folder(component, inside, family).items():
                if (key := f"{component}.{name}") in weights.tensors:
                    tensors[key] = tensor
        return compare(weights, Weights(tensors, found.settings), self.tolerance)


def read_files(files: Collection[Path]) -> Iterator[tuple[Path, dict[str, Tensor], dict[str, str]]]:
    """Each safetensors file with its tensors and its metadata."""
    for file in files:
        try:
            with safe_open(file, framework="pt") as stream:
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  # no dict
                metadata = dict(stream.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise UserError(f"init_from: {file} cannot be read: {error}") from error
        yield file, tensors, metadata


def parse_settings(text: str, file: Path) -> dict[str, Any]:
    """The settings of adapters that a file states, as JSON."""
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise UserError(f"init_from: {file} cannot be read: {error}") from error
    return found
