"""Write the report of a run."""

from pathlib import Path

from .. import report
from ..requests import ReportRequest


def write_report(request: ReportRequest) -> Path:
    """Write report.html of a run; returns its path."""
    return report.write_report(request.folder)
