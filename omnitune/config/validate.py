"""From a document to a run: every mistake at once, each with its line."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ..data.captions.crops import Clips
from ..errors import UserError
from ..objectives.diffusion import Diffusion
from ..optim import AdamOptions
from ..options import SHORT, plain
from ..trainable.freezing import Freezing
from .peer_words import suggestion
from .run import Run
from .yaml import Document, parse, read

NEEDS: list[tuple[str, dict[str, tuple[str, ...]]]] = [
    ("objective.logit_mean", {"timesteps": ("logit_normal",)}),
    ("objective.logit_std", {"timesteps": ("logit_normal",)}),
    ("objective.mode_scale", {"timesteps": ("mode",)}),
    ("objective.huber_delta", {"loss_type": ("huber", "smooth_l1")}),
    ("schedule.floor", {"decay": ("linear", "cosine", "polynomial")}),
    ("schedule.power", {"decay": ("polynomial",)}),
    ("schedule.extend", {"decay": ("linear", "cosine", "polynomial")}),
    ("data.variants", {"window": ("random",), "crop": ("random",)}),
    ("data.variants", {"cache": ()}),
    ("validation.every", {"prompts": ()}),
]
"""Which value of a neighbour, one of those listed or any at all, an option needs to have an effect."""


def load(path: Path, overrides: Sequence[str] = ()) -> tuple[Run, Document]:
    """Read and validate a run; every mistake is reported at once, with its line."""
    document = read(path, overrides)
    return validate(document), document


def load_run(source: Path | str | Mapping[str, Any], *overrides: str) -> Run:
    """Make a run of a YAML file, or of its values; overrides are `a.b.c=1` words. Raises UserError."""
    if not isinstance(source, Mapping):
        return load(Path(source), overrides)[0]
    return validate(parse(Path("run"), yaml.safe_dump(plain(source), allow_unicode=True), overrides))


@cache
def _adapter() -> TypeAdapter[Run]:
    return TypeAdapter(Run)


@cache
def _schema() -> dict[str, Any]:
    return _adapter().json_schema()


def validate(document: Document) -> Run:
    data = {"name": document.path.stem, **document.data}
    try:
        run: Run = _adapter().validate_json(_json(data, str(document.path)), strict=True)
    except ValidationError as error:
        raise UserError("\n".join(_messages(document, error))) from None
    if unused := list(_without_effect(run)):
        raise UserError(placed(document, "\n".join(unused)))
    return run


def _json(values: dict[str, Any], where: str) -> bytes:
    """As JSON, because there pydantic's strict mode takes lists for tuples, text for paths, whole floats."""
    try:
        return json.dumps(values, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: holds what is no plain number, text, list or mapping: {error}") from None


def _without_effect(run: Run) -> Iterator[str]:
    """What was changed from its default in vain. A resolved run states every default, so those pass."""
    for key, needs in NEEDS:
        section, name = key.split(".")
        options = getattr(run, section)
        defaults = {f.name: f.default for f in dataclasses.fields(options)}
        if name not in defaults or getattr(options, name) == defaults[name]:
            continue
        given = {need: getattr(options, need) for need in needs}
        if any(value in needs[need] if needs[need] else value for need, value in given.items()):
            continue
        now = " and ".join(f"{need} {value}" for need, value in given.items())
        out = " or ".join(f"{n}: {' or '.join(v)}" if v else n for n, v in needs.items())
        yield f"{key}: has no effect with {now}; remove it or set {out}"


def stored_run(file: Path) -> Run:
    """The run that a run.yaml holds, without its callbacks: they teach nothing, and may be gone."""
    document = read(file)
    return validate(
        dataclasses.replace(document, data={k: v for k, v in document.data.items() if k != "callbacks"})
    )


def validate_options(cls: type, values: dict[str, Any], where: str) -> Any:
    """Build a family's options dataclass from `model.options`."""
    try:
        return TypeAdapter(cls).validate_json(_json(values, where), strict=True)
    except ValidationError as error:
        known = ", ".join(f.name for f in dataclasses.fields(cls))
        lines = [
            f"{where}.{'.'.join(map(str, e['loc']))}: {_plain(e)} (options of this family: {known})"
            for e in error.errors()
        ]
        raise UserError("\n".join(lines)) from None


def as_data(run: Run) -> dict[str, Any]:
    """The resolved run as plain values, defaults included."""
    found: dict[str, Any] = plain(run)
    return found


def dump(run: Run) -> str:
    data = as_data(run)
    ordered = {**{key: data[key] for key in ("name", "model", "trainable", "phases")}, **data}
    text: str = yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True)
    return text


def schema() -> dict[str, Any]:
    """JSON schema for editors; `name` is optional there."""
    found = deepcopy(_schema())
    found["required"].remove("name")
    for base in (Clips, AdamOptions, Freezing, Diffusion):  # pydantic reads a class's own docstrings only
        described = TypeAdapter(base).json_schema()["properties"]
        definitions = [found, *found["$defs"].values()]
        children = {cls.__name__ for cls in _descendants(base)}
        for properties in (one["properties"] for one in definitions if one.get("title") in children):
            for key in described.keys() & properties.keys():
                if text := described[key].get("description"):
                    properties[key].setdefault("description", text)
    return found


def _descendants(cls: type[Any]) -> list[type[Any]]:
    children: list[type[Any]] = cls.__subclasses__()
    return [each for child in children for each in (child, *_descendants(child))]


def _messages(document: Document, error: ValidationError) -> list[str]:
    """One line per place; several errors of one place are the members of a union."""
    by_place: dict[str, list[str]] = {}
    for e in _meant(error.errors()):
        if not e["loc"] and e["type"] == "value_error":  # between keys: the message names them
            by_place[placed(document, str(e["ctx"]["error"]))] = [""]
            continue
        parts = [str(p) for p in e["loc"]]
        name = ".".join(_spelled(document.data, parts))
        if e["type"] in ("unexpected_keyword_argument", "missing"):
            name = f"{name}.{parts[-1]}" if name and not name.endswith(parts[-1]) else name or parts[-1]
        if e["type"] == "union_tag_invalid":
            name += ".name"
        where = document.where(name) if name else f"{document.path}:1"
        by_place.setdefault(f"{where}: {name}" if name else str(where), []).append(_describe(e))
    return [f"{place}{_joined(texts)}" for place, texts in by_place.items()]


def _meant(errors: Sequence[Any]) -> list[Any]:
    """Without those of a number where a mapping is given and the union has a member that is one."""
    mappings = {
        e["loc"][: i + 1] for e in errors if e["type"] != "dataclass_type" for i in range(len(e["loc"]))
    }
    return [
        e
        for e in errors
        if not isinstance(e["input"], dict)
        or e["type"] != "float_type"
        or not any(loc[:-1] == e["loc"][:-1] and loc != e["loc"] for loc in mappings)
    ]


def _joined(texts: list[str]) -> str:
    first = texts[0]
    return first if len(texts) == 1 else first + "".join(f", or{t.removeprefix(':')}" for t in texts[1:])


def _spelled(value: Any, parts: Sequence[str]) -> list[str]:
    """The parts of a pydantic location that are in the data: it also names members of unions."""
    found = []
    for part in parts:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            continue
        found.append(part)
    return found


def _describe(e: Any) -> str:
    if e["type"] == "unexpected_keyword_argument":
        *place, name = e["loc"]
        return f" is not an option{suggestion(str(name), place, _schema())}"
    if e["type"] == "missing":
        return " is missing"
    if e["type"] == "union_tag_invalid":
        known = e["ctx"]["expected_tags"].replace("'", "").removesuffix(f", {SHORT}")
        return f" is {e['ctx']['tag']!r}; choose from {known}"
    if e["type"] == "union_tag_not_found":
        return f": must be a name or a mapping with one, {{name: ...}}, not {e['input']!r}"
    return f": {_plain(e)}"


def _plain(e: Any) -> str:
    if e["type"] == "unexpected_keyword_argument":
        return "is not an option"
    if e["type"] == "value_error":
        return str(e["ctx"]["error"])
    message = e["msg"][0].lower() + e["msg"][1:]
    message = message.replace("an object", "a mapping").replace("a valid array", "a list")
    return f"{message}, not {e['input']!r}"


def placed(document: Document, message: str) -> str:
    """Put `file:line: ` before each line of a message that starts with a dotted path of this file."""
    return "\n".join(_placed(document, line) for line in message.split("\n"))


def _placed(document: Document, line: str) -> str:
    dotted = re.match(r"([a-z_]+(?:\.\w+)*): ", line)
    if not dotted or dotted[1].split(".")[0] not in {f.name for f in dataclasses.fields(Run)}:
        return line
    return f"{document.where(dotted[1])}: {line}"
