"""A small run on conversations, for benchmarks and tests."""

import json
from pathlib import Path
from typing import Any

from omnitune.families import CONVERSATIONAL
from omnitune.testing.runs import ASSETS

SHOWN = ("rocket", "cactus", "frog")
"""Bundled pictures that conversations are about."""
SAID = (("Hello?", "yes"), ("How many boats are there?", "two boats"), ("Is it green?", "no"))


def small_chats(pictures: int = 3, texts: int = 3) -> list[dict[str, Any]]:
    """So many conversations about a bundled picture, and so many of text alone, at most three each."""

    def talk(asked: str, answer: str, **media: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return {"messages": messages, **media}

    shown = [
        talk(
            f"<image>What is in this picture, {name}?",
            name,
            images=[str(ASSETS / "pictures" / "train" / f"{name}.png")],
        )
        for name in SHOWN[:pictures]
    ]
    return [*shown, *(talk(*said) for said in SAID[:texts])]


def small_chat_run(
    model: Path, folder: Path, pictures: int = 3, texts: int = 3, **keys: Any
) -> dict[str, Any]:
    """Describe a run over all of `small_chats` in each step; `keys` replace top-level ones.

    The conversations and the cache are in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chats = small_chats(pictures, texts)
    (folder / "train.json").write_text(json.dumps(chats))
    return {
        "model": {"family": CONVERSATIONAL, "path": str(model), "dtype": "float32"},
        "objective": {"name": "causal_lm"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "data": {
            "name": "conversations",
            "sources": [{"path": str(folder / "train.json")}],
            "batch_size": len(chats),
            "cache": str(folder / "cache"),
        },
        "schedule": {"steps": 2},
        **keys,
    }
