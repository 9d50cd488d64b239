"""Write docs/options.md, docs/run.schema.json and the tables of docs/models/*.md from the code.


`make docs` runs it; a test checks all of them.
"""

import json
import re
from pathlib import Path
from typing import Any

from omnitune.commands.models import sizes
from omnitune.config import schema
from omnitune.families import REGISTRY, resolve
from omnitune.families.base import Checkpoint, Denoiser, Family

DOCS = Path(__file__).parent
START, END = "<!-- table -->", "<!-- end of table -->"


def schema_text() -> str:
    return json.dumps(schema(), indent=1) + "\n"


def options_text() -> str:
    """One table a dataclass, in the order in which a run meets them."""
    full = schema()
    definitions: dict[str, Any] = full["$defs"]
    lines = [
        "# Options",
        "",
        "Written from the code by `make docs`. A key without a default must be given.",
        "",
        *table("Run", full, definitions),
    ]
    for name in reachable(full, definitions):
        lines += table(name, definitions[name], definitions)
    return "\n".join(lines).rstrip() + "\n"


def reachable(node: Any, definitions: dict[str, Any]) -> list[str]:
    """Definitions in the order in which the run refers to them, each followed by what it refers to."""
    found: list[str] = []

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            name = value.get("$ref", "").rpartition("/")[2]
            if name and name not in found:
                found.append(name)
                visit(definitions[name])
            for key, child in value.items():
                if key != "$defs":
                    visit(child)
        elif isinstance(value, list):
            for child in value:
                visit(child)

    visit(node)
    return found


def table(name: str, definition: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    required = definition.get("required", [])
    rows = []
    for key, field in definition.get("properties", {}).items():
        default = "" if key in required or "default" not in field else f"`{json.dumps(field['default'])}`"
        if isinstance(field.get("default"), dict):
            default = "see there"
        text = " ".join(field.get("description", "").split()).replace("|", "\\|")
        rows.append(f"| `{key}` | {kind(field)} | {default} | {text} |")
    about = " ".join(definition.get("description", "").split())
    return [f"## {name}", "", about, "", "| key | value | default | |", "|---|---|---|---|", *rows, ""]


def kind(field: dict[str, Any]) -> str:
    """What may stand there, in words."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in field:
            return ", or ".join(dict.fromkeys(kind(one) for one in field[key]))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{one}`" for one in field["enum"])
    if field.get("type") == "array":
        return f"list of {kind(field['items'])}" if field.get("items") else "list"
    return {"null": "null", "string": "text", "object": "mapping"}.get(
        field.get("type", ""), field.get("type", "any")
    )


def model_page(name: str) -> Path:
    return DOCS / "models" / f"{name}.md"


def model_text(name: str) -> str:
    """The page of a family as it stands, its table made anew between the markers."""
    page = model_page(name).read_text()
    made = "\n".join([START, "", *model_lines(resolve(name)), "", END])
    text, found = re.subn(rf"{START}(.*?{END})?", lambda _: made, page, flags=re.DOTALL)
    assert found == 1, f"docs/models/{name}.md has {found} of {START}"
    return text


def model_lines(family: type[Family]) -> list[str]:
    options = family.Options.__dataclass_fields__.values()
    facts = {
        "tasks": ", ".join(family.tasks),
        "methods": f"LoRA ({', '.join(family.adapter_components)}), full",
        "default LoRA targets": ", ".join(f"`{target}`" for target in family.lora_targets),
        "`model.options`": ", ".join(f"`{one.name}: {json.dumps(one.default)}`" for one in options),
        "licence of the weights": family.licence,
    }
    rows = []
    for variant in family.variants:
        found = family.checkpoint(variant)
        if found.defaults is None:
            rows.append(f"| `{variant}` | `{found.path}` |")
            continue
        cells = [found.frames or "none", sizes(family, found), defaults(found)]
        rows.append(f"| {' | '.join([f'`{variant}`', f'`{found.path}`', *cells])} |")
    return [
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
        *(
            ["| variant | checkpoint | frames given by default | sizes | defaults |", "|---|---|---|---|---|"]
            if issubclass(family, Denoiser)
            else ["| type | a checkpoint of it |", "|---|---|"]
        ),
        *rows,
    ]


def defaults(checkpoint: Checkpoint) -> str:
    """What `init` writes for a variant, in words."""
    d = checkpoint.defaults
    assert d is not None, checkpoint.path
    levels = [f"`timesteps: {d.timesteps}`", f"`shift: {d.shift_text}`"]
    return ", ".join(
        [
            *([d.objective] if d.objective != "flow_matching" else levels),
            f"guidance {d.guidance:g}",
            f"`frames: {list(d.frames)}`",
            d.area,
            *([f"{d.fps:g} fps"] if d.fps else []),
        ]
    )


if __name__ == "__main__":
    (DOCS / "options.md").write_text(options_text())
    (DOCS / "run.schema.json").write_text(schema_text())
    for name in REGISTRY:
        model_page(name).write_text(model_text(name))
