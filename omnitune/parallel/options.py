"""What `parallel` of a run may say."""

from ..errors import UserError
from ..options import check_ranges, option


@option
class Parallel:
    """How many devices share the work; changes speed and memory, never what is learned."""

    replicate: int = 1
    """Copies of the model."""
    shard: int = -1
    """Devices that each copy is split over; -1: all that `replicate` leaves."""
    micro_batch_size: int | None = None
    """Samples in one forward pass of a device; absent: all of its share. Smaller takes less memory."""
    timeout: int = 1800
    """Seconds that a rank waits for the others in a step; while one encodes or writes, they wait on."""

    def __post_init__(self) -> None:
        check_ranges(self, micro_batch_size="[1, inf)", replicate="[1, inf)")
        if self.shard < 1 and self.shard != -1:
            raise ValueError(f"shard must be 1 or more, or -1 for all devices, not {self.shard}")

    def sizes(self, world: int) -> tuple[int, int]:
        """(replicate, shard) for a number of ranks."""
        shard = world // self.replicate if self.shard == -1 else self.shard
        if self.replicate * shard != world:
            raise UserError(
                f"parallel: replicate {self.replicate} x shard {self.shard} does not fill {world} rank(s); "
                f"leave shard out, or start {max(1, self.replicate * max(shard, 1))} rank(s) with --nproc"
            )
        return self.replicate, shard
