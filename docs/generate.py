"""Write docs/options.md and docs/run.schema.json from the code. `make docs` runs it; a test checks both."""

import json
from pathlib import Path
from typing import Any

from omnitune.config import schema

DOCS = Path(__file__).parent


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


if __name__ == "__main__":
    (DOCS / "options.md").write_text(options_text())
    (DOCS / "run.schema.json").write_text(schema_text())
