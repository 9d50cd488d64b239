"""torch, imported when something of it is used: a mistake in a run's YAML is told without waiting for it.

A module that options are read from takes it from here, and names of torch for annotations alone under
TYPE_CHECKING.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
else:

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            import torch

            return getattr(torch, name)

    torch = _Torch()
