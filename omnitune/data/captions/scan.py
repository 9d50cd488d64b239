"""Read sources of captioned pictures and clips into columns: probed, checked, nothing decoded."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...errors import UserError
from ...files import Hashes
from ..media import Probe
from ..sources import Findings, PathSource, Scan, chunked, probe_all, shared_ids
from .item import CaptionSource, Item, Items

PROPER = ("pixels", "last_frame", "caption", "media")
"""Names that a medium of a source cannot have: these are the sample's own."""


PROBED = ("kind", "width", "height", "num_frames", "fps", "times")
"""What an item has of its probe."""


def scan(sources: Sequence[CaptionSource], base: Path, memo: Hashes) -> Scan[Items]:
    """Read all sources in order; every mistake in any of them is in the one error.

    `memo` remembers what files hold: one that did not change is not opened again.
    """
    findings = Findings()
    found = scan_sound(sources, base, memo, findings)
    if findings.mistakes:
        raise UserError("\n".join(findings.mistakes))
    return found


def scan_sound(sources: Sequence[CaptionSource], base: Path, memo: Hashes, findings: Findings) -> Scan[Items]:
    """Read what is right of all sources; what is wrong is added to `findings`."""
    for source in sources:
        if isinstance(source.brings, str) or not all(map(str.isidentifier, source.brings)):
            raise UserError(f"data.sources: {source} brings {source.brings!r}; give a list of names of media")
        findings.mistakes += [
            f"data.sources: {name!r} cannot name a medium, every sample has one of its own; rename it"
            for name in sorted(set(source.brings).intersection(PROPER))
        ]
    items = Items(sources, base)
    for number, source in enumerate(sources):
        lack = source.missing(base)
        if lack and not isinstance(source, PathSource):  # those tell more themselves
            told = f"{lack} is not there; bring it, or correct the path"
            findings.mistakes.append(f"data.sources: {source}: {told}")
            continue
        for chunk in chunked(source.items(base, findings)):
            for item in _probed(source, base, chunk, findings, memo):
                items.append(number, item)
    findings.mistakes += shared_ids(sources, items.ids, items.source_numbers, items.wheres)
    return Scan(items, findings.told())


def _probed(
    source: CaptionSource, base: Path, items: Sequence[Item], findings: Findings, memo: Hashes
) -> Iterator[Item]:
    """Probe items and their media; results and mistakes keep the order of the items."""
    wanted = [item.file for item in items if not item.num_frames]
    wanted += [file for item in items for file in item.media.values()]
    found = probe_all(wanted, partial(source.open, base), memo)
    for item in items:
        mistakes = [] if item.caption.strip() else [f"the caption of {item.file!r} is blank; write one"]
        if not item.num_frames:
            probe = found[item.file]
            if isinstance(probe, UserError):
                mistakes.append(str(probe))
            else:
                findings.remark(item.id, probe)
                item = replace(item, **{name: getattr(probe, name) for name in PROBED})
        for name, file in item.media.items():
            assert name in source.brings, (str(source), name)
            medium = found[file]
            if isinstance(medium, Probe):
                findings.remark(file, medium)
            if problem := _wrong_medium(item, name, file, medium):
                mistakes.append(f"{name} {problem}")
        findings.mistakes += [f"{item.where}: {mistake}" for mistake in mistakes]
        if not mistakes:
            yield item


def _wrong_medium(item: Item, name: str, file: str, found: Probe | UserError) -> str | None:
    """What is wrong with a medium of an item, which is shown through the item's own window and crop."""
    if isinstance(found, UserError):
        return str(found)
    if name == "first_frame":
        return f"{file!r} is a clip; name a picture" if found.kind == "video" else None
    if not item.num_frames:
        return None  # the item itself cannot be read
    if found.num_frames != item.num_frames:
        return f"{file!r} has {found.num_frames} frames, and {item.id} has {item.num_frames}; make them equal"
    # Sizes may differ, shapes may not by more than the rounding of one pixel.
    if abs(found.width * item.height - found.height * item.width) > max(item.width, item.height):
        shapes = f"{found.width}x{found.height}, and {item.id} {item.width}x{item.height}"
        return f"{file!r} is {shapes}; bring both to one shape"
    return None
