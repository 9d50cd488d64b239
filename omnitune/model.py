"""The one order in which a model is set up: for training, sampling, evaluation, export and every phase."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from .export.start import init_adapters
from .export.weights import load_trained
from .families.base import Family
from .parallel.state import load_whole
from .progress import Working
from .trainable.adapters import apply_claims

if TYPE_CHECKING:
    from .checkpoint import Saved
    from .parallel.mesh import Mesh
    from .resolve import ResolvedRun


def set_up(
    resolved: "ResolvedRun",
    mesh: "Mesh",
    saved: "Saved | None" = None,
    *,
    average: bool = False,
    training: bool = False,
) -> Family:
    """Load what a step needs and place it, with the weights of a checkpoint where one is given.

    `average` takes the checkpoint's averaged weights where it has them; `training` prepares blocks for the
    backward pass. All ranks call it; a mistake of one is raised on all.
    """
    # Nothing is widened, quantised or adapted once modules are sharded, and nothing is compiled after that:
    # fully_shard replaces parameters, and the optimizer takes those that it leaves.
    with Working("loading the model"):
        family, compute = mesh.on_all_ranks(lambda: load_with_adapters(resolved, str(mesh.device)))
    if saved is not None:
        load_trained(family, load_whole(saved.tensors, mesh), average)
    if training:
        blocks = resolved.learning_blocks(family).values()
        resolved.run.memory.prepare_blocks([block for several in blocks for block in several])
    place(family, compute, mesh)
    return family


def load_with_adapters(resolved: "ResolvedRun", device: str) -> tuple[Family, dict[str, torch.dtype]]:
    """Load, widen, add adapters, start from `init_from`; also the dtype in which each parameter computes."""
    encoded = tuple(use for stage in resolved.cached for use in stage.uses)
    family = resolved.load_family(device, resolved.train_components, without=encoded)
    run, claims = resolved.run, resolved.claims
    compute = apply_claims(family.components, claims, run.seed)
    if run.init_from is not None:
        later = resolved.earlier is not None
        init_adapters(family, run.init_from, claims, resolved.formats, later)
    return family, compute


def place(family: Family, compute: Mapping[str, torch.dtype], mesh: "Mesh") -> None:
    """Put every component that trains on the mesh."""
    for name, module in family.components.items():
        if any(p.requires_grad for p in module.parameters()):
            own = {n.removeprefix(f"{name}."): d for n, d in compute.items() if n.startswith(f"{name}.")}
            mesh.place(module, family.blocks(name), own, family.compute_dtype(name))
