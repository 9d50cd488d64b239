"""A pipeline in the diffusers layout: in a folder, on the hub, or known by its configuration only."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...errors import UserError

VOCABULARIES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt")
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
        if folder.is_absolute() or self.path.startswith((".", "~")) or not _is_hub_id(self.path):
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
        """The configuration of a published model that ships with this package.

        A part that another file has too is {"same_as": "FILE"}, or "FILE/COMPONENT" if the name differs.
        """
        configs = files("omnitune.families") / "configs"
        shipped = configs / f"{self.path.replace('/', '--')}.json"
        if not shipped.is_file():
            return None
        found: dict[str, Any] = json.loads(shipped.read_text())
        for name, part in found["components"].items():
            if "same_as" in part:
                stem, _, other = part["same_as"].partition("/")
                source = json.loads((configs / f"{stem}.json").read_text())
                found["components"][name] = source["components"][other or name] | part
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
        return _classes(self._index)

    @property
    def _index(self) -> Path:
        assert self.folder is not None
        index = self.folder / "model_index.json"
        if not index.is_file():
            raise UserError(f"model.path: {index} is missing; give a folder in the diffusers layout")
        return index

    @cached_property
    def pipeline_config(self) -> dict[str, Any]:
        """What model_index.json says of the pipeline itself (Wan's `boundary_ratio`, ...)."""
        if self.folder is None:
            assert self.published is not None
            return dict(self.published.get("pipeline", {}))
        entries = read_json(self._index).items()
        return {k: v for k, v in entries if not k.startswith("_") and not isinstance(v, list)}

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
        file = folder / ("scheduler_config.json" if name == "scheduler" else "config.json")
        if not file.is_file():
            raise UserError(f"model.path: {file} is missing; the model is incomplete")
        return read_json(file)

    def find_class(self, name: str) -> Any:
        library, cls = self.classes[name]
        return getattr(import_module(library), cls)

    def found(self, name: str) -> Path | None:
        """The folder of a component that is whole on this machine, or None where it would be fetched.

        Raises UserError where a folder lacks a file.
        """
        if self.local is not None or name in self.replaced:
            return self.weights(name)
        if self.folder is None or self._missing(name, self.folder / name):
            return None
        return self.folder / name

    def weights(self, name: str) -> Path:
        """The folder of a component with its weights or vocabulary, fetched from the hub if missing."""
        folder = self.component(name)
        if missing := self._missing(name, folder):
            raise UserError(f"{self.option(name)}: {missing}")
        return folder

    def option(self, name: str) -> str:
        """The option that says where a component lies."""
        return "init_from" if name in self.replaced else "model.path"

    def _missing(self, name: str, folder: Path) -> str | None:
        """Which file a folder lacks, and what to do."""
        if name.endswith(("processor", "extractor")):
            lacking = folder / "preprocessor_config.json"
            return None if lacking.is_file() else f"{lacking} is missing; fetch the model again"
        if name.startswith("tokenizer"):
            if any((folder / vocabulary).is_file() for vocabulary in VOCABULARIES):
                return None
            return (
                f"{folder / VOCABULARIES[0]} is missing; copy the vocabulary there or fetch the model again"
            )
        index, paths = self._weight_paths(name, folder)
        missing = [path for path in paths if not path.is_file()]
        if not missing:
            return None
        if index:
            return f"{missing[0]} is missing, which {index.name} lists; fetch it again"
        return f"{missing[0]} is missing; copy the weights there or fetch the model again"

    def _weight_paths(self, name: str, folder: Path) -> tuple[Path | None, list[Path]]:
        """The files that the libraries load, there or not, and the index that lists them if any."""
        expected = folder / WEIGHT_NAMES[self.classes[name][0]]
        index = expected.with_name(f"{expected.name}.index.json")
        if index.is_file():
            return index, _shards(index)
        if expected.is_file():
            return None, [expected]
        for index in folder.glob("*.bin.index.json"):
            return index, _shards(index)
        return None, [*folder.glob("*.bin")] or [expected]

    def check_tensors(self, name: str, folder: Path, module: nn.Module) -> None:
        """Hold the headers of a component's files against the network that its configuration describes.

        Reads no tensor; files that are not safetensors have no header and are met when they are loaded.
        """
        _, paths = self._weight_paths(name, folder)
        if any(path.suffix != ".safetensors" for path in paths):
            return
        shapes: dict[str, list[int]] = {}
        for path in paths:
            with self._opened(name, path) as file:
                shapes.update({key: file.get_slice(key).get_shape() for key in file.keys()})  # noqa: SIM118
        names = _names_when_loaded(module, list(shapes))
        lacking, strange = _differences(module, {names[key]: shape for key, shape in shapes.items()})
        self.refuse_tensors(name, folder, lacking, strange)

    def tensors(self, name: str, keys: Sequence[str]) -> list[Tensor]:
        """A few tensors of a component's safetensors files; nothing else of it is read."""
        folder = self.weights(name)
        _, paths = self._weight_paths(name, folder)
        found: dict[str, Tensor] = {}
        for path in paths:
            with self._opened(name, path) as file:
                found.update({key: file.get_tensor(key) for key in set(keys).intersection(file.keys())})
        self.refuse_tensors(name, folder, sorted(set(keys) - set(found)), [])
        return [found[key] for key in keys]

    @contextmanager
    def _opened(self, name: str, path: Path) -> Iterator[Any]:
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self.option(name)}: {path} cannot be loaded: {error}; fetch it again"
            ) from error

    def refuse_tensors(self, name: str, folder: Path, lacking: Sequence[str], strange: Sequence[str]) -> None:
        """Raise UserError if weights lack tensors that the configuration asks for, or have others."""
        for keys, verb, clause in (
            (lacking, "lacks", "which its configuration asks for"),
            (strange, "has", "of which its configuration knows nothing"),
        ):
            if keys:
                raise UserError(
                    f"{self.option(name)}: {folder} {verb} {keys[0]} ({len(keys)} such), {clause}; "
                    "fetch the model again, with its own config.json"
                )


def _is_hub_id(path: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return "/" in path


def _shards(index: Path) -> list[Path]:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict):
        raise UserError(f"model.path: {index} has no weight_map; fetch it again")
    return [index.with_name(shard) for shard in sorted(set(listed.values()))]


def _names_when_loaded(module: nn.Module, keys: Sequence[str]) -> dict[str, str]:
    """Key in a file -> name of the parameter that transformers loads it into: files keep older layouts."""
    from transformers import PreTrainedModel

    if not isinstance(module, PreTrainedModel):
        return {key: key for key in keys}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    mapping = [rule for rule in get_model_conversion_mapping(module) if isinstance(rule, WeightRenaming)]
    state = module.state_dict()
    return {key: rename_source_key(key, mapping, [], module.base_model_prefix, state)[0] for key in keys}


def _differences(module: nn.Module, shapes: Mapping[str, list[int]]) -> tuple[list[str], list[str]]:
    """Tensors that a network asks for in vain, by name and shape, and those that it knows nothing of."""
    state = module.state_dict(keep_vars=True)
    found = {id(tensor) for key, tensor in state.items() if shapes.get(key) == list(tensor.shape)}
    # A tied tensor is the same object under each of its names, and one of them is enough.
    lacking = [
        f"{key} of {tuple(tensor.shape)}"
        for key, tensor in state.items()
        if (key in shapes and shapes[key] != list(tensor.shape)) or id(tensor) not in found
    ]
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    strange = [
        key for key in shapes if key not in state and not any(re.search(pattern, key) for pattern in ignored)
    ]
    return lacking, strange


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
        found = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"model.path: {file} is not JSON ({error}); fetch it again") from error
    if not isinstance(found, dict):
        raise UserError(
            f"model.path: {file} holds a {type(found).__name__} where an object belongs; fetch it again"
        )
    return found


def check_vocabulary(folder: Path, rows: int) -> None:
    """Refuse a tokenizer.json that is all but empty, or larger than the `rows` that its text encoder embeds.

    Read as JSON, since transformers takes seconds to build a large tokenizer.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    tokenizer = read_json(file)
    added = tokenizer.get("added_tokens", [])
    tokens = len(tokenizer.get("model", {}).get("vocab", []))
    ordinary = tokens - sum(token["special"] for token in added)
    if ordinary <= 1:  # transformers saves a lost vocabulary as the special tokens and the word mark
        raise UserError(
            f"model.path: {file} has {tokens} tokens, all but {max(ordinary, 0)} of them special; "
            "fetch the model again"
        )
    size = max(tokens, *(token["id"] + 1 for token in added), 0)
    if size > rows:
        raise UserError(
            f"model.path: {file} has {size} tokens and the text encoder embeds {rows}; copy the "
            "tokenizer of this model there"
        )
