"""What `memory` of a run may say."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ..options import option

if TYPE_CHECKING:
    from torch import nn


@option
class Memory:
    """What takes less memory and more time; changes nothing of what is learned."""

    checkpointing: Literal["none", "full"] = "none"
    """`full`: of each repeated layer its inputs alone are kept, and the backward pass runs it again."""

    def prepare_blocks(self, blocks: "Sequence[nn.Module]") -> None:
        """Change the repeated layers that gradients flow through, in place, before they are placed."""
        from .checkpointing import checkpoint_blocks

        if self.checkpointing == "full":
            checkpoint_blocks(blocks)
