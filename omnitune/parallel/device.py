"""The device of a rank, and the time and memory that steps take on it."""

import os
import platform
import resource
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What Linux takes as the wish to forget a process's peak (man 5 proc)."""


def device_type() -> str:
    """What this machine computes on: the kind of its accelerator (`cuda`, `mps`), or `cpu`."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def local_device() -> torch.device:
    """The device of this rank, made the current one; several ranks may be left one card each to see."""
    kind = device_type()
    if kind == "cpu":
        return torch.device(kind)
    count = torch.accelerator.device_count()
    index = int(os.environ.get("LOCAL_RANK", 0)) % count
    if count > 1:
        torch.accelerator.set_device_index(index)
    if kind == "cuda":  # fp32 is fp32: an autoencoder's convolutions would be TF32, which keeps 10 bits
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(kind, index)


def device_id(device: torch.device) -> str:
    """Tell the card of a device from every other of all machines, however few a rank sees."""
    own = torch.cuda.get_device_properties(device).uuid if device.type == "cuda" else device
    return f"{own} of {platform.node()}"


def device_name(device: torch.device) -> str:
    """What a manifest says of the device."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, TF32 off"
    return f"{device.type} ({platform.machine()})"


@dataclass(frozen=True)
class Span:
    """From one mark to another, on a device that may not have come to them yet."""

    start: "float | torch.Event"
    stop: "float | torch.Event"

    def seconds(self) -> float:
        """How long it was; where a device measures it, that has come to `stop`."""
        if isinstance(self.start, float) or isinstance(self.stop, float):
            return self.stop - self.start  # type: ignore[operator]  # both are
        return float(self.start.elapsed_time(self.stop)) / 1000


class Meter:
    """The time and memory of steps; what is done between them (samples, saves) does not count.

    The host queues steps ahead of the device, so the device itself notes the time when it comes to a mark.
    """

    def __init__(self, device: torch.device):
        self.device, self.peak = device, 0
        self.begin()

    def begin(self) -> None:
        """A step begins here."""
        self._forget_peak()
        self.start = self._mark()

    def end(self) -> Span:
        """The step ends here, for the device when it has done all that is queued."""
        self.peak = max(self.peak, self._peak())
        return Span(self.start, self._mark())

    def _mark(self) -> "float | torch.Event":
        if self.device.type == "cpu":
            return time.monotonic()
        event = torch.Event(self.device, enable_timing=True)
        event.record()
        return event

    def _forget_peak(self) -> None:
        if self.device.type == "cpu":
            with suppress(OSError):  # another system, or a sandbox: the peak of the process then
                CLEAR.write_text(RESET_PEAK)
        elif self.device.type != "mps":
            torch.accelerator.reset_peak_memory_stats(self.device)

    def _peak(self) -> int:
        """Bytes of the device's allocator, of the process where the device is the CPU."""
        if self.device.type == "cpu":
            return process_peak()
        if self.device.type == "mps":  # keeps no peak; what its driver holds hardly ever falls
            return torch.mps.driver_allocated_memory()
        return torch.accelerator.max_memory_allocated(self.device)


def process_peak() -> int:
    """Most bytes of memory that this process held, since its peak was forgotten where that can be."""
    if sys.platform == "linux":
        lines = STATUS.read_text().splitlines()
        if found := [line for line in lines if line.startswith("VmHWM:")]:
            return int(found[0].split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
