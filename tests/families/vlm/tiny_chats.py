"""Items to show tiny models of every type."""

from typing import Any

import numpy as np
from PIL import Image

from omnitune.families.vlm.types import TYPES
from omnitune.testing.tiny_vlm import tiny_types

WIDE = Image.linear_gradient("L").resize((100, 60)).convert("RGB")
TALL = Image.radial_gradient("L").resize((50, 90)).convert("RGB")
CLIP = np.random.default_rng(0).integers(0, 255, (4, 48, 64, 3), dtype=np.uint8)
SHOWS_CLIPS = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "video_llava", "llava_onevision",
    "internvl", "smolvlm", "glm4v", "qwen2_5_omni_thinker",
)  # fmt: skip
ONE_PICTURE = ("blip-2", "instructblip")


def user(*parts: str) -> dict[str, Any]:
    """A question: texts, and `image` or `video` where one stands."""
    media = ("image", "video")
    content = [{"type": part} if part in media else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}


def assistant(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": answer}]}


CHATS: dict[str, list[dict[str, Any]]] = {
    "text": [user("Hello?"), assistant("yes"), user("How many boats are there?"), assistant("two boats")],
    "picture": [user("image", "What is it?"), assistant("a fox")],
    "tall": [user("image", "Is this a rocket?"), assistant("no")],
    "pictures": [user("image", "and", "image", "differ?"), assistant("yes")],
    "clip": [user("video", "What happens?"), assistant("a fox runs through snow")],
}
SHOWN = {"picture": [WIDE], "tall": [TALL], "pictures": [WIDE, TALL]}


def cases(model_type: str) -> list[str]:
    """Which of the chats a type takes."""
    left_out = {
        "text": not TYPES[model_type].text_only,
        "pictures": model_type in ONE_PICTURE,
        "clip": model_type not in SHOWS_CLIPS,
    }
    return [name for name in CHATS if not left_out.get(name, False)]


EVERY_CASE = [(name, case) for name in tiny_types() for case in cases(name) if case != "tall"]
"""Each type with what it takes; the tall picture is there to stand beside the wide one."""


def render(processor: Any, model_type: str, case: str) -> str:
    text: str = processor.apply_chat_template(
        CHATS[case], tokenize=False, chat_template=processor.chat_template or TYPES[model_type].prompt
    )
    return text


def inputs(processor: Any, model_type: str, *names: str) -> dict[str, Any]:
    """What a model is given for chats, a row each."""
    from transformers.video_utils import VideoMetadata

    given: dict[str, Any] = {}
    pictures = [SHOWN[name] for name in names if name in SHOWN]
    if pictures:
        flat = [picture for row in pictures for picture in row]
        given["images"] = pictures if model_type in ("gemma3", "mllama", "idefics3", "smolvlm") else flat
    if "clip" in names:
        about = VideoMetadata(
            total_num_frames=4, fps=2.0, frames_indices=[0, 1, 2, 3], width=64, height=48, duration=2.0
        )
        given["videos"] = [CLIP]
        given["videos_kwargs"] = {"video_metadata": [about], "do_sample_frames": False}
    texts = [render(processor, model_type, name) for name in names]
    found = processor(text=texts, return_tensors="pt", padding=True, **given)
    # The pixels of llama4 come in half precision.
    return {k: v.float() if v.is_floating_point() else v for k, v in found.items() if hasattr(v, "shape")}
