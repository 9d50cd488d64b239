"""Who may import whom outside the package: the layers inside it are import-linter's (pyproject.toml)."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from omnitune.families import REGISTRY

PACKAGE = Path(__file__).parents[1] / "omnitune"

# External module -> the files and folders of omnitune that may import it.
ALLOWED = {
    "diffusers": ("families/",),
    "transformers": ("families/", "testing/", "evaluate/"),
    "peft": ("trainable/", "export/"),
    "torch.distributed": ("parallel/",),
    "pydantic": ("config/", "options.py"),
    "yaml": ("config/",),
}

HEAVY = ("torch", "diffusers", "transformers", "peft")


def nodes_at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree without what only type checkers see."""
    yield node
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        children = node.orelse
    for child in children:
        yield from nodes_at_run_time(child)


def uses(path: Path) -> set[str]:
    """Name every module a file imports, absolutely, and `torch.distributed` where it is an attribute."""
    package = ["omnitune", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in nodes_at_run_time(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=module, names=names, level=level):
                parent = package[: len(package) + 1 - level] if level else []
                origin = ".".join([*parent, *([module] if module else [])])
                found |= {origin} | {f"{origin}.{alias.name}" for alias in names}
            case ast.Attribute(value=ast.Name(id="torch"), attr="distributed"):
                found.add("torch.distributed")
    return found


def is_within(module: str, parent: str) -> bool:
    return module == parent or module.startswith(f"{parent}.")


def is_in(path: Path, places: tuple[str, ...]) -> bool:
    name = path.relative_to(PACKAGE).as_posix()
    return any(name == place or (place.endswith("/") and name.startswith(place)) for place in places)


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("external", ALLOWED)
def test_external_is_imported_only_where_allowed(external: str) -> None:
    offenders = [
        path.relative_to(PACKAGE).as_posix()
        for path in SOURCES
        if not is_in(path, ALLOWED[external]) and any(is_within(module, external) for module in uses(path))
    ]
    assert not offenders, f"{external} may be imported by {ALLOWED[external]} only"


def test_each_place_that_may_import_exists_and_does() -> None:
    for external, places in ALLOWED.items():
        for place in places:
            own = [path for path in SOURCES if is_in(path, (place,))]
            assert any(is_within(name, external) for path in own for name in uses(path)), (external, place)


def test_families_do_not_import_each_other() -> None:
    """`base`, the registry and the room `diffusion` are shared; the rest stand alone."""
    names = {path.relative_to(PACKAGE / "families").parts[0] for path in (PACKAGE / "families").rglob("*.py")}
    families = {Path(name).stem for name in names} - {"__init__", "base", "diffusion", "files"}
    offenders = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in sorted((PACKAGE / "families").rglob("*.py"))
        if (own := Path(path.relative_to(PACKAGE / "families").parts[0]).stem) in {*families, "diffusion"}
        for other in families - {own}
        if any(is_within(module, f"omnitune.families.{other}") for module in uses(path))
    ]
    assert not offenders


OF_A_ROOM = ("export/peft.py", "export/merged.py")
"""Formats of the room of vision-language models, which are one family: `families/vlm` is room and family."""


def spellings() -> Iterator[str]:
    """The names of families, of their classes and modules, and of the model families in prose."""
    for name, target in REGISTRY.items():
        module, _, cls = target.partition(":")
        yield from (name, cls, module.rpartition(".")[2], name.replace("_", ""), name.replace("_", "-"))


def texts_and_names(path: Path) -> Iterator[tuple[int, str]]:
    """Identifiers and strings of a file, docstrings among them, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Name(id=text) | ast.Attribute(attr=text) | ast.Constant(value=str(text)):
                yield node.lineno, text
            case ast.alias(name=text) | ast.FunctionDef(name=text) | ast.ClassDef(name=text):
                yield node.lineno, text


def test_nothing_but_families_names_a_family() -> None:
    """The registry says which family the bundled model is, and which is of conversations."""
    generic = {"family", "base"}  # modules of packages
    named = re.compile(rf"\b({'|'.join({*spellings()} - generic)})\b", re.IGNORECASE)
    offenders = [
        f"{path.relative_to(PACKAGE)}:{line}: {found.group()}"
        for path in SOURCES
        if path.relative_to(PACKAGE).parts[0] != "families" and not is_in(path, OF_A_ROOM)
        for line, text in texts_and_names(path)
        if (found := named.search(text))
    ]
    assert not offenders


MISTAKEN = "omnitune.load_run({'name': 'a', 'epochs': 3, 'optimizer': {'lr': -1}, 'ema': {'decay': 2}})"
REFUSED = f"""
import contextlib, omnitune
with contextlib.suppress(omnitune.UserError):
    {MISTAKEN}
    raise SystemExit("not refused")
"""


@pytest.mark.parametrize(
    "start",
    ["import omnitune", "from omnitune.cli import parser; parser()", REFUSED, "import omnitune.config"],
    ids=["package", "parser", "a mistake in a run", "options"],
)
def test_what_starts_a_process_imports_nothing_heavy(start: str) -> None:
    code = f"import sys\n{start}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def graph() -> dict[str, set[str]]:
    """Module -> the modules of omnitune that it imports, for type checkers too."""
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in SOURCES}
    modules = {name.removesuffix(".__init__"): path for name, path in names.items()}
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            package = ["omnitune", *path.relative_to(PACKAGE).parent.parts]
            parent = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*parent, *([node.module] if node.module else [])])
            for alias in node.names:
                imported.add(f"{origin}.{alias.name}" if f"{origin}.{alias.name}" in modules else origin)
        found[name] = {one for one in imported if one in modules and one != name}
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges = graph()
    order: list[str] = []
    state: dict[str, int] = {}

    def visit(name: str, above: list[str]) -> None:
        if state.get(name) == 2:
            return
        assert state.get(name) != 1, " -> ".join([*above[above.index(name) :], name])
        state[name] = 1
        for other in sorted(edges[name]):
            visit(other, [*above, name])
        state[name] = 2
        order.append(name)

    for name in sorted(edges):
        visit(name, [])
    assert len(order) == len(edges)


def test_no_module_imports_what_another_room_keeps_to_itself() -> None:
    offenders = []
    for path in SOURCES:
        package = ["omnitune", *path.relative_to(PACKAGE).parent.parts]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                parent = package[: len(package) + 1 - node.level]
                origin = [*parent, *(node.module or "").split(".")]
                names = [*origin, *(alias.name for alias in node.names)]
                private = [name for name in names if name.startswith("_") and not name.startswith("__")]
                if private and origin[: len(package)] != package:
                    offenders.append(f"{path.relative_to(PACKAGE)}: {', '.join(private)}")
    assert not offenders
