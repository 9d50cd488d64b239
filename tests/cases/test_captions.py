"""Captions that lay there in another case or form and were not found."""

import unicodedata
from pathlib import Path

import pytest

from omnitune import check, load_run

CASE = Path(__file__).parent / "caption-not-found"


def test_captions_in_other_case_or_form_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = {unicodedata.is_normalized("NFC", path.name) for path in (CASE / "data").glob("caf*")}
    assert forms == {True, False}, "the names have lost their forms"
    words = [f"data.sources=[{CASE / 'data'}]", f"data.cache={tmp_path / 'cache'}"]
    monkeypatch.chdir(Path(__file__).parents[2])
    assert check(load_run(CASE / "run.yaml", *words)).num_items == 2
