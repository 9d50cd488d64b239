"""A format from outside the package: it exports a run, is proved, and starts another one."""

from collections.abc import Callable, Collection
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnitune import cli, config
from omnitune.errors import MachineError
from omnitune.export.base import Format, Weights, read_files
from omnitune.export.weights import export
from omnitune.families.base import Family
from omnitune.model import load_with_adapters
from omnitune.parallel.mesh import Mesh, Parallel
from omnitune.resolve import resolve_run
from omnitune.run_folder import read_run
from omnitune.testing.runs import small_run, write_run

# From here to the line below the code is that of docs/guides/export-format.md.
FILE = "flat.safetensors"
ENDS = {".lora_A.weight": ".down", ".lora_B.weight": ".up"}


class Flat(Format):
    """All adapters in one file; matrices lie transposed, and the alpha of a layer is a tensor beside them."""

    name = "flat"
    holds = FILE

    def files(self, path: Path) -> list[Path]:
        file = path / FILE if path.is_dir() else path
        return [file] if file.is_file() and file.name == FILE else []

    def write(self, folder: Path, family: Family, weights: Weights) -> None:
        tensors: dict[str, Tensor] = {}
        for name, tensor in weights.tensors.items():
            end = name[name.index(".lora_") :]
            tensors[name.removesuffix(end) + ENDS[end]] = tensor.T.contiguous()
        for module, alpha in weights.alphas.items():
            tensors[f"{module}.alpha"] = torch.tensor(alpha)
        save_file(tensors, folder / FILE, dict(weights.notes))

    def read(self, path: Path, family: Family, components: Collection[str]) -> Weights:
        ((_, found, notes),) = read_files(self.files(path))
        tensors: dict[str, Tensor] = {}
        alphas: dict[str, dict[str, float]] = {}
        for key, tensor in found.items():
            module, _, kind = key.rpartition(".")
            if kind == "alpha":
                component, _, layer = module.partition(".")
                alphas.setdefault(component, {})[f"^{layer}$".replace(".", r"\.")] = tensor.item()
            else:
                end = next(end for end, short in ENDS.items() if short == f".{kind}")
                tensors[module + end] = tensor.T
        return Weights(tensors, {name: {"alpha_pattern": own} for name, own in alphas.items()}, notes)


# Up to here.


NAME = f"{__name__}:Flat"
"""As a run or the command line spells it."""
RULE = {"params": "transformer.blocks.*.attn*", "lr": 3e-2, "lora": {"rank": 4, "alpha": 10}}
Change = Callable[[dict[str, Tensor]], None]


@pytest.fixture(scope="module")
def home(tiny_wan: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run trained, and was exported by the command line."""
    home = tmp_path_factory.mktemp("flat")
    write_run(home / "run.yaml", small_run(tiny_wan, cache, trainable=[RULE]))
    with chdir(home):
        assert cli.main(["train", "run.yaml"]) == 0
        assert cli.main(["export", "runs/run", "--format", NAME]) == 0
    return home


def family_of(file: Path) -> Family:
    with chdir(file.parent):
        return load_with_adapters(resolve_run(config.load(file)[0]), "cpu")[0]


def test_the_file_has_keys_of_its_own_and_a_run_starts_from_it(home: Path) -> None:
    folder = home / "runs/run/weights-flat"
    assert {key.rpartition(".")[2] for key in load_file(folder / FILE)} == {"down", "up", "alpha"}
    described = small_run(config.load(home / "run.yaml")[0].model.path, home, trainable=[RULE])

    def started(kind: str, path: Path, name: str | None) -> Family:
        run = {**described, "init_from": str(path), "init_format": name}
        return family_of(write_run(home / f"{kind}.yaml", run))

    flat, usual = started("flat", folder, NAME), started("usual", home / "runs/run/weights", None)
    weights = dict(usual.components.named_parameters())
    for name, param in flat.components.named_parameters():
        assert torch.equal(param, weights[name]), name
    assert any(p.abs().max() > 0 for n, p in weights.items() if "lora_B" in n)


def broken_key(tensors: dict[str, Tensor]) -> None:
    tensors["transformer.blocks.0.attn1.to_k.down"] = tensors.pop("transformer.blocks.0.attn1.to_q.down")


def transposed(tensors: dict[str, Tensor]) -> None:
    key = next(key for key, tensor in tensors.items() if key.endswith(".up"))
    tensors[key] = tensors[key].T.contiguous()


def wrong_alpha(tensors: dict[str, Tensor]) -> None:
    key = next(key for key in tensors if key.endswith(".alpha"))
    tensors[key] = tensors[key] / 2


@pytest.mark.parametrize(
    ("change", "fault"),
    [(broken_key, "missing: transformer.blocks.0.attn1.to_q.lora_A.weight (1 such)"),
     (transposed, "lora_B.weight (1 such)"), (wrong_alpha, ".alpha (1 such)")],
)  # fmt: skip
def test_a_file_that_is_not_what_was_trained_is_caught_and_removed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, fault: str
) -> None:
    write = Flat.write

    def write_wrongly(self: Flat, folder: Path, family: Family, weights: Weights) -> None:
        write(self, folder, family, weights)
        tensors = load_file(folder / FILE)
        change(tensors)
        save_file(tensors, folder / FILE)

    with chdir(home):
        resolved = resolve_run(read_run(home / "runs/run"))
        family, _ = load_with_adapters(resolved, "cpu")
    monkeypatch.setattr(Flat, "write", write_wrongly)
    with pytest.raises(MachineError, match="flat is not what reads back") as caught:
        export(family, resolved.claims, Mesh(Parallel()), tmp_path / "out", Flat())
    assert fault in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_page_shows_this_code() -> None:
    code = Path(__file__).read_text().partition("export-format.md.\n")[2].partition("# Up to here.")[0]
    page = (Path(__file__).parents[2] / "docs/guides/export-format.md").read_text()
    block = page.partition("```python\n")[2].partition("```")[0]
    assert code.strip() in block
    exec(block, {"__name__": "guide"})
