"""Write the report of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..report import write_report
from ..words import Word


@dataclass(frozen=True)
class ReportRequest:
    """Which run to report on."""

    folder: Annotated[Path, Word("runs/NAME")]


def report(request: ReportRequest) -> Path:
    """Write report.html of a run; returns its path."""
    return write_report(request.folder)
