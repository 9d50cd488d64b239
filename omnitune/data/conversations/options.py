"""What a data set of conversations may say about how it becomes tokens and labels."""

import re
from typing import Literal

from ...errors import UserError
from ...options import option

BoxFormat = Literal["absolute_xyxy", "absolute_xywh", "absolute_xy", "relative_1000_xyxy", "relative_1000_xy"]

_NUMBER = r"(-?\d+(?:\.\d+)?)"
PATTERNS = {
    "<box>(x1,y1),(x2,y2)</box>": (
        r"(?:<box>|<\|box_start\|>)\s*\(\s*N\s*,\s*N\s*\)\s*,\s*\(\s*N\s*,\s*N\s*\)\s*(?:</box>|<\|box_end\|>)"
    ),
    "bbox_2d": r'"bbox_2d"\s*:\s*\[\s*N\s*,\s*N\s*,\s*N\s*,\s*N\s*\]',
    "point_2d": r'"point_2d"\s*:\s*\[\s*N\s*,\s*N\s*\]',
    "<point x= y=>": r'<point\s+x\s*=\s*"?N"?\s+y\s*=\s*"?N"?',
}
"""Ways to write coordinates, by the name that the YAML gives; N is a number."""


@option
class Boxes:
    """How the texts write boxes or points in a picture."""

    format: BoxFormat
    """`absolute`: pixels of the picture's file, rescaled to the picture that the model sees. `relative_1000`:
    thousandths of its sides, which stay as they are. Then what the numbers are: corners, a corner with width
    and height, or a point."""
    pattern: str
    """A name of one of the known ways, or a regular expression with one group a number."""

    def __post_init__(self) -> None:
        try:
            groups = self.compiled.groups
        except re.error as error:
            raise UserError(
                f"boxes.pattern: {self.pattern!r} is no regular expression ({error}); "
                f"known names: {', '.join(PATTERNS)}"
            ) from error
        if groups != len(self.axes):
            raise UserError(
                f"boxes.pattern: {self.pattern!r} has {groups} groups, {self.format} has {len(self.axes)} "
                f"numbers; give one group a number, or one of {', '.join(PATTERNS)}"
            )

    @property
    def compiled(self) -> re.Pattern[str]:
        known = PATTERNS.get(self.pattern)
        return re.compile(known.replace("N", _NUMBER) if known else self.pattern)

    @property
    def absolute(self) -> bool:
        return self.format.startswith("absolute")

    @property
    def axes(self) -> str:
        """Letters of the numbers in their order: `xyxy`."""
        return self.format.rsplit("_", 1)[1]


@option
class ChatOptions:
    """From conversations to tokens and labels."""

    train_on_prompt: bool = False
    """Learn all text, not the answers alone; never what stands for pictures."""
    mask_history: bool = False
    """Learn the last answer alone; and those that the data say `train: true` of."""
    max_length: int = 2048
    """Tokens of a row, those of pictures among them."""
    too_long: Literal["drop", "shrink"] = "drop"
    """`shrink` makes the pictures and clips of an item smaller until it fits; what never fits is dropped."""
    image_pixels: tuple[int, int] | None = None
    """Least and most pixels (width times height) of a picture, resized in its aspect ratio before the
    processor sees it; absent: the processor's own limits alone."""
    video_pixels: tuple[int, int] | None = None
    """The same for each frame of a clip."""
    video_fps: float | None = None
    """Frames taken of a second of a clip, by the processor's own sampling, and those that the pictures of a
    clip are taken to be; absent: as the processor has it, or 2."""
    video_frames: int = 128
    """The most frames taken of a clip."""
    boxes: Boxes | None = None
    """Boxes or points in the texts that follow the resizing of their picture; absent: texts stay."""

    def __post_init__(self) -> None:
        if self.train_on_prompt and self.mask_history:
            raise UserError(
                "train_on_prompt learns all text and mask_history the last answer alone; remove one of them"
            )
        for name, least in (("max_length", 1), ("video_frames", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: {getattr(self, name)} is less than {least}")
        if self.video_fps is not None and self.video_fps <= 0:
            raise UserError(f"video_fps: {self.video_fps} is not above 0")
        for name in ("image_pixels", "video_pixels"):
            limits = getattr(self, name)
            if limits is not None and not 1 <= limits[0] <= limits[1]:
                raise UserError(
                    f"{name}: {list(limits)} is not the least and the most pixels; at least 1 each"
                )
