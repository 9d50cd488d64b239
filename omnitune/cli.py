"""The commands. Nothing heavy is imported before a command needs it."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MachineError, Stopped, UserError, is_shared, shared

if TYPE_CHECKING:
    from .config.run import Run
    from .parallel.mesh import Mesh

DONE, USER, MACHINE, STOPPED = 0, 2, 3, 75
MACHINE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM}
WRITE_FAILURES = ("No space left on device", "os error 28", "database or disk is full", "inline_container.cc")
"""How safetensors, sqlite and torch.save word a file that cannot be written, in types of their own."""
LOST_RANK = ("Connection closed by peer", "third_party/gloo", "gloo/transport", "ncclInternalError")
"""How gloo and nccl word it, where torch passes it on as a plain RuntimeError."""
PATH_ERRORS = (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError)
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
        return fail(MACHINE, str(error) or "out of memory")
    except OSError as error:
        if isinstance(error, PATH_ERRORS) and error.filename:
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
        ("train", train, "train a run, or go on with it"),
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
    _run_commands(commands)
    init = commands.add_parser("init", help="write a commented run.yaml for a family to stdout")
    init.add_argument("family")
    init.add_argument("--variant", help="of its checkpoints, as `omnitune models` lists them")
    init.set_defaults(command=write_init)
    commands.add_parser("models", help="list families and what they can do").set_defaults(command=models)
    demo = commands.add_parser("demo", help="fine-tune a small model on bundled pictures, in minutes")
    demo.set_defaults(command=run_demo)
    return top


def _run_commands(commands: Any) -> None:
    sample = commands.add_parser("sample", help="generate with what a run has learned")
    sample.add_argument("folder", type=Path, help="runs/NAME")
    sample.add_argument(
        "--prompt", action="append", help="what to generate; again for more; else the run's own"
    )
    sample.add_argument(
        "--image", action="append", type=Path, help="its first frame, or what is asked about; one a prompt"
    )
    sample.add_argument("--last-image", action="append", type=Path, help="its last frame")
    sample.add_argument("--size", help="480x832 or 49x480x832")
    sample.add_argument("--steps", type=int, help="denoising steps")
    sample.add_argument("--guidance", type=float, help="guidance scale")
    sample.add_argument("--seed", type=int, help="of the starting noise")
    sample.add_argument("--max-tokens", type=int, help="most tokens of an answer")
    sample.add_argument("--checkpoint", type=int, help="step of the checkpoint; the newest by default")
    sample.add_argument("--base", action="store_true", help="the model before training")
    sample.add_argument("--raw", action="store_true", help="raw weights where an average is kept")
    sample.add_argument("--out", type=Path, help="folder to write to")
    sample.set_defaults(command=write_samples)
    export = commands.add_parser("export", help="write trained weights in the published layout")
    export.add_argument("folder", type=Path, help="runs/NAME")
    export.add_argument("--checkpoint", type=int, help="step of the checkpoint; the newest by default")
    export.add_argument("--raw", action="store_true", help="raw weights where an average is kept")
    export.add_argument(
        "--merged", action="store_true", help="whole networks, adapters added to their weights"
    )
    export.add_argument("--out", type=Path, help="folder to write to; weights/ of the run by default")
    export.set_defaults(command=export_weights)
    _evaluate_command(commands)
    report = commands.add_parser("report", help="write report.html of a run")
    report.add_argument("folder", type=Path, help="runs/NAME")
    report.set_defaults(command=write_report)


def _evaluate_command(commands: Any) -> None:
    one = commands.add_parser("evaluate", help="measure what a run has learned, offline")
    one.add_argument("folder", type=Path, help="runs/NAME")
    one.add_argument(
        "--data", type=Path, help="what was not trained on: a folder, or a file of conversations"
    )
    one.add_argument(
        "--fit", type=Path, action="append", default=[],
        help="folder of captioned pictures that the text-image score learns; may be given again",
    )  # fmt: skip
    one.add_argument(
        "--metrics", help="of loss,psnr,kid,text_image,motion,exact_match,rouge; all that apply by default"
    )
    one.add_argument("--samples", type=int, help="how many to generate; one a caption by default")
    one.add_argument("--size", help="480x832 or 49x480x832; the run's buckets by default")
    one.add_argument("--steps", type=int, help="denoising steps")
    one.add_argument("--guidance", type=float, help="guidance scale")
    one.add_argument("--seed", type=int, help="of the first sample's starting noise")
    weights = one.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", type=int, help="step of the checkpoint; the newest by default")
    weights.add_argument("--base", action="store_true", help="the model before training")
    one.add_argument("--raw", action="store_true", help="raw weights where an average is kept")
    one.add_argument(
        "--features", default="efficientnet_lite0", help="or inception:FILE or clip:FOLDER that you have"
    )
    one.add_argument("--lpips", type=Path, help="torchvision's AlexNet, VGG16 or SqueezeNet weights")
    one.add_argument("--out", type=Path, help="JSON to write; evaluation/STEP.json of the run by default")
    one.set_defaults(command=evaluate)


class _Version(argparse.Action):
    def __call__(self, *_: Any) -> None:
        from . import __version__

        print(__version__)
        sys.exit(DONE)


def with_run(arguments: argparse.Namespace, work: "Callable[[Run], int | None]") -> int:
    """Load the run and do something with it; mistakes found later still get their line of the file."""
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
        from .parallel.mesh import meet

        meet(error)


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
        from .commands import train as session

        session.refuse(run, error, session.run_folder(run) if command == "train" else None)


def _on_mesh(arguments: argparse.Namespace, run: "Run", command: str) -> None:
    from .parallel.mesh import Mesh

    for number in STOPS:
        signal.signal(number, _interrupt)
    mesh = Mesh(run.parallel)
    try:
        _work(command, arguments, run, mesh)
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


def _work(command: str, arguments: argparse.Namespace, run: "Run", mesh: "Mesh") -> None:
    from .commands import train as session

    if command == "train":
        session.train(run, mesh)
        return
    from .data.encode import fill

    if run.data.cache is None:
        raise shared(UserError("data.cache: is null, so there is nothing to fill; name a folder"))
    parts, index = session.prepare(run, mesh, verify=arguments.verify)
    first = parts[0][1]
    first.share_weights(mesh, arguments.verify)
    for _, job in parts:
        job.weights = first.weights
        filled = fill(job, index, mesh)
        if mesh.main and filled.encoded:
            print(filled)
    if mesh.main:
        print("\n".join([*index.notes, *index.caption_notes(first.shape.cut_captions)]))


def check(arguments: argparse.Namespace) -> int:
    from .commands.check import check_run

    return with_run(arguments, check_run)


def plan(arguments: argparse.Namespace) -> int:
    from .commands.plan import print_plan

    return with_run(arguments, print_plan)


def write_samples(arguments: argparse.Namespace) -> None:
    from .commands.sample import sample_run

    sample_run(arguments)


def export_weights(arguments: argparse.Namespace) -> None:
    from .commands.sample import export_run

    export_run(arguments.folder, arguments.checkpoint, arguments.raw, arguments.out, arguments.merged)


def evaluate(arguments: argparse.Namespace) -> None:
    from dataclasses import fields

    from .commands import evaluate as command
    from .evaluate import EvaluateRequest, table

    words = {field.name: getattr(arguments, field.name) for field in fields(EvaluateRequest)}
    result = command.evaluate(EvaluateRequest(**words))
    print("\n".join(table(result.measures)))
    print(result.file)


def write_report(arguments: argparse.Namespace) -> None:
    from .report import write_report

    print(write_report(arguments.folder))


def write_init(arguments: argparse.Namespace) -> None:
    from .commands.init import text
    from .families import resolve

    print(text(resolve(arguments.family), arguments.variant), end="")


def models(arguments: argparse.Namespace) -> None:
    from .commands.init import table

    print(table(), end="")


def run_demo(arguments: argparse.Namespace) -> None:
    from .commands.demo import demo

    demo()


if __name__ == "__main__":
    # Deterministic exit: a thread of a library must not keep a finished command alive.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code) if os.environ.get("OMNITUNE_REPORTS") else sys.exit(code)
