"""What a kind of data gives to training."""

from typing import Any

Inputs = dict[str, Any]
