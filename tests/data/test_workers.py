"""How many processes read ahead where a run does not say it."""

import os

import pytest
from core_fixtures import Workplace

from omnitune.data.loader import usable_cores

pytest_plugins = ["core_fixtures"]


@pytest.mark.parametrize(
    ("cores", "overrides", "expected"),
    [
        ({0}, ["data.cache=null"], 1),
        ({3, 5}, ["data.cache=null"], 2),
        (set(range(64)), ["data.cache=null"], 2),
        ({0}, ["data.cache=null", "data.num_workers=4"], 4),
        ({3, 5}, [], 0),  # all is cached
    ],
)
def test_the_number_follows_the_cores_that_the_process_may_use(
    workplace: Workplace,
    monkeypatch: pytest.MonkeyPatch,
    cores: set[int],
    overrides: list[str],
    expected: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores)
    assert workplace.job(*overrides).num_workers == expected


def test_without_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1
