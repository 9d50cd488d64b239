"""What `memory` of a run may say."""

from typing import Literal

from ..options import option


@option
class Memory:
    """What takes less memory and more time; changes nothing of what is learned."""

    checkpointing: Literal["none", "full"] = "none"
    """`full`: of each repeated layer its inputs alone are kept, and the backward pass runs it again."""
