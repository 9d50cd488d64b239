"""Held-out data as the run shows its own, with nothing random in it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..data.buckets import Buckets
from ..data.captions.index import CaptionDataset
from ..data.captions.kind import Source
from ..data.captions.sources import Folder
from ..data.conversations import dataset_info
from ..data.conversations.sources import ConversationSource
from ..files import read_jsonl
from ..resolve import ResolvedRun
from ..sampling import parse_bucket

if TYPE_CHECKING:
    from ..config.run import Run
    from ..data.captions.kind import Data
    from ..data.conversations.kind import Conversations
    from ..data.conversations.rows import ConversationIndex
    from ..data.dataset import Index
    from ..data.media import Pixels
    from ..data.sizes import Limits
    from ..families.base import Family


def deterministic(run: "Run") -> "Run":
    """The run with nothing random in its conditions: every caption as it is."""
    fixed = [condition.deterministic() for condition in run.conditions]
    return replace(run, conditions=[condition for condition in fixed if condition is not None])


def held_out(
    data: "Data", folders: Sequence[Path], size: str | None, limits: "Limits | None" = None
) -> "Data":
    """The run's way of showing data, for other folders: nothing random; of one size where it is stated.

    Pictures are taken beside clips where the `limits` of the model allow both.
    """
    sizes = data.buckets
    if size is not None:
        bucket = parse_bucket(size, "--size")
        beside = limits is None or (limits.least_frames == 1 and not limits.one_size)
        frames = sorted({1, bucket.frames} if beside else {bucket.frames})
        sizes = Buckets(frames=frames, sizes=[f"{bucket.height}x{bucket.width}"])
    window = "middle" if data.window == "random" else data.window
    stated = [source.media for source in data.sources if isinstance(source, Folder)]
    media = stated[0] if stated and all(one == stated[0] for one in stated) else {}
    sources: list[Source] = [Folder(path=folder, media=media) for folder in folders]
    return replace(data, sources=sources, buckets=sizes, variants=1, crop="center", window=window)


def conversations(data: "Conversations", path: Path) -> "Conversations":
    """The run's way of reading conversations, for another file: each in a row of its own.

    A plain file is read with the keys and roles that the run states, where all its sources state the same.
    """
    source = ConversationSource(path=path)
    stated = [one for one in data.sources if isinstance(one, ConversationSource)]
    first = stated[0] if stated else source
    alike = all(
        (one.format, one.columns, one.tags) == (first.format, first.columns, first.tags) for one in stated
    )
    if alike and path.is_file() and path.name != dataset_info.FILE:
        source = replace(source, format=first.format, columns=first.columns, tags=first.tags)
    return replace(data, sources=[source], packing=False)


def first_items(index: "ConversationIndex", number: int) -> "ConversationIndex":
    """The first conversations of a file, as the file has them."""
    return index.take(sorted(range(len(index.items)), key=lambda i: _place(index.items[i].id))[:number])


def _place(name: str) -> tuple[str, int]:
    stem, _, number = name.rpartition("/")
    return stem, int(number)


def num_trained(index: "Index", folder: Path) -> int:
    """How many items the run of a folder was trained on, by file, caption and size."""
    lines = folder / "data.jsonl"
    if not lines.is_file():
        return 0
    stored = {row["fingerprint"] for row in read_jsonl(lines, "fingerprint")}
    return sum(fingerprint in stored for fingerprint in index.fingerprints().values())


def shown(job: ResolvedRun, index: "Index", i: int) -> "Pixels":
    """An item in its bucket's size, (T, H, W, 3)."""
    dataset = captioned(job, index)
    return to_8bit(dataset.load("pixels", dataset.inputs(i)))


def captioned(job: ResolvedRun, index: "Index") -> CaptionDataset:
    """The samples of a run on captioned pictures and clips."""
    dataset = job.bound.dataset(index)
    assert isinstance(dataset, CaptionDataset), type(dataset)
    return dataset


def middle(frames: "Pixels") -> "Pixels":
    """The frame that stands for a clip where pictures are measured, (H, W, 3)."""
    frame: Pixels = frames[len(frames) // 2]
    return frame


def to_8bit(pixels: Tensor) -> "Pixels":
    """(3, T, H, W) in [-1, 1] to (T, H, W, 3)."""
    levels: Pixels = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
    return levels


def reconstructed(family: "Family", frames: "Pixels") -> "Pixels":
    """Frames (T, H, W, 3) behind the family's autoencoder."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        decoded = family.reconstruct(pixels)
    return to_8bit(decoded[0].cpu())


def candidates_of(captions: Sequence[str]) -> list[int]:
    """Places of the captions that differ from all before them."""
    places: dict[str, int] = {}
    for i, caption in enumerate(captions):
        places.setdefault(plain_caption(caption), i)
    return list(places.values())


def plain_caption(caption: str) -> str:
    """Spell captions that say the same alike."""
    return " ".join(caption.casefold().split())
