"""A pipeline in the diffusers layout: in a folder, on the hub, or known by its configuration only."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..types import UserError

WEIGHTS = ("*.safetensors", "*.bin")
WEIGHT_NAMES = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}


@dataclass(frozen=True)
class ModelFiles:
    """A pipeline in the diffusers layout: a folder, or a published model known by its configuration only."""

    path: str
    revision: str | None = None
    replaced: Mapping[str, Path] = field(default_factory=dict)
    """Component -> folder that takes the place of the model's own."""

    @property
    def local(self) -> Path | None:
        """The folder that `path` names, or None for a hub id."""
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            return folder
        if folder.is_absolute() or self.path.startswith((".", "~")) or self.path.count("/") != 1:
            raise UserError(
                f"model.path: {self.path!r} is no folder; give a folder with model_index.json or a hub id"
            )
        return None

    @cached_property
    def folder(self) -> Path | None:
        """Where the files lie; None for a published model that is known by its shipped configuration only."""
        if self.local is not None:
            return self.local
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            here = self._snapshot(["*.json"], local_files_only=True)
        except LocalEntryNotFoundError:
            here = None
        if here is not None and _has_configurations(here):
            return here
        return None if self.published else self.download([])

    def download(self, names: Sequence[str]) -> Path:
        """The folder, with configurations and all files of these components fetched if they are missing."""
        if self.local is not None:
            return self.local
        try:
            return self._snapshot(["model_index.json", "*/*.json", *(f"{name}/*" for name in names)])
        except OSError as error:  # the hub's errors and the network's are of this kind
            raise UserError(
                f"model.path: {self.path!r} is no folder here and cannot be fetched from the hub "
                f"({str(error).splitlines()[0]}); fetch it first, or give a folder"
            ) from error

    def _snapshot(self, patterns: list[str], local_files_only: bool = False) -> Path:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                self.path,
                revision=self.revision,
                allow_patterns=patterns,
                local_files_only=local_files_only,
            )
        )

    @cached_property
    def published(self) -> dict[str, Any] | None:
        """The configuration of a published model that ships with this package."""
        shipped = files("omnitune.families") / "configs" / f"{self.path.replace('/', '--')}.json"
        found: dict[str, Any] | None = json.loads(shipped.read_text()) if shipped.is_file() else None
        return found

    @property
    def source(self) -> str:
        """Where the configuration was read, for `plan`."""
        if self.folder is not None:
            return str(self.folder)
        assert self.published is not None
        state = "verified" if self.published["verified"] else "not verified against the published files"
        return f"shipped configuration ({self.published['source']}; {state})"

    @cached_property
    def classes(self) -> dict[str, tuple[str, str]]:
        """Component -> (library, class) as model_index.json has it."""
        if self.folder is None:
            assert self.published is not None
            return {name: tuple(part["class"]) for name, part in self.published["components"].items()}
        index = self.folder / "model_index.json"
        if not index.is_file():
            raise UserError(f"model.path: {index} is missing; give a folder in the diffusers layout")
        return _classes(index)

    def component(self, name: str) -> Path:
        """The folder of a component, fetched from the hub where it is missing."""
        return self.replaced[name] if name in self.replaced else self.download([name]) / name

    def config(self, name: str) -> dict[str, Any]:
        if self.folder is None and name not in self.replaced:
            assert self.published is not None
            return dict(self.published["components"][name]["config"])
        folder = self.replaced.get(name)
        if folder is None:
            assert self.folder is not None
            folder = self.folder / name
        for file in (folder / "config.json", folder / "scheduler_config.json"):
            if file.is_file():
                return read_json(file)
        raise UserError(f"model.path: {folder / 'config.json'} is missing; the model is incomplete")

    def find_class(self, name: str) -> Any:
        library, cls = self.classes[name]
        return getattr(import_module(library), cls)

    def check_weights(self, name: str) -> bool:
        """Whether the weights of a component are here; raises UserError where a folder lacks them."""
        if self.local is not None or name in self.replaced:
            self.weights(name)
            return True
        return self.folder is not None and self._missing(name, self.folder / name) is None

    def weights(self, name: str) -> Path:
        """The folder of a component with its weights, fetched from the hub where they are missing."""
        folder = self.component(name)
        if missing := self._missing(name, folder):
            raise UserError(f"{'init_from' if name in self.replaced else 'model.path'}: {missing}")
        return folder

    def _missing(self, name: str, folder: Path) -> str | None:
        """Which weight file a folder lacks, and what to do."""
        for index in folder.glob("*.index.json"):
            shards = set(read_json(index)["weight_map"].values())
            missing = sorted(s for s in shards if not (folder / s).is_file())
            if not missing:
                return None
            return f"{folder / missing[0]} is missing, which {index.name} lists; fetch it again"
        if any(any(folder.glob(pattern)) for pattern in WEIGHTS):
            return None
        expected = folder / WEIGHT_NAMES[self.classes[name][0]]
        return f"{expected} is missing; copy the weights there or fetch the model again"


def _has_configurations(folder: Path) -> bool:
    """Whether a folder of the hub's cache, which may be partly fetched, tells what every component is."""
    index = folder / "model_index.json"
    if not index.is_file():
        return False
    return all(any((folder / name).glob("*.json")) for name in _classes(index))


def _classes(index: Path) -> dict[str, tuple[str, str]]:
    entries = read_json(index).items()
    return {n: (c[0], c[1]) for n, c in entries if isinstance(c, list) and len(c) == 2 and c[0]}


def read_json(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"model.path: {file} is not JSON ({error}); fetch it again") from error
    return found
