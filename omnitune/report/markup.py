"""Small pieces of HTML; whatever the user wrote passes through `text`."""

import math
import re
from collections.abc import Iterable, Sequence
from html import escape


def text(value: object) -> str:
    """Escape for HTML, in content and in attributes."""
    return escape(str(value), quote=True)


def section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}"><h2>{text(title)}</h2>\n{body}\n</section>' if body else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], style: str = "") -> str:
    """A table; the first cell of a row is its header. Cells are HTML."""
    top = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>\n'
        for first, *rest in rows
    )
    thead = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="wide"><table class="{style}">{thead}<tbody>\n{body}</tbody></table></div>'


def note(words: str) -> str:
    return f'<p class="note">{text(words)}</p>'


def short(value: float, digits: int = 4) -> str:
    """A number as one reads it: 0.0312, 5e-5, 1,200."""
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    if abs(value) >= 1e-3:
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def extent(bucket: str) -> str:
    """`49x480x832` in words."""
    sides = re.fullmatch(r"(\d+)x(\d+)x(\d+)", bucket)
    if not sides:
        return bucket
    frames, height, width = sides.groups()
    return f"{'picture' if frames == '1' else f'{frames} frames'}, {height} high, {width} wide"
