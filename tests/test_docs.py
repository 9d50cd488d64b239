import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from omnitune import config
from omnitune.commands.plan import plan
from omnitune.errors import UserError
from omnitune.families import REGISTRY

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_options_page_and_schema_are_what_the_code_says():
    module = generator()
    assert (ROOT / "docs" / "options.md").read_text() == module.options_text(), "run `make docs`"
    assert (ROOT / "docs" / "run.schema.json").read_text() == module.schema_text(), "run `make docs`"


@pytest.mark.parametrize("family", REGISTRY)
def test_every_family_has_a_page_with_what_the_code_says_and_an_example(family):
    module = generator()
    assert module.model_page(family).read_text() == module.model_text(family), "run `make docs`"
    assert any(yaml.safe_load(path.read_text())["model"]["family"] == family for path in EXAMPLES)
    assert f"/docs/models/{family}.md)" in (ROOT / "README.md").read_text()


def test_the_links_of_the_readme_work_on_a_package_index_and_name_files_that_are_there():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    text = (ROOT / "README.md").read_text()
    home = urls["Repository"]
    assert f"git clone {home}" in text
    for target in (*re.findall(r"\]\(([^)]+)\)", text), *urls.values()):
        page = target.partition("#")[0]
        inside = re.fullmatch(rf"{re.escape(home)}(?:/(?:blob|raw|tree)/main/(.+)|/issues|)", page)
        assert inside, target
        assert (ROOT / (inside[1] or "")).exists(), target


def test_every_option_of_a_run_has_a_line_in_the_options_page():
    text = (ROOT / "docs" / "options.md").read_text()
    for definition in config.schema()["$defs"].values():
        for key in definition.get("properties", {}):
            assert f"| `{key}` |" in text, key


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_loads_and_plans_without_weights(path):
    assert len(path.read_text().splitlines()) <= 40
    run, _ = config.load(path)
    text = "\n".join(plan(run))
    assert re.search("stage (moments|vision): cached", text)
    assert "shipped configuration" in text


def test_a_plan_refuses_a_sample_size_that_training_would_refuse():
    run, _ = config.load(ROOT / "examples" / "wan_lora.yaml", ["validation.size=49x480x833"])
    with pytest.raises(UserError, match=r"^validation\.size: 49x480x833 is not a size that wan takes"):
        next(plan(run))


def test_the_runs_in_readme_and_docs_are_valid(tmp_path):
    blocks = [b for p in PAGES for b in re.findall(r"```yaml\n(.*?)```", p.read_text(), re.S)]
    runs = [b for b in blocks if "model" in yaml.safe_load(b)]
    assert runs
    for i, block in enumerate(runs):
        path = tmp_path / f"run{i}.yaml"
        path.write_text(block)
        config.load(path)


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
