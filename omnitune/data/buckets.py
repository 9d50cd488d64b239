"""Decide which sizes samples have, and which item goes to which."""

from collections.abc import Sequence
from dataclasses import field
from math import isqrt

from ..errors import UserError
from ..options import option
from .sizes import Bucket, Limits


@option
class Buckets:
    """Sizes of training samples: every frame count with every height and width."""

    frames: list[int] = field(default_factory=lambda: [1])
    """Frame counts; 1 holds pictures."""
    area: str | None = None
    """Budget of pixels, as `480x832`: sizes of all shapes from 1:2 to 2:1 follow from it."""
    sizes: list[str] = field(default_factory=list)
    """Exact sizes instead, height x width each: `[480x832, 832x480]`."""


def resolve(buckets: Buckets, limits: Limits) -> list[Bucket]:
    """List the buckets in order, or raise one error with every value the family cannot take."""
    mistakes = _wrong_frames(buckets.frames, limits)
    if (buckets.area is None) == (not buckets.sizes):
        given = "both are given" if buckets.sizes else "neither is given"
        mistakes.append(
            f"data.buckets: exactly one of area and sizes is needed, {given}; keep area: 480x832, say"
        )
    mistakes += _wrong_spelling(buckets)
    sizes: list[tuple[int, int]] = []
    if not mistakes and buckets.area is not None:
        made = shapes(parse_size(buckets.area), limits.spatial)
        sizes = [size for size in made if nearest_sides(size, limits) == size]
        if not sizes:
            least = f"{limits.spatial}x{limits.spatial}"
            mistakes.append(
                f"data.buckets.area: {buckets.area} is less than the smallest legal size; use {least}"
            )
    else:
        mistakes += _wrong_sizes(buckets.sizes, limits)
    if mistakes:
        raise UserError("\n".join(mistakes))
    sizes = sizes or [parse_size(size) for size in buckets.sizes]
    found = sorted({Bucket(frames, height, width) for frames in buckets.frames for height, width in sizes})
    if limits.one_size and len(found) > 1:
        raise UserError(
            f"data.buckets: {len(found)} sizes, but this model's positions are learned, of one size alone; "
            f"give one, as frames: [{found[-1].frames}], sizes: [{found[-1].height}x{found[-1].width}]"
        )
    return found


def shapes(area: tuple[int, int], spatial: int) -> list[tuple[int, int]]:
    """Derive (height, width) pairs from a budget of pixels.

    The rule: both are multiples of `spatial`; their product is within the budget, and would leave it if
    either grew by one multiple; the longer side is at most twice the shorter. The size that states the
    budget is among them whatever its shape, if the family divides it.
    """
    budget = area[0] * area[1]
    found = {area} if area[0] % spatial == 0 and area[1] % spatial == 0 else set()
    for height in range(spatial, isqrt(2 * budget) + 1, spatial):
        width = budget // height // spatial * spatial
        fills = (height + spatial) * width > budget
        if width and fills and max(height, width) <= 2 * min(height, width):
            found.add((height, width))
    return sorted(found)


def nearest_bucket(size: tuple[int, int], num_frames: int, buckets: Sequence[Bucket]) -> Bucket | None:
    """Choose the bucket of an item of (height, width) that gives `num_frames` at the rate asked for.

    Frames first: the most that it fills. Then the nearest aspect ratio by its logarithm; of equal ones the
    most pixels. None if it fills no bucket.
    """
    filled = [bucket for bucket in buckets if bucket.frames <= num_frames]
    most = max((bucket.frames for bucket in filled), default=0)
    candidates = [bucket for bucket in filled if bucket.frames == most]
    return min(candidates, key=lambda bucket: _preference(size, bucket), default=None)


def parse_size(text: str) -> tuple[int, int]:
    """Read `480x832` as (height, width)."""
    height, width = text.split("x")
    return int(height), int(width)


def _preference(size: tuple[int, int], bucket: Bucket) -> tuple[float, int, int]:
    """Sort key: the ratio of aspect ratios orders as the distance of their logarithms, and ties are exact."""
    a, b = size[0] * bucket.width, size[1] * bucket.height
    return max(a, b) / min(a, b), -bucket.height * bucket.width, bucket.height


def _wrong_spelling(buckets: Buckets) -> list[str]:
    stated = [("data.buckets.sizes", size) for size in buckets.sizes]
    if buckets.area is not None:
        stated.append(("data.buckets.area", buckets.area))
    return [f"{at}: {size!r} is not HEIGHTxWIDTH, as 480x832" for at, size in stated if not _is_size(size)]


def _is_size(text: str) -> bool:
    sides = text.split("x")
    return len(sides) == 2 and all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides)


def _wrong_frames(frames: Sequence[int], limits: Limits) -> list[str]:
    if not frames:
        return ["data.buckets.frames: is empty; use [1] for pictures"]
    mistakes = []
    for count in frames:
        legal = nearest_frames(count, limits)
        if count != legal:
            rule = limits.rule.partition(", ")[2].removeprefix("frames ")
            mistakes.append(f"data.buckets.frames: {count} is not {rule}; the nearest is {legal}")
    return mistakes


def nearest_frames(count: int, limits: Limits) -> int:
    """The legal frame count that is nearest to `count`."""
    least, step = limits.least_frames, limits.temporal
    legal = max(least, max(round((count - 1) / step), 0) * step + 1)
    return legal if limits.most_frames is None else min(legal, limits.most_frames)


def _wrong_sizes(sizes: Sequence[str], limits: Limits) -> list[str]:
    nearest = {size: nearest_sides(parse_size(size), limits) for size in sizes if _is_size(size)}
    return [
        f"data.buckets.sizes: {size} is not in {limits.sides_rule}; the nearest is {height}x{width}"
        for size, (height, width) in nearest.items()
        if (height, width) != parse_size(size)
    ]


def nearest_sides(size: tuple[int, int], limits: Limits) -> tuple[int, int]:
    """The legal (height, width) that is nearest to `size`."""
    height, width = (max(round(side / limits.spatial), 1) * limits.spatial for side in size)
    most_height, most_width = limits.largest or (height, width)
    return min(height, most_height), min(width, most_width)
