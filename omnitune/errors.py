"""What ends a command, and how several mistakes are reported in one error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

E = TypeVar("E", bound=Exception)


class UserError(ValueError):
    """A mistake in what the user gave: the command prints the message alone and exits with 2."""


class MachineError(RuntimeError):
    """The machine failed (disk full, out of memory, a rank lost): message alone, exit code 3."""


class Stopped(Exception):
    """A signal asked the run to stop, and a complete checkpoint is saved: exit code 75."""


ON_EVERY_RANK = "every rank raises this"


def shared(error: E) -> E:
    """Note on an error that every rank raises it: the main rank alone tells the user."""
    if not is_shared(error):
        error.add_note(ON_EVERY_RANK)
    return error


def is_shared(error: BaseException) -> bool:
    return ON_EVERY_RANK in getattr(error, "__notes__", ())


class Mistakes:
    """What the user got wrong in parts that do not depend on each other, told in one error."""

    def __init__(self) -> None:
        self.errors: list[UserError] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep a UserError and go on behind the block."""
        try:
            yield
        except UserError as error:
            self.errors.append(error)

    def raise_all(self) -> None:
        """Raise one UserError of all lines, if there are any."""
        if not self.errors:
            return
        error = UserError("\n".join(map(str, self.errors)))
        raise shared(error) if all(map(is_shared, self.errors)) else error
