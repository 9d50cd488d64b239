"""Data sets of a `dataset_info.json`, as LLaMA-Factory's users have it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ...errors import UserError
from ..json_items import brief, did_you_mean, half_character, read_json
from ..sources import Findings, listed
from .formats import Format, Names, Table
from .parse_messages import present, unknown_keys

FILE = "dataset_info.json"
ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
HUB = ("subset", "split", "folder", "revision")
"""What only matters for a data set of a hub."""
KEYS = ("file_name", "formatting", "columns", "tags", "ranking", "num_samples", *ELSEWHERE, *HUB)


def read_info(shown: Path, base: Path, wanted: Sequence[str], findings: Findings) -> list[Table]:
    """The data sets of these names; without names all that lie here and can be trained on."""
    stated = read_json(shown, base / shown)
    if not isinstance(stated, dict) or not stated:
        raise UserError(f'{shown}: is {brief(stated)}; write {{"name": {{"file_name": "train.json"}}}}')
    tables = []
    for name in wanted or _local(shown, stated, findings):
        if name not in stated:
            way = did_you_mean(name, stated, f"it holds {listed(list(stated))}")
            problems = [f"is not there; {way}"]
        elif not (problems := _wrong_entry(stated[name])):
            tables.append(_table(shown, base, name, present(stated[name])))
        findings.mistakes += [f"{shown}: {name}: {problem}" for problem in problems]
    return tables


def _local(shown: Path, stated: Mapping[str, Any], findings: Findings) -> list[str]:
    """Names of the data sets that lie here; what is left out is a note."""
    reasons = {name: _elsewhere(entry) for name, entry in stated.items()}
    local = [name for name, reason in reasons.items() if reason is None]
    others = listed([f"{name} ({reason})" for name, reason in reasons.items() if reason])
    if not local:
        raise UserError(
            f"{shown}: none of its data sets can be read: {others}; download a file and state it as file_name"
        )
    if len(stated) > 1:
        left = f"; left out: {others}" if others else ""
        findings.notes.append(f"{shown}: read {', '.join(local)}{left}")
    return local


def _elsewhere(entry: object) -> str | None:
    """Why a data set is not among those that are read unasked."""
    if not isinstance(entry, dict):
        return None
    key = next((key for key in ELSEWHERE if entry.get(key) is not None), None)
    return key or ("ranking" if entry.get("ranking") is True else None)


def _wrong_entry(entry: object) -> list[str]:
    """What is wrong with how a data set is described."""
    if not isinstance(entry, dict):
        return [f'is {brief(entry)}, not an object; write {{"file_name": "train.json"}}']
    stated = present(entry)
    problems = unknown_keys(stated, KEYS, "a data set")
    if away := next((key for key in ELSEWHERE if key in stated), None):
        lies = f"lies at {away} {brief(stated[away])}; download it and state its file as file_name"
        return [*problems, lies]
    # A local file has one split, which is called train.
    problems += [
        f"{key} has no effect on a local file; remove it"
        for key in HUB
        if key in stated and (key, stated[key]) != ("split", "train")
    ]
    return problems + _wrong_values(stated)


def _table(shown: Path, base: Path, name: str, stated: Mapping[str, Any]) -> Table:
    columns, tags = (present(stated.get(key, {})) for key in ("columns", "tags"))
    # LLaMA-Factory's own default.
    names = Names(stated.get("formatting", "alpaca"), columns, tags)
    file, where = shown.parent / stated["file_name"], f"{shown.as_posix()}: {name}"
    told = f"{where}: {stated['file_name']}"
    return Table(file, base / file, where, told, names, stated.get("num_samples"))


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
                for name, value in present(held).items()
                if not isinstance(value, str)
            ]
    return problems
