"""The cases of tests/families, on another device."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / "families")]
