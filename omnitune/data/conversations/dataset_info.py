"""Data sets of a `dataset_info.json`, as LLaMA-Factory's users have it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from ..json_items import brief, half_character, read_json
from ..sources import listed
from .formats import Format, Names

FILE = "dataset_info.json"
ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
HUB = ("subset", "split", "folder", "revision")
"""What only matters for a data set of a hub."""
KEYS = ("file_name", "formatting", "columns", "tags", "ranking", "num_samples", *ELSEWHERE, *HUB)


@dataclass(frozen=True)
class DataSet:
    """A data set that lies beside its dataset_info.json."""

    name: str
    file_name: str
    names: Names
    num_samples: int | None


@dataclass
class Info:
    """What was read of a dataset_info.json, and what is wrong or worth a line."""

    data_sets: list[DataSet]
    mistakes: list[str]
    notes: list[str]


def read_info(shown: Path, path: Path, wanted: Sequence[str] | None) -> Info:
    """The data sets of these names; without names all that lie here and can be trained on."""
    info = Info([], [], [])
    stated = _stated(shown, path, info.mistakes)
    if stated is None:
        return info
    if wanted is None:
        wanted = _local(shown, stated, info)
    for name in wanted:
        if name in stated:
            problems: list[str] = []
            found = _data_set(name, stated[name], problems)
            info.data_sets += [found] if found else []
        else:
            near = get_close_matches(name, stated, 1)
            way = f"did you mean {near[0]}?" if near else f"it holds {listed(list(stated))}"
            problems = [f"is not there; {way}"]
        info.mistakes += [f"{shown}: {name}: {problem}" for problem in problems]
    return info


def _stated(shown: Path, path: Path, mistakes: list[str]) -> Mapping[str, Any] | None:
    before, value = len(mistakes), read_json(shown, path, mistakes)
    if isinstance(value, dict) and value:
        return value
    if len(mistakes) == before:
        mistakes.append(f'{shown}: is {brief(value)}; write {{"name": {{"file_name": "train.json"}}}}')
    return None


def _local(shown: Path, stated: Mapping[str, Any], info: Info) -> list[str]:
    """Names of the data sets that lie here; what is left out is a note."""
    reasons = {name: _elsewhere(entry) for name, entry in stated.items()}
    local = [name for name, reason in reasons.items() if reason is None]
    others = [f"{name} ({reason})" for name, reason in reasons.items() if reason]
    if not local:
        info.mistakes.append(
            f"{shown}: none of its data sets can be read: {listed(others)}; "
            "download a file and state it as file_name"
        )
    elif len(stated) > 1:
        left = f"; left out: {listed(others)}" if others else ""
        info.notes.append(f"{shown}: read {', '.join(local)}{left}")
    return local


def _elsewhere(entry: object) -> str | None:
    """Why a data set is not among those that are read unasked."""
    if not isinstance(entry, dict):
        return None
    key = next((key for key in ELSEWHERE if entry.get(key) is not None), None)
    return key or ("ranking" if entry.get("ranking") is True else None)


def _data_set(name: str, entry: object, problems: list[str]) -> DataSet | None:
    if not isinstance(entry, dict):
        problems.append(f'is {brief(entry)}, not an object; write {{"file_name": "train.json"}}')
        return None
    stated = {key: value for key, value in entry.items() if value is not None}
    problems += [_unknown_key(key) for key in stated if key not in KEYS]
    for key in ELSEWHERE:
        if key in stated:
            problems.append(
                f"lies at {key} {brief(stated[key])}; download it and state its file as file_name"
            )
            return None
    problems += _without_effect(stated) + _wrong_values(stated)
    if problems:
        return None
    # LLaMA-Factory's own default.
    names = Names(stated.get("formatting", "alpaca"), _texts(stated, "columns"), _texts(stated, "tags"))
    return DataSet(name, stated["file_name"], names, stated.get("num_samples"))


def _unknown_key(key: str) -> str:
    near = get_close_matches(key, KEYS, 1)
    return f"{key!r} is not a key of a data set; {f'did you mean {near[0]}?' if near else 'remove it'}"


def _without_effect(stated: Mapping[str, Any]) -> list[str]:
    # A local file has one split, which is called train.
    return [
        f"{key} has no effect on a local file; remove it"
        for key in HUB
        if key in stated and (key, stated[key]) != ("split", "train")
    ]


def _wrong_values(stated: Mapping[str, Any]) -> list[str]:
    problems = []
    file, ranking = stated.get("file_name"), stated.get("ranking", False)
    if file is None:
        problems.append("file_name is missing; add it, relative to dataset_info.json")
    elif not isinstance(file, str) or not file.strip() or half_character(file):
        problems.append(f"file_name is {brief(file)}, not the name of a file; correct it")
    if ranking is True:
        problems.append("ranking is true, but preferences are not trained on; choose another data set")
    elif ranking is not False:
        problems.append(f"ranking is {brief(ranking)}; write false or remove it")
    if (stated_format := stated.get("formatting", "alpaca")) not in get_args(Format):
        choices = ", ".join(get_args(Format))
        problems.append(f"formatting is {brief(stated_format)}; choose from {choices}")
    number = stated.get("num_samples", 1)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        problems.append(f"num_samples is {brief(number)}; write a number from 1, or remove it")
    for key in ("columns", "tags"):
        held = stated.get(key, {})
        if not isinstance(held, dict):
            problems.append(f"{key} is {brief(held)}, not an object; correct it")
        else:
            problems += [
                f"{key}.{name} is {brief(value)}, not text; put it in quotes"
                for name, value in held.items()
                if value is not None and not isinstance(value, str)
            ]
    return problems


def _texts(stated: Mapping[str, Any], key: str) -> dict[str, str]:
    return {name: value for name, value in stated.get(key, {}).items() if value is not None}
