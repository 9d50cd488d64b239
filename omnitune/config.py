"""A run, from YAML. The only module that knows pydantic and yaml; what it builds are plain dataclasses."""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Discriminator, Tag, TypeAdapter, ValidationError

from .callbacks.ema import Ema
from .callbacks.sample import Validation
from .checkpoint import Checkpoints
from .conditions import CaptionDropout, FrameConditioning
from .data.options import Conversations, Data
from .data.views import Clips
from .freezing import Flags
from .memory.options import Memory
from .objectives.causal_lm import CausalLM
from .objectives.diffusion import Epsilon, FlowMatching, VPrediction
from .optim import Adam, AdamW, Schedule
from .parallel.mesh import Parallel
from .trainable import LoraEverywhere, Rule
from .types import ByName, UserError, option

NOT_LEARNED = (
    "name", "model.path", "data.sources", "data.cache", "data.num_workers", "parallel", "memory",
    "checkpoint", "validation", "tracking", "schedule.steps", "init_from",
)  # fmt: skip
"""What may change when a run goes on. Model, data and init_from are compared by their contents instead.

Whether `data.cache` is null may not where windows or crops are drawn: cached pixels are one of N variants,
live ones are drawn anew each time.
"""

NEEDS: list[tuple[str, dict[str, tuple[str, ...]]]] = [
    ("objective.logit_mean", {"timesteps": ("logit_normal",)}),
    ("objective.logit_std", {"timesteps": ("logit_normal",)}),
    ("objective.mode_scale", {"timesteps": ("mode",)}),
    ("objective.huber_delta", {"loss_type": ("huber", "smooth_l1")}),
    ("schedule.floor", {"decay": ("linear", "cosine", "polynomial")}),
    ("schedule.power", {"decay": ("polynomial",)}),
    ("data.variants", {"window": ("random",), "crop": ("random",)}),
    ("data.variants", {"cache": ()}),
    ("validation.every", {"prompts": ()}),
]
"""Which value of a neighbour, one of those listed or any at all, an option needs to have an effect."""


@option
class Model:
    """The pretrained model."""

    family: str
    """Name in `omnitune models`, or `package.module:Class`."""
    path: str
    """Folder in the diffusers layout, or hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """In which the networks are stored and computed; what trains is stored in float32 always."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of the family (text length...), listed by `omnitune models`."""


@option
class Tracking:
    """What is written down while training."""

    draws: bool = False
    """Write draws.jsonl: sample ids and a hash of every random draw of each step, to compare two runs."""


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "rules"
    return "lora" if isinstance(value, dict | LoraEverywhere) else "full"


AnyObjective = Annotated[FlowMatching | Epsilon | VPrediction | CausalLM, ByName("flow_matching")]
AnyCondition = Annotated[CaptionDropout | FrameConditioning, ByName("caption_dropout")]
AnyData = Annotated[Data | Conversations, ByName("captions")]
AnyOptimizer = Annotated[AdamW | Adam, ByName("adamw")]
AnyTrainable = Annotated[
    Annotated[list[Rule], Tag("rules")]
    | Annotated[Literal["full"], Tag("full")]
    | Annotated[LoraEverywhere, Tag("lora")],
    Discriminator(_kind),
]


@option
class Freezing:
    """What is said of freezing, by role."""

    freeze: dict[str, bool] = field(default_factory=dict)
    """Role -> whether it stays as it is; false trains it. `omnitune plan` lists the roles of a model."""
    freeze_vision_tower: bool | None = None
    """The same as `freeze: {vision_tower: ...}`."""
    freeze_multi_modal_projector: bool | None = None
    """The same as `freeze: {multi_modal_projector: ...}`."""
    freeze_language_model: bool | None = None
    """The same as `freeze: {language_model: ...}`."""
    freeze_llm: bool | None = None
    """The same as `freeze_language_model`."""
    train_mm_proj_only: bool | None = None
    """True trains the projector alone; false says nothing."""

    @property
    def frozen(self) -> Flags:
        """What is said of freezing."""
        return Flags(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Flags)})


@option
class Phase(Freezing):
    """A part of a run with rules and rates of its own."""

    trainable: AnyTrainable
    """As a run's."""
    schedule: Schedule
    """Its length, and how its rates move; both count from its first step."""
    optimizer: AnyOptimizer | None = None
    """Absent: the run's."""


@dataclass(frozen=True)
class Part:
    """A phase of a run, or all of it: what is trained from one step to another."""

    start: int
    end: int
    run: "Run"


@option
class Run(Freezing):
    """Everything that a training run needs to be repeated."""

    name: str
    """Of the run's folder; the YAML file's name unless stated."""
    model: Model
    trainable: AnyTrainable | None = None
    """Rules, `full` (all of the core network) or `{lora: {...}}` (the family's default layers)."""
    phases: list[Phase] = field(default_factory=list)
    """Parts that follow each other, each with its own `trainable`, flags of freezing and `schedule`."""
    data: AnyData
    objective: AnyObjective = FlowMatching()
    conditions: list[AnyCondition] = field(default_factory=list)
    optimizer: AnyOptimizer = AdamW()
    schedule: Schedule = Schedule()
    seed: int = 0
    """Of every random draw."""
    init_from: Path | None = None
    """LoRA file or exported weights folder to start from."""
    ema: Ema | None = None
    """Keep an exponential moving average of what trains."""
    checkpoint: Checkpoints = Checkpoints()
    validation: Validation = Validation()
    parallel: Parallel = Parallel()
    memory: Memory = Memory()
    tracking: Tracking = Tracking()

    @property
    def steps(self) -> int:
        """Of all phases."""
        return self.parts()[-1].end

    def parts(self) -> list[Part]:
        """What follows each other, each as a run without phases."""
        if not self.phases:
            return [Part(0, self.schedule.steps, self)]
        found: list[Part] = []
        for phase in self.phases:
            start = found[-1].end if found else 0
            stated = {f.name: getattr(phase, f.name) for f in dataclasses.fields(phase)}
            stated["optimizer"] = phase.optimizer or self.optimizer
            run = dataclasses.replace(self, phases=[], **stated)
            found.append(Part(start, start + phase.schedule.steps, run))
        return found

    def _check_phases(self) -> None:
        if self.trainable is None and not self.phases:
            raise ValueError("trainable: is missing; give rules, full, {lora: {}}, or phases")
        if not self.phases:
            return
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(Freezing)}
        said = [name for name, value in plain.items() if value not in (None, {})]
        said += ["trainable"] if self.trainable is not None else []
        said += ["schedule"] if self.schedule != Schedule() else []
        if said:
            raise ValueError(f"{said[0]}: stands beside phases, which have their own; move it into them")
        if self.ema is not None:
            raise ValueError("ema: an average over phases that train other parts is none; leave it out")

    def __post_init__(self) -> None:
        self._check_phases()
        if not re.fullmatch(r"[\w.-]+", self.name) or self.name.startswith("."):
            raise ValueError(f"name: {self.name!r} cannot name a folder; use letters, digits, - and _")
        names = [condition.name for condition in self.conditions]
        if twice := [i for i, name in enumerate(names) if name in names[:i]]:
            raise ValueError(f"conditions.{twice[0]}: {names[twice[0]]} stands here a second time; keep one")
        micro, batch = self.parallel.micro_batch_size, self.data.batch_size
        if micro is not None and micro > batch:
            raise ValueError(
                f"parallel.micro_batch_size: {micro} is above data.batch_size {batch}, which is "
                "what the optimizer "
                "sees over all devices; raise that or lower this"
            )


@dataclass(frozen=True)
class Document:
    """A YAML file with its overrides applied, which knows the line of everything in it."""

    path: Path
    tree: yaml.Node
    data: dict[str, Any]
    overridden: frozenset[str]

    def where(self, dotted: str) -> str | None:
        """`run.yaml:4` (or `command line`) of a dotted path, or of its nearest parent that is spelt out."""
        parts = dotted.split(".")
        line, spelled = self.locate(parts)
        if any(dotted == o or dotted.startswith(o + ".") for o in self.overridden):
            return "command line"
        if len(spelled) < len(parts) and any(o.startswith(dotted + ".") for o in self.overridden):
            return "command line"
        return f"{self.path}:{line}"

    def locate(self, parts: Sequence[Any]) -> tuple[int, list[str]]:
        """(line, parts as spelt in the file); parts that are not in the file are passed over."""
        node, spelled, line = self.tree, list[str](), self.tree.start_mark.line + 1
        for part in parts:
            if isinstance(node, yaml.MappingNode):
                known = {k.value: (k, v) for k, v in node.value}
                if str(part) in known:
                    key, node = known[str(part)]
                    line = key.start_mark.line + 1
                    spelled.append(str(part))
            elif isinstance(node, yaml.SequenceNode) and part in map(str, range(len(node.value))):
                node = node.value[int(part)]
                line = node.start_mark.line + 1
                spelled.append(str(part))
        return line, spelled

    def placed(self, message: str) -> str:
        """Put `file:line: ` before each line of a message that starts with a dotted path of this file."""
        return "\n".join(self._placed(line) for line in message.split("\n"))

    def _placed(self, line: str) -> str:
        dotted = re.match(r"([a-z_]+(?:\.\w+)*): ", line)
        if not dotted or dotted[1].split(".")[0] not in {f.name for f in dataclasses.fields(Run)}:
            return line
        return f"{self.where(dotted[1])}: {line}"


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number and 2026-01-31 as text (YAML 1.2, not 1.1)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def read(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Parse YAML and apply `a.b.c=1` overrides. Raises UserError with file and line."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `omnitune init FAMILY > {path}` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        tree = yaml.compose(text, Loader=_Loader)
        _check_aliases(path, tree)
        data = _unshared(yaml.load(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{path}:{line}: not YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UserError(f"{path}:{line}: not YAML: {error.reason} ({chr(error.character)!r})") from None
    if not isinstance(data, dict) or tree is None:
        raise UserError(
            f"{path}:1: a run is a mapping of keys (model, data, trainable...), not {type(data).__name__}"
        )
    if twice := list(_duplicates(path, tree)):
        raise UserError("\n".join(twice))
    keys = []
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"command line: {item!r} is not an override; write a.b.c=value")
        try:
            _override(data, key, yaml.load(value, Loader=_Loader))
        except yaml.YAMLError:
            raise UserError(f"command line: {key}: {value!r} is not YAML; quote it for the shell") from None
        keys.append(key)
    return Document(path, tree, data, frozenset(keys))


def load(path: Path, overrides: Sequence[str] = ()) -> tuple[Run, Document]:
    """Read and validate a run; every mistake is reported at once, with its line."""
    document = read(path, overrides)
    return validate(document), document


@cache
def _adapter() -> TypeAdapter[Run]:
    return TypeAdapter(Run)


def validate(document: Document) -> Run:
    data = {"name": document.path.stem, **document.data}
    try:
        run: Run = _adapter().validate_json(_json(data, str(document.path)), strict=True)
    except ValidationError as error:
        raise UserError("\n".join(_messages(document, error))) from None
    if unused := list(_without_effect(run)):
        raise UserError(document.placed("\n".join(unused)))
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
    found: dict[str, Any] = _adapter().dump_python(run, mode="json")
    return found


def dump(run: Run) -> str:
    data = as_data(run)
    ordered = {**{key: data[key] for key in ("name", "model", "trainable", "phases")}, **data}
    text: str = yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True)
    return text


def identity(data: dict[str, Any]) -> dict[str, Any]:
    """What of a run changes learning, as {dotted key: value}."""
    flat = _flatten(data)
    found = {k: v for k, v in flat.items() if not any(k == n or k.startswith(n + ".") for n in NOT_LEARNED)}
    if "random" in (flat.get("data.window"), flat.get("data.crop")):
        found["data.cache"] = "null" if flat["data.cache"] is None else "a folder"
    return found


def identity_hash(run: Run) -> str:
    return blake2b(json.dumps(identity(as_data(run)), sort_keys=True).encode(), digest_size=16).hexdigest()


def schema() -> dict[str, Any]:
    """JSON schema for editors; `name` is optional there."""
    found = _adapter().json_schema()
    found["required"].remove("name")
    clips = TypeAdapter(Clips).json_schema()["properties"]  # it reads own docstrings only
    for key, described in clips.items():
        found["$defs"]["Data"]["properties"][key] = described
    return found


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        items = {f"{prefix}.{k}" if prefix else str(k): v for k, v in value.items()}
    elif isinstance(value, list) and value:
        items = {f"{prefix}.{i}": v for i, v in enumerate(value)}
    else:
        return {prefix: value}
    return {k: v for name, child in items.items() for k, v in _flatten(child, name).items()}


def _override(data: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node = data
    try:
        for name in parents:
            if isinstance(node, list):
                node = node[int(name)]
            else:
                if node.get(name) is None:
                    node[name] = {}
                node = node[name]
        if isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    except (ValueError, IndexError, AttributeError, TypeError):
        raise UserError(f"command line: {key} does not lead anywhere in the file") from None


def _check_aliases(path: Path, node: yaml.Node | None, above: tuple[yaml.Node, ...] = ()) -> None:
    """Refuse an alias that stands within what it names."""
    if not isinstance(node, yaml.CollectionNode):
        return
    if node in above:
        raise UserError(
            f"{path}:{node.start_mark.line + 1}: an alias (*) stands within what it names (&); spell it out"
        )
    for child in node.value:
        for part in child if isinstance(child, tuple) else (child,):
            _check_aliases(path, part, (*above, node))


def _unshared(value: Any) -> Any:
    """A copy in which what aliases name stands in each place by itself: an override changes one of them."""
    if isinstance(value, dict):
        return {key: _unshared(child) for key, child in value.items()}
    return [_unshared(child) for child in value] if isinstance(value, list) else value


def _duplicates(path: Path, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                yield (
                    f"{path}:{line}: {key.value} stands here a second time, first on line "
                    f"{seen[key.value]}; keep one"
                )
            seen[key.value] = line
            yield from _duplicates(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _duplicates(path, value)


def _messages(document: Document, error: ValidationError) -> list[str]:
    """One line per place; several errors of one place are the members of a union."""
    by_place: dict[str, list[str]] = {}
    for e in _meant(error.errors()):
        if not e["loc"] and e["type"] == "value_error":  # between keys: the message names them
            by_place[document.placed(str(e["ctx"]["error"]))] = [""]
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
        return f" is not an option{_did_you_mean(str(e['loc'][-1]), e)}"
    if e["type"] == "missing":
        return " is missing"
    if e["type"] == "union_tag_invalid":
        return f" is {e['ctx']['tag']!r}; choose from {e['ctx']['expected_tags'].replace(chr(39), '')}"
    return f": {_plain(e)}"


def _plain(e: Any) -> str:
    if e["type"] == "unexpected_keyword_argument":
        return "is not an option"
    if e["type"] == "value_error":
        return str(e["ctx"]["error"])
    message = e["msg"][0].lower() + e["msg"][1:]
    message = message.replace("an object", "a mapping").replace("a valid array", "a list")
    return f"{message}, not {e['input']!r}"


def _did_you_mean(name: str, e: Any) -> str:
    known = _adapter().json_schema()
    names = sorted({n for d in [known, *known["$defs"].values()] for n in d.get("properties", {})})
    if name in names:
        return " here; docs/options.md lists where it belongs"
    close = get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else "; `omnitune init` and docs/config.md list the options"
