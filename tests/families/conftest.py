from collections.abc import Sequence

import pytest
from recorded import Case

from omnitune.testing.tiny import build_tiny

LIKE_OTHERS = (
    "cogvideox-5b", "cogvideox-1.5-5b", "hunyuan_video-i2v-33ch-first", "ltx_video-0.9.0",
    "wan-i2v-a14b-both", "wan-i2v-a14b-first", "wan-ti2v-5b",
)  # fmt: skip
"""Cases of which others of their family have each part; slow in the files that train every case."""
TRAIN_EVERY_CASE = ("test_family_export.py", "test_family_whole.py", "test_training.py")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and item.path.name in TRAIN_EVERY_CASE:
            params = getattr(item, "callspec", None) and item.callspec.params
            if params and str(params.get("case")) in LIKE_OTHERS:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory):
    """Gives the small pipeline of a case, made once a test process; tests do not write to it."""
    made = {}

    def of(case: Case):
        key = case.family, case.variant
        if key not in made:
            made[key] = build_tiny(tmp_path_factory.mktemp("-".join(key)) / "model", *key)
        return made[key]

    return of
