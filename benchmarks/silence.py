"""How long a command says nothing on a terminal, at most.

Each runs in a pseudo-terminal on the bundled model and pictures; the silence before the first word and after
the last one counts too. `check` of a file with a mistake is timed beside them: it is told within a second.
"""

import os
import pty
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tiny_run import OMNITUNE, machine, verdict

BOUND, MISTAKE_BOUND = 2.0, 1.0
RUN = """\
model: {{family: wan, path: pocket-wan, dtype: float32, options: {{fold_padding: true}}}}
trainable: {{lora: {{rank: 4}}, lr: 1.0e-3}}
data: {{sources: [{pictures}], buckets: {{frames: [1], sizes: [64x64]}}, batch_size: 4}}
schedule: {{steps: 5}}
"""
COMMANDS = (
    "check run.yaml", "plan run.yaml", "train run.yaml", "export runs/run --out exported",
    "sample runs/run --prompt duck --size 64x64 --steps 2", "report runs/run", "models", "init wan",
)  # fmt: skip


def longest_silence(command: Sequence[str]) -> float:
    """Run a command in a terminal; seconds between two outputs, or before the first, or after the last."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)
    last, longest = time.monotonic(), 0.0
    while True:
        try:
            said = os.read(terminal, 1 << 16)
        except OSError:  # of a terminal that nobody holds any more
            said = b""
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        if not said:
            break
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{' '.join(command)} exited with {code}")
    return max(longest, time.monotonic() - last)


def seconds_of_mistake() -> float:
    """How long `check` takes to tell an unknown key."""
    Path("wrong.yaml").write_text(Path("run.yaml").read_text() + "epochs: 3\n")
    start = time.monotonic()
    done = subprocess.run([*OMNITUNE, "check", "wrong.yaml"], capture_output=True, check=False)
    assert done.returncode == 2, done.stderr
    return time.monotonic() - start


def main() -> int:
    print(machine())
    pictures = Path(__file__).parents[1] / "omnitune" / "assets" / "style" / "validation"
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("run.yaml").write_text(RUN.format(pictures=pictures))
        silences = {}
        for words in COMMANDS:
            silences[words] = longest_silence([*OMNITUNE, *words.split()])
            print(f"{words}: {silences[words]:.2f} s", flush=True)
        mistake = min(seconds_of_mistake() for _ in range(3))
        os.chdir("/")
    worst = max(silences, key=silences.__getitem__)
    figure = f"silence: {silences[worst]:.2f} s at most ({worst}), bound {BOUND}"
    told = f"a mistake of the YAML told in {mistake:.2f} s, bound {MISTAKE_BOUND}"
    return verdict(f"{figure}; {told}", silences[worst] <= BOUND and mistake <= MISTAKE_BOUND)


if __name__ == "__main__":
    sys.exit(main())
