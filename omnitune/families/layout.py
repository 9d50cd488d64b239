"""How what a run starts from is laid out on the disk; each kind of family has its own."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor


class Layout(Protocol):
    """Finds and reads what `init_from` names."""

    forms: str
    """What may be there, for messages: A nor B."""

    def folders(self, path: Path) -> dict[str, Path]:
        """Component -> folder of weights that takes the place of the model's own."""

    def files(self, path: Path) -> list[Path]:
        """Files of adapters, and of parts that were trained whole beside them."""

    def read(
        self, file: Path, family: Any, adapted: Collection[str]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of a file, and the settings of its adapter by component (`transformer.lora_alpha`).

        `adapted` are the modules that rules adapt.
        """
