"""What a picture or clip is, found without decoding its frames."""

import errno
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from ...errors import MachineError, UserError
from ...files import Openable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

MACHINE_ERRORS = (errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE)
REVISION = "1"
"""Part of the keys of files that were once shown in another way; another number when they change again."""


@dataclass(frozen=True)
class Probe:
    """What a file holds, in sizes as shown."""

    kind: Literal["image", "video"]
    width: int
    height: int
    num_frames: int
    """How many can be decoded and are shown, whatever the file states."""
    fps: float
    """The mean rate of a clip with a variable one; 0 for an image."""
    times: tuple[float, ...] = ()
    """Seconds from the first frame to each, of a clip whose frames are not where its mean rate has them."""
    notes: tuple[str, ...] = ()
    """What it says about its display that is not obeyed, each as `3 files are ...` goes on."""
    revision: str = ""
    """REVISION of a file that was once shown in another way, so that nothing made of it then is used."""

    def text(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> "Probe":
        """The inverse of `text`."""
        fields = json.loads(text)
        return Probe(**{**fields, "times": tuple(fields["times"]), "notes": tuple(fields["notes"])})


def suffix(file: Openable) -> str:
    return PurePosixPath(file.name).suffix.lower()


def timed(times: Sequence[Fraction], rate: Fraction) -> tuple[float, tuple[float, ...]]:
    """Rate and times of a clip, as a probe has them.

    Its rate is a variable one if a frame is half a frame or more from its place.
    """
    times = [time - times[0] for time in times]
    if times[-1] == 0 or all(abs(time * rate - index) < Fraction(1, 2) for index, time in enumerate(times)):
        return float(rate), ()
    return float((len(times) - 1) / times[-1]), tuple(map(float, times))


def unreadable(file: Openable, error: OSError) -> MachineError | UserError:
    """Tell a file that is not readable from a machine that cannot read."""
    if error.errno in MACHINE_ERRORS:
        return MachineError(f"{file.name}: cannot be read ({error.strerror})")
    return UserError(f"{file.name}: cannot be read ({error.strerror}); replace it or remove it")
