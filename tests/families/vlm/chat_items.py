"""Conversations about the bundled pictures and clips, and what encodes them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from omnitune.data.conversations.conversation import Conversation, Media, Message
from omnitune.data.conversations.options import ChatOptions
from omnitune.data.conversations.tokens import Encoded
from omnitune.data.media import probe
from omnitune.families.vlm.encoder import ConversationEncoder
from omnitune.families.vlm.types import TYPES
from omnitune.files import File

ASSETS = Path(__file__).parents[3] / "omnitune" / "assets"
WHERE = "train.json: item 1"


def media(path: Path) -> Media:
    seen = probe(path)
    return Media(seen.kind, (File(path),), seen.width, seen.height, seen.num_frames, seen.fps, seen.times)


def picture(name: str = "rocket") -> Media:
    return media(ASSETS / "pictures" / "train" / f"{name}.png")


def clip(name: str = "tornado") -> Media:
    return media(ASSETS / "clips" / "train" / f"{name}.mp4")


def drawn(folder: Path, width: int, height: int, name: str = "drawn") -> Media:
    path = folder / f"{name}.png"
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(path)
    return Media("image", (File(path),), width, height)


def user(*parts: str | Media) -> Message:
    return Message("user", parts)


def answer(text: str, train: bool | None = None) -> Message:
    return Message("assistant", (text,), train=train)


def talk(*messages: Message, tools: tuple[dict[str, object], ...] = ()) -> Conversation:
    return Conversation("train/1", messages, WHERE, tools)


TEXT = talk(user("Hello?"), answer("yes"), user("How many boats are there?"), answer("two boats"))
PICTURE = talk(user(picture(), "What is in this picture?"), answer("rocket"))
TURNS = talk(*PICTURE.messages, user("How many?"), answer("a red apple"))
PICTURES = talk(user(picture(), "and", picture("cactus"), "?"), answer("no"))
CLIP = talk(user(clip(), "Describe the video."), answer("tornado"))


def processors(tiny_vlm: Callable[..., Path]) -> Callable[..., Any]:
    """Give what loads the processor of a type, once."""
    from transformers import AutoProcessor

    made: dict[tuple[str, bool], Any] = {}

    def of(model_type: str, generation_tags: bool = True) -> Any:
        key = model_type, generation_tags
        if key not in made:
            made[key] = AutoProcessor.from_pretrained(tiny_vlm(model_type, generation_tags))
        return made[key]

    return of


def chat(processor: Any, model_type: str, **options: Any) -> ConversationEncoder:
    return ConversationEncoder(processor, model_type, ChatOptions(**options), TYPES[model_type].prompt)


def encoded(chat: ConversationEncoder, conversation: Conversation) -> Encoded:
    found = chat.encode(conversation)
    assert isinstance(found, Encoded), found
    return found


def spoken(processor: Any, tokens: Mapping[str, Tensor]) -> str:
    """What is learned, each token set apart."""
    ids = tokens["labels"][tokens["labels"] != -100]
    return "|".join(processor.tokenizer.decode([i]) for i in ids.tolist())
