import pytest
from recorded import Case

from omnitune.testing.tiny import build_tiny


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
