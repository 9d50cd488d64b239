"""Fine-tune image, video and vision-language models; `docs/python.md` is a tour of what is here.

Everything is imported when it is first asked for: `import omnitune` alone imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callbacks.base import Callback
    from .commands.bundled import bundled_run
    from .commands.cache import cache
    from .commands.check import CheckResult, check
    from .commands.export import ExportRequest
    from .commands.export import export as export_weights
    from .commands.init import InitRequest, init
    from .commands.models import models
    from .commands.plan import plan
    from .commands.report import ReportRequest
    from .commands.report import report as write_report
    from .commands.sample import SampleRequest, SampleResult, sample
    from .commands.train import TrainResult, train
    from .conditions.base import Condition
    from .config import load_run
    from .config.run import Run
    from .errors import MachineError, Stopped, UserError
    from .options import option

__version__ = "0.1.0"

__all__ = [
    "Callback", "CheckResult", "Condition", "ExportRequest", "InitRequest", "MachineError",
    "ReportRequest", "Run", "SampleRequest", "SampleResult", "Stopped", "TrainResult", "UserError",
    "bundled_run", "cache", "check", "export_weights", "init", "load_run", "models", "option", "plan",
    "sample", "train", "write_report",
]  # fmt: skip

_HOMES = {
    "callbacks.base": ("Callback",),
    "commands.bundled": ("bundled_run",),
    "commands.cache": ("cache",),
    "commands.check": ("CheckResult", "check"),
    "commands.export": ("ExportRequest", "export_weights"),
    "commands.init": ("InitRequest", "init"),
    "commands.models": ("models",),
    "commands.plan": ("plan",),
    "commands.report": ("ReportRequest", "write_report"),
    "commands.sample": ("SampleRequest", "SampleResult", "sample"),
    "commands.train": ("TrainResult", "train"),
    "conditions.base": ("Condition",),
    "config": ("load_run",),
    "config.run": ("Run",),
    "errors": ("MachineError", "Stopped", "UserError"),
    "options": ("option",),
}
_OWN_NAMES = {"export_weights": "export", "write_report": "report"}
"""Functions whose name in their module is a package's here."""


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), _OWN_NAMES.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
