"""The report of a run: one page that needs nothing but itself."""

from importlib.resources import files
from pathlib import Path

from ..files import write_text
from . import curves, gallery, sections
from .contents import Contents, read_contents
from .markup import note, section, text

INLINE = "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
POLICY = f"default-src 'none'; img-src data:; media-src data:; {INLINE}"
"""What the page may load: what it carries itself, nothing else."""


def write_report(folder: Path) -> Path:
    """Write report.html of what lies in a run folder, whole or not at all; returns its path.

    Works while the run is still training. Raises UserError for a folder that holds no run.
    """
    target = folder / "report.html"
    write_text(target, page(read_contents(folder)))
    return target


def page(run: Contents) -> str:
    """The whole page."""
    found = [
        ("results", "Results", sections.results(run.results)),
        ("samples", "Samples", gallery.gallery(run.samples) or note("No samples yet.")),
        ("curves", "Curves", _curves(run)),
        ("data", "Data", sections.data(run.items)),
        ("weights", "Weights", sections.weights(run)),
        ("configuration", "Configuration", sections.configuration(run.config)),
        ("manifest", "Manifest", sections.manifest(run.manifest)),
    ]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, body in found if body)
    version = run.manifest.get("versions", {}).get("omnitune", "")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{text(run.name)}</title>
<style>
{_asset("page.css")}</style>
</head>
<body>
<header><p class="kind">{text(_kind(run))}</p><h1>{text(run.name)}</h1>
<nav aria-label="Sections">{links}</nav></header>
<main>
{sections.tiles(run)}
{"".join(note(words) for words in run.notes)}
{"".join(section(*parts) for parts in found)}
</main>
<footer>Written by omnitune {text(version)}</footer>
<script>
{_asset("page.js")}</script>
</body>
</html>
"""


def _kind(run: Contents) -> str:
    """Model and method, as far as run.yaml says."""
    parts = ["Training run", run.stated("model", "path"), run.stated("objective", "name")]
    return " · ".join(part for part in parts if part)


def _curves(run: Contents) -> str:
    drawn = curves.figures(run.metrics)
    return f'<div class="curves">{drawn}</div>' if drawn else note("No steps are logged yet.")


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
