"""Commands in processes forked from one that has imported the libraries: no test waits for imports."""

import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from omnitune.families import BUNDLED, CONVERSATIONAL, REGISTRY
from omnitune.testing.runs import Ended

PRELOADED = (
    "omnitune.commands.train", "omnitune.commands.sample", "peft", "torch.distributed.fsdp",
    *(REGISTRY[name].partition(":")[0] for name in (BUNDLED, CONVERSATIONAL)),
)  # fmt: skip


class Forked:
    """`omnitune WORDS` in fresh processes of their own, one a rank, without the seconds that imports take.

    They are forked from a server that has imported the libraries and done nothing else, and joined through
    the variables that any launcher sets. `own` has further words of single ranks; `before` is called in each
    process before the command.
    """

    def __init__(
        self,
        *words: str | Path,
        cwd: Path,
        ranks: int = 1,
        own: Mapping[int, Sequence[str]] | None = None,
        before: Callable[[], object] | None = None,
    ):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self.folder = tempfile.TemporaryDirectory()
        self.logs = [
            tuple(Path(self.folder.name) / f"{rank}.{name}" for name in ("out", "err"))
            for rank in range(ranks)
        ]
        named = [str(word) for word in words]
        self.processes = [
            context.Process(
                target=_run, args=([*named, *(own or {}).get(rank, ())], cwd, env, self.logs[rank], before)
            )
            for rank, env in enumerate(_variables(ranks))
        ]
        for process in self.processes:
            process.start()

    def signal(self, number: int) -> None:
        """Send a signal to every rank that is alive."""
        for process in self.processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, number)

    def wait(self, seconds: float = 300) -> Ended:
        """Wait for all ranks; the worst exit code, and what they wrote."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        out, err = ("".join(log[i].read_text() for log in self.logs if log[i].exists()) for i in (0, 1))
        codes = [process.exitcode or 0 for process in self.processes]
        return Ended(max(codes, key=abs), out, err)


def run(*words: str | Path, cwd: Path, ranks: int = 1) -> Ended:
    """Run `omnitune WORDS` in a folder, in fresh processes."""
    return Forked(*words, cwd=cwd, ranks=ranks).wait()


def _variables(ranks: int) -> list[dict[str, str]]:
    if ranks == 1:
        return [{}]
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _run(
    words: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    logs: Sequence[Path],
    before: Callable[[], object] | None,
) -> None:
    from omnitune.cli import main

    os.chdir(cwd)
    os.environ.update(env)
    for number, log in zip((1, 2), logs, strict=True):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if before is not None:
        before()
    sys.exit(main(words))
