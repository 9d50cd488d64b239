"""Extra inputs to a denoiser, one file each."""

from typing import Annotated

from ..options import ByName
from .base import Condition
from .caption_dropout import CaptionDropout
from .frames import FrameConditioning

AnyCondition = Annotated[CaptionDropout | FrameConditioning, ByName("caption_dropout", Condition)]
"""What `conditions` may hold; a class of another package is one by `name: package.module:Class`."""
