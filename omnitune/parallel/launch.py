"""Start the ranks of a run on this machine, and bring back one exit code and one message."""

import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

REPORTS = "OMNITUNE_REPORTS"
"""Environment variable: folder in which a worker leaves its exit code and message."""


def launched() -> bool:
    """Whether a launcher (ours, torchrun, Slurm's) started this process as a rank."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_main_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def leave_report(code: int, message: str) -> bool:
    """Leave an exit code and message to the launching process; False if there is none."""
    if REPORTS not in os.environ:
        return False
    rank = os.environ.get("RANK", "0")
    path = Path(os.environ[REPORTS]) / f"rank-{rank}.json"
    path.write_text(json.dumps({"code": code, "message": message, "time": time.time()}))
    return True


def launch(words: Sequence[str], nproc: int, grace: int) -> tuple[int, str | None]:
    """Run `omnitune WORDS` in nproc ranks through torch's elastic launcher; returns (exit code, message)."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What went wrong is in the reports; the launcher's log would tell it again, as exit codes and ids.
    log = logging.getLogger("torch.distributed.elastic")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    with tempfile.TemporaryDirectory() as reports:
        os.environ[REPORTS] = reports
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=f"omnitune-{os.getpid()}",
            max_restarts=0,
            local_addr="localhost",
            shutdown_timeout=grace,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "omnitune.cli", *words)
        except SignalException as stop:  # ranks that say nothing ended before it, or had not begun
            told = f"stopped by {stop.sigval.name}; what was not saved is done again"
            return _first_report(Path(reports)) or (75, told)
        except ChildFailedError as error:
            found = _lost_rank(error.failures.values()) or _first_report(Path(reports))
            return found or (
                3,
                f"a rank was lost: {str(error).splitlines()[0]}; the last checkpoint is intact",
            )
        finally:
            del os.environ[REPORTS]
    return 0, None


def _lost_rank(failures: "Collection[ProcessFailure]") -> tuple[int, str] | None:
    """Tell of a rank that a signal ended before the launcher stopped the others.

    Those may report that they were stopped, or are killed 30 seconds later; SIGTERM and SIGINT stop a run.
    """
    for one in failures:
        first = one.timestamp - min(other.timestamp for other in failures) <= 1  # whole seconds
        if first and one.exitcode < 0 and -one.exitcode not in (signal.SIGTERM, signal.SIGINT):
            return 3, (
                f"a rank was lost (signal {-one.exitcode}, {signal.strsignal(-one.exitcode)}); the system's "
                "log says why, if memory ran out for one; the last complete checkpoint is intact"
            )
    return None


def _first_report(folder: Path) -> tuple[int, str] | None:
    """The worst report, the earliest of those: what failed first made the other ranks fail."""
    reports = [json.loads(p.read_text()) for p in folder.glob("rank-*.json")]
    if not reports:
        return None
    first = min(reports, key=lambda r: (r["code"] == 75, r["time"]))
    return first["code"], first["message"]
