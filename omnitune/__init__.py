"""Fine-tune image, video and vision-language models; `docs/python.md` is a tour of what is here.

Everything is imported when it is first asked for: `import omnitune` alone imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callbacks.base import Callback, Record
    from .commands.bundled import bundled_run
    from .commands.cache import cache
    from .commands.check import CheckResult, check
    from .commands.evaluate import evaluate_run
    from .commands.export import export_weights
    from .commands.init import init
    from .commands.models import models
    from .commands.plan import plan
    from .commands.report import write_report
    from .commands.sample import SampleResult, sample
    from .commands.train import TrainResult, train
    from .conditions.base import Condition
    from .config import load_run
    from .config.run import Run
    from .errors import MachineError, Stopped, UserError
    from .evaluate import EvaluationResult
    from .options import option
    from .requests import EvaluateRequest, ExportRequest, InitRequest, ReportRequest, SampleRequest

__version__ = "0.1.0"

__all__ = [
    "Callback", "CheckResult", "Condition", "EvaluateRequest", "EvaluationResult", "ExportRequest",
    "InitRequest", "MachineError", "Record", "ReportRequest", "Run", "SampleRequest", "SampleResult",
    "Stopped", "TrainResult", "UserError", "bundled_run", "cache", "check", "evaluate_run",
    "export_weights", "init", "load_run", "models", "option", "plan", "sample", "train", "write_report",
]  # fmt: skip

_HOMES = {
    "callbacks.base": ("Callback", "Record"),
    "commands.bundled": ("bundled_run",),
    "commands.cache": ("cache",),
    "commands.check": ("CheckResult", "check"),
    "commands.evaluate": ("evaluate_run",),
    "commands.export": ("export_weights",),
    "commands.init": ("init",),
    "commands.models": ("models",),
    "commands.plan": ("plan",),
    "commands.report": ("write_report",),
    "commands.sample": ("SampleResult", "sample"),
    "commands.train": ("TrainResult", "train"),
    "conditions.base": ("Condition",),
    "config": ("load_run",),
    "config.run": ("Run",),
    "evaluate": ("EvaluationResult",),
    "errors": ("MachineError", "Stopped", "UserError"),
    "options": ("option",),
    "requests": ("EvaluateRequest", "ExportRequest", "InitRequest", "ReportRequest", "SampleRequest"),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
