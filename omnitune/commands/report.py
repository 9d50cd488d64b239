"""Write the report of a run."""

from pathlib import Path

from ..report import write_report
from ..requests import ReportRequest


def report(request: ReportRequest) -> Path:
    """Write report.html of a run; returns its path."""
    return write_report(request.folder)
