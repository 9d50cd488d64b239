"""Files of conversations changed at random, through `check` of a run with phases: each is fine or told."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_chats import small_chat_run

from omnitune.cli import main

STRANGE: list[Any] = [
    None, True, False, 0, -1, 1e400, float("nan"), 10**40, "", " ", "\u2028", "\x00", "\ud83d", "<image>",
    r"\<image>", "<video><video>", "<|im_end|>", "<audio>", "{{ 1 }}", "{% raise %}", "../train.json",
    "/dev/zero", "a" * 5000,
    [], {}, [[]], [None], {"": ""}, {"type": "image"}, {"type": "text"}, {"url": {}}, ["train.json"],
]  # fmt: skip
KEYS = (
    "messages",
    "role",
    "content",
    "images",
    "videos",
    "tools",
    "system",
    "weight",
    "tool_calls",
    "from",
    "",
)
SHAPES = ("messages", "sharegpt", "alpaca", "parts")
NUMBER = 300


def item(shape: str, picture: str) -> dict[str, Any]:
    if shape == "alpaca":
        return {"instruction": "<image>What?", "output": "yes", "history": [["a", "b"]], "images": [picture]}
    if shape == "sharegpt":
        said = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "yes"}]
        return {"conversations": said, "images": [picture], "system": "Be brief."}
    content: Any = "<image>What?"
    if shape == "parts":
        content = [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]
    said = [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}]
    return {"messages": said, "images": [] if shape == "parts" else [picture]}


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) of what is nested in a value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *places(value[key]))]


def change(items: list[Any], rng: random.Random) -> None:
    """Change one place of a value: another value there, nothing there, another key, the same twice, deep."""
    holder, key = rng.choice(places(items))
    match rng.randrange(5):
        case 0 | 1:
            holder[key] = rng.choice(STRANGE)
        case 2:
            del holder[key]
        case 3 if isinstance(holder, dict):
            holder[rng.choice(KEYS)] = holder.pop(key)
        case 3:
            holder.insert(key, holder[key])
        case _:
            for _ in range(rng.choice((1, 3, 40))):
                holder[key] = rng.choice(([holder[key]], {"content": holder[key]}))


def changed(data: bytes, rng: random.Random) -> bytes:
    """Change the bytes of a file: cut, one of them another, a part twice, deep."""
    place = rng.randrange(len(data))
    return rng.choice(
        (
            data[:place],
            data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :],
            data[:place] + data[place // 2 : place] + data[place:],
            data[:place] + b"[" * rng.choice((1, 100_000)) + data[place:],
            b"\xff\xfe" + data,
        )
    )


@pytest.mark.slow
def test_any_file_is_fine_or_told(
    tiny_vlm: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    phases = [
        {"trainable": "full", "train_mm_proj_only": True, "schedule": {"steps": 1}},
        {"trainable": {"lora": {"rank": 2}}, "schedule": {"steps": 1}},
    ]
    run = small_chat_run(tiny_vlm("qwen2_5_vl"), tmp_path, phases=phases)
    del run["schedule"], run["optimizer"]
    picture = json.loads((tmp_path / "train.json").read_text())[0]["images"][0]
    Path("run.yaml").write_text(json.dumps(run))
    assert main(["check", "run.yaml"]) == 0
    codes = []
    for seed in range(NUMBER):
        rng = random.Random(seed)
        items = [item(SHAPES[seed % len(SHAPES)], picture) for _ in range(2)]
        for _ in range(rng.randrange(3)):
            change(items, rng)
        data = json.dumps(items, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
        Path("train.json").write_bytes(changed(data, rng) if seed % 3 == 0 else data)
        capsys.readouterr()
        start = time.monotonic()
        codes.append(main(["check", "run.yaml"]))
        told = capsys.readouterr().err
        assert time.monotonic() - start < 20, seed
        assert codes[-1] in (0, 2), (seed, told)
        assert "Traceback" not in told, (seed, told)
        assert codes[-1] == 0 or "train.json" in told, (seed, told)
    assert 20 < codes.count(0) < NUMBER - 100
