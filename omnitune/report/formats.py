"""Numbers and sizes as one reads them."""

import math


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


def number_of(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def extent(bucket: str) -> str:
    """`49x480x832` in words; a bucket of text as it is."""
    sides = bucket.split("x")
    if len(sides) != 3:
        return bucket
    frames, height, width = sides
    return f"{'picture' if frames == '1' else f'{frames} frames'}, {height} high, {width} wide"
