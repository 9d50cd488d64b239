"""How much more memory `omnitune train` takes at its peak than a bare loop over the same model and tensors.

Peak of the proportional set size (PSS), summed over the processes of each, read from /proc every 20 ms. Other
programs that map torch's libraries lower it, so the resident set size (RSS) must hold too. The bare script
also imports diffusers whole, adds the same adapters and makes as many steps; ours moreover reads the cache,
saves the checkpoint, exports the weights and writes the report.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tiny_run import OMNITUNE, Settings, tiny_run, verdict, wan

FACTOR, ALLOWANCE = 1.05, 100 << 20
INTERVAL = 0.02
MEASURES = ("Pss", "Rss")
# About 60 million parameters: 240 MB in fp32.
SETTINGS = Settings(wan(layers=8, heads=12, head_dim=64), frames=9, size="128x128", dtype="float32", steps=5)

BARE = """\
import sys
import torch
import torch.nn.functional as F
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig

model = WanTransformer3DModel.from_pretrained(sys.argv[1], torch_dtype=torch.float32).requires_grad_(False)
layers = [
    name for name, module in model.named_modules()
    if isinstance(module, torch.nn.Linear) and name.startswith("blocks.")
]
model.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=layers))
params = [p for p in model.parameters() if p.requires_grad]
million = sum(p.numel() for p in model.parameters()) / 1e6
print(f"{million:.1f} million parameters, {len(layers)} adapted layers")
optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True)
tensors = torch.load(sys.argv[2])
x_0, prompt_embeds = tensors["x_0"], tensors["prompt_embeds"]
for step in range(int(sys.argv[3])):
    noise, u = torch.randn_like(x_0), torch.rand(len(x_0))
    sigma = u.view(-1, 1, 1, 1, 1)
    velocity = model((1 - sigma) * x_0 + sigma * noise, 1000 * u, prompt_embeds, return_dict=False)[0]
    loss = F.mse_loss(velocity, noise - x_0)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    loss.item()
"""

PREPARE = """\
import sys
from pathlib import Path
import torch
from omnitune import config
from omnitune.parallel.mesh import Mesh
from omnitune.random import Draw
from omnitune.resolve import resolve_run

run, _ = config.load(Path(sys.argv[1]))
resolved = resolve_run(run)
mesh = Mesh(run.parallel)
family = resolved.load_family("cpu")
batch = resolved.batches(resolved.index(), resolved.open_cache(), mesh)[(0, 0)]
for stage in resolved.live_stages(family):
    batch = {**batch, **stage.run(batch, Draw(run.seed, batch["position"]))}
length = resolved.options.text_length
embeds = [torch.cat([e, e.new_zeros(length - len(e), e.shape[1])]) for e in batch["prompt_embeds"]]
torch.save({"x_0": batch["x0"]["x"], "prompt_embeds": torch.stack(embeds)}, sys.argv[2])
"""


def peak_memory(command: Sequence[str | Path], folder: Path) -> dict[str, int]:
    """Run a command; the largest sums over its process tree of each measure, in bytes."""
    peak = dict.fromkeys(MEASURES, 0)
    with subprocess.Popen(command, cwd=folder) as process:
        while process.poll() is None:
            now = [set_sizes(pid) for pid in tree(process.pid)]
            peak = {name: max(peak[name], sum(sizes[name] for sizes in now)) for name in MEASURES}
            time.sleep(INTERVAL)
    if process.returncode:
        raise RuntimeError(f"{command} exited with {process.returncode}")
    return peak


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, read(children).split())
    return found


def set_sizes(pid: int) -> dict[str, int]:
    """Pages shared by n processes count 1/n in each PSS, so a sum counts them once; whole in each RSS."""
    lines = [line.split() for line in read(Path(f"/proc/{pid}/smaps_rollup")).splitlines()]
    kibibytes = {words[0].removesuffix(":"): int(words[1]) for words in lines if words[-1] == "kB"}
    return {name: kibibytes.get(name, 0) << 10 for name in MEASURES}


def read(path: Path) -> str:
    """A file of /proc; empty where its process has just ended."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def main() -> int:
    with tiny_run(SETTINGS) as run:
        tensors = run.folder / "tensors.pt"
        subprocess.run([sys.executable, "-c", PREPARE, run.file, tensors], check=True, cwd=run.folder)
        script = [sys.executable, "-c", BARE, run.model / "transformer", tensors, str(SETTINGS.steps)]
        bare = peak_memory(script, run.folder)
        ours = peak_memory([*OMNITUNE, "train", run.file], run.folder)
    limits = {name: FACTOR * size + ALLOWANCE for name, size in bare.items()}
    figures = (
        f"{name.upper()} {_mib(ours[name])}, bare {_mib(bare[name])}, bound {_mib(limits[name])}"
        for name in MEASURES
    )
    return verdict(f"memory: {'; '.join(figures)}", all(ours[name] <= limits[name] for name in MEASURES))


def _mib(size: float) -> str:
    return f"{size / (1 << 20):.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
