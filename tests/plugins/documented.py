"""Whether a page of the docs shows a plugin as the tests run it."""

from pathlib import Path
from types import ModuleType

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


def shows(page: str, plugin: ModuleType) -> bool:
    assert plugin.__file__
    return f"```python\n{Path(plugin.__file__).read_text()}```\n" in (GUIDES / page).read_text()
