"""A run, from YAML. The only package that knows pydantic and yaml; what it builds are plain dataclasses."""

from .identity import identity_hash, learned_settings
from .run import AnyTrainable, Model, Part, Phase, Run, Tracking
from .validate import as_data, dump, load, load_run, placed, schema, stored_run, validate, validate_options
from .yaml import Document, read

__all__ = [
    "AnyTrainable", "Document", "Model", "Part", "Phase", "Run", "Tracking",
    "as_data", "dump", "identity_hash", "learned_settings", "load", "load_run", "placed", "read", "schema",
    "stored_run", "validate", "validate_options",
]  # fmt: skip
