"""The commands. Nothing heavy is imported before a command needs it."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from .errors import MachineError, Stopped, UserError, is_shared
from .options import annotations_of
from .progress import Working
from .requests import EvaluateRequest, ExportRequest, InitRequest, ReportRequest, SampleRequest
from .words import Word

if TYPE_CHECKING:
    from .config.run import Run

T = TypeVar("T")

DONE, USER, MACHINE, STOPPED = 0, 2, 3, 75
MACHINE_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EFBIG, errno.EMFILE, errno.ENFILE,
    errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOLCK, errno.ETIMEDOUT,
}  # fmt: skip
WRITE_FAILURES = (
    "No space left on device", "os error 28", "File too large", "os error 27", "Input/output error",
    "os error 5)", "database or disk is full", "disk I/O error", "database is locked", "inline_container.cc",
)  # fmt: skip
"""How safetensors, sqlite and torch.save word a file that cannot be written, in types of their own."""
LOST_RANK = ("Connection closed by peer", "third_party/gloo", "gloo/transport", "ncclInternalError")
"""How gloo and nccl word it, where torch passes it on as a plain RuntimeError."""
PATH_ERRORS = (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError)
PATH_ERRNOS = {errno.ENAMETOOLONG, errno.ELOOP}
STOPS = (signal.SIGTERM, signal.SIGINT)
INTACT = "the last complete checkpoint is intact"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    if hasattr(arguments, "overrides"):  # words may stand behind options too
        arguments.overrides += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    return guarded(lambda: arguments.command(arguments))


def guarded(command: Callable[[], int | None], place: Callable[[str], str] = str) -> int:
    """Turn the errors that users meet into a message and an exit code; all others are our bugs."""
    try:
        return command() or DONE
    except UserError as error:
        return fail(USER, place(str(error)), is_shared(error))
    except Stopped as stop:
        return fail(STOPPED, str(stop), is_shared(stop))
    except (MachineError, MemoryError) as error:
        return fail(MACHINE, str(error) or "out of memory", is_shared(error))
    except OSError as error:
        if error.filename and (isinstance(error, PATH_ERRORS) or error.errno in PATH_ERRNOS):
            message = f"{error.filename}: {error.strerror}; make it readable and writable, or name another"
            return fail(USER, message, is_shared(error))
        if error.errno not in MACHINE_ERRNOS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return fail(MACHINE, f"{where}{error.strerror}; {INTACT}", is_shared(error))
    except KeyboardInterrupt:  # a launcher passes it to all ranks
        return fail(STOPPED, "stopped at once; what was not saved is done again", everywhere=True)
    except Exception as error:
        if (told := machine_message(error)) is None:
            raise
        return fail(MACHINE, told)


def machine_message(error: BaseException) -> str | None:
    """A message for failures of the machine that libraries report in their own types, else None."""
    text = str(error)
    kind = f"{type(error).__module__}.{type(error).__name__}"
    if "OutOfMemoryError" in kind:
        return f"out of memory on the device: {text.splitlines()[0]}; lower parallel.micro_batch_size"
    for cause in (error, error.__cause__, error.__context__):
        full = isinstance(cause, OSError) and cause.errno in MACHINE_ERRNOS
        if full or any(sign in str(cause) for sign in WRITE_FAILURES):
            return f"no space left on the device, or it fails: {str(cause).splitlines()[0]}; {INTACT}"
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        return (
            f"a process that reads data was lost: {text.splitlines()[0].strip()}; lower data.num_workers "
            f"if memory ran out (0 reads without them); {INTACT}"
        )
    lost = isinstance(error, RuntimeError) and any(sign in text for sign in LOST_RANK)
    if lost or kind.startswith("torch.distributed.Dist"):
        return f"another rank was lost: {text.splitlines()[0]}; {INTACT}"
    return None


def fail(code: int, message: str, everywhere: bool = False) -> int:
    """Tell the user once: a worker leaves its message to the process that started it.

    What fails `everywhere` is told by the main rank.
    """
    from .parallel.launch import is_main_rank, leave_report

    if not leave_report(code, message) and (is_main_rank() or not everywhere):
        print(message, file=sys.stderr, flush=True)
    return code


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="omnitune", description="Fine-tune image, video and vision-language models.",
        epilog="Exit codes: 0 done, 2 a mistake of the user, 3 the machine failed, 75 stopped and saved.",
    )  # fmt: skip
    top.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, function, text in (
        ("train", train, "train a run, or resume it"),
        ("check", check, "check a configuration and every item of its data"),
        ("plan", plan, "say what a run would do, without weights or data in memory"),
        ("cache", cache, "encode latents and texts ahead of training"),
    ):
        one = commands.add_parser(name, help=text, description=text)
        one.add_argument("file", type=Path, help="run.yaml")
        one.add_argument("overrides", nargs="*", metavar="a.b.c=1", help="values in place of the file's")
        one.set_defaults(command=function)
        if name in ("train", "cache"):
            one.add_argument("--nproc", type=int, default=1, help="processes to start on this machine")
            one.add_argument(
                "--grace", type=int, default=600, help="seconds that a stopped run may take to save"
            )
        if name == "cache":
            one.add_argument("--verify", action="store_true", help="hash every file again")
    add_request(commands, "sample", SampleRequest, sample, "generate with what a run has learned")
    add_request(commands, "export", ExportRequest, export, "write trained weights in the published layout")
    add_request(commands, "evaluate", EvaluateRequest, evaluate, "measure what a run has learned, offline")
    add_request(commands, "report", ReportRequest, report, "write report.html of a run")
    add_request(commands, "init", InitRequest, init, "write a commented run.yaml for a family to stdout")
    table = commands.add_parser("models", help="list families and what they can do")
    table.add_argument("family", nargs="*", help="package.module:Class of your own; default: all of ours")
    table.set_defaults(command=models)
    text = "fine-tune a small model on bundled pictures, in minutes"
    commands.add_parser("demo", help=text).set_defaults(command=demo)
    return top


def add_request(
    commands: Any, name: str, request: type[T], command: Callable[[T], int | None], text: str
) -> None:
    """Add a command whose words are the fields of a request, as `Word` annotates them."""
    one = commands.add_parser(name, help=text, description=text)
    hints, words = get_type_hints(request), annotations_of(request)
    for field in fields(request):  # type: ignore[arg-type]
        (word,) = words[field.name]
        one.add_argument(*_flags(field, word), help=word.help, **_reading(hints[field.name], field))
    one.set_defaults(command=lambda given: command(request(**{f: getattr(given, f) for f in words})))


def _flags(field: Field[Any], word: Word) -> list[str]:
    if field.default is MISSING and field.default_factory is MISSING:
        return [field.name]
    return [word.name or f"--{field.name.replace('_', '-')}"]


def _reading(hint: Any, field: Field[Any]) -> dict[str, Any]:
    """How argparse reads a field of a type: a switch, a list or mapping that words add to, or one value."""
    if field.default is MISSING and field.default_factory is MISSING:
        return {"type": hint}
    if hint is bool:
        return {"action": "store_true", "dest": field.name}
    kind = next((one for one in get_args(hint) if one is not NoneType), hint)  # X of X | None
    if get_origin(kind) is Mapping:
        return {"action": _NamedFiles, "metavar": "NAME=FILE", "dest": field.name}
    if get_origin(kind) is Sequence:
        return {"action": "append", "type": get_args(kind)[0], "dest": field.name}
    return {"type": kind, "default": field.default, "dest": field.name}


class _NamedFiles(argparse.Action):
    """Gathers NAME=FILE words as a mapping from names to lists of files."""

    def __call__(self, parser: Any, given: argparse.Namespace, word: Any, option: str | None = None) -> None:
        name, _, file = word.partition("=")
        if not file:
            parser.error(f"{option}: {word!r} is not NAME=FILE")
        files = getattr(given, self.dest) or {}
        setattr(given, self.dest, {**files, name: [*files.get(name, []), Path(file)]})


class _Version(argparse.Action):
    def __call__(self, *_: Any) -> None:
        from . import __version__

        print(__version__)
        sys.exit(DONE)


def with_run(arguments: argparse.Namespace, work: "Callable[[Run], int | None]") -> int:
    """Load the run and do something with it; mistakes found later still get their line of the file."""
    with Working("loading"):
        from . import config

        document = config.read(arguments.file, arguments.overrides)
        run = config.validate(document)
    return guarded(lambda: work(run), partial(config.placed, document))


def train(arguments: argparse.Namespace) -> int:
    return _on_ranks(arguments, "train")


def cache(arguments: argparse.Namespace) -> int:
    return _on_ranks(arguments, "cache")


def _on_ranks(arguments: argparse.Namespace, command: str) -> int:
    """Start the ranks of this machine, or be one of them."""
    from .parallel.launch import launched

    if not launched():
        return with_run(arguments, lambda run: _start(arguments, run, command))
    try:
        return with_run(arguments, lambda run: _on_mesh(arguments, run, command))
    except UserError as error:
        from .parallel.mesh import fail_on_all_ranks

        fail_on_all_ranks(error)


def _start(arguments: argparse.Namespace, run: "Run", command: str) -> int | None:
    from .parallel.launch import launch

    _check_ranks(run, arguments.nproc, command)
    if arguments.nproc == 1:
        _on_mesh(arguments, run, command)
        return DONE
    words = [command, str(arguments.file), *arguments.overrides]
    words += ["--verify"] if getattr(arguments, "verify", False) else []
    code, message = launch(words, arguments.nproc, arguments.grace)
    if message:
        print(message, file=sys.stderr, flush=True)
    return code


def _check_ranks(run: "Run", world: int, command: str) -> None:
    if world < 1:
        raise UserError(f"--nproc: a run takes 1 process or more, not {world}")
    try:
        run.parallel.sizes(world)
    except UserError as error:
        from .commands.train import note_identity
        from .resolve import refuse
        from .run_folder import run_folder

        check = partial(note_identity, run=run, folder=run_folder(run))
        refuse(run, error, check if command == "train" else None)


def _on_mesh(arguments: argparse.Namespace, run: "Run", command: str) -> None:
    from .parallel.mesh import Mesh

    for number in STOPS:
        signal.signal(number, _interrupt)
    mesh = Mesh(run.parallel)
    try:
        if command == "train":
            with Working("loading"):
                from .commands.train import train_on

            train_on(run, mesh)
        else:
            with Working("loading"):
                from .commands.cache import cache_on

            for line in cache_on(run, mesh, arguments.verify):
                print(line)
    finally:
        mesh.close()


def _interrupt(number: int, frame: Any) -> None:
    """End the command where it is, with code 75: before the first step only the cache has something to keep.

    That takes its time: a second signal, with which a launcher repeats the terminal's, does not cut it short.
    """
    for stop in STOPS:
        signal.signal(stop, _ignore_once)
    raise KeyboardInterrupt


def _ignore_once(number: int, frame: Any) -> None:
    for stop in STOPS:
        signal.signal(stop, signal.default_int_handler)


def check(arguments: argparse.Namespace) -> int:
    def told(run: "Run") -> None:
        with Working("loading"):
            from .commands.check import check

        print("\n".join(check(run).lines))

    return with_run(arguments, told)


def plan(arguments: argparse.Namespace) -> int:
    def told(run: "Run") -> None:
        with Working("loading"):
            from .commands.plan import plan

        print("\n".join(plan(run)))

    return with_run(arguments, told)


def sample(request: "SampleRequest") -> None:
    with Working("loading"):
        from .commands.sample import sample

    result = sample(request)
    for path, one in zip(result.paths, result.samples, strict=True):
        print(f"{path}: {one}" if isinstance(one, str) else path)


def export(request: "ExportRequest") -> None:
    with Working("loading"):
        from .commands.export import export_weights

    print(export_weights(request))


def evaluate(request: "EvaluateRequest") -> None:
    with Working("loading"):
        from .commands.evaluate import evaluate_run
    from .evaluate import table

    result = evaluate_run(request)
    print("\n".join([*table(result.measures), str(result.file)]))


def report(request: "ReportRequest") -> None:
    with Working("loading"):
        from .commands.report import write_report

    print(write_report(request))


def init(request: "InitRequest") -> None:
    with Working("loading"):
        from .commands.init import init

        text = init(request)
    print(text, end="")


def models(arguments: argparse.Namespace) -> None:
    with Working("loading"):
        from .commands.models import models

        text = models(arguments.family)
    print(text, end="")


def demo(arguments: argparse.Namespace) -> None:
    with Working("loading"):
        from .commands.demo import demo

    print("\n".join(demo()))


def run_and_exit() -> None:
    """Run the command of this process and end it, whatever threads libraries left."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code) if os.environ.get("OMNITUNE_REPORTS") else sys.exit(code)


if __name__ == "__main__":
    run_and_exit()
