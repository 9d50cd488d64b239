"""Tiny models of every type, built once a test process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omnitune.testing.tiny_vlm import build_tiny_vlm


def needs(model_type: str) -> None:
    if model_type == "smolvlm":
        pytest.importorskip("num2words", reason="the processor of smolvlm needs the package num2words")


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives the folder of a tiny model of a type; tests do not write to it."""
    made: dict[tuple[str, bool], Path] = {}

    def of(model_type: str, generation_tags: bool = True) -> Path:
        needs(model_type)
        key = model_type, generation_tags
        if key not in made:
            folder = tmp_path_factory.mktemp(model_type) / "model"
            made[key] = build_tiny_vlm(folder, model_type, generation_tags=generation_tags)
        return made[key]

    return of


@pytest.fixture(scope="session")
def loaded_vlm(tiny_vlm: Callable[..., Path]) -> Callable[[str], tuple[Any, Any]]:
    """Gives a tiny model in evaluation mode and its processor; tests do not change them."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    made: dict[str, tuple[Any, Any]] = {}

    def of(model_type: str) -> tuple[Any, Any]:
        if model_type not in made:
            folder = tiny_vlm(model_type)
            model, found = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
            assert not any(found.values()), found
            made[model_type] = model.eval(), AutoProcessor.from_pretrained(folder)
        return made[model_type]

    return of
