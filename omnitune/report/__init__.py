"""The report of a run: one page that needs nothing but itself."""

from base64 import b64encode
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..files import write_text
from ..progress import clock
from . import formats, sections
from .contents import Contents, read_contents
from .curves import charts
from .gallery import MAX_EMBEDDED, grid


def write_report(folder: Path) -> Path:
    """Write report.html of what lies in a run folder, whole or not at all; returns its path.

    Works while the run is still training. Raises UserError for a folder that holds no run.
    """
    target = folder / "report.html"
    write_text(target, page(read_contents(folder)))
    return target


def page(run: Contents, limit: int = MAX_EMBEDDED) -> str:
    """Fill page.html.jinja; whatever the user wrote is escaped there."""
    environment = Environment(
        loader=PackageLoader(__name__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "asdict": asdict,
        "base64": lambda path: b64encode(path.read_bytes()).decode(),
        "clock": clock,
        "extent": formats.extent,
        "number_of": formats.number_of,
        "short": formats.short,
        "size": formats.size,
        # Read, not included: their braces are no template's.
        "source": lambda name: (files(__name__) / name).read_text(encoding="utf-8"),
    }
    return environment.get_template("page.html.jinja").render(
        run=run,
        tiles=list(sections.tiles(run)),
        samples=grid(run.samples, limit),
        limit=limit,
        charts=charts(run.metrics),
        captions=sections.captions(run.items),
        buckets=sections.buckets(run.items),
        snippet=sections.snippet(run),
        manifest=sections.flat(run.manifest),
    )
