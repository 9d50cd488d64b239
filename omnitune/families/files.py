"""Where the files of a model are: in a folder, on the hub, or known by a configuration that ships with us."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, ClassVar

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..files import parse_json
from ..lazily import torch

if TYPE_CHECKING:
    from torch import nn

DAMAGE = (
    OSError, SafetensorError, UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError,
    ArithmeticError, RuntimeError, AssertionError, ImportError, StrictDataclassError,
)  # fmt: skip
"""What libraries raise where files or settings of a model are damaged."""
MOST_JSON = 1 << 28
MOST_LAYERS = 1000
BUNDLED_MODEL = "pocket-wan"
"""The small model that ships with the package: its folder among the assets."""
CONFIGS = files("omnitune.families") / "configs"


@dataclass(frozen=True)
class ModelFolder:
    """A folder, or a model on the hub whose files are fetched as they are asked for."""

    path: str
    revision: str | None = None
    configs: Traversable = CONFIGS
    """Where configurations of published models are, by hub id, for models that are not on this machine."""
    key: str = "model.path"
    """The option that names the folder, for messages."""

    marker: ClassVar[str]
    """The file that a folder of this layout has."""
    settings: ClassVar[Sequence[str]]
    """Patterns of everything but weights and vocabularies."""

    @cached_property
    def local(self) -> Path | None:
        """The folder that `path` names, or None for a hub id; the bundled model goes by its name too."""
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            return folder
        if self.path == BUNDLED_MODEL:
            return Path(str(files("omnitune") / "assets" / BUNDLED_MODEL))
        if folder.is_absolute() or self.path.startswith((".", "~")) or not _is_hub_id(self.path):
            raise UserError(
                f"{self.key}: {self.path!r} is no folder; give a folder with {self.marker} or a hub id"
            )
        return None

    @cached_property
    def folder(self) -> Path | None:
        """Where the configurations lie; None for a published model that is known by its shipped one only."""
        if self.local is not None:
            return self.local
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            cached = self._snapshot(self.settings, local_files_only=True)
        except LocalEntryNotFoundError:
            cached = None
        if cached is not None and self.is_complete(cached):
            return cached
        return None if self.shipped else self.fetch()

    def is_complete(self, folder: Path) -> bool:
        """Whether a folder of the hub's cache, which may be partly fetched, tells what the model is."""
        return (folder / self.marker).is_file()

    def fetch(self, *patterns: str) -> Path:
        """The folder, with configurations and what matches the patterns fetched where it is missing."""
        if self.local is not None:
            return self.local
        try:
            return self._snapshot([*self.settings, *patterns])
        except OSError as error:  # the hub's errors and the network's are of this kind
            raise UserError(
                f"{self.key}: {self.path!r} is no folder here and cannot be fetched from the hub "
                f"({str(error).splitlines()[0]}); fetch it first, or give a folder"
            ) from error

    def _snapshot(self, patterns: Sequence[str], local_files_only: bool = False) -> Path:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                self.path,
                revision=self.revision,
                allow_patterns=list(patterns),
                local_files_only=local_files_only,
            )
        )

    @cached_property
    def shipped(self) -> dict[str, Any] | None:
        """The configuration of a published model that ships with the family.

        A part that another file has too is {"same_as": "FILE"}, or "FILE/COMPONENT" if the name differs.
        """
        file = self.configs / f"{self.path.replace('/', '--')}.json"
        if not file.is_file():
            return None
        shipped = read_json(file)
        for name, part in shipped.get("components", {}).items():
            if "same_as" in part:
                stem, _, other = part["same_as"].partition("/")
                source = read_json(self.configs / f"{stem}.json")
                shipped["components"][name] = source["components"][other or name] | part
        return shipped

    @property
    def source(self) -> str:
        """Where the configuration was read, for `plan`."""
        if self.folder is not None:
            return str(self.folder)
        assert self.shipped is not None
        state = "verified" if self.shipped["verified"] else "not verified against the published files"
        return f"shipped configuration ({self.shipped['source']}; {state})"


def _is_hub_id(path: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return "/" in path


@contextmanager
def panics_raised() -> Iterator[None]:
    """Raise the panic of a library written in Rust, whose class is no Exception, as a RuntimeError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # its module cannot be imported
            raise
        raise RuntimeError(str(error)) from error


@contextmanager
def blamed(
    key: str, file: Path | str, kinds: tuple[type[Exception], ...] = (*DAMAGE, Exception)
) -> Iterator[None]:
    """Tell a failure of a library that reads a file as the file's damage.

    `Exception` among the kinds is that itself, which tokenizers raise, and nothing derived from it.
    """
    try:
        with panics_raised():
            yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        damage = tuple(kind for kind in kinds if kind is not Exception)
        if not isinstance(error, damage) and not (type(error) is Exception and Exception in kinds):
            raise
        told = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"{key}: {file} cannot be loaded: {type(error).__name__}: {told[:300]}; fetch the model again"
        ) from error


def check_layers(config: Mapping[str, Any], key: str, file: Path | str) -> None:
    """Refuse a configuration of more layers than any model has: making them would take forever."""
    for name, value in config.items():
        if isinstance(value, dict):
            check_layers(value, key, file)
        elif "layers" in str(name) and isinstance(value, int | float) and value > MOST_LAYERS:
            raise UserError(f"{key}: {file} states {name} of {value}; fetch it again")


def quiet(*libraries: str) -> None:
    """Keep progress bars and hints of libraries off the terminal: our own lines say what matters."""
    for library in libraries:
        logging = import_module(f"{library}.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    # peft asks for it, under the name that it had before.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


def read_json(file: Path | Traversable, key: str = "model.path") -> dict[str, Any]:
    """Read an object; `key` is the option that messages name."""
    try:
        if isinstance(file, Path) and file.stat().st_size > MOST_JSON:
            raise ValueError(f"longer than {MOST_JSON >> 20} MiB")
        value = parse_json(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{key}: {file} is not JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise UserError(
            f"{key}: {file} holds a {type(value).__name__} where an object belongs; fetch it again"
        )
    return value


def weight_paths(expected: Path, key: str) -> tuple[Path | None, list[Path]]:
    """The files that the libraries load, there or not, and the index that lists them if any."""
    index = expected.with_name(f"{expected.name}.index.json")
    if index.is_file():
        return index, _shards(index, key)
    if expected.is_file():
        return None, [expected]
    for index in expected.parent.glob("*.bin.index.json"):
        return index, _shards(index, key)
    return None, [*expected.parent.glob("*.bin")] or [expected]


def _shards(index: Path, key: str) -> list[Path]:
    listed = read_json(index, key).get("weight_map")
    if not isinstance(listed, dict):
        raise UserError(f"{key}: {index} has no weight_map; fetch it again")
    if not listed or not all(
        isinstance(shard, str) and Path(shard).name == shard for shard in listed.values()
    ):
        raise UserError(f"{key}: {index} names no files in its weight_map; fetch it again")
    return [index.with_name(shard) for shard in sorted(set(listed.values()))]


def missing_weights(expected: Path, key: str) -> str | None:
    """Which file of weights a folder lacks, and what to do."""
    index, paths = weight_paths(expected, key)
    missing = [path for path in paths if not path.is_file()]
    if not missing:
        return None
    if index:
        return f"{missing[0]} is missing, which {index.name} lists; fetch it again"
    return f"{missing[0]} is missing; copy the weights there or fetch the model again"


@contextmanager
def opened(path: Path, key: str) -> Iterator[Any]:
    """Open a safetensors file, of which tensors are read as they are asked for."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"{key}: {path} cannot be loaded: {error}; fetch it again") from error


def shapes_in(path: Path, key: str) -> dict[str, list[int]]:
    """Name -> shape of each tensor in a safetensors file, by its header."""
    with opened(path, key) as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  # not a dict


def load_pretrained(
    cls: Any, folder: Path, key: str, settings: Mapping[str, Any], strict: bool = True
) -> nn.Module:
    """Load a network from a folder; a `strict` one may hold no tensor that the network has no place for."""
    with blamed(key, folder):
        module, report = cls.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    resized = [f"{name} of {tuple(shape)}" for name, _, shape in report["mismatched_keys"]]
    strange = sorted(report["unexpected_keys"]) if strict else []
    refuse_tensors(folder, key, sorted([*report["missing_keys"], *resized]), strange)
    network: nn.Module = module
    return network


def refuse_tensors(path: Path, key: str, lacking: Sequence[str], strange: Sequence[str]) -> None:
    """Raise UserError if weights lack tensors that the configuration asks for, or have others."""
    for names, verb, clause in (
        (lacking, "lacks", "which its configuration asks for"),
        (strange, "has", "of which its configuration knows nothing"),
    ):
        if names:
            raise UserError(
                f"{key}: {path} {verb} {names[0]} ({len(names)} such), {clause}; "
                "fetch the model again, with its own config.json"
            )
