"""Tiny models of every type, loaded once a test process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


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
