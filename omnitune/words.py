"""How the fields of a request are given on the command line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """Annotates a field of a request: its help, and its word where that is not `--field-name`.

    A field without a default is given by its place.
    """

    help: str
    name: str | None = None
