"""Tiny random vision-language models of every supported type, with real processors and tokenizers.

`tiny_vlms/` has one file a type: its small configuration, its processor's settings and its special tokens.
`chat_templates/` has one template a prompt style.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .tiny import CAPTIONS, byte_level

SETTINGS = Path(__file__).parent / "tiny_vlms"
TEMPLATES = Path(__file__).parent / "chat_templates"
WORDS = (
    "system user assistant model tool Question Answer User Assistant USER ASSISTANT",
    "What is in this picture?", "How many boats are there?", "Describe the video.", "red green blue yes no",
)  # fmt: skip
"""What chats are made of, beside captions."""
GENERATION_TAG = re.compile(r"\s*\{%- (end)?generation -%\}\s*")


def tiny_types() -> list[str]:
    """Name the types that `build_tiny_vlm` knows."""
    return sorted(path.stem for path in SETTINGS.glob("*.json"))


def build_tiny_vlm(
    folder: Path,
    model_type: str,
    *,
    seed: int = 0,
    generation_tags: bool = True,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Save a random model of a type with its processor, all in float32, and return the folder.

    `changes` are merged into the type's file of settings. `generation_tags` says whether the chat template
    marks what the assistant says. The processor of smolvlm needs the package num2words.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

    settings = json.loads((SETTINGS / f"{model_type}.json").read_text(encoding="utf-8"))
    settings = _merged(settings, changes or {})
    tokenizer = _tokenizer(settings["tokens"], settings["tokenizer"])
    parts = {name: _part(value) for name, value in settings["processor"].items()}
    if template := settings.get("chat_template"):
        parts["chat_template"] = chat_template(**template, generation_tags=generation_tags)
    _part({**parts, "tokenizer": tokenizer}).save_pretrained(folder)  # may add tokens
    config = AutoConfig.for_model(model_type, **_with_ids(settings["config"], tokenizer))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        _stir(model)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(settings.get("end", tokenizer.eos_token)),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    return folder


def _merged(settings: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    inner = {
        key: _merged(settings.get(key, {}), value) if isinstance(value, Mapping) else value
        for key, value in changes.items()
    }
    return {**settings, **inner}


def chat_template(style: str, *, generation_tags: bool = True, **placeholders: str) -> str:
    """Make the template of a prompt style, with the tags that mark answers or without.

    `placeholders` are the texts that stand for an image and a video.
    """
    parts = [f"{{%- set {name} = {json.dumps(text)} -%}}\n" for name, text in placeholders.items()]
    parts += [(TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8") for name in ("_said", style)]
    text = "".join(parts)
    return text if generation_tags else GENERATION_TAG.sub("", text)


def _stir(model: Any) -> None:
    """Move every parameter, so that no gate is closed, no bias zero and no two norms are alike."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def _tokenizer(tokens: list[str], options: Mapping[str, Any]) -> Any:
    """Byte-level BPE learned from captions and words of chats, with a type's special tokens behind."""
    import transformers

    start = [options["bos_token"]] if "bos_token" in options else []
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level([*CAPTIONS, *WORDS], 400, tokens, start),
        additional_special_tokens=tokens,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        **options,
    )


def _with_ids(config: Any, tokenizer: Any) -> Any:
    """Put ids for tokens that stand in for them, and the vocabulary's size for its null."""
    if not isinstance(config, dict):
        return config
    filled = {}
    for key, value in config.items():
        if isinstance(value, str) and key.endswith(("_id", "_index")):
            filled[key] = tokenizer.convert_tokens_to_ids(value)
        else:
            filled[key] = len(tokenizer) if key == "vocab_size" else _with_ids(value, tokenizer)
    return filled


def _part(settings: Any) -> Any:
    """Make what has a class or is a tokenizer; all else is an option as it stands."""
    import transformers

    if isinstance(settings, dict) and "class" in settings:
        options = {name: value for name, value in settings.items() if name != "class"}
        return getattr(transformers, settings["class"])(**options)
    if isinstance(settings, dict) and "tokens" in settings:
        return _tokenizer(settings["tokens"], settings["tokenizer"])
    return settings
