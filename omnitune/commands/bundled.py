"""The run of the demo: a small model and drawings that ship with the package."""

from importlib.resources import files
from pathlib import Path

from .. import config
from ..config.run import Run
from ..families.files import BUNDLED_MODEL

ASSETS = Path(str(files("omnitune") / "assets"))


def bundled_run(*overrides: str) -> Run:
    """The run that fine-tunes the bundled model on the bundled style, with `a.b.c=1` overrides."""
    words = [f"model.path={ASSETS / BUNDLED_MODEL}", f"data.sources.0.path={ASSETS / 'style' / 'train'}"]
    return config.load(ASSETS / "demo.yaml", [*words, *overrides])[0]
